"""Autocast, grad modes, torch.compile, and what a pass computes and keeps."""

import copy
import math
import pickle

import pytest
import torch
from reference import OpRecorder, expected, relative_error
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from surge_det.core import SURGEConv2d, SURGELinear

both = pytest.mark.parametrize('kind', ['conv', 'linear'])
HALF = [torch.float16, torch.bfloat16]


def build(kind, **kwargs):
    torch.manual_seed(0)
    if kind == 'conv':
        layer = SURGEConv2d(4, 8, 3, padding=1, eta=0.3, **kwargs)
    else:
        layer = SURGELinear(6, 8, eta=0.3, **kwargs)
    with torch.no_grad():
        if layer.aux_weight is not None:
            layer.aux_weight.normal_(std=0.2)
    return layer


def batch(kind, dtype=torch.float32):
    torch.manual_seed(1)
    shape = (2, 4, 9, 7) if kind == 'conv' else (3, 5, 6)
    return torch.randn(shape).to(dtype)


def want(layer, kind, x, grad):
    geometry = dict(padding=1) if kind == 'conv' else dict(linear=True)
    return expected(
        x,
        layer.weight,
        layer.aux_weight,
        layer.bias,
        grad,
        layer.ags.eta,
        **geometry,
    )


def check(layer, reference, x, tolerance):
    assert relative_error(x.grad, reference.x) < tolerance
    for name in ('weight', 'aux_weight', 'bias'):
        got = getattr(layer, name)
        assert got.grad.dtype == got.dtype
        assert relative_error(got.grad, getattr(reference, name)) < tolerance
    scale = layer.ags.last_scale
    assert relative_error(scale, reference.scale) < tolerance


# Autocast


@both
@pytest.mark.parametrize('dtype', HALF)
@pytest.mark.parametrize('backward_inside', [True, False])
def test_autocast(kind, dtype, backward_inside):
    layer = build(kind)
    x = batch(kind).requires_grad_()
    with torch.autocast('cpu', dtype=dtype):
        out = layer(x)
        assert out.dtype == dtype
        grad = torch.randn(out.shape).to(dtype)
        if backward_inside:
            out.backward(grad)
    if not backward_inside:
        out.backward(grad)
    reference = want(layer, kind, x, grad)
    assert relative_error(out, reference.out) < 0.02
    assert x.grad.dtype == torch.float32
    assert layer.ags.last_scale.dtype == torch.float32
    check(layer, reference, x, 0.02)


@both
@pytest.mark.parametrize('dtype', HALF)
@pytest.mark.parametrize('train', [True, False])
def test_autocast_output_type_is_a_float_layers(kind, dtype, train):
    layer = build(kind).train(train)
    twin = nn.Conv2d(4, 8, 3, padding=1) if kind == 'conv' else nn.Linear(6, 8)
    for source in (torch.float32, dtype, torch.float64):
        if source == torch.float64:
            layer, twin = layer.double(), twin.double()
        x = batch(kind, source)
        with torch.autocast('cpu', dtype=dtype):
            assert layer(x).dtype == twin(x).dtype
            with torch.no_grad():
                assert layer(x).dtype == twin(x).dtype
            with torch.autocast('cpu', enabled=False):
                assert layer(x.to(layer.weight)).dtype == layer.weight.dtype


@both
@pytest.mark.parametrize('dtype', HALF)
def test_autocast_of_an_input_that_is_half_already(kind, dtype):
    layer = build(kind)
    x = batch(kind, dtype).requires_grad_()
    with torch.autocast('cpu', dtype=dtype):
        out = layer(x)
    grad = torch.randn(out.shape).to(dtype)
    out.backward(grad)
    assert x.grad.dtype == dtype
    check(layer, want(layer, kind, x, grad), x, 0.02)


@both
def test_autocast_norms_do_not_overflow(kind):
    layer = build(kind)
    x = batch(kind).requires_grad_()
    with torch.autocast('cpu', dtype=torch.float16):
        out = layer(x)
    grad = (torch.randn(out.shape) * 600).to(torch.float16)
    out.backward(grad)
    reference = want(layer, kind, x, grad)
    assert reference.norm_b.pow(2) > torch.finfo(torch.float16).max
    check(layer, reference, x, 0.02)


