"""Gradients against the formula written out with `detach`, in float64."""

import copy

import pytest
import torch
from reference import expected, relative_error, ste
from torch.utils.checkpoint import checkpoint

from surge_det.core import STE, SURGEConv2d, SURGELinear

pytestmark = pytest.mark.isa

TOLERANCE = 1e-10
SURGE_KEYS = ('pad_value', 'binarize_weight', 'binarize_activation')
GEOMETRY_KEYS = ('stride', 'padding', 'dilation', 'groups')

CONVOLUTIONS = {
    'default': {},
    'no-bias': dict(bias=False),
    '1x1': dict(kernel_size=1),
    'stride': dict(stride=2, padding=1),
    'stride-pair': dict(stride=(1, 3)),
    'stride-leaves-a-rest': dict(stride=2, kernel_size=2),
    'padding-pair': dict(padding=(2, 1)),
    'padding-wider-than-kernel': dict(padding=4),
    'valid': dict(padding='valid'),
    'same': dict(padding='same'),
    'same-even-kernel': dict(padding='same', kernel_size=(2, 4)),
    'same-even-and-odd': dict(padding='same', kernel_size=(3, 4)),
    'same-even-dilated': dict(
        padding='same', kernel_size=(2, 4), dilation=(3, 1)
    ),
    'same-dilated': dict(padding='same', dilation=2),
    'dilation-pair': dict(dilation=(2, 1), padding=(0, 2)),
    'non-square-kernel': dict(kernel_size=(3, 1), padding=(1, 0)),
    'groups': dict(groups=2),
    'depthwise': dict(groups=4, out_channels=4, padding=1),
    'depthwise-multiplier': dict(groups=4, out_channels=8, bias=False),
    'all-at-once': dict(
        stride=(2, 1),
        padding=(1, 2),
        dilation=(1, 2),
        groups=2,
        kernel_size=(3, 2),
    ),
    'pad-plus-one': dict(pad_value=1, padding=1),
    'pad-minus-one': dict(pad_value=-1.0, padding=(2, 1), stride=2),
    'pad-minus-one-same': dict(pad_value=-1, padding='same'),
    'pad-minus-one-same-even': dict(
        pad_value=-1, padding='same', kernel_size=(2, 4)
    ),
    'pad-minus-one-valid': dict(pad_value=-1, padding='valid'),
    'pad-plus-one-groups-dilation': dict(
        pad_value=1, padding=2, groups=2, dilation=2
    ),
    'real-weight': dict(binarize_weight=False, padding=1),
    'real-weight-padded': dict(binarize_weight=False, padding=1, pad_value=-1),
    'real-activation': dict(binarize_activation=False, padding=1),
    'both-real': dict(
        binarize_weight=False, binarize_activation=False, padding=1
    ),
}


def data(shape, dtype=torch.float64):
    """Normal values, with the points where sign and clip have an edge."""
    x = torch.randn(shape, dtype=dtype)
    flat = x.view(-1)
    edges = torch.tensor([0.0, -0.0, 1.0, -1.0, 0.5, -0.5])
    n = min(len(edges), max(flat.numel() - 1, 0))
    flat[:n] = edges[:n].to(dtype)
    return x


def conv(dtype=torch.float64, **kwargs):
    """A layer with unlike weights and one replica apart from them."""
    settings = dict(in_channels=4, out_channels=6, kernel_size=3, eta=0.3)
    settings.update(kwargs)
    return perturb(SURGEConv2d(**settings, dtype=dtype))


def linear(dtype=torch.float64, **kwargs):
    settings = dict(in_features=5, out_features=4, eta=0.3)
    settings.update(kwargs)
    return perturb(SURGELinear(**settings, dtype=dtype))


def perturb(layer):
    with torch.no_grad():
        layer.weight.copy_(data(layer.weight.shape) * 0.5)
        layer.weight[0] *= 3
        layer.aux_weight.copy_(torch.randn(layer.aux_weight.shape) * 0.3)
        if layer.bias is not None:
            layer.bias.copy_(torch.randn(layer.bias.shape))
    return layer


