"""Gradients on every way the adjoints take, by format, stride and width."""

import itertools

import pytest
import torch
from reference import expected, relative_error

from surge_det.core import SURGEConv2d
from surge_det.core.operators import conv as conv_operator

ROWS, LAST = torch.contiguous_format, torch.channels_last
FEW = conv_operator._FEW_CHANNELS
# Float32 sums of some hundreds of products.
SINGLE = 2e-5
NAMES = ('x', 'weight', 'aux_weight', 'bias')


def conv(dtype=torch.float32, c_in=4, c_out=6, **kwargs):
    torch.manual_seed(0)
    layer = SURGEConv2d(c_in, c_out, 3, padding=1, eta=0.3, **kwargs)
    with torch.no_grad():
        layer.aux_weight.copy_(0.3 * torch.randn(layer.weight.shape))
    return layer.to(dtype)


def run(layer, x, grad, fmt_grad=ROWS):
    out = layer(x)
    grad = grad.to(out.dtype).contiguous(memory_format=fmt_grad)
    leaves = [x, layer.weight, layer.aux_weight, layer.bias]
    names = [n for n, leaf in zip(NAMES, leaves) if leaf.requires_grad]
    leaves = [leaf for leaf in leaves if leaf.requires_grad]
    got = torch.autograd.grad(out, leaves, grad)
    return out, dict(zip(names, got, strict=True))


def wanted(layer, x, grad, **kwargs):
    return expected(
        x,
        layer.weight,
        layer.aux_weight,
        layer.bias,
        grad,
        layer.ags.eta,
        padding=1,
        stride=layer.stride,
        **kwargs,
    )


def grad_for(layer, x):
    return torch.randn_like(layer(x), memory_format=ROWS).detach()


@pytest.mark.parametrize('fmt', [ROWS, LAST])
@pytest.mark.parametrize('fmt_grad', [ROWS, LAST])
@pytest.mark.parametrize('stride', [1, 2, (1, 2)])
@pytest.mark.parametrize('c_in', [3, FEW, FEW + 1])
def test_formats(fmt, fmt_grad, stride, c_in):
    layer = conv(c_in=c_in, stride=stride)
    if fmt == LAST:
        layer = layer.to(memory_format=LAST)
    x = torch.randn(2, c_in, 9, 8).contiguous(memory_format=fmt)
    grad = grad_for(layer, x)
    x.requires_grad_()
    out, got = run(layer, x, grad, fmt_grad)
    want = wanted(layer, x, grad)
    assert relative_error(out, want.out) <= SINGLE
    for name in NAMES:
        assert relative_error(got[name], getattr(want, name)) <= SINGLE, name
    assert relative_error(layer.ags.last_scale, want.scale) <= SINGLE
    # Formats do not change on the way through the layer.
    assert out.is_contiguous(memory_format=fmt)
    assert got['x'].is_contiguous(memory_format=fmt)


@pytest.mark.parametrize('pad_value', [0, -1])
@pytest.mark.parametrize('fmt', [ROWS, LAST])
@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('groups', [1, 2, 8])
def test_groups_and_padding_in_float64(pad_value, fmt, stride, groups):
    layer = conv(
        torch.float64, 8, 8, stride=stride, groups=groups, pad_value=pad_value
    )
    x = torch.randn(2, 8, 7, 9, dtype=torch.float64)
    x = x.contiguous(memory_format=fmt)
    grad = grad_for(layer, x)
    x.requires_grad_()
    _, got = run(layer, x, grad, LAST)
    want = wanted(layer, x, grad, groups=groups, pad_value=pad_value)
    for name in NAMES:
        assert relative_error(got[name], getattr(want, name)) <= 1e-10, name


@pytest.mark.parametrize(
    'frozen',
    [c for n in (1, 2, 3) for c in itertools.combinations(NAMES, n)],
    ids='+'.join,
)
@pytest.mark.parametrize(('fmt', 'stride'), [(LAST, 1), (LAST, 2)])
def test_subsets(frozen, fmt, stride):
    layer = conv(torch.float64, stride=stride)
    x = torch.randn(2, 4, 7, 9, dtype=torch.float64)
    x = x.contiguous(memory_format=fmt)
    grad = grad_for(layer, x)
    x.requires_grad_('x' not in frozen)
    for name in NAMES[1:]:
        getattr(layer, name).requires_grad_(name not in frozen)
    _, got = run(layer, x, grad, fmt)
    assert got.keys() == set(NAMES) - set(frozen)
    want = wanted(layer, x, grad)
    for name, mine in got.items():
        assert relative_error(mine, getattr(want, name)) <= 1e-10, name


@pytest.mark.parametrize(
    'make',
    [
        lambda g: g[:1].expand_as(g),
        lambda g: g[..., :1].expand_as(g),
        lambda g: g.transpose(2, 3).contiguous().transpose(2, 3),
        lambda g: torch.cat([g, g], 1)[:, : g.shape[1]],
        lambda g: torch.zeros_like(g),
    ],
    ids=['expanded', 'expanded-columns', 'transposed', 'sliced', 'zero'],
)
@pytest.mark.parametrize('fmt', [ROWS, LAST])
def test_output_gradients_of_any_strides(make, fmt):
    layer = conv(torch.float64)
    x = torch.randn(2, 4, 7, 7, dtype=torch.float64)
    x = x.contiguous(memory_format=fmt).requires_grad_()
    out = layer(x)
    grad = make(torch.randn(out.shape, dtype=torch.float64))
    before = grad.clone()
    leaves = [x, layer.weight, layer.aux_weight, layer.bias]
    got = torch.autograd.grad(out, leaves, grad)
    assert torch.equal(grad, before)
    want = wanted(layer, x, grad)
    for mine, name in zip(got, NAMES, strict=True):
        assert relative_error(mine, getattr(want, name)) <= 1e-10, name


def test_a_second_backward_pass_through_the_same_graph():
    layer = conv()
    x = torch.randn(2, 4, 7, 7).requires_grad_()
    out = layer(x)
    grad = torch.randn(out.shape)
    leaves = [x, *layer.parameters()]
    first = torch.autograd.grad(out, leaves, grad, retain_graph=True)
    kept = [g.clone() for g in first]
    second = torch.autograd.grad(out, leaves, grad)
    for a, b, c in zip(first, second, kept, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)
