"""The 8-bit convolution of signs against exact arithmetic."""

import itertools
import logging

import pytest
import torch
import torch.nn.functional as F
from reference import explicit_padding, sign
from torch.utils.flop_counter import FlopCounterMode

from surge_det.core import SURGEConv2d
from surge_det.core.binarizers import Binarizer
from surge_det.core.operators import conv as conv_operator
from surge_det.core.operators import sign_conv
from surge_det.core.operators.sign_conv import (
    is_supported,
    pad_codes,
    sign_conv2d,
)
from surge_det.core.sign import sign_codes, signs_of

pytestmark = [
    pytest.mark.isa,
    pytest.mark.skipif(
        not sign_conv._works(),
        reason="this build's 8-bit convolution is missing or wrong",
    ),
]
ROWS, LAST = torch.contiguous_format, torch.channels_last

GEOMETRIES = {
    'plain': {},
    '1x1': dict(kernel_size=1),
    'odd-channels': dict(in_channels=19, out_channels=35, padding=1),
    'one-channel': dict(in_channels=1, out_channels=1),
    'stride': dict(stride=2, padding=1),
    'stride-pair': dict(stride=(1, 3), padding=(2, 0)),
    'stride-leaves-a-rest': dict(stride=2, kernel_size=2),
    'dilation': dict(dilation=(2, 1), padding=2),
    'groups': dict(in_channels=6, out_channels=9, groups=3, padding=1),
    'depthwise': dict(in_channels=17, out_channels=17, groups=17, padding=1),
    'depthwise-multiplier': dict(in_channels=5, out_channels=10, groups=5),
    'same-even-kernel': dict(padding='same', kernel_size=(2, 4)),
    'wide-padding': dict(padding=4),
    'all-at-once': dict(
        in_channels=6,
        out_channels=4,
        stride=(2, 1),
        padding=(1, 2),
        dilation=(1, 2),
        groups=2,
        kernel_size=(3, 2),
    ),
}
GEOMETRY_KEYS = ('stride', 'dilation', 'groups')


class NumbersGiven(Binarizer):
    """Scales from outside."""

    def __init__(self, numbers):
        super().__init__()
        self.numbers = numbers

    def prepare(self, weight):
        return weight

    def scale(self, z):
        return self.numbers.to(z.dtype)


@pytest.fixture
def calls(monkeypatch):
    """Small inputs served too, and what was convolved in 8 bits."""
    taken = []

    def spy(*args):
        taken.append(args)
        return sign_conv2d(*args)

    monkeypatch.setattr(conv_operator, '_MIN_PLACES', 0)
    monkeypatch.setattr(conv_operator, '_MIN_PRODUCTS', 0)
    monkeypatch.setattr(conv_operator, 'sign_conv2d', spy)
    return taken


@pytest.fixture
def _works_again():
    yield
    sign_conv._works.cache_clear()


def edgy(*shape, dtype=torch.float32, fmt=ROWS):
    """Normal values, and among them both zeros."""
    x = torch.randn(shape).to(dtype)
    x.view(-1)[::7] = 0.0
    x.view(-1)[1::7] = -0.0
    return x.contiguous(memory_format=fmt)


def conv(**kwargs):
    settings = dict(in_channels=4, out_channels=6, kernel_size=3, bias=False)
    layer = SURGEConv2d(**{**settings, **kwargs})
    with torch.no_grad():
        layer.weight.view(-1)[::5] = 0.0
        layer.weight.view(-1)[1::5] = -0.0
        if layer.bias is not None:
            layer.bias.normal_()
    return layer


def sums(layer, x):
    """The convolution of signs; whole numbers, exact in float64."""
    pads = explicit_padding(layer.kernel_size, layer.padding, layer.dilation)
    out = F.conv2d(
        F.pad(sign(x.double()), pads, value=layer.pad_value),
        sign(layer.weight.detach().double()),
        stride=layer.stride,
        dilation=layer.dilation,
        groups=layer.groups,
    )
    assert torch.equal(out, out.round())
    return out