def reference_of(layer, x, grad, kwargs, h_x=None, h_w=None):
    keep = {k: v for k, v in kwargs.items() if k in SURGE_KEYS + GEOMETRY_KEYS}
    return expected(
        x,
        layer.weight,
        layer.aux_weight,
        layer.bias,
        grad,
        layer.ags.eta,
        linear=isinstance(layer, SURGELinear),
        h_x=h_x,
        h_w=h_w,
        **keep,
    )


def compare(layer, x, kwargs=None, tolerance=TOLERANCE, **h):
    x = x.detach().requires_grad_()
    out = layer(x)
    grad = torch.randn_like(out)
    out.backward(grad)
    want = reference_of(layer, x, grad, kwargs or {}, **h)
    pairs = {
        'output': (out, want.out),
        'x': (x.grad, want.x),
        'weight': (layer.weight.grad, want.weight),
        'aux_weight': (layer.aux_weight.grad, want.aux_weight),
        'scale': (layer.ags.last_scale, want.scale),
        'norm_b': (layer.ags.last_norm_b, want.norm_b),
        'norm_a': (layer.ags.last_norm_a, want.norm_a),
    }
    if layer.bias is not None:
        pairs['bias'] = (layer.bias.grad, want.bias)
    errors = {name: relative_error(*pair) for name, pair in pairs.items()}
    bad = {name: e for name, e in errors.items() if not e <= tolerance}
    assert not bad
    # The comparison must be about a replica that does something.
    assert want.scale > 0
    assert want.aux_weight.abs().max() > 0


@pytest.mark.parametrize('kwargs', CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_convolution(kwargs):
    torch.manual_seed(0)
    compare(conv(**kwargs), data((2, 4, 9, 7)), kwargs)


@pytest.mark.parametrize(
    'kwargs',
    [
        CONVOLUTIONS['stride'],
        CONVOLUTIONS['pad-minus-one-same-even'],
        CONVOLUTIONS['all-at-once'],
    ],
)
@pytest.mark.parametrize(
    'layout', ['strided', 'transposed', 'expanded', 'channels_last']
)
def test_memory_layouts(layout, kwargs):
    torch.manual_seed(0)
    layer = conv(**kwargs)
    if layout == 'strided':
        x = data((2, 8, 9, 14))[:, ::2, :, ::2]
    elif layout == 'transposed':
        x = data((2, 4, 7, 9)).transpose(2, 3)
    elif layout == 'expanded':
        x = data((1, 4, 9, 7)).expand(2, -1, -1, -1)
    else:
        x = data((2, 4, 9, 7)).to(memory_format=torch.channels_last)
        layer = layer.to(memory_format=torch.channels_last)
    assert not x.is_contiguous()
    compare(layer, x, kwargs)


def test_channels_last_output_as_of_a_float_convolution():
    layer = conv(padding=1).to(memory_format=torch.channels_last)
    x = data((2, 4, 9, 7)).to(memory_format=torch.channels_last)
    assert layer(x).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    'kwargs', [dict(padding=1), dict(padding='same', pad_value=-1)]
)
def test_unbatched_input(kwargs):
    torch.manual_seed(0)
    layer = conv(**kwargs)
    assert layer(data((4, 9, 7))).shape == (6, 9, 7)
    compare(layer, data((4, 9, 7)), kwargs)


@pytest.mark.parametrize('clip_x', [1.0, None, 0.5])
@pytest.mark.parametrize('clip_w', [1.0, None, 0.5])
def test_estimators(clip_x, clip_w):
    torch.manual_seed(0)
    kwargs = dict(padding=1, stride=2)
    layer = conv(
        activation_estimator=STE(clip=clip_x),
        weight_estimator=dict(type='STE', clip=clip_w),
        **kwargs,
    )
    x = data((2, 4, 9, 7))
    compare(layer, x, kwargs, h_x=ste(clip_x), h_w=ste(clip_w))
    assert (x.abs() > 1).any()
    assert (layer.weight.abs() > 1).any()


