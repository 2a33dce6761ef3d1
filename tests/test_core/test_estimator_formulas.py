"""ApproxSign, ReSTE and EDE against formulas for single numbers."""

import math

import pytest
import rivals
import torch

from surge_det.core import EDE, STE, ApproxSign, ReSTE, SURGEConv2d

POINTS = [0.0, 0.25, 0.5, 0.9, 1.0]
FORMULAS = {
    'ApproxSign': rivals.approx,
    'ReSTE': rivals.reste,
    'EDE': rivals.ede,
}
CLASSES = {'ApproxSign': ApproxSign, 'ReSTE': ReSTE, 'EDE': EDE}
# ApproxSign does not change in training.
CASES = [
    ('ApproxSign', 0.0),
    *((name, p) for name in ('ReSTE', 'EDE') for p in POINTS),
]
every = pytest.mark.parametrize('name', list(CLASSES))
scheduled = pytest.mark.parametrize(('name', 'p'), CASES)


def values(dtype=torch.float64):
    """A grid, and where the formulas change."""
    edges = [0.0, -0.0, 0.1, -0.1, 1.0, -1.0, 1.5, -1.5, 1e-12, -1e-12]
    edges += [math.nextafter(e, math.inf) for e in (0.1, 1.5)]
    grid = torch.linspace(-3, 3, 97, dtype=dtype)
    return torch.cat([grid, torch.tensor(edges, dtype=dtype)])


def at(name, p):
    estimator = CLASSES[name]()
    if p:
        estimator.set_progress(p)
    return estimator


@scheduled
def test_derivative(name, p):
    x = values()
    got = at(name, p).derivative(x)
    want = rivals.elementwise(FORMULAS[name], p)(x)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    assert want.max() > 0.5


@pytest.mark.parametrize('p', POINTS)
def test_reste_with_other_settings(p):
    estimator = ReSTE(o_end=2.0, m=0.3, t=0.8)
    estimator.set_progress(p)
    x = values()
    want = [rivals.reste(v, p, 2.0, 0.3, 0.8) for v in x.tolist()]
    want = torch.tensor(want, dtype=torch.float64)
    torch.testing.assert_close(estimator.derivative(x), want)


def test_where_they_start():
    x = values()
    assert torch.equal(ReSTE().derivative(x), STE(clip=1.5).derivative(x))
    torch.testing.assert_close(
        EDE().derivative(x), torch.ones_like(x), rtol=0, atol=1e-5
    )
    assert ReSTE().scheduled() == {'o': 1.0}
    assert EDE().scheduled() == pytest.approx({'t': 1e-3, 'k': 1e3})


def test_where_they_end():
    reste, ede = ReSTE(), EDE()
    for estimator in (reste, ede):
        estimator.set_progress(1)
    assert reste.scheduled() == pytest.approx({'o': 3.0})
    assert ede.scheduled() == pytest.approx({'t': 10.0, 'k': 1.0})
    half = ReSTE()
    half.set_progress(0.5)
    # 1 + 2 (1 - cos 45 degrees)
    assert half.o == pytest.approx(3 - math.sqrt(2))
    ede.set_progress(0.5)
    assert ede.scheduled() == pytest.approx({'t': 0.1, 'k': 10.0})


@scheduled
def test_derivative_is_the_surrogates(name, p):
    # Off the points where a formula changes.
    x = (torch.linspace(-2.5, 2.5, 200).double() + 1e-3).requires_grad_()
    estimator = at(name, p)
    out = estimator.surrogate(x)
    (slope,) = torch.autograd.grad(out.sum(), x)
    # Between 0 and m, ReSTE's derivative is the secant's.
    torch.testing.assert_close(slope, estimator.derivative(x.detach()))
    assert torch.equal(estimator.surrogate(-x), -out)
    assert estimator.surrogate(torch.zeros(1)).item() == 0


@pytest.mark.parametrize('clip', [None, 0.5])
def test_surrogate_of_ste(clip):
    x = torch.linspace(-2, 2, 41).double().requires_grad_()
    out = STE(clip=clip).surrogate(x)
    (slope,) = torch.autograd.grad(out.sum(), x)
    assert torch.equal(slope, STE(clip=clip).derivative(x.detach()))


@scheduled
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_narrow_types(name, p, dtype):
    # Off the points where ReSTE jumps.
    x = (torch.linspace(-3, 3, 61) + 0.01).to(dtype)
    kept = x.clone()
    got = at(name, p).derivative(x)
    assert got.dtype == dtype
    assert got.shape == x.shape
    assert got.isfinite().all()
    assert torch.equal(x, kept)
    want = rivals.elementwise(FORMULAS[name], p)(x.double())
    torch.testing.assert_close(got.double(), want, rtol=0.05, atol=0.05)


@every
def test_input_is_not_changed(name):
    x = values()
    kept = x.clone()
    estimator = at(name, 0)
    estimator.derivative(x)
    estimator.surrogate(x)
    assert torch.equal(x, kept)


@every
def test_by_name_in_a_layer(name):
    layer = SURGEConv2d(
        2,
        3,
        3,
        activation_estimator=dict(type=name),
        weight_estimator=dict(type=name),
    )
    assert type(layer.weight_estimator) is CLASSES[name]
    assert layer.weight_estimator is not layer.activation_estimator
    assert set(layer.state_dict()) == {'weight', 'bias', 'aux_weight'}
    assert f'activation_estimator={name}(' in repr(layer)


@pytest.mark.parametrize('cls', [ReSTE, EDE])
@pytest.mark.parametrize(
    'bad', [-0.01, 1.01, math.nan, math.inf, True, '0.5', None]
)
def test_bad_progress_is_named(cls, bad):
    estimator = cls()
    before = estimator.scheduled()
    with pytest.raises(ValueError, match='p=') as error:
        estimator.set_progress(bad)
    assert repr(bad) in str(error.value)
    assert estimator.scheduled() == before


@pytest.mark.parametrize(
    'bad',
    [
        dict(o_end=0.5),
        dict(o_end=math.inf),
        dict(m=0),
        dict(m=2.0),
        dict(t=0.05),
        dict(t='wide'),
        dict(m=True),
    ],
    ids=str,
)
def test_bad_settings_of_reste_are_named(bad):
    ((name, value),) = bad.items()
    with pytest.raises(ValueError, match=f'{name}=') as error:
        ReSTE(**bad)
    assert repr(value) in str(error.value)