def check(out, whole, scale, bias=None):
    """One rounding by the scale and at most one more by the bias."""
    scale = scale.detach().view(-1, 1, 1)
    wanted = scale * whole.to(scale.dtype)
    if bias is None:
        assert torch.equal(out, wanted)
        return
    bias = bias.detach().view(-1, 1, 1)
    fused = scale.double() * whole + bias.double()
    either = (out == wanted + bias) | (out == fused.to(out.dtype))
    assert either.all()


def alpha(layer):
    return layer.weight.detach().abs().mean((1, 2, 3), keepdim=True)


@pytest.mark.parametrize('kwargs', GEOMETRIES.values(), ids=GEOMETRIES)
@pytest.mark.parametrize('fmt', [ROWS, LAST])
@pytest.mark.parametrize('pad_value', [-1, 0, 1])
def test_layer_is_exact(kwargs, fmt, pad_value, calls):
    torch.manual_seed(0)
    layer = conv(**kwargs, pad_value=pad_value)
    x = edgy(2, layer.in_channels, 9, 7, fmt=fmt)
    out = layer(x)
    assert len(calls) == 1
    check(out, sums(layer, x), alpha(layer))
    assert out.is_contiguous(memory_format=fmt)
    assert layer.in_channels == 1 or x.is_contiguous(memory_format=fmt)
    with torch.no_grad():
        assert torch.equal(layer.eval()(x), out)
    assert len(calls) == 2


@pytest.mark.parametrize('name', ['odd-channels', 'depthwise', 'all-at-once'])
def test_bias_adds_one_rounding_at_most(name, calls):
    torch.manual_seed(0)
    layer = conv(**{**GEOMETRIES[name], 'bias': True})
    x = edgy(2, layer.in_channels, 9, 7)
    check(layer(x), sums(layer, x), alpha(layer), layer.bias)
    assert calls


@pytest.mark.parametrize(
    'scale',
    [
        torch.tensor([0.0, -0.3, 1e-30, -1.0, 3.7, 1 / 3]).view(-1, 1, 1, 1),
        torch.full((1, 1, 1, 1), -0.1),
        torch.full((1, 1, 1, 1), 0.7, dtype=torch.bfloat16),
    ],
    ids=['signs-and-zero', 'one-for-all', 'bfloat16'],
)
def test_any_scale(scale, calls):
    torch.manual_seed(0)
    layer = conv(padding=1, weight_binarizer=NumbersGiven(scale))
    x = edgy(2, 4, 9, 7)
    out = layer(x)
    assert calls
    whole = sums(layer, x)
    check(out, whole, scale.float().expand(6, -1, -1, -1))
    assert whole.abs().max() > 0


def test_a_long_sum_and_its_extremes():
    whole = 512 * 9
    x = torch.ones(1, 512, 3, 3)
    weight = torch.stack([x[0], -x[0]])
    args = None, (1, 1), (0, 0), (1, 1), 1
    for dtype, most in ((torch.float32, whole), (torch.bfloat16, 4608)):
        out = sign_conv2d(
            sign_codes(x), weight, torch.ones(1, 1, 1, 1), *args, dtype
        )
        assert out.dtype == dtype
        assert out.flatten().tolist() == [most, -most]
    x.view(-1)[0] = -1
    for dtype, most in ((torch.float32, 4606), (torch.bfloat16, 4608)):
        out = sign_conv2d(
            sign_codes(x), weight, torch.ones(1, 1, 1, 1), *args, dtype
        )
        assert out.flatten().tolist() == [most, -most]