@pytest.mark.parametrize(
    'shape', [(5,), (1, 5), (7, 5), (2, 3, 5), (2, 2, 3, 5)]
)
@pytest.mark.parametrize('bias', [True, False])
def test_linear(shape, bias):
    torch.manual_seed(0)
    compare(linear(bias=bias), data(shape))


@pytest.mark.parametrize(
    'kwargs',
    [
        dict(binarize_weight=False),
        dict(binarize_activation=False),
        dict(binarize_weight=False, binarize_activation=False),
    ],
)
def test_linear_partly_real(kwargs):
    torch.manual_seed(0)
    compare(linear(**kwargs), data((3, 5)), kwargs)


@pytest.mark.parametrize('clip', [None, 0.5])
def test_linear_estimators(clip):
    torch.manual_seed(0)
    layer = linear(
        activation_estimator=dict(type='STE', clip=clip),
        weight_estimator=STE(clip=clip),
    )
    compare(layer, data((7, 5)), h_x=ste(clip), h_w=ste(clip))


@pytest.mark.parametrize('layout', ['transposed', 'strided', 'expanded'])
def test_linear_memory_layouts(layout):
    torch.manual_seed(0)
    x = {
        'transposed': data((5, 3, 2)).permute(2, 1, 0),
        'strided': data((4, 10))[::2, ::2],
        'expanded': data((1, 5)).expand(3, 5),
    }[layout]
    compare(linear(), x)


def test_single_precision():
    torch.manual_seed(0)
    kwargs = dict(padding=1, stride=2, groups=2)
    layer = conv(dtype=torch.float32, **kwargs)
    compare(layer, data((2, 4, 9, 7), torch.float32), kwargs, 1e-5)


@pytest.mark.parametrize('kind', ['conv', 'linear'])
def test_upstream_gradients_of_any_layout(kind):
    torch.manual_seed(0)
    layer = conv() if kind == 'conv' else linear()
    shape = (2, 4, 9, 7) if kind == 'conv' else (3, 4, 5)
    x = data(shape).requires_grad_()
    grads = [
        # What `out.sum()` sends back: one number, expanded.
        lambda o: torch.ones((), dtype=o.dtype).expand_as(o),
        lambda o: torch.randn(o.mT.shape, dtype=o.dtype).mT,
        lambda o: torch.randn((*o.shape, 2), dtype=o.dtype)[..., 0],
    ]
    for make in grads:
        layer.zero_grad()
        x.grad = None
        out = layer(x)
        grad = make(out)
        if out.stride() == grad.stride():
            pytest.fail('the layout under test is an ordinary one')
        out.backward(grad)
        want = reference_of(layer, x, grad, {})
        assert relative_error(x.grad, want.x) < TOLERANCE
        for name in ('weight', 'aux_weight', 'bias'):
            grad = getattr(layer, name).grad
            assert relative_error(grad, getattr(want, name)) < TOLERANCE


