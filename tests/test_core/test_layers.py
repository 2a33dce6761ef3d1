import copy
import inspect
import math

import pytest
import torch
import torch.nn.functional as F
from reference import OpRecorder, explicit_padding, sign
from replicas import begin_training
from torch import nn

from surge_det.core import STE, SURGEConv2d, SURGELinear


@pytest.mark.parametrize(
    ('surge', 'base'), [(SURGEConv2d, nn.Conv2d), (SURGELinear, nn.Linear)]
)
class TestDropIn:
    def test_direct_base(self, surge, base):
        assert base in surge.__bases__

    def test_signature_starts_as_the_float_layers(self, surge, base):
        ours = list(inspect.signature(surge).parameters.values())
        theirs = list(inspect.signature(base).parameters.values())
        for mine, other in zip(ours, theirs):
            assert mine.name == other.name
            assert mine.default == other.default
        assert len(ours) > len(theirs)

    def test_same_seed_same_weights(self, surge, base):
        args = (4, 6, 3) if surge is SURGEConv2d else (4, 6)
        torch.manual_seed(3)
        float_layer = base(*args)
        after_float = torch.rand(1)
        torch.manual_seed(3)
        layer = surge(*args)
        assert torch.equal(torch.rand(1), after_float)
        assert torch.equal(layer.weight, float_layer.weight)
        assert torch.equal(layer.bias, float_layer.bias)

    def test_parameter_names(self, surge, base):
        args = (4, 6, 3) if surge is SURGEConv2d else (4, 6)
        layer = surge(*args)
        names = {n for n, _ in layer.named_parameters()}
        assert names == set(layer.state_dict())
        assert names == {'weight', 'aux_weight', 'bias'}
        layer = surge(*args, bias=False)
        assert {n for n, _ in layer.named_parameters()} == {
            'weight',
            'aux_weight',
        }
        assert layer.bias is None

    def test_replica_starts_as_a_copy(self, surge, base):
        args = (4, 6, 3) if surge is SURGEConv2d else (4, 6)
        layer = surge(*args)
        begin_training(layer)
        assert torch.equal(layer.aux_weight, layer.weight)
        assert layer.aux_weight.data_ptr() != layer.weight.data_ptr()
        assert layer.aux_weight.requires_grad

    def test_without_compensation_there_is_no_replica(self, surge, base):
        args = (4, 6, 3) if surge is SURGEConv2d else (4, 6)
        layer = surge(*args, compensate=False)
        assert {n for n, _ in layer.named_parameters()} == {'weight', 'bias'}
        assert set(layer.state_dict()) == {'weight', 'bias'}
        assert layer.aux_weight is None
        assert layer.ags is None

    def test_factory_keywords(self, surge, base):
        args = (4, 6, 3) if surge is SURGEConv2d else (4, 6)
        layer = surge(*args, device='cpu', dtype=torch.float64)
        assert {p.dtype for p in layer.parameters()} == {torch.float64}
        layer = surge(*args, device='meta')
        assert {p.device.type for p in layer.parameters()} == {'meta'}

    def test_conversions_reach_the_replica(self, surge, base):
        args = (4, 6, 3) if surge is SURGEConv2d else (4, 6)
        layer = surge(*args).double()
        begin_training(layer)
        assert layer.aux_weight.dtype == torch.float64
        assert torch.equal(layer.aux_weight, layer.weight)


def test_positional_arguments_as_in_the_float_convolution():
    layer = SURGEConv2d(4, 6, 3, 2, 1, 1, 2, False, 'zeros')
    assert layer.stride == (2, 2)
    assert layer.padding == (1, 1)
    assert layer.groups == 2
    assert layer.bias is None
    assert layer.aux_weight.shape == (6, 2, 3, 3)


# Forward

GEOMETRIES = [
    {},
    dict(stride=2, padding=(1, 2), dilation=(2, 1), groups=2),
    dict(padding='same', kernel_size=(2, 4)),
    dict(padding='valid', bias=False),
    dict(padding=1, pad_value=-1),
    dict(padding='same', kernel_size=(2, 3), pad_value=1, bias=False),
]


def make(**kwargs):
    settings = dict(in_channels=4, out_channels=6, kernel_size=3)
    settings.update(kwargs)
    layer = SURGEConv2d(**settings, dtype=torch.float64)
    with torch.no_grad():
        layer.weight[:, 0, 0, 0] = torch.tensor([0.0, -0.0] * 3)
    return layer


