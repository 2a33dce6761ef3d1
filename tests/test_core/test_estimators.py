import math

import pytest
import torch
from reference import ApproxSign, expected, relative_error

from surge_det.core import STE, SURGEConv2d, SURGELinear
from surge_det.core.estimators import build_estimator


def test_clipped_ste_passes_up_to_and_including_the_clip():
    above = math.nextafter(1.0, 2.0)
    x = torch.tensor(
        [-above, -1.0, -0.3, -0.0, 0.0, 1.0, above, 9.0], dtype=torch.float64
    )
    wanted = torch.tensor([0, 1, 1, 1, 1, 1, 0, 0], dtype=torch.float64)
    assert torch.equal(STE(clip=1.0).derivative(x), wanted)


def test_other_clip():
    x = torch.tensor([-0.6, -0.5, 0.2, 0.5, 0.51])
    assert STE(clip=0.5).derivative(x).tolist() == [0, 1, 1, 1, 0]


def test_no_clip_is_the_identity():
    x = torch.tensor([-1e6, -1.0, 0.0, 3.0])
    derivative = torch.as_tensor(STE(clip=None).derivative(x))
    assert torch.equal(derivative.expand_as(x), torch.ones(4))


@pytest.mark.parametrize('dtype', [torch.float16, torch.float64])
@pytest.mark.parametrize('clip', [1.0, None])
def test_derivative_keeps_shape_and_type(clip, dtype):
    x = torch.randn(2, 3, 1, 4).to(dtype)
    out = STE(clip=clip).derivative(x)
    assert out.shape == x.shape
    assert out.dtype == dtype


@pytest.mark.parametrize('clip', [-1.0, 0, math.nan, 'wide', True])
def test_bad_clip_is_named(clip):
    with pytest.raises(ValueError, match='clip.*: None or a') as error:
        STE(clip=clip)
    assert str(clip) in str(error.value)


def test_leak_beyond_the_window():
    above = math.nextafter(1.0, 2.0)
    x = torch.tensor([-9.0, -above, -1.0, 0.0, 1.0, above, math.nan])
    x = x.double()
    x[1], x[5] = -above, above
    leaky = STE(clip=1.0, leak=0.1)
    wanted = [0.1, 0.1, 1, 1, 1, 0.1, 0.1]
    assert leaky.derivative(x).tolist() == pytest.approx(wanted, abs=0)
    grad = torch.arange(1.0, 8.0).double()
    assert torch.equal(
        leaky.times_derivative(x, grad), grad * leaky.derivative(x)
    )
    points = torch.tensor([-3.0, -1.0, 0.5, 2.0]).requires_grad_()
    out = leaky.surrogate(points)
    assert out.tolist() == pytest.approx([-1.2, -1.0, 0.5, 1.1])
    (slope,) = torch.autograd.grad(out.sum(), points)
    assert slope[[0, 2, 3]].tolist() == pytest.approx([0.1, 1.0, 0.1])
    assert repr(leaky) == 'STE(clip=1.0, leak=0.1)'


@pytest.mark.parametrize('leak', [-0.1, 1.1, math.nan, 'much', None])
def test_bad_leak_is_named(leak):
    with pytest.raises(ValueError, match=r'leak.*a number in \[0, 1\]'):
        STE(leak=leak)


def test_no_leak_without_a_window():
    with pytest.raises(ValueError, match='leak=0.1 .*clip=None only 0'):
        STE(clip=None, leak=0.1)


@pytest.mark.parametrize('compensate', [False, True])
def test_gradients_of_a_leaky_layer(compensate):
    torch.manual_seed(0)
    leaky = {'type': 'STE', 'clip': 1.0, 'leak': 0.1}
    layer = SURGEConv2d(
        3, 4, 3, activation_estimator=leaky, compensate=compensate, eta=0.0
    )
    plain = SURGEConv2d(
        3,
        4,
        3,
        activation_estimator={'type': 'STE', 'clip': None},
        compensate=False,
    )
    plain.load_state_dict(
        {k: v for k, v in layer.state_dict().items() if k != 'aux_weight'}
    )
    x = 2 * torch.randn(2, 3, 6, 6)
    grads = []
    for one in (layer, plain):
        inner = x.clone().requires_grad_()
        one(inner).square().sum().backward()
        grads.append(inner.grad)
    factor = torch.where(x.abs() <= 1, 1.0, 0.1)
    torch.testing.assert_close(grads[0], factor * grads[1])