@pytest.mark.parametrize('kind', ['conv', 'linear'])
@pytest.mark.parametrize(
    'frozen',
    [
        {'x'},
        {'weight'},
        {'aux_weight'},
        {'bias'},
        {'x', 'weight'},
        {'x', 'aux_weight'},
        {'x', 'bias'},
        {'weight', 'aux_weight'},
        {'weight', 'bias'},
        {'aux_weight', 'bias'},
        {'x', 'weight', 'bias'},
        {'x', 'weight', 'aux_weight'},
        {'x', 'aux_weight', 'bias'},
        {'weight', 'aux_weight', 'bias'},
    ],
    ids=lambda names: '+'.join(sorted(names)),
)
def test_whatever_is_frozen_the_rest_is_right(kind, frozen):
    torch.manual_seed(0)
    layer = conv(padding=1) if kind == 'conv' else linear()
    x = data((2, 4, 9, 7) if kind == 'conv' else (3, 5))
    tensors = dict(layer.named_parameters(), x=x)
    for name, tensor in tensors.items():
        tensor.requires_grad_(name not in frozen)
    out = layer(x)
    grad = torch.randn_like(out)
    out.backward(grad)
    kwargs = dict(padding=1) if kind == 'conv' else {}
    want = reference_of(layer, x, grad, kwargs)
    for name, tensor in tensors.items():
        if name in frozen:
            assert tensor.grad is None
        else:
            error = relative_error(tensor.grad, getattr(want, name))
            assert error < TOLERANCE, name
    if not {'x', 'aux_weight'} <= frozen:
        assert relative_error(layer.ags.last_scale, want.scale) < TOLERANCE


def test_all_frozen_makes_no_graph():
    layer = conv().requires_grad_(False)
    assert not layer(data((2, 4, 9, 7))).requires_grad


@pytest.mark.parametrize('kind', ['conv', 'linear'])
@pytest.mark.parametrize('eta', [0.3, 0.0])
@pytest.mark.parametrize('needs_grad', [True, False])
def test_every_parameter_gets_a_gradient(kind, eta, needs_grad):
    layer = conv(eta=eta) if kind == 'conv' else linear(eta=eta)
    x = data((2, 4, 9, 7) if kind == 'conv' else (3, 5))
    layer(x.requires_grad_(needs_grad)).sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.shape == parameter.shape
        assert parameter.grad.dtype == parameter.dtype


@pytest.mark.parametrize('kind', ['conv', 'linear'])
def test_autograd_grad_of_one_input_only(kind):
    torch.manual_seed(0)
    layer = conv() if kind == 'conv' else linear()
    x = data((2, 4, 9, 7) if kind == 'conv' else (3, 5)).requires_grad_()
    out = layer(x)
    grad = torch.randn_like(out)
    want = reference_of(layer, x, grad, {})
    for name, tensor in dict(layer.named_parameters(), x=x).items():
        (got,) = torch.autograd.grad(layer(x), tensor, grad)
        assert relative_error(got, getattr(want, name)) < TOLERANCE, name


@pytest.mark.parametrize('reentrant', [True, False])
@pytest.mark.parametrize('kind', ['conv', 'linear'])
def test_gradient_checkpointing(kind, reentrant):
    torch.manual_seed(0)
    layer = conv(padding=1) if kind == 'conv' else linear()
    twin = copy.deepcopy(layer)
    values = data((2, 4, 9, 7) if kind == 'conv' else (3, 5))

    def run(module, wrap):
        x = values.clone().requires_grad_()
        out = (
            checkpoint(module, x, use_reentrant=reentrant)
            if wrap
            else module(x)
        )
        out.pow(2).sum().backward()
        grads = [p.grad for p in module.parameters()]
        return [out, x.grad, module.ags.last_scale, *grads]

    for a, b in zip(run(layer, False), run(twin, True)):
        assert torch.equal(a, b)


@pytest.mark.parametrize('kind', ['conv', 'linear'])
def test_first_forward_of_a_fresh_layer_may_be_checkpointed(kind):
    torch.manual_seed(0)
    if kind == 'conv':
        layer, shape = SURGEConv2d(4, 6, 3), (2, 4, 9, 7)
    else:
        layer, shape = SURGELinear(5, 4), (3, 5)
    torch.nn.init.normal_(layer.weight)
    x = torch.randn(shape, requires_grad=True)
    out = checkpoint(layer, x, use_reentrant=False)
    out.sum().backward()
    assert torch.equal(layer.aux_weight, layer.weight)
    assert layer.aux_weight.grad.abs().max() > 0


