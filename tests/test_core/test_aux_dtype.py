"""The replica's products in a narrow type."""

import copy
import pickle

import pytest
import torch
from reference import expected, relative_error

from surge_det.core import SURGEConv2d, SURGELinear

KINDS = pytest.mark.parametrize('kind', ['conv', 'linear'])
# Seven bits behind the point.
UNITS = {'bfloat16': 2**-8}
NARROW = pytest.mark.parametrize('name', UNITS)


def build(kind, **kwargs):
    torch.manual_seed(0)
    if kind == 'conv':
        layer = SURGEConv2d(8, 6, 3, padding=1, eta=0.3, **kwargs)
    else:
        layer = SURGELinear(24, 6, eta=0.3, **kwargs)
    with torch.no_grad():
        layer.aux_weight.copy_(0.3 * torch.randn(layer.weight.shape))
    return layer


def inputs(kind):
    torch.manual_seed(1)
    size = (2, 8, 9, 7) if kind == 'conv' else (5, 24)
    return torch.randn(size).requires_grad_()


def run(layer, x, autocast=False):
    with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
        out = layer(x)
    torch.manual_seed(2)
    grad = torch.randn(out.shape)
    out.backward(grad.to(out.dtype))
    grads = {n: p.grad for n, p in layer.named_parameters()}
    return dict(out=out, grad=grad, x=x.grad, **grads)


def both(kind, name, **kwargs):
    autocast = kwargs.pop('autocast', False)
    wide = run(build(kind, **kwargs), inputs(kind), autocast)
    layer = build(kind, aux_dtype=name, **kwargs)
    return wide, run(layer, inputs(kind), autocast), layer


@pytest.mark.parametrize(
    'value',
    [
        'float16',
        torch.float16,
        'float32',
        'bf16',
        'int8',
        '',
        16,
        1.0,
        True,
        torch.float32,
        torch.int8,
    ]
    + [['bfloat16'], torch.float64, 'torch.bfloat16'],
    ids=repr,
)
@KINDS
def test_other_values_are_refused(kind, value):
    with pytest.raises(ValueError, match='aux_dtype=') as error:
        build(kind, aux_dtype=value)
    assert repr(value) in str(error.value)
    assert 'bfloat16' in str(error.value).split('allowed')[1]


@KINDS
@NARROW
def test_name_and_type_are_the_same(kind, name):
    dtype = getattr(torch, name)
    for value in (name, dtype):
        layer = build(kind, aux_dtype=value)
        assert layer.aux_dtype == dtype
        assert f'aux_dtype={name}' in repr(layer)
        assert '\n' not in repr(layer)
        for twin in (
            copy.deepcopy(layer),
            pickle.loads(pickle.dumps(layer)),
            layer.double(),
        ):
            assert twin.aux_dtype == dtype
    assert build(kind).aux_dtype is None
    assert 'aux_dtype' not in repr(build(kind))


@KINDS
@NARROW
def test_state_dict_is_the_same(kind, name):
    wide, narrow = build(kind), build(kind, aux_dtype=name)
    a, b = wide.state_dict(), narrow.state_dict()
    assert list(a) == list(b)
    for key in a:
        assert a[key].dtype == b[key].dtype == torch.float32
        assert torch.equal(a[key], b[key])
    with torch.no_grad():
        wide.weight.add_(1)
    narrow.load_state_dict(wide.state_dict())
    assert torch.equal(narrow.weight, wide.weight)


@KINDS
@NARROW
def test_the_binary_path_is_untouched(kind, name):
    wide, narrow, _ = both(kind, name)
    for key in ('out', 'weight', 'bias'):
        assert torch.equal(wide[key], narrow[key]), key
    for key in ('x', 'aux_weight'):
        assert not torch.equal(wide[key], narrow[key]), key
        assert narrow[key].dtype == torch.float32


@KINDS
@NARROW
def test_without_eta_there_is_no_difference(kind, name):
    results = []
    for kwargs in ({}, dict(aux_dtype=name)):
        layer = build(kind, **kwargs)
        layer.ags.eta = 0
        results.append(run(layer, inputs(kind)))
    for key, value in results[0].items():
        assert torch.equal(value, results[1][key]), key
    assert results[0]['x'].any()
    assert not results[0]['aux_weight'].any()


