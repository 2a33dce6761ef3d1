"""ReActNet's shift and PReLU against formulas written out, in float64."""

import pytest
import torch

from surge_det.core import LearnedShift, RPReLU


def _data(shape):
    generator = torch.Generator().manual_seed(3)
    make = torch.randn(*shape, generator=generator, dtype=torch.float64)
    return make.requires_grad_(), torch.randn_like(make)


def _per_channel(values, x):
    return values.view(1, -1, *[1] * (x.dim() - 2))


@pytest.mark.parametrize('shape', [(4, 3, 5, 7), (4, 3)])
def test_shift(shape):
    x, upstream = _data(shape)
    layer = LearnedShift(3).double()
    assert torch.equal(layer(x), x)
    with torch.no_grad():
        layer.shift.copy_(torch.tensor([0.3, -0.2, 0.0]))
    out = layer(x)
    out.backward(upstream)
    assert torch.equal(out, x + _per_channel(layer.shift, x))
    assert torch.equal(x.grad, upstream)
    others = [i for i in range(x.dim()) if i != 1]
    torch.testing.assert_close(layer.shift.grad, upstream.sum(others))


@pytest.mark.parametrize('shape', [(4, 3, 5, 7), (4, 3)])
def test_rprelu(shape):
    x, upstream = _data(shape)
    layer = RPReLU(3).double()
    slope = torch.tensor([0.25, 2.0, -0.5], dtype=torch.float64)
    gamma = torch.tensor([0.3, -0.2, 0.0], dtype=torch.float64)
    zeta = torch.tensor([-1.0, 0.5, 0.1], dtype=torch.float64)
    start = torch.where(x > 0, x, 0.25 * x)
    torch.testing.assert_close(layer(x), start)
    with torch.no_grad():
        layer[0].shift.copy_(-gamma)
        layer[1].weight.copy_(slope)
        layer[2].shift.copy_(zeta)
    out = layer(x)
    out.backward(upstream)
    above = x > _per_channel(gamma, x)
    factor = torch.where(above, 1.0, _per_channel(slope, x))
    moved = x - _per_channel(gamma, x)
    torch.testing.assert_close(out, factor * moved + _per_channel(zeta, x))
    torch.testing.assert_close(x.grad, upstream * factor)
    others = [i for i in range(x.dim()) if i != 1]
    for param, wanted in (
        (layer[0].shift, upstream * factor),
        (layer[1].weight, upstream * moved * ~above),
        (layer[2].shift, upstream),
    ):
        torch.testing.assert_close(param.grad, wanted.sum(others))


@pytest.mark.parametrize('scope', ['mmengine', 'mmdet'])
@pytest.mark.parametrize('name', ['LearnedShift', 'RPReLU'])
def test_built_from_a_config(scope, name):
    pytest.importorskip(scope)
    import surge_det  # noqa: F401

    # isort: split
    from mmengine.registry import MODELS, DefaultScope

    with DefaultScope.overwrite_default_scope(scope):
        layer = MODELS.build(dict(type=name, channels=3))
    assert type(layer).__name__ == name