@both
@pytest.mark.parametrize('dtype', HALF)
def test_half_layers(kind, dtype):
    layer = build(kind).to(dtype)
    x = batch(kind, dtype).requires_grad_()
    out = layer(x)
    assert out.dtype == dtype
    grad = torch.randn(out.shape).to(dtype)
    out.backward(grad)
    assert x.grad.dtype == dtype
    check(layer, want(layer, kind, x, grad), x, 0.03)


@both
def test_autocast_and_checkpointing(kind):
    grads = []
    for wrap in (False, True):
        layer = build(kind)
        x = batch(kind).requires_grad_()
        with torch.autocast('cpu', dtype=torch.bfloat16):
            out = (
                checkpoint(layer, x, use_reentrant=False) if wrap else layer(x)
            )
        out.float().pow(2).sum().backward()
        grads.append([x.grad, *(p.grad for p in layer.parameters())])
    for a, b in zip(*grads):
        assert torch.equal(a, b)


# Grad modes


@both
@pytest.mark.parametrize('train', [True, False])
def test_no_grad(kind, train):
    layer = build(kind).train(train)
    x = batch(kind)
    plain = layer(x)
    with torch.no_grad():
        out = layer(x)
    assert out.grad_fn is None
    assert not out.requires_grad
    assert torch.equal(out, plain)
    with torch.inference_mode():
        assert torch.equal(layer(x), plain)
    assert layer.ags.last_scale is None


@both
def test_training_after_inference_mode(kind):
    layer = build(kind)
    with torch.inference_mode():
        layer(batch(kind))
    x = batch(kind).requires_grad_()
    out = layer(x)
    grad = torch.randn_like(out)
    out.backward(grad)
    check(layer, want(layer, kind, x, grad), x, 1e-5)


# Copies


@both
@pytest.mark.parametrize(
    'duplicate',
    [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))],
    ids=['deepcopy', 'pickle'],
)
@pytest.mark.parametrize('after_step', [True, False])
def test_copies_are_independent(kind, duplicate, after_step):
    layer = build(kind)
    x = batch(kind)
    if after_step:
        layer(x).pow(2).sum().backward()
    twin = duplicate(layer)
    twin.zero_grad()
    layer.zero_grad()
    assert torch.equal(twin(x), layer(x))
    before = {n: p.detach().clone() for n, p in layer.named_parameters()}
    scale = layer.ags.last_scale
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
    twin(x).pow(2).sum().backward()
    optimizer.step()
    for name, parameter in layer.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.grad is None
        assert not torch.equal(getattr(twin, name), before[name])
    assert layer.ags.last_scale is scale
    assert twin.ags.last_scale is not None


# What a pass computes


def recorded(layer, x, steps=2):
    """The calls of the last of some forward and backward passes."""
    for _ in range(steps):
        layer.zero_grad()
        x = x.detach().requires_grad_()
        with OpRecorder() as forward:
            out = layer(x)
        with OpRecorder() as backward:
            out.backward(torch.ones_like(out))
    return forward, backward


def heavy(recorder):
    """Names of the calls that are convolutions or matrix products."""
    return [
        name
        for name in recorder.names()
        if any(word in name for word in ('conv', '::mm', 'addmm', 'bmm'))
    ]


@both
def test_forward_evaluates_no_replica(kind):
    layer, x = build(kind), batch(kind)
    plain = build(kind, compensate=False)
    forward, backward = recorded(layer, x)
    bare, bare_backward = recorded(plain, x)
    assert heavy(forward) == heavy(bare)
    assert heavy(bare)
    # The recorder does see what the backward pass adds.
    assert len(heavy(backward)) > len(heavy(bare_backward))


@both
def test_eval_mode_computes_what_a_layer_without_replica_does(kind):
    x = batch(kind)
    layer = recorded(build(kind).eval(), x)
    plain = recorded(build(kind, compensate=False).eval(), x)
    for ours, bare in zip(layer, plain):
        assert ours.names() == bare.names()