def images(dtype=torch.float64):
    x = torch.randn(2, 4, 9, 7, dtype=dtype)
    x[:, :, ::3] = 0
    x[:, :, 1::3, ::3] = -0.0
    return x


@pytest.mark.parametrize('kwargs', GEOMETRIES)
@pytest.mark.parametrize('train', [True, False])
def test_output_is_the_binary_convolution_alone(kwargs, train):
    torch.manual_seed(0)
    layer = make(**kwargs).train(train)
    with torch.no_grad():
        layer.aux_weight.normal_(std=100)
    x = images()
    out = layer(x)
    alpha = layer.weight.abs().mean((1, 2, 3), keepdim=True)
    pads = explicit_padding(
        layer.kernel_size, kwargs.get('padding', 0), layer.dilation
    )
    want = F.conv2d(
        F.pad(sign(x), pads, value=kwargs.get('pad_value', 0)),
        alpha * sign(layer.weight),
        layer.bias,
        layer.stride,
        0,
        layer.dilation,
        layer.groups,
    )
    torch.testing.assert_close(out, want, rtol=1e-12, atol=1e-12)


def test_output_counts_signs():
    # Without padding each output is alpha times a sum of 36 signs.
    torch.manual_seed(0)
    layer = make(bias=False)
    alpha = layer.weight.abs().mean((1, 2, 3)).reshape(-1, 1, 1)
    counts = (layer(images()) / alpha).detach()
    assert (counts - counts.round()).abs().max() < 1e-9
    assert counts.abs().max().round() <= 36
    assert (counts.round() % 2 == 0).all()


def test_zero_input_is_seen_as_plus_one():
    layer = make(bias=False)
    zeros = torch.zeros(1, 4, 5, 5, dtype=torch.float64)
    assert torch.equal(layer(zeros), layer(torch.ones_like(zeros)))
    assert torch.equal(layer(-zeros), layer(zeros))
    assert layer(zeros).abs().max() > 0


@pytest.mark.parametrize('kind', ['conv', 'linear'])
def test_output_ignores_the_replica_and_its_scale(kind):
    torch.manual_seed(0)
    if kind == 'conv':
        layer, x = SURGEConv2d(4, 6, 3), torch.randn(2, 4, 5, 5)
    else:
        layer, x = SURGELinear(4, 6), torch.randn(3, 4)
    before = layer(x)
    with torch.no_grad():
        layer.aux_weight.fill_(math.nan)
    layer.ags.eta = 1e6
    assert torch.equal(layer(x), before)
    assert torch.equal(layer.eval()(x), before)