@pytest.mark.parametrize('case', ['autocast', 'pure', 'float32-out-of-bf16'])
def test_bfloat16_output_is_rounded_once(case, calls):
    torch.manual_seed(0)
    layer = conv(in_channels=19, padding=1)
    x = edgy(2, 19, 9, 7)
    if case == 'autocast':
        with torch.autocast('cpu', torch.bfloat16):
            out = layer(x)
    elif case == 'pure':
        layer, x = layer.bfloat16(), x.bfloat16()
        out = layer(x)
    else:
        x = x.bfloat16()
        with torch.autocast('cpu', torch.bfloat16):
            out = layer(x)
    assert out.dtype == torch.bfloat16
    assert len(calls) == 1
    scale = alpha(layer).float().view(-1, 1, 1)
    exact = scale.double() * sums(layer, x)
    # To the nearest: half a unit of eight bits (and float32's on top).
    assert ((out - exact).abs() <= exact.abs() * (2**-8 + 1e-6)).all()
    assert torch.equal(out, (scale * sums(layer, x).float()).bfloat16())


@pytest.mark.parametrize('dtype', [torch.float64, torch.float16])
def test_other_types_are_convolved_as_they_are(dtype, calls):
    torch.manual_seed(0)
    layer = conv(padding=1).to(dtype)
    x = edgy(2, 4, 9, 7, dtype=dtype)
    out = layer(x)
    assert not calls
    assert out.dtype == dtype
    wanted = alpha(layer).view(-1, 1, 1) * sums(layer, x)
    tolerance = 1e-14 if dtype == torch.float64 else 4e-3
    torch.testing.assert_close(
        out.double(), wanted.double(), rtol=tolerance, atol=tolerance
    )


@pytest.mark.parametrize(
    'kwargs', [dict(binarize_weight=False), dict(binarize_activation=False)]
)
def test_half_binarized_layers_are_not_served(kwargs, calls):
    layer = conv(padding=1, **kwargs)
    assert layer(edgy(2, 4, 9, 7)).shape == (2, 6, 9, 7)
    assert not calls


@pytest.mark.parametrize(
    ('size', 'pad', 'served'),
    [((2, 64, 40, 40), 1, True), ((2, 64, 12, 12), 1, False)],
)
def test_only_where_it_is_faster(size, pad, served, monkeypatch):
    calls = []
    monkeypatch.setattr(
        conv_operator,
        'sign_conv2d',
        lambda *args: calls.append(args) or sign_conv2d(*args),
    )
    torch.manual_seed(0)
    layer = conv(in_channels=64, out_channels=64, padding=pad)
    x = edgy(*size)
    with torch.no_grad():
        out = layer(x)
    assert bool(calls) is served
    wanted = alpha(layer).double().view(-1, 1, 1) * sums(layer, x)
    # A float convolution rounds sums of scaled signs.
    assert (out - wanted).abs().max() <= 1e-5 * wanted.abs().max()


INPUTS = {
    'strided': lambda: edgy(2, 8, 9, 14)[:, ::2, :, ::2],
    'sliced': lambda: edgy(3, 6, 11, 9)[1:, 1:5, 1:-1, 2:],
    'sliced-last': lambda: edgy(3, 6, 11, 9, fmt=LAST)[1:, 1:5, 1:-1, 2:],
    'transposed': lambda: edgy(2, 4, 7, 9).transpose(2, 3),
    'expanded': lambda: edgy(1, 4, 9, 7).expand(2, -1, -1, -1),
    'expanded-channels': lambda: edgy(2, 1, 9, 7).expand(-1, 4, -1, -1),
    'one-place': lambda: edgy(2, 4, 1, 1),
    'one-row-last': lambda: edgy(2, 4, 1, 7, fmt=LAST),
    'nan-and-infinity': lambda: (
        torch.tensor([float('nan'), float('inf'), -float('inf'), -0.0])
        .repeat(2 * 4 * 4)
        .view(2, 4, 4, 4)
    ),
}