@both
def test_zero_eta_leaves_the_replica_out_of_the_backward_pass(kind):
    x = batch(kind)
    layer = build(kind)
    layer.ags.eta = 0
    _, backward = recorded(layer, x)
    _, bare = recorded(build(kind, compensate=False), x)
    assert heavy(backward) == heavy(bare)
    assert heavy(bare)


# What a pass keeps


def kept_storages(run, *known):
    """Bytes kept for backward by storage, the `known` tensors' left out."""
    storages = {}
    skip = {t.untyped_storage().data_ptr() for t in known}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in skip:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        out = run()
    return storages, out


LARGE = {'conv': (2, 16, 20, 20), 'linear': (64, 50)}


def large(kind, **kwargs):
    if kind == 'conv':
        return SURGEConv2d(16, 16, 3, padding=1, **kwargs)
    return SURGELinear(50, 40, **kwargs)


class NewStorages(TorchDispatchMode):
    """Weak references to the memory that the calls made."""

    def __init__(self):
        super().__init__()
        self.made = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        # Weights packed for oneDNN have no storage to look at.
        if isinstance(out, torch.Tensor) and not out.is_mkldnn:
            storage = out.untyped_storage()
            self.made[storage._cdata] = (
                StorageWeakRef(storage),
                storage.nbytes(),
            )
        return out

    def alive(self, *known):
        known = {t.untyped_storage()._cdata for t in known}
        return sum(
            size
            for key, (ref, size) in self.made.items()
            if not ref.expired() and key not in known
        )


@both
@pytest.mark.parametrize('autocast', [False, True])
@pytest.mark.parametrize('train', [True, False])
def test_what_forward_made_is_gone_but_for_the_output(kind, train, autocast):
    # Also what a Function keeps past `save_for_backward` would be seen.
    layer = large(kind).train(train)
    x = torch.randn(LARGE[kind], requires_grad=True)
    layer(x)
    with (
        torch.autocast('cpu', dtype=torch.bfloat16, enabled=autocast),
        NewStorages() as recorder,
    ):
        out = layer(x)
    assert out.requires_grad
    assert sum(size for _, size in recorder.made.values()) > x.nbytes
    known = (out, x, *layer.parameters())
    bits = 0 if train else math.ceil(x.numel() / 4)
    assert recorder.alive(*known) <= bits + 1024


@pytest.mark.parametrize('kwargs', [dict(pad_value=-1), dict(padding='same')])
def test_no_padded_copy_is_kept(kwargs):
    layer = SURGEConv2d(16, 16, 3, **{'padding': 1, **kwargs})
    x = torch.randn(LARGE['conv'], requires_grad=True)
    storages, _ = kept_storages(lambda: layer(x), *layer.parameters())
    assert 0 < sum(storages.values()) <= x.nbytes + 1024


@both
@pytest.mark.parametrize('frozen', ['x', 'weight', 'both'])
def test_eval_mode_keeps_nothing_of_the_replica(kind, frozen):
    layer = large(kind).eval()
    x = torch.randn(LARGE[kind], requires_grad=frozen == 'weight')
    layer.weight.requires_grad_(frozen == 'x')
    replica = layer.aux_weight.untyped_storage().data_ptr()
    storages, _ = kept_storages(lambda: layer(x))
    assert replica not in storages
    storages, _ = kept_storages(lambda: layer.train()(x))
    assert replica in storages


@both
def test_backward_frees_what_it_kept(kind):
    layer, x = build(kind), batch(kind)
    out = layer(x)
    out.sum().backward()
    with pytest.raises(RuntimeError, match='second time'):
        out.sum().backward()


# torch.compile


def compiled_step(module, layer, x):
    layer.zero_grad()
    x = x.detach().clone().requires_grad_()
    out = module(x)
    out.pow(2).sum().backward()
    return [
        out.detach(),
        x.grad,
        layer.ags.last_scale,
        *(p.grad for p in layer.parameters()),
    ]