@pytest.mark.parametrize('kind', ['conv', 'linear'])
@pytest.mark.parametrize('bias', [True, False])
def test_empty_batch(kind, bias):
    if kind == 'conv':
        layer, shape = conv(bias=bias, padding=1), (0, 4, 9, 7)
    else:
        layer, shape = linear(bias=bias), (0, 5)
    x = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
    out = layer(x)
    assert out.shape == ((0, 6, 9, 7) if kind == 'conv' else (0, 4))
    out.sum().backward()
    assert x.grad.shape == shape
    for parameter in layer.parameters():
        assert torch.equal(parameter.grad, torch.zeros_like(parameter))
    assert layer.ags.last_scale.item() == 0


def test_empty_batch_with_border_of_ones():
    layer = conv(pad_value=-1, padding='same')
    x = torch.zeros(0, 4, 9, 7, dtype=torch.float64, requires_grad=True)
    out = layer(x)
    out.sum().backward()
    assert out.shape == (0, 6, 9, 7)
    assert x.grad.shape == x.shape
    assert torch.equal(layer.weight.grad, torch.zeros_like(layer.weight))


@pytest.mark.parametrize('kind', ['conv', 'linear'])
def test_output_may_be_changed_in_place(kind):
    torch.manual_seed(0)
    layer = conv() if kind == 'conv' else linear()
    x = data((2, 4, 9, 7) if kind == 'conv' else (3, 5)).requires_grad_()
    out = layer(x)
    grad = torch.randn_like(out)
    want = reference_of(layer, x, grad, {})
    out += 1
    out.mul_(2)
    out.backward(grad / 2)
    assert relative_error(x.grad, want.x) < TOLERANCE
    assert relative_error(layer.aux_weight.grad, want.aux_weight) < TOLERANCE


def test_layers_in_a_row():
    torch.manual_seed(0)
    one, two = conv(padding=1, out_channels=4), conv(padding=1)
    x = data((2, 4, 9, 7)).requires_grad_()
    middle = one(x)
    middle.retain_grad()
    out = two(middle)
    grad = torch.randn_like(out)
    out.backward(grad)
    second = reference_of(two, middle, grad, dict(padding=1))
    first = reference_of(one, x, second.x, dict(padding=1))
    assert relative_error(middle.grad, second.x) < TOLERANCE
    assert relative_error(x.grad, first.x) < TOLERANCE
    assert relative_error(one.aux_weight.grad, first.aux_weight) < TOLERANCE
    assert relative_error(one.ags.last_scale, first.scale) < TOLERANCE


@pytest.mark.parametrize('kind', ['conv', 'linear'])
def test_in_eval_mode_backward_is_the_estimators_alone(kind):
    torch.manual_seed(0)
    layer = (conv() if kind == 'conv' else linear()).eval()
    plain = copy.deepcopy(layer).strip().train()
    values = data((2, 4, 9, 7) if kind == 'conv' else (3, 5))
    inputs = []
    for module in (layer, plain):
        x = values.clone().requires_grad_()
        module(x).pow(2).sum().backward()
        inputs.append(x.grad)
    assert torch.equal(*inputs)
    assert torch.equal(layer.weight.grad, plain.weight.grad)
    assert torch.equal(layer.bias.grad, plain.bias.grad)
    assert layer.ags.last_scale is None


@pytest.mark.parametrize('kind', ['conv', 'linear'])
def test_without_compensation_the_gradients_are_the_estimators(kind):
    torch.manual_seed(0)
    source = conv() if kind == 'conv' else linear()
    layer = copy.deepcopy(source).strip()
    x = data((2, 4, 9, 7) if kind == 'conv' else (3, 5)).requires_grad_()
    out = layer(x)
    grad = torch.randn_like(out)
    out.backward(grad)
    with torch.no_grad():
        source.ags.eta = 0
    want = reference_of(source, x, grad, {})
    assert relative_error(x.grad, want.x) < TOLERANCE
    assert relative_error(layer.weight.grad, want.weight) < TOLERANCE
    assert relative_error(layer.bias.grad, want.bias) < TOLERANCE