@pytest.mark.parametrize('make', INPUTS.values(), ids=INPUTS)
@pytest.mark.parametrize('pad_value', [0, -1])
def test_any_strides(make, pad_value, calls):
    torch.manual_seed(0)
    layer = conv(padding=1, pad_value=pad_value, bias=True)
    x = make()
    check(layer(x), sums(layer, x), alpha(layer), layer.bias)
    assert calls


def test_an_image_without_batch(calls):
    torch.manual_seed(0)
    layer = conv(padding=1)
    x = edgy(4, 9, 7)
    out = layer(x)
    assert len(calls) == 1
    check(out, sums(layer, x[None])[0], alpha(layer))


@pytest.mark.parametrize('fmt', [ROWS, LAST])
def test_empty_batch(fmt, calls):
    layer = conv(padding=1, bias=True)
    x = torch.zeros(0, 4, 9, 7).contiguous(memory_format=fmt)
    x.requires_grad_()
    out = layer(x)
    assert out.shape == (0, 6, 9, 7)
    out.sum().backward()
    assert x.grad.shape == x.shape
    for p in layer.parameters():
        assert p.grad.shape == p.shape
        assert not p.grad.any()


def test_the_same_every_time(calls):
    torch.manual_seed(0)
    layer = conv(in_channels=32, out_channels=33, padding=1, bias=True)
    x = edgy(2, 32, 12, 11)
    first = layer(x)
    assert all(torch.equal(layer(x), first) for _ in range(5))
    # A sample's output does not hang on the batch it is in.
    assert torch.equal(layer(x[1:])[0], first[1])
    assert len(calls) == 7


# Codes


def test_codes_are_signs():
    x = torch.tensor([-2.0, -1e-45, -0.0, 0.0, 1e-45, float('nan'), 3.0])
    codes = sign_codes(x)
    assert codes.dtype == torch.uint8
    assert codes.tolist() == [0, 0, 2, 2, 2, 0, 2]
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        signs = signs_of(codes, dtype)
        assert signs.dtype == dtype
        assert signs.tolist() == [-1, -1, 1, 1, 1, -1, 1]
    # They are not changed by it.
    assert codes.tolist() == [0, 0, 2, 2, 2, 0, 2]


@pytest.mark.parametrize('value', [-1, 0, 1])
@pytest.mark.parametrize('fmt', [ROWS, LAST])
def test_padded_codes(value, fmt):
    codes = sign_codes(edgy(2, 4, 3, 5, fmt=fmt))
    padded = pad_codes(codes, (1, 2, 0, 3), value)
    wanted = F.pad(signs_of(codes, torch.float32), (1, 2, 0, 3), value=value)
    assert torch.equal(signs_of(padded, torch.float32), wanted)
    assert padded.is_contiguous(memory_format=fmt)


# Where it is refused


def test_what_is_supported():
    x, scale = torch.ones(2, 4, 5, 5), torch.ones(6, 1, 1, 1)
    single, narrow = torch.float32, torch.bfloat16
    assert is_supported(x, scale, single)
    assert is_supported(x, scale, narrow)
    assert is_supported(x.bfloat16(), scale[:1], narrow)
    assert not is_supported(x.double(), scale, single)
    assert not is_supported(x, scale, torch.float64)
    assert not is_supported(x, scale, torch.float16)
    assert not is_supported(x.to('meta'), scale, single)
    assert not is_supported(x, torch.ones(6, 4, 1, 1), single)
    assert not is_supported(x, torch.ones(6, 1), single)


WRONG = {
    'off-by-one': lambda op: lambda *args: op(*args) + 1,
    'one-element': lambda op: (
        lambda *args: op(*args).index_fill_(1, torch.tensor(34), 0)
    ),
    'transposed': lambda op: lambda *args: op(*args).flip(-1),
    'not-a-number': lambda op: lambda *args: op(*args) * float('nan'),
}