@both
@pytest.mark.parametrize('backend', ['eager', 'aot_eager'])
def test_compile(kind, backend):
    torch._dynamo.reset()
    layer, x = build(kind), batch(kind)
    twin = copy.deepcopy(layer)
    compiled = torch.compile(layer, backend=backend)
    # Another eta, as a schedule sets it, and another mode must be seen.
    for eta in (0.3, 0.3, 0.7, 0.0):
        layer.ags.eta = twin.ags.eta = eta
        ours = compiled_step(compiled, layer, x)
        theirs = compiled_step(twin, twin, x)
        for a, b in zip(ours, theirs):
            assert a.dtype == b.dtype
            torch.testing.assert_close(a, b)
    layer.eval()
    twin.eval()
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), twin(x))
    torch._dynamo.reset()


def test_compile_of_a_fresh_network():
    torch._dynamo.reset()
    torch.manual_seed(0)

    def net():
        return nn.Sequential(
            SURGEConv2d(3, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.PReLU(),
            SURGEConv2d(8, 4, 3, stride=2, pad_value=-1, padding=1),
            nn.Flatten(),
            SURGELinear(36, 5),
        )

    eager = net()
    model = copy.deepcopy(eager)
    for module in (eager, model):
        torch.manual_seed(2)
        for layer in module:
            if hasattr(layer, 'aux_weight'):
                nn.init.normal_(layer.weight)
    compiled = torch.compile(model, backend='aot_eager')
    optimizers = [
        torch.optim.SGD(m.parameters(), lr=0.01) for m in (eager, model)
    ]
    for seed in range(3):
        torch.manual_seed(seed)
        x = torch.randn(2, 3, 6, 6)
        for module, optimizer in zip((eager, compiled), optimizers):
            optimizer.zero_grad()
            module(x).pow(2).mean().backward()
            optimizer.step()
    for (name, a), b in zip(eager.named_parameters(), model.parameters()):
        torch.testing.assert_close(a, b, msg=name)
    torch._dynamo.reset()


# What else torch does with layers


@pytest.mark.parametrize('training', [True, False])
def test_tracing_sees_one_ordinary_convolution(training):
    layer = SURGEConv2d(2, 3, 3).train(training)
    x = torch.randn(1, 2, 6, 6)
    traced = torch.jit.trace(layer, x)
    kinds = [node.kind() for node in traced.inlined_graph.nodes()]
    assert sum('conv' in kind for kind in kinds) == 1
    assert not any('Python' in kind for kind in kinds)
    # The layer itself convolves signs as integers.
    torch.testing.assert_close(traced(x), layer(x), rtol=0, atol=1e-6)


def test_meta_tensors_give_shapes():
    layer = SURGEConv2d(2, 3, 3, device='meta')
    assert layer(torch.randn(1, 2, 6, 7, device='meta')).shape == (1, 3, 4, 5)


def test_shift_keeps_autocasts_type():
    from surge_det.core.activations import RPReLU

    with torch.autocast('cpu', torch.bfloat16):
        out = RPReLU(3)(torch.randn(2, 3, 4, 4).bfloat16())
    assert out.dtype == torch.bfloat16


def test_input_of_another_type_than_the_weight_is_refused():
    with pytest.raises(RuntimeError, match='should be the same'):
        SURGEConv2d(2, 3, 3).double()(torch.randn(1, 2, 5, 5))


@pytest.mark.parametrize(
    ('kwargs', 'said'),
    [
        (dict(in_channels=-3), 'in_channels=-3'),
        (dict(out_channels=0), 'out_channels=0'),
        (dict(kernel_size=(3, 0)), r'kernel_size=\(3, 0\)'),
        (dict(stride=0), 'stride=0'),
        (dict(dilation=1.5), 'dilation=1.5'),
        (dict(groups=3), 'groups=3'),
    ],
)
def test_wrong_geometry_is_named(kwargs, said):
    with pytest.raises(ValueError, match=said):
        SURGEConv2d(
            **{'in_channels': 4, 'out_channels': 4, 'kernel_size': 3, **kwargs}
        )
