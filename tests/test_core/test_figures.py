"""Figures of a layer against their definitions."""

import math

import pytest
import torch

from surge_det.core import SURGEConv2d
from surge_det.core.figures import FIGURES, layer_figures

ESTIMATORS = {
    'ste': {'type': 'STE', 'clip': 1.0},
    'leaky': {'type': 'STE', 'leak': 0.1},
    'approx': {'type': 'ApproxSign'},
}


def derivative(name, x):
    inside = (x.abs() <= 1).to(x.dtype)
    if name == 'ste':
        return inside
    if name == 'leaky':
        return torch.where(inside == 1, 1.0, 0.1)
    return (2 - 2 * x.abs()).clamp(min=0)


@pytest.mark.parametrize('name', ESTIMATORS)
@pytest.mark.parametrize('eta', [0.3, 'auto'])
@pytest.mark.parametrize('aux_dtype', [None, 'bfloat16'])
def test_definitions(name, eta, aux_dtype):
    torch.manual_seed(0)
    layer = SURGEConv2d(
        3,
        4,
        3,
        bias=False,
        eta=eta,
        aux_dtype=aux_dtype,
        activation_estimator=ESTIMATORS[name],
    )
    layer.begin_training()
    _, before = layer_figures(layer)
    with torch.no_grad():
        # Seven of 108 signs turn; some weights leave [-1, 1].
        layer.weight.view(-1)[:7] *= -1
        layer.weight.view(-1)[20:23] += 3
        layer.aux_weight += 0.05 * torch.randn_like(layer.aux_weight)
    turned = ((layer.weight >= 0) != before).float().mean().item()
    assert turned >= 7 / 108
    x = (1.5 * torch.randn(2, 3, 6, 6)).requires_grad_()
    layer.watches = True
    grad = torch.randn(2, 4, 4, 4)
    layer(x).backward(grad)
    got, _ = layer_figures(layer, before)
    got = {key: value.item() for key, value in got.items()}
    assert set(got) == set(FIGURES)

    signs = torch.where(x.detach() >= 0, 1.0, -1.0).requires_grad_()
    alpha = layer.weight.abs().mean((1, 2, 3), keepdim=True)
    weight = alpha * torch.where(layer.weight >= 0, 1.0, -1.0)
    (whole,) = torch.autograd.grad(torch.conv2d(signs, weight), signs, grad)
    real = x.detach().requires_grad_()
    (g_a,) = torch.autograd.grad(
        torch.conv2d(real, layer.aux_weight), real, grad
    )
    h = derivative(name, x.detach())
    g_b = h * whole
    lengths = g_b.norm() * g_a.norm()
    wanted = {
        'norm_b': g_b.norm(),
        'norm_a': g_a.norm(),
        'cosine': (g_b * g_a).sum() / lengths,
        'missed': ((1 - h) * whole * g_a).sum() / lengths,
        'clipped': (h == 0).float().mean(),
        'outside': (layer.weight.abs() > 1).float().mean(),
        'distance': (layer.aux_weight - layer.weight).norm()
        / layer.weight.norm(),
    }
    tolerance = 1e-5 if aux_dtype is None else 2e-2
    for key, value in wanted.items():
        assert got[key] == pytest.approx(value.item(), rel=tolerance), key
    assert got['flipped'] == pytest.approx(turned)
    if eta != 'auto':
        assert got['eta'] == pytest.approx(0.3)
    else:
        assert got['eta'] == pytest.approx(max(got['missed'] / 4, 0), abs=1e-6)
    assert got['scale'] == pytest.approx(
        got['eta'] * got['norm_b'] / got['norm_a'], rel=1e-5
    )
    assert not math.isnan(sum(got.values()))


def test_what_was_not_asked_for_is_not_computed():
    layer = SURGEConv2d(3, 4, 3)
    layer(torch.randn(1, 3, 5, 5, requires_grad=True)).sum().backward()
    got, _ = layer_figures(layer)
    assert set(FIGURES) - set(got) == {
        'cosine',
        'missed',
        'clipped',
        'flipped',
    }


@pytest.mark.parametrize('eta', [0.1, 'auto'])
def test_what_a_watched_pass_left_does_not_outlive_it(eta):
    layer = SURGEConv2d(3, 4, 3, eta=eta)
    watched = {'cosine', 'missed', 'clipped'}

    def applied():
        out = layer(torch.randn(1, 3, 5, 5, requires_grad=True))
        out.sum().backward()
        return watched & {*layer_figures(layer)[0]}

    layer.watches = True
    # Of several applications the last one counts.
    assert applied() == applied() == watched
    layer.watches = False
    assert applied() == set()
    # A pass to watch that does not reach the layer.
    layer.watches = True
    assert not watched & {*layer_figures(layer)[0]}
    assert applied() == watched


@pytest.mark.parametrize('name', ESTIMATORS)
@pytest.mark.parametrize('without', [{'compensate': False}, {'eta': 0}])
def test_what_is_clipped_needs_no_replica(name, without):
    torch.manual_seed(0)
    layer = SURGEConv2d(
        3, 4, 3, activation_estimator=ESTIMATORS[name], **without
    )
    x = 1.5 * torch.randn(2, 3, 6, 6)
    layer.watches = True
    # The first layer's input takes no gradient.
    layer(x).sum().backward()
    got, _ = layer_figures(layer)
    assert got['clipped'] == (derivative(name, x) == 0).float().mean()
    assert ('distance' in got) == layer.compensate
    assert not {'cosine', 'missed', 'norm_b'} & set(got)


def test_what_is_not_binarized_is_neither_clipped_nor_turned():
    x = torch.randn(1, 3, 5, 5)
    for own, others in (
        ('binarize_activation', {'flipped', 'outside'}),
        ('binarize_weight', {'clipped'}),
    ):
        layer = SURGEConv2d(3, 4, 3, compensate=False, **{own: False})
        layer.watches = True
        layer(x).sum().backward()
        _, signs = layer_figures(layer)
        assert {*layer_figures(layer, signs)[0]} == others


@pytest.mark.parametrize('binarizer', ['IRNet', 'ReCU'])
def test_a_weight_is_turned_where_the_sign_is_that_the_layer_takes(binarizer):
    torch.manual_seed(0)
    layer = SURGEConv2d(
        8, 16, 3, compensate=False, weight_binarizer={'type': binarizer}
    )
    _, before = layer_figures(layer)
    # Their mean is subtracted before the sign is taken.
    layer.weight.data += 0.05
    assert layer_figures(layer, before)[0]['flipped'] == 0
    layer.weight.data *= -1
    assert layer_figures(layer, before)[0]['flipped'] == 1


def test_of_no_input_nothing_is_clipped():
    layer = SURGEConv2d(3, 4, 3)
    layer.watches = True
    layer(torch.randn(0, 3, 5, 5)).sum().backward()
    assert 'clipped' not in layer_figures(layer)[0]