def test_built_from_a_config():
    assert build_estimator({'type': 'STE', 'clip': 0.5}).clip == 0.5
    for argument, args in (('spec', ()), ('mine', ('mine',))):
        with pytest.raises(ValueError, match=f'^{argument}='):
            build_estimator(3, *args)


def test_repr_tells_the_clip():
    assert '0.5' in repr(STE(clip=0.5))
    assert 'None' in repr(STE(clip=None))


@pytest.mark.parametrize('which', ['activation_estimator', 'weight_estimator'])
@pytest.mark.parametrize(
    'bad',
    [
        dict(type='NoSuchEstimator'),
        dict(clip=1.0),
        dict(type='STE', clip=-1.0),
        dict(type='STE', klip=1.0),
        'STE()',
        object(),
        1.0,
    ],
)
def test_bad_estimator_is_refused(which, bad):
    with pytest.raises(ValueError, match=f'{which}|clip|klip'):
        SURGEConv2d(2, 2, 3, **{which: bad})


@pytest.mark.parametrize('which', ['activation_estimator', 'weight_estimator'])
def test_message_names_the_argument_and_the_bad_value(which):
    with pytest.raises(ValueError, match=which) as error:
        SURGELinear(2, 2, **{which: dict(type='NoSuchEstimator')})
    assert 'NoSuchEstimator' in str(error.value)
    assert 'STE' in str(error.value)


def gradients(layer, x):
    x = x.clone().requires_grad_()
    layer(x).pow(2).sum().backward()
    return [x.grad] + [p.grad for p in layer.parameters()]


def test_dict_and_instance_are_the_same():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 5, 5)
    by_dict = SURGEConv2d(
        3,
        4,
        3,
        activation_estimator=dict(type='STE', clip=0.5),
        weight_estimator=dict(type='STE', clip=0.1),
    )
    by_instance = SURGEConv2d(
        3,
        4,
        3,
        activation_estimator=STE(clip=0.5),
        weight_estimator=STE(clip=0.1),
    )
    by_instance.load_state_dict(by_dict.state_dict())
    for a, b in zip(gradients(by_dict, x), gradients(by_instance, x)):
        assert torch.equal(a, b)


def test_a_settings_dict_is_not_modified():
    settings = dict(type='STE', clip=0.5)
    for _ in range(2):
        SURGEConv2d(2, 2, 3, activation_estimator=settings)
    assert settings == dict(type='STE', clip=0.5)


def test_defaults_are_clip_one_for_activations_and_identity_for_weights():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 5, 5) * 2
    default = SURGEConv2d(3, 4, 3)
    with torch.no_grad():
        default.weight.mul_(20)
    explicit = SURGEConv2d(
        3,
        4,
        3,
        activation_estimator=STE(clip=1.0),
        weight_estimator=STE(clip=None),
    )
    explicit.load_state_dict(default.state_dict())
    for a, b in zip(gradients(default, x), gradients(explicit, x)):
        assert torch.equal(a, b)


def test_users_own_estimator():
    torch.manual_seed(0)
    layer = SURGEConv2d(
        3,
        4,
        3,
        activation_estimator=ApproxSign(),
        weight_estimator=ApproxSign(),
        eta=0.3,
        dtype=torch.float64,
    )
    x = torch.randn(2, 3, 6, 5, dtype=torch.float64, requires_grad=True)
    out = layer(x)
    grad = torch.randn_like(out)
    out.backward(grad)
    h = ApproxSign().derivative
    want = expected(
        x,
        layer.weight,
        layer.aux_weight,
        layer.bias,
        grad,
        0.3,
        h_x=h,
        h_w=h,
    )
    assert relative_error(x.grad, want.x) < 1e-10
    assert relative_error(layer.weight.grad, want.weight) < 1e-10
    assert relative_error(layer.aux_weight.grad, want.aux_weight) < 1e-10