def test_linear_output():
    torch.manual_seed(0)
    layer = SURGELinear(5, 4, dtype=torch.float64)
    x = torch.randn(2, 3, 5, dtype=torch.float64)
    x[0, 0] = 0
    alpha = layer.weight.abs().mean(1, keepdim=True)
    want = sign(x) @ (alpha * sign(layer.weight)).T + layer.bias
    torch.testing.assert_close(layer(x), want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('kwargs', GEOMETRIES)
def test_one_convolution_of_signs_by_scaled_signs(kwargs):
    torch.manual_seed(0)
    layer = make(**kwargs)
    with torch.no_grad():
        layer.aux_weight.normal_()
    x = images()
    layer(x)
    with OpRecorder() as recorder:
        layer(x)
    calls = recorder.convolutions()
    assert len(calls) == 1
    value, kernel = calls[0][:2]
    assert set(value.unique().tolist()) <= {-1.0, 0.0, 1.0}
    interior = value.abs().sum() >= x.numel()
    assert interior
    alpha = layer.weight.abs().mean((1, 2, 3), keepdim=True)
    torch.testing.assert_close(kernel.abs(), alpha.expand_as(kernel))


@pytest.mark.parametrize('pad_value', [1, -1, 1.0, -1.0])
def test_border_taps(pad_value):
    # A 3x3 kernel of ones on one pixel: nine taps, eight in the border.
    layer = SURGEConv2d(1, 1, 3, padding=1, bias=False, pad_value=pad_value)
    nn.init.ones_(layer.weight)
    pixel = torch.full((1, 1, 1, 1), 0.3)
    assert layer(pixel).item() == 1 + 8 * pad_value
    zero = SURGEConv2d(1, 1, 3, padding=1, bias=False)
    nn.init.ones_(zero.weight)
    assert zero(pixel).item() == 1


def test_alpha_is_of_each_output_channel():
    layer = SURGEConv2d(4, 2, 1, groups=2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(
            torch.tensor([[1.0, -3.0], [0.5, 0.5]]).reshape(2, 2, 1, 1)
        )
    # Channel 0: alpha 2, signs (+, -) on (+, +); channel 1: alpha 0.5.
    x = torch.tensor([1.0, 1.0, -1.0, -1.0]).reshape(1, 4, 1, 1)
    assert layer(x).flatten().tolist() == [0.0, -1.0]
    x = torch.tensor([1.0, -1.0, -1.0, -1.0]).reshape(1, 4, 1, 1)
    assert layer(x).flatten().tolist() == [4.0, -1.0]


def test_input_is_left_alone():
    layer = make()
    x = images()
    before = x.clone()
    layer(x.requires_grad_()).sum().backward()
    assert torch.equal(x, before)


def test_wrong_number_of_channels_fails():
    with pytest.raises((RuntimeError, ValueError)):
        make()(torch.randn(2, 3, 9, 7, dtype=torch.float64))
    with pytest.raises((RuntimeError, ValueError)):
        make(pad_value=-1, padding=1)(
            torch.randn(2, 3, 9, 7, dtype=torch.float64)
        )


# Off means off

FLOAT = dict(
    binarize_weight=False, binarize_activation=False, compensate=False
)


@pytest.mark.filterwarnings('ignore:Using padding=')
@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize(
    'kwargs',
    [
        {},
        dict(stride=2, padding=1, groups=2),
        dict(padding='same', dilation=2),
        dict(padding='same', kernel_size=(2, 4)),
        dict(padding=(0, 2), kernel_size=(1, 3)),
    ],
)
def test_all_off_is_the_float_convolution_also_after_steps(kwargs, bias):
    torch.manual_seed(0)
    settings = dict(in_channels=4, out_channels=6, kernel_size=3, bias=bias)
    settings.update(kwargs)
    twin = nn.Conv2d(**settings)
    layer = SURGEConv2d(**settings, **FLOAT)
    layer.load_state_dict(twin.state_dict())
    same_after_steps(layer, twin, torch.randn(2, 4, 9, 7))


@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('shape', [(5,), (3, 5), (2, 3, 5)])
def test_all_off_is_the_float_linear_also_after_steps(shape, bias):
    torch.manual_seed(0)
    twin = nn.Linear(5, 4, bias=bias)
    layer = SURGELinear(5, 4, bias=bias, **FLOAT)
    layer.load_state_dict(twin.state_dict())
    same_after_steps(layer, twin, torch.randn(shape))


def same_after_steps(layer, twin, values):
    modules = (layer, twin)
    optimizers = [
        torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9) for m in modules
    ]
    start = twin.weight.detach().clone()
    for _ in range(3):
        xs, outs = [], []
        for module, optimizer in zip(modules, optimizers):
            x = values.clone().requires_grad_()
            out = module(x)
            optimizer.zero_grad()
            out.pow(2).mean().backward()
            optimizer.step()
            xs.append(x.grad)
            outs.append(out)
        assert torch.equal(*outs)
        assert torch.equal(*xs)
        for a, b in zip(layer.parameters(), twin.parameters()):
            assert torch.equal(a.grad, b.grad)
            assert torch.equal(a, b)
    assert not torch.equal(twin.weight, start)
    assert torch.equal(layer.eval()(values), twin.eval()(values))


@pytest.mark.parametrize('kind', ['conv', 'linear'])
def test_a_step_moves_latent_weight_and_replica(kind):
    torch.manual_seed(0)
    if kind == 'conv':
        layer, x = SURGEConv2d(4, 6, 3), torch.randn(2, 4, 5, 5)
    else:
        layer, x = SURGELinear(4, 6), torch.randn(3, 4)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    before = {n: p.detach().clone() for n, p in layer.named_parameters()}
    layer(x).pow(2).sum().backward()
    optimizer.step()
    for name, parameter in layer.named_parameters():
        assert not torch.equal(parameter, before[name]), name
    # They move by different gradients, so they part.
    assert not torch.equal(layer.weight, layer.aux_weight)


def test_it_learns():
    # The labels are a binary layer's own, so a binary layer can find them.
    torch.manual_seed(0)
    teacher = SURGELinear(16, 1, bias=False)
    student = SURGELinear(16, 1, bias=False)
    x = torch.randn(256, 16)
    with torch.no_grad():
        target = teacher(x) / teacher.weight.abs().mean() / 4
    optimizer = torch.optim.Adam(student.parameters(), lr=0.01)
    losses = []
    for _ in range(200):
        loss = F.mse_loss(student(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


# Wrong arguments


@pytest.mark.parametrize('bad', [0.5, 2, -2.0, math.nan, '0', None])
def test_bad_pad_value(bad):
    with pytest.raises(ValueError, match='pad_value') as error:
        SURGEConv2d(4, 6, 3, padding=1, pad_value=bad)
    assert str(bad) in str(error.value)


@pytest.mark.parametrize('mode', ['reflect', 'replicate', 'circular'])
def test_bad_padding_mode(mode):
    with pytest.raises(ValueError, match='padding_mode') as error:
        SURGEConv2d(4, 6, 3, padding=1, padding_mode=mode)
    assert mode in str(error.value)
    assert 'zeros' in str(error.value)


@pytest.mark.parametrize('value', [1, -1])
def test_border_of_signs_needs_binary_activations(value):
    with pytest.raises(ValueError, match='pad_value') as error:
        SURGEConv2d(
            4, 6, 3, padding=1, pad_value=value, binarize_activation=False
        )
    assert 'binarize_activation' in str(error.value)


@pytest.mark.parametrize(
    'switch', ['compensate', 'binarize_weight', 'binarize_activation']
)
@pytest.mark.parametrize('bad', ['False', None, 2])
def test_bad_switch(switch, bad):
    for surge, args in ((SURGEConv2d, (4, 6, 3)), (SURGELinear, (4, 6))):
        with pytest.raises(ValueError, match=switch) as error:
            surge(*args, **{switch: bad})
        assert str(bad) in str(error.value)


# What nn.Conv2d itself refuses it still does.
@pytest.mark.parametrize(
    'kwargs',
    [dict(padding='reflect'), dict(padding='same', stride=2)],
)
def test_bad_geometry(kwargs):
    with pytest.raises(ValueError, match='padding'):
        SURGEConv2d(4, 6, 3, **kwargs)


# repr


def test_repr_names_the_settings():
    layer = SURGEConv2d(
        4,
        6,
        3,
        padding=1,
        eta=0.35,
        pad_value=-1,
        activation_estimator=STE(clip=0.75),
        weight_estimator=STE(clip=1.25),
    )
    text = repr(layer)
    assert text.startswith('SURGEConv2d(4, 6, kernel_size=(3, 3)')
    for part in ('eta=0.35', 'pad_value=-1', '0.75', '1.25'):
        assert part in text
    layer.ags.eta = 0.125
    assert 'eta=0.125' in repr(layer)
    text = repr(SURGELinear(4, 6, eta=0.35))
    assert 'in_features=4' in text
    assert 'eta=0.35' in text


@pytest.mark.parametrize(
    'switch', ['compensate', 'binarize_weight', 'binarize_activation']
)
def test_repr_tells_what_is_off(switch):
    for layer in (
        SURGEConv2d(4, 6, 3, **{switch: False}),
        SURGELinear(4, 6, **{switch: False}),
    ):
        assert f'{switch}=False' in repr(layer)


# from_float


@pytest.mark.parametrize(
    'kwargs',
    [
        {},
        dict(bias=False),
        dict(stride=(1, 2), padding=(2, 1), dilation=(2, 1), groups=2),
        dict(padding='same', kernel_size=(2, 4)),
        dict(dtype=torch.float64),
    ],
)
def test_from_float_convolution(kwargs):
    settings = dict(in_channels=4, out_channels=6, kernel_size=3)
    settings.update(kwargs)
    source = nn.Conv2d(**settings)
    layer = SURGEConv2d.from_float(source)
    assert type(layer) is SURGEConv2d
    for name in (
        'in_channels',
        'out_channels',
        'kernel_size',
        'stride',
        'padding',
        'dilation',
        'groups',
        'padding_mode',
        'training',
    ):
        assert getattr(layer, name) == getattr(source, name)
    check_converted(layer, source)
    x = torch.randn(2, 4, 9, 7, dtype=source.weight.dtype)
    assert layer(x).shape == source(x).shape
    same = SURGEConv2d(**settings)
    same.load_state_dict(source.state_dict())
    assert torch.equal(layer(x), same(x))


@pytest.mark.parametrize('bias', [True, False])
def test_from_float_linear(bias):
    source = nn.Linear(5, 4, bias=bias, dtype=torch.float64)
    layer = SURGELinear.from_float(source)
    assert type(layer) is SURGELinear
    assert (layer.in_features, layer.out_features) == (5, 4)
    check_converted(layer, source)
    assert layer(torch.randn(3, 5, dtype=torch.float64)).shape == (3, 4)


def check_converted(layer, source):
    begin_training(layer)
    assert layer.weight.dtype == source.weight.dtype
    assert torch.equal(layer.weight, source.weight)
    assert torch.equal(layer.aux_weight, source.weight)
    assert (layer.bias is None) == (source.bias is None)
    if source.bias is not None:
        assert torch.equal(layer.bias, source.bias)
    kept = layer.weight.detach().clone()
    with torch.no_grad():
        source.weight.add_(1)
    assert torch.equal(layer.weight, kept)
    assert torch.equal(layer.aux_weight, kept)
    with torch.no_grad():
        source.weight.sub_(1)
        layer.weight.copy_(source.weight)
        layer.aux_weight.copy_(source.weight)


def test_from_float_keeps_the_mode_and_the_device():
    source = nn.Conv2d(4, 6, 3).eval()
    assert not SURGEConv2d.from_float(source).training
    assert SURGEConv2d.from_float(source.train()).training
    layer = SURGELinear.from_float(nn.Linear(3, 2, device='meta'))
    assert layer.aux_weight.device.type == 'meta'


@pytest.mark.parametrize('frozen', ['weight', 'bias'])
def test_from_float_keeps_what_is_frozen(frozen):
    for surge, source in (
        (SURGEConv2d, nn.Conv2d(4, 6, 3)),
        (SURGELinear, nn.Linear(4, 6)),
    ):
        getattr(source, frozen).requires_grad_(False)
        layer = surge.from_float(source)
        for name in ('weight', 'bias'):
            assert getattr(layer, name).requires_grad == (name != frozen)


def test_from_float_takes_the_layers_own_keywords():
    source = nn.Conv2d(4, 6, 3, padding=1)
    layer = SURGEConv2d.from_float(
        source, eta=0.4, pad_value=-1, activation_estimator=STE(clip=0.5)
    )
    assert layer.ags.eta == 0.4
    assert layer.pad_value == -1
    plain = SURGEConv2d.from_float(source, compensate=False)
    assert plain.aux_weight is None
    assert torch.equal(plain.weight, source.weight)
    with pytest.raises(ValueError, match='eta'):
        SURGEConv2d.from_float(source, eta=-1)


def test_from_float_trains_with_the_weights_it_was_given():
    source = nn.Conv2d(4, 6, 3)
    layer = SURGEConv2d.from_float(source)
    layer(torch.randn(2, 4, 5, 5)).sum().backward()
    assert torch.equal(layer.weight, source.weight)
    assert torch.equal(layer.aux_weight, source.weight)


@pytest.mark.parametrize(
    ('surge', 'bad'),
    [
        (SURGEConv2d, nn.Linear(2, 2)),
        (SURGEConv2d, nn.Conv1d(2, 2, 3)),
        (SURGEConv2d, nn.ConvTranspose2d(2, 2, 3)),
        (SURGEConv2d, None),
        (SURGELinear, nn.Conv2d(2, 2, 3)),
        (SURGELinear, nn.Identity()),
    ],
)
def test_from_float_of_something_else(surge, bad):
    with pytest.raises(ValueError, match='module') as error:
        surge.from_float(bad)
    assert type(bad).__name__ in str(error.value)
    wanted = 'Conv2d' if surge is SURGEConv2d else 'Linear'
    assert wanted in str(error.value)


def test_from_float_refuses_what_the_layer_cannot_do():
    source = nn.Conv2d(2, 2, 3, padding=1, padding_mode='reflect')
    with pytest.raises(ValueError, match='padding_mode'):
        SURGEConv2d.from_float(source)


# strip


def trained(kind):
    torch.manual_seed(0)
    if kind == 'conv':
        layer, x = SURGEConv2d(4, 6, 3, padding=1), torch.randn(2, 4, 5, 5)
    else:
        layer, x = SURGELinear(4, 6), torch.randn(3, 4)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        layer(x).pow(2).sum().backward()
        optimizer.step()
    return layer, x


@pytest.mark.parametrize('kind', ['conv', 'linear'])
class TestStrip:
    def test_same_output_without_the_replica(self, kind):
        layer, x = trained(kind)
        for train in (True, False):
            layer.train(train)
            full = copy.deepcopy(layer)
            stripped = copy.deepcopy(layer)
            assert stripped.strip() is stripped
            assert type(stripped) is type(layer)
            assert stripped.training == train
            assert torch.equal(stripped(x), full(x))

    def test_nothing_of_it_is_left(self, kind):
        layer, _ = trained(kind)
        layer.strip()
        assert {n for n, _ in layer.named_parameters()} == {'weight', 'bias'}
        assert set(layer.state_dict()) == {'weight', 'bias'}
        assert layer.aux_weight is None
        assert layer.ags is None
        assert 'compensate=False' in repr(layer)

    def test_twice_is_once(self, kind):
        layer, x = trained(kind)
        before = layer(x)
        assert torch.equal(layer.strip().strip()(x), before)

    def test_weights_go_into_a_layer_without_compensation(self, kind):
        layer, x = trained(kind)
        before = layer(x)
        if kind == 'conv':
            other = SURGEConv2d(4, 6, 3, padding=1, compensate=False)
        else:
            other = SURGELinear(4, 6, compensate=False)
        other.load_state_dict(layer.strip().state_dict())
        assert torch.equal(other(x), before)
        layer.load_state_dict(other.state_dict())
        assert torch.equal(layer(x), before)

    def test_it_still_trains(self, kind):
        layer, x = trained(kind)
        twin = copy.deepcopy(layer)
        layer.strip().zero_grad()
        twin.ags.eta = 0
        twin.zero_grad()
        for module in (layer, twin):
            module(x).pow(2).sum().backward()
        assert torch.equal(layer.weight.grad, twin.weight.grad)

    def test_other_copies_keep_theirs(self, kind):
        layer, _ = trained(kind)
        twin = copy.deepcopy(layer)
        layer.strip()
        assert twin.aux_weight is not None


# What a layer computes, in public


@pytest.mark.parametrize('binarizer', [None, dict(type='IRNet')])
@pytest.mark.parametrize(
    ('kwargs', 'pads'),
    [
        (dict(padding=(1, 2)), (2, 2, 1, 1)),
        (dict(padding='valid', groups=2), (0, 0, 0, 0)),
        (dict(padding='same', kernel_size=(2, 4), dilation=2), (3, 3, 1, 1)),
        (dict(padding='same', kernel_size=(2, 4), pad_value=-1), (1, 2, 0, 1)),
    ],
)
def test_a_convolution_is_its_operator_on_signs(kwargs, pads, binarizer):
    layer = make(**kwargs, weight_binarizer=binarizer).eval()
    assert layer.pads == pads
    assert (layer.weight_bits, layer.activation_bits) == (1, 1)
    z, scale, signs = layer.binarized_weight()
    assert z.shape == signs.shape == layer.weight.shape
    assert scale.shape == (6, 1, 1, 1)
    assert torch.equal(signs, sign(z))
    assert not z.requires_grad
    assert not scale.requires_grad
    x = images()
    want = layer.operator.forward(
        sign(x), scale * signs, layer.bias, layer.pad_value
    )
    torch.testing.assert_close(layer(x), want, rtol=1e-12, atol=1e-12)


def test_a_linear_layer_is_its_operator_on_signs():
    layer = SURGELinear(4, 6).eval()
    assert layer.pads == (0, 0, 0, 0)
    _, scale, signs = layer.binarized_weight()
    assert scale.shape == (6, 1)
    x = torch.randn(3, 4)
    want = layer.operator.forward(sign(x), scale * signs, layer.bias, 0)
    torch.testing.assert_close(layer(x), want)


def test_real_weights_are_not_binarized():
    layer = SURGELinear(4, 6, binarize_weight=False)
    assert (layer.weight_bits, layer.activation_bits) == (32, 1)
    with pytest.raises(ValueError, match='has real weights'):
        layer.binarized_weight()


@pytest.mark.parametrize(
    ('make_layer', 'named'),
    [
        (lambda: SURGEConv2d(2, 3, 3, etta=0.1), r"SURGEConv2d.*\['etta'\]"),
        (lambda: SURGELinear(2, 3, pad_value=-1), 'SURGELinear.*pad_value'),
        (
            lambda: SURGEConv2d.from_float(nn.Conv2d(2, 3, 3), etta=0.1),
            r"\['etta'\]; allowed .*'eta'",
        ),
    ],
)
def test_unknown_keywords_are_named(make_layer, named):
    with pytest.raises(TypeError, match=named):
        make_layer()