def onednn(monkeypatch, **replaced):
    class Namespace:
        qconv_prepack = torch.ops.onednn.qconv_prepack
        qconv2d_pointwise = torch.ops.onednn.qconv2d_pointwise

    for name, op in replaced.items():
        if op is None:
            delattr(Namespace, name)
        else:
            setattr(Namespace, name, staticmethod(op))
    monkeypatch.setattr(torch.ops, 'onednn', Namespace, raising=False)
    sign_conv._works.cache_clear()


@pytest.mark.parametrize('make', WRONG.values(), ids=WRONG)
@pytest.mark.usefixtures('_works_again')
def test_a_wrong_operator_is_noticed(make, calls, monkeypatch, caplog):
    torch.manual_seed(0)
    layer = conv(padding=1)
    x = edgy(2, 4, 9, 7)
    right = layer(x)
    assert len(calls) == 1
    onednn(
        monkeypatch,
        qconv2d_pointwise=make(torch.ops.onednn.qconv2d_pointwise),
    )
    with caplog.at_level(logging.WARNING):
        out = layer(x)
        layer(x)
    assert len(calls) == 1
    torch.testing.assert_close(out, right, rtol=1e-6, atol=1e-6)
    # Said once in a process.
    assert caplog.text.count('Signs are convolved as floats') == 1


def raises(error):
    def op(*args):
        raise error

    return op


@pytest.mark.parametrize(
    'replaced',
    [
        dict(qconv2d_pointwise=None),
        dict(qconv_prepack=None),
        dict(qconv2d_pointwise=raises(RuntimeError('no such kernel'))),
        dict(qconv_prepack=raises(TypeError('15 arguments expected'))),
    ],
    ids=['no-operator', 'no-packing', 'no-kernel', 'other-signature'],
)
@pytest.mark.usefixtures('_works_again')
def test_without_the_operator(replaced, calls, monkeypatch, caplog):
    torch.manual_seed(0)
    layer = conv(in_channels=19, padding='same', kernel_size=2, bias=True)
    x = edgy(2, 19, 9, 7)
    x.requires_grad_()
    out = layer(x)
    grad = torch.randn_like(out)
    leaves = [x, *layer.parameters()]
    gradients = torch.autograd.grad(out, leaves, grad)
    assert len(calls) == 1
    onednn(monkeypatch, **replaced)
    with caplog.at_level(logging.INFO):
        other = layer(x)
    assert len(calls) == 1
    assert 'Signs are convolved as floats' in caplog.text
    torch.testing.assert_close(other, out, rtol=1e-5, atol=1e-5)
    # The backward pass does not depend on how the forward pass was computed.
    for a, b in zip(torch.autograd.grad(other, leaves, grad), gradients):
        assert torch.equal(a, b)


# Not in everyone's way


@pytest.mark.parametrize('train', [True, False])
def test_compiled(train, calls):
    torch.manual_seed(0)
    layer = conv(padding=1, bias=True).train(train)
    compiled = torch.compile(layer, backend='eager')
    x, y = (edgy(2, 4, 9, 7).requires_grad_() for _ in range(2))
    y.data = x.data.clone()
    out, wanted = compiled(x), layer(y)
    assert torch.equal(out, wanted)
    grad = torch.randn_like(out)
    out.backward(grad)
    wanted.backward(grad)
    assert torch.equal(x.grad, y.grad)
    torch._dynamo.reset()


@pytest.mark.parametrize('grad_mode', [True, False])
def test_traced(grad_mode, calls):
    torch.manual_seed(0)
    layer = conv(padding=1, pad_value=-1, bias=True).eval()
    x = edgy(2, 4, 9, 7)
    with torch.set_grad_enabled(grad_mode):
        traced = torch.jit.trace(layer, x, check_trace=False)
    # One that holds for other sizes and machines.
    kinds = [node.kind() for node in traced.inlined_graph.nodes()]
    assert not any('onednn' in k or 'Python' in k for k in kinds)
    assert not calls
    y = edgy(1, 4, 5, 6)
    torch.testing.assert_close(traced(y), layer(y), rtol=0, atol=1e-5)
    assert calls


