"""STE's fast ways against its definition, at the edge of its window."""

import math

import pytest
import torch
from torch._subclasses import FakeTensorMode

from surge_det.core import STE, SURGEConv2d
from surge_det.core.estimators import Estimator

DTYPES = [torch.float32, torch.float64, torch.bfloat16]
CLIPS = [1.0, 1, 0.3, 0.1, 1.5, 1e-45, 1e-46, 5e-324, 3.4028235e38, 2.0**127]
LARGE = [1e39, math.inf]


def edge(clip, dtype):
    """The window's end in a type, its neighbours, and some more."""
    end = torch.tensor(clip, dtype=dtype)
    up = torch.tensor(math.inf, dtype=dtype)
    numbers = [
        end,
        torch.nextafter(end, up),
        torch.nextafter(end, -up),
        torch.zeros((), dtype=dtype),
        end / 2,
        end * 2,
        torch.tensor(1.0, dtype=dtype),
    ]
    x = torch.stack(numbers)
    # More than a vector register, and a rest.
    return torch.cat([x, -x]).repeat(5)


def grads(x, dtype):
    g = torch.arange(1, x.numel() + 1, dtype=dtype)
    return g * torch.where(torch.arange(x.numel()) % 2 == 0, 1, -1).to(dtype)


def definition(x, clip, dtype):
    inside = [abs(v) <= clip for v in x.tolist()]
    return torch.tensor(inside).to(dtype)


@pytest.mark.parametrize('clip', [*CLIPS, *LARGE])
@pytest.mark.parametrize('dtype', DTYPES)
def test_window_is_where_the_derivative_is_one(clip, dtype):
    x = edge(clip, dtype)
    estimator = STE(clip)
    window = estimator.window(x)
    assert window.dtype == torch.bool
    assert torch.equal(window.to(dtype), estimator.derivative(x))
    odd = torch.tensor([math.nan, math.inf, -math.inf], dtype=dtype)
    assert torch.equal(
        estimator.window(odd).to(dtype), estimator.derivative(odd)
    )


@pytest.mark.parametrize('clip', CLIPS)
@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('grad_dtype', DTYPES)
def test_times_derivative(clip, dtype, grad_dtype):
    x = edge(clip, dtype)
    grad = grads(x, grad_dtype)
    before = grad.clone()
    out = STE(clip).times_derivative(x, grad)
    assert out.dtype == grad_dtype
    wanted = grad * STE(clip).derivative(x).to(grad_dtype)
    assert torch.equal(out, wanted)
    assert (wanted != 0).any()
    if clip < 3e38:
        assert (wanted == 0).any()
    assert torch.equal(grad, before)


@pytest.mark.parametrize('clip', [1.0, 0.5, 1.5])
@pytest.mark.parametrize('dtype', DTYPES)
def test_definition(clip, dtype):
    x = edge(clip, dtype)
    grad = grads(x, dtype)
    wanted = grad * definition(x, clip, dtype)
    assert torch.equal(STE(clip).times_derivative(x, grad), wanted)


@pytest.mark.parametrize(
    ('clip', 'dtype'),
    [
        (1e39, torch.float32),
        (math.inf, torch.float32),
        (math.inf, torch.float64),
    ],
)
def test_a_window_wider_than_the_type(clip, dtype):
    x = torch.tensor([0.0, 1.0, -3e38, math.inf, -math.inf] * 9, dtype=dtype)
    grad = grads(x, dtype)
    wanted = grad * STE(clip).derivative(x)
    assert torch.equal(STE(clip).times_derivative(x, grad), wanted)


@pytest.mark.parametrize('dtype', DTYPES)
def test_without_clipping_nothing_is_done(dtype):
    x, grad = torch.randn(2, 9).to(dtype)
    assert STE(None).window(x) is None
    assert torch.equal(STE(None).times_derivative(x, grad), grad)


