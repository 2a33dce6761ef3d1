"""Bytes kept for the backward pass, and that less makes no difference."""

import math

import pytest
import torch

from surge_det.core import (
    EDE,
    STE,
    ApproxSign,
    ReSTE,
    SURGEConv2d,
    SURGELinear,
)

LAST = torch.channels_last
# Odd sizes do not fill their last byte.
SIZES = {
    'conv': (2, 16, 20, 20),
    'conv-odd': (1, 3, 7, 9),
    'linear': (64, 50),
    'linear-odd': (3, 5, 7),
}


def build(kind, **kwargs):
    torch.manual_seed(0)
    size = SIZES[kind]
    if kind.startswith('conv'):
        return SURGEConv2d(size[1], 5, 3, padding=1, **kwargs)
    return SURGELinear(size[-1], 5, **kwargs)


def inputs(kind, last=False):
    torch.manual_seed(1)
    x = 1.5 * torch.randn(SIZES[kind])
    x.view(-1)[:4] = torch.tensor([0.0, -0.0, 1.0, -1.0])
    if last:
        x = x.contiguous(memory_format=LAST)
    return x.requires_grad_()


def kept(layer, x, **kwargs):
    """Storages kept beside parameters, by type."""
    known = {p.untyped_storage().data_ptr() for p in layer.parameters()}
    storages = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            storages[storage.data_ptr()] = (tensor.dtype, storage.nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        out = layer(x, **kwargs)
    by_type = {}
    for dtype, size in storages.values():
        by_type[dtype] = by_type.get(dtype, 0) + size
    # One number for each of the five channels.
    if by_type.get(torch.float32, 0) >= 20:
        by_type[torch.float32] -= 20
    return {t: n for t, n in by_type.items() if n}, out


KINDS = pytest.mark.parametrize('kind', SIZES)
FORMATS = pytest.mark.parametrize(
    ('kind', 'last'),
    [*((kind, False) for kind in SIZES), ('conv', True), ('conv-odd', True)],
)


@FORMATS
@pytest.mark.parametrize('clip', [1.0, None])
def test_two_bits_without_a_replica(kind, last, clip):
    layer = build(kind, compensate=False, activation_estimator=STE(clip))
    x = inputs(kind, last)
    assert kept(layer, x)[0] == {torch.uint8: math.ceil(x.numel() / 4)}


@FORMATS
def test_two_bits_in_eval_mode(kind, last):
    x = inputs(kind, last)
    for kwargs in ({}, dict(aux_dtype='bfloat16')):
        layer = build(kind, **kwargs).eval()
        assert kept(layer, x)[0] == {torch.uint8: math.ceil(x.numel() / 4)}


@FORMATS
def test_the_input_itself_for_a_replica(kind, last):
    x = inputs(kind, last)
    layer = build(kind)
    assert kept(layer, x)[0] == {torch.float32: x.nbytes}


@FORMATS
@pytest.mark.parametrize('name', ['bfloat16'])
def test_bits_and_a_narrow_copy(kind, last, name):
    x = inputs(kind, last)
    layer = build(kind, aux_dtype=name)
    assert kept(layer, x)[0] == {
        getattr(torch, name): 2 * x.numel(),
        torch.uint8: math.ceil(x.numel() / 4),
    }


@KINDS
@pytest.mark.parametrize('aux_dtype', [None, 'bfloat16'])
@pytest.mark.parametrize('make', [EDE, ReSTE, ApproxSign])
def test_estimators_without_a_window_need_the_input(kind, aux_dtype, make):
    x = inputs(kind)
    for compensate in (True, False):
        layer = build(
            kind,
            activation_estimator=make(),
            compensate=compensate,
            aux_dtype=aux_dtype,
        )
        assert kept(layer, x)[0] == {torch.float32: x.nbytes}


@KINDS
def test_a_real_input_is_kept_as_it_is(kind):
    x = inputs(kind)
    layer = build(kind, compensate=False, binarize_activation=False)
    assert kept(layer, x)[0] == {torch.float32: x.nbytes}


@KINDS
@pytest.mark.parametrize('grad_off', [torch.no_grad, torch.inference_mode])
def test_nothing_without_gradients(kind, grad_off):
    for kwargs in ({}, dict(compensate=False), dict(aux_dtype='bfloat16')):
        with grad_off():
            by_type, out = kept(build(kind, **kwargs), inputs(kind))
        assert by_type == {}
        assert out.grad_fn is None


@KINDS
def test_autocast_keeps_two_bits_too(kind):
    x = inputs(kind)
    layer = build(kind, compensate=False)
    with torch.autocast('cpu', torch.bfloat16):
        by_type, out = kept(layer, x)
    assert out.dtype == torch.bfloat16
    assert by_type == {torch.uint8: math.ceil(x.numel() / 4)}


class Unseen:
    """STE without a window: the input is kept."""

    def __init__(self, clip):
        self.clip = clip

    def derivative(self, x):
        if self.clip is None:
            return torch.ones_like(x)
        return (x.abs() <= self.clip).to(x.dtype)


def gradients(layer, x, autocast=False):
    with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
        out = layer(x)
    torch.manual_seed(2)
    out.backward(torch.randn(out.shape).to(out.dtype))
    return [out, x.grad, *(p.grad for p in layer.parameters())]


@FORMATS
@pytest.mark.parametrize('clip', [1.0, 0.5, None])
@pytest.mark.parametrize('autocast', [True, False])
def test_gradients_from_bits_and_from_the_input(kind, last, clip, autocast):
    results = []
    for estimator in (STE(clip), Unseen(clip)):
        layer = build(kind, compensate=False, activation_estimator=estimator)
        x = inputs(kind, last)
        results.append(gradients(layer, x, autocast))
        results[-1].append(torch.tensor(sum(kept(layer, x)[0].values())))
    (*bits, few), (*full, many) = results
    assert few < many
    for a, b in zip(bits, full, strict=True):
        assert torch.equal(a, b)
        assert a.stride() == b.stride()
    if clip is not None:
        assert (full[1] == 0).any()


@FORMATS
@pytest.mark.parametrize('train', [True, False])
def test_gradients_by_checkpointing(kind, last, train):
    from torch.utils.checkpoint import checkpoint

    layers = [build(kind, aux_dtype='bfloat16').train(train) for _ in '12']
    a, b = (inputs(kind, last) for _ in '12')
    wanted = gradients(layers[0], a)
    out = checkpoint(layers[1], b, use_reentrant=False)
    torch.manual_seed(2)
    out.backward(torch.randn(out.shape))
    mine = [out, b.grad, *(p.grad for p in layers[1].parameters())]
    for one, other in zip(mine, wanted, strict=True):
        if other is None:
            assert one is None
        else:
            assert torch.equal(one, other)


def test_a_change_in_place_after_the_forward_pass_is_noticed_or_harmless():
    # Bits are a copy: writing to the input, as an inplace ReLU does, is fine.
    layer = build('conv', compensate=False)
    x = inputs('conv')
    wanted = gradients(layer, x)[1]
    layer.zero_grad()
    leaf = inputs('conv')
    y = leaf * 1
    out = layer(y)
    y.data.zero_()
    torch.manual_seed(2)
    out.backward(torch.randn(out.shape))
    assert torch.equal(leaf.grad, wanted)
    # The input itself is not: autograd says so.
    layer = build('conv')
    y = leaf * 1
    out = layer(y)
    y.add_(1)
    with pytest.raises(RuntimeError, match='modified by an inplace'):
        out.sum().backward()