def test_meta_tensors(calls):
    layer = conv(padding=1, bias=True).to('meta')
    x = torch.empty(2, 4, 9, 7, device='meta', requires_grad=True)
    out = layer(x)
    assert (out.shape, out.device.type) == ((2, 6, 9, 7), 'meta')
    out.sum().backward()
    assert x.grad.shape == x.shape
    assert not calls


def test_fake_tensors(calls):
    from torch._subclasses.fake_tensor import FakeTensorMode

    layer = conv(padding=1, compensate=False)
    with FakeTensorMode(allow_non_fake_inputs=True):
        out = layer(torch.randn(2, 4, 9, 7, requires_grad=True))
        out.sum().backward()
    assert out.shape == (2, 6, 9, 7)
    assert not calls


def test_inference_mode(calls):
    torch.manual_seed(0)
    layer = conv(padding=1)
    x = edgy(2, 4, 9, 7)
    with torch.inference_mode():
        out = layer(x)
    check(out, sums(layer, x), alpha(layer))
    assert calls


def test_vmap(calls):
    torch.manual_seed(0)
    layer = conv(padding=1, bias=True).eval()
    xs = torch.stack([edgy(2, 4, 9, 7) for _ in range(3)])
    with torch.no_grad():
        out = torch.vmap(layer)(xs)
        wanted = torch.stack([layer(x) for x in xs])
    torch.testing.assert_close(out, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize('train', [True, False])
def test_batched_gradients(train):
    torch.manual_seed(0)
    layer = conv(padding=1).train(train)
    x = edgy(2, 4, 9, 7).requires_grad_()
    out = layer(x)
    grads = torch.randn(3, *out.shape)
    (batched,) = torch.autograd.grad(
        out, x, grads, is_grads_batched=True, retain_graph=True
    )
    for g, mine in zip(grads, batched):
        (wanted,) = torch.autograd.grad(out, x, g, retain_graph=True)
        torch.testing.assert_close(mine, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures('_works_again')
@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16])
def test_the_check_does_not_hang_on_the_default_dtype(dtype):
    before = torch.get_default_dtype()
    sign_conv._works.cache_clear()
    try:
        torch.set_default_dtype(dtype)
        assert sign_conv._works()
    finally:
        torch.set_default_dtype(before)


@pytest.mark.usefixtures('_works_again')
def test_the_check_does_not_hang_on_the_default_device():
    sign_conv._works.cache_clear()
    with torch.device('meta'):
        assert sign_conv._works()


@pytest.mark.usefixtures('_works_again')
def test_nothing_random_is_drawn_by_the_check():
    sign_conv._works.cache_clear()
    torch.manual_seed(3)
    wanted = torch.rand(2)
    torch.manual_seed(3)
    sign_conv._works()
    assert torch.equal(torch.rand(2), wanted)


def test_threads_do_not_matter(calls):
    torch.manual_seed(0)
    layer = conv(in_channels=16, out_channels=24, padding=1)
    x = edgy(2, 16, 20, 21)
    threads = torch.get_num_threads()
    try:
        outs = []
        for n, fmt in itertools.product((1, 2), (ROWS, LAST)):
            torch.set_num_threads(n)
            outs.append(layer(x.contiguous(memory_format=fmt)))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(out, outs[0]) for out in outs)


def test_counters_see_a_convolution_of_floats(calls):
    torch.manual_seed(0)
    layer = conv(padding=1, bias=True).eval()
    x = edgy(2, 4, 9, 7)
    with (
        torch.no_grad(),
        sign_conv.signs_as_floats(),
        FlopCounterMode(display=False) as counter,
    ):
        out = layer(x)
    assert not calls
    assert counter.get_total_flops() == 2 * 2 * 9 * 7 * layer.weight.numel()
    with torch.no_grad():
        torch.testing.assert_close(layer(x), out, rtol=0, atol=1e-5)
    assert calls
