"""The learned shift in front of a layer's sign."""

import math

import pytest
import torch
from torch import nn

from surge_det.core import SURGEConv2d, SURGELinear
from surge_det.core.activations import LearnedShift

LAYERS = {
    'conv': (SURGEConv2d, lambda: nn.Conv2d(4, 5, 3, padding=1)),
    'linear': (SURGELinear, lambda: nn.Linear(4, 5)),
}
both = pytest.mark.parametrize('kind', list(LAYERS))


def inputs(kind):
    torch.manual_seed(1)
    return torch.randn((2, 4, 6, 6) if kind == 'conv' else (2, 3, 4))


def channel(shift, x, kind):
    return shift.view(1, -1, 1, 1) if kind == 'conv' else shift


@both
@pytest.mark.parametrize('eta', [0.0, 0.3])
def test_it_is_an_addition_in_front_of_the_layer(kind, eta):
    cls, make = LAYERS[kind]
    source = make().double()
    plain = cls.from_float(source, eta=eta)
    layer = cls.from_float(source, eta=eta, shift=0.25)
    torch.manual_seed(2)
    shift = torch.randn(4, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        layer.shift.copy_(shift)
    x, y = inputs(kind).double(), inputs(kind).double()
    x.requires_grad_()
    y.requires_grad_()
    out = layer(x)
    want = plain(y + channel(shift, y, kind))
    torch.testing.assert_close(out, want, rtol=0, atol=0)
    grad = torch.randn_like(out)
    out.backward(grad)
    want.backward(grad)
    torch.testing.assert_close(x.grad, y.grad)
    torch.testing.assert_close(layer.shift.grad, shift.grad)
    torch.testing.assert_close(layer.weight.grad, plain.weight.grad)
    torch.testing.assert_close(layer.aux_weight.grad, plain.aux_weight.grad)


def test_it_equals_the_module_in_front():
    layer = SURGEConv2d(4, 5, 3, shift=-0.5)
    shift = LearnedShift(4)
    nn.init.constant_(shift.shift, -0.5)
    plain = SURGEConv2d.from_float(layer)
    x = inputs('conv')
    assert torch.equal(layer(x), plain(shift(x)))
    assert torch.equal(layer(x[0]), plain(shift(x[:1]))[0])


@both
def test_start_name_and_default(kind):
    cls, make = LAYERS[kind]
    assert cls.from_float(make()).shift is None
    assert 'shift' not in cls.from_float(make()).state_dict()
    layer = cls.from_float(make(), shift=-0.5)
    assert torch.equal(layer.state_dict()['shift'], torch.full((4,), -0.5))
    assert 'shift=-0.5' in repr(layer)
    assert 'shift' not in repr(cls.from_float(make()))


@both
def test_it_moves_with_dtype_and_freezing(kind):
    cls, make = LAYERS[kind]
    source = make().double().requires_grad_(False)
    layer = cls.from_float(source, shift=0.0)
    assert layer.shift.dtype == torch.float64
    assert not layer.shift.requires_grad


@both
def test_autocast_keeps_the_narrow_type(kind):
    cls, make = LAYERS[kind]
    layer = cls.from_float(make(), shift=0.5)
    x = inputs(kind).bfloat16()
    with torch.autocast('cpu', torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16


@both
def test_a_float_checkpoint_leaves_the_start(kind):
    cls, make = LAYERS[kind]
    layer = cls.from_float(make(), shift=-0.5)
    source = make()
    layer.load_state_dict(source.state_dict())
    assert torch.equal(layer.weight, source.weight)
    assert torch.equal(layer.shift, torch.full((4,), -0.5))


@both
def test_its_own_checkpoint_is_loaded_and_kept(kind):
    cls, make = LAYERS[kind]
    layer, other = (cls.from_float(make(), shift=s) for s in (1.0, 2.0))
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other.shift, torch.ones(4))
    # The output depends on it: a layer that has none must not drop it.
    with pytest.raises(RuntimeError, match='shift'):
        cls.from_float(make()).load_state_dict(layer.state_dict())
    with pytest.raises(RuntimeError, match='weight'):
        layer.load_state_dict({'bias': layer.bias})


@both
def test_strip_keeps_it(kind):
    cls, make = LAYERS[kind]
    layer = cls.from_float(make(), shift=0.5)
    x = inputs(kind)
    want = layer(x)
    assert torch.equal(layer.strip()(x), want)


@both
@pytest.mark.parametrize('bad', [True, 'yes', math.nan, math.inf, [0.0]])
def test_a_bad_start_is_named(kind, bad):
    cls, make = LAYERS[kind]
    with pytest.raises(ValueError, match='shift'):
        cls.from_float(make(), shift=bad)