@pytest.mark.parametrize('fmt', ['rows', 'last', 'strided', 'mixed'])
def test_any_strides(fmt):
    torch.manual_seed(0)
    x, grad = 2 * torch.randn(2, 2, 4, 5, 6)
    if fmt != 'rows':
        x = x.contiguous(memory_format=torch.channels_last)
    if fmt == 'last':
        grad = grad.contiguous(memory_format=torch.channels_last)
    if fmt == 'strided':
        x, grad = x[:, ::2], grad[:, 1:3]
    out = STE(1.0).times_derivative(x, grad)
    assert torch.equal(out, grad * (x.abs() <= 1))


class Half(Estimator):
    """Only what a user must write."""

    def derivative(self, x):
        return 0.5 * (x.abs() <= 2).to(x.dtype)


class Bare:
    """No base class at all."""

    def derivative(self, x):
        return 0.5 * (x.abs() <= 2).to(x.dtype)


class Windowed(Bare):
    """A half-open window around a middle of its own."""

    def derivative(self, x):
        return self.window(x).to(x.dtype)

    def window(self, x):
        return (x > 0.25) & (x <= 2)


class Everywhere(Bare):
    """A window that says ``None`` without being the identity by name."""

    def derivative(self, x):
        return torch.ones_like(x)

    def window(self, x):
        return None


def gradients(kind, estimator, compensate, **kwargs):
    torch.manual_seed(0)
    layer = SURGEConv2d(
        4,
        6,
        3,
        padding=1,
        compensate=compensate,
        **{kind: estimator},
        **kwargs,
    ).double()
    torch.manual_seed(1)
    x = (2 * torch.randn(2, 4, 7, 5, dtype=torch.float64)).requires_grad_()
    with torch.no_grad():
        layer.weight.mul_(20)
    out = layer(x)
    out.backward(torch.randn_like(out))
    return [x.grad, *(p.grad for p in layer.parameters())]


@pytest.mark.parametrize('kind', ['activation_estimator', 'weight_estimator'])
@pytest.mark.parametrize('compensate', [True, False])
def test_an_estimator_with_a_derivative_only(kind, compensate):
    identity = gradients(kind, STE(None), compensate)
    assert all(
        torch.equal(a, b)
        for a, b in zip(
            gradients(kind, Half(), compensate),
            gradients(kind, Bare(), compensate),
            strict=True,
        )
    )
    half = gradients(kind, Bare(), compensate=False)
    plain = gradients(kind, STE(2.0), compensate=False)
    place = 0 if kind == 'activation_estimator' else 1
    torch.testing.assert_close(half[place], plain[place] / 2)
    assert not torch.equal(plain[place], identity[place])


@pytest.mark.parametrize('compensate', [True, False])
@pytest.mark.parametrize('cls', [Windowed, Everywhere])
@pytest.mark.parametrize('kind', ['activation_estimator', 'weight_estimator'])
def test_a_window_of_ones_own(cls, compensate, kind):
    class Unseen:
        """The same without the window: the input is kept."""

        def derivative(self, x):
            return cls().derivative(x)

    mine = gradients(kind, cls(), compensate)
    wanted = gradients(kind, Unseen(), compensate)
    assert all(torch.equal(a, b) for a, b in zip(mine, wanted, strict=True))
    assert mine[0].any()
    narrow = gradients(kind, cls(), compensate, aux_dtype='bfloat16')
    assert torch.equal(narrow[1], mine[1])
    torch.testing.assert_close(narrow[0], mine[0], rtol=0.02, atol=0.02)


def test_the_window_may_be_changed():
    ste = STE(clip=1.0)
    x, ones = torch.tensor([0.4, 0.5, 0.6]), torch.ones(3)
    assert ste.times_derivative(x, ones).tolist() == [1, 1, 1]
    ste.clip = 0.5
    assert ste.times_derivative(x, ones).tolist() == [1, 1, 0]
    ste.clip = None
    assert ste.times_derivative(x, ones).tolist() == [1, 1, 1]


def test_fake_tensors_are_enough():
    with FakeTensorMode():
        x = torch.randn(3)
        assert STE(clip=0.731).times_derivative(x, x).shape == (3,)