@KINDS
@NARROW
@pytest.mark.parametrize('autocast', [True, False])
def test_the_replica_within_rounding(kind, name, autocast):
    _, narrow, layer = both(kind, name, autocast=autocast)
    x = inputs(kind)
    geometry = dict(padding=1) if kind == 'conv' else dict(linear=True)
    want = expected(
        x,
        layer.weight,
        layer.aux_weight,
        layer.bias,
        narrow['grad'],
        layer.ags.eta,
        **geometry,
    )
    # Two factors and the result are rounded.
    unit = UNITS['bfloat16' if autocast else name]
    for key in ('x', 'aux_weight', 'weight', 'bias'):
        error = relative_error(narrow[key], getattr(want, key))
        assert error <= 4 * unit, (key, error)
    assert relative_error(layer.ags.last_scale, want.scale) <= 4 * unit


@KINDS
def test_autocast_in_the_same_type_changes_nothing(kind):
    wide, narrow, layer = both(kind, 'bfloat16', autocast=True)
    for key, value in wide.items():
        assert torch.equal(value, narrow[key]), key
        assert value.dtype == narrow[key].dtype
    assert layer.weight.grad.dtype == torch.float32


@KINDS
def test_a_narrow_model_needs_no_narrow_replica(kind):
    results = []
    for kwargs in ({}, dict(aux_dtype='bfloat16')):
        layer = build(kind, **kwargs).bfloat16()
        x = inputs(kind).detach().bfloat16().requires_grad_()
        results.append(run(layer, x))
    for key, value in results[0].items():
        assert torch.equal(value, results[1][key]), key


@KINDS
@NARROW
def test_evaluation_is_unchanged(kind, name):
    wide = run(build(kind).eval(), inputs(kind))
    narrow = run(build(kind, aux_dtype=name).eval(), inputs(kind))
    for key in ('out', 'x', 'weight', 'bias'):
        assert torch.equal(wide[key], narrow[key]), key
    assert narrow['aux_weight'] is None


@KINDS
@pytest.mark.parametrize('frozen', ['x', 'weight', 'aux_weight', 'bias'])
def test_whatever_is_frozen_the_rest_is_the_same(kind, frozen):
    whole = run(build(kind, aux_dtype='bfloat16'), inputs(kind))
    layer, x = build(kind, aux_dtype='bfloat16'), inputs(kind)
    (x if frozen == 'x' else getattr(layer, frozen)).requires_grad_(False)
    part = run(layer, x)
    assert part[frozen] is None
    for key, value in whole.items():
        if key != frozen:
            assert torch.equal(value, part[key]), key


@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('groups', [1, 4])
@pytest.mark.parametrize('last', [True, False])
@pytest.mark.parametrize('binarize_activation', [True, False])
def test_convolutions(stride, groups, last, binarize_activation):
    torch.manual_seed(0)
    layer = SURGEConv2d(
        8,
        4,
        3,
        padding=1,
        stride=stride,
        groups=groups,
        aux_dtype='bfloat16',
        binarize_activation=binarize_activation,
    )
    x = torch.randn(2, 8, 9, 7)
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
    got = run(layer, x.requires_grad_())
    want = expected(
        x,
        layer.weight,
        layer.aux_weight,
        layer.bias,
        got['grad'],
        layer.ags.eta,
        padding=1,
        stride=stride,
        groups=groups,
        binarize_activation=binarize_activation,
    )
    for key in ('x', 'aux_weight'):
        assert relative_error(got[key], getattr(want, key)) <= 2**-6, key
    assert relative_error(got['weight'], want.weight) <= 1e-5
    assert x.grad.stride() == x.stride()


@pytest.mark.parametrize('size', [1e-6, 1e-20, 1e6, 1e15])
@KINDS
def test_bfloat16_has_the_range_of_gradients(kind, size):
    results = []
    for kwargs in ({}, dict(aux_dtype='bfloat16')):
        layer, x = build(kind, **kwargs), inputs(kind)
        out = layer(x)
        torch.manual_seed(2)
        out.backward(size * torch.randn(out.shape))
        results.append((x.grad, layer.aux_weight.grad, layer.bias.grad))
    for wide, narrow in zip(*results, strict=True):
        assert narrow.isfinite().all()
        assert wide.any()
        assert relative_error(narrow, wide) <= 2**-6
