"""1-bit layers in OpenVINO, each beside its own arithmetic in torch."""

import functools
import importlib.util

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip('mmdet', reason='needs the toolbox')
if importlib.util.find_spec('openvino') is None:
    pytest.skip('needs the extra deploy', allow_module_level=True)

import surge_det  # noqa: F401

# isort: split
from surge_det.core import SURGEConv2d, SURGELinear
from surge_det.core.activations import LearnedShift, RPReLU
from surge_det.deploy import FORMATS
from surge_det.deploy.openvino import Network, convert
from surge_det.deploy.openvino import lowering as lowering_module
from surge_det.deploy.openvino.lowering import above, below, operation
from surge_det.deploy.openvino.self_check import _cases, check_layers

pytestmark = pytest.mark.isa


def _grid(*shape):
    """Multiples of 1/2, so that many sums with a shift are exactly 0."""
    return torch.randint(-3, 4, shape) / 2.0


def _run(module, *shape):
    """Convert, check, and run at a shape; return OpenVINO's and torch's."""
    module = module.eval()
    model = convert(module, torch.zeros(1, *shape[1:]))
    network = Network(model, threads=1)
    x = _grid(*shape)
    with torch.no_grad():
        expected = module(x)
    # Twice: a constant that is written to would show in the second.
    network.tensors(x)
    return network, network.tensors(x)[0], expected


def _operations(network):
    return [n.get_type_name() for n in network.model.get_ordered_ops()]


@pytest.mark.parametrize(
    ('channels', 'keywords', 'computes'),
    [
        ((8, 1), dict(kernel_size=3, padding=1), 'BinaryConvolution'),
        ((16, 33), dict(kernel_size=1, stride=2), 'BinaryConvolution'),
        ((64, 20), dict(kernel_size=3, stride=3), 'BinaryConvolution'),
        (
            (24, 17),
            dict(kernel_size=3, padding=1, pad_value=-1),
            'BinaryConvolution',
        ),
        (
            (24, 64),
            dict(kernel_size=3, padding=1, pad_value=1, shift=0.5),
            'BinaryConvolution',
        ),
        (
            (16, 8),
            dict(kernel_size=2, padding='same'),
            'BinaryConvolution',
        ),
        # What the kernel refuses or gets wrong by itself.
        (
            (16, 24),
            dict(kernel_size=3, padding=6, dilation=6),
            'Pad and BinaryConvolution',
        ),
        (
            (16, 8),
            dict(kernel_size=3, padding=1, stride=3, dilation=2),
            'Pad and BinaryConvolution',
        ),
        (
            (8, 8),
            dict(kernel_size=5, padding=2, pad_value=1),
            'Pad and BinaryConvolution',
        ),
        # Channels that do not fill bytes, and groups.
        ((1, 8), dict(kernel_size=3, padding=1), 'Convolution on signs'),
        ((3, 9), dict(kernel_size=3), 'Convolution on signs'),
        ((7, 8), dict(kernel_size=1), 'Convolution on signs'),
        (
            (9, 16),
            dict(kernel_size=3, padding=2, pad_value=-1),
            'Convolution on signs',
        ),
        (
            (20, 65),
            dict(kernel_size=3, padding=1, shift=-0.5),
            'Convolution on signs',
        ),
        (
            (16, 16),
            dict(kernel_size=3, padding=1, groups=2),
            'GroupConvolution on signs',
        ),
        # Half a 1-bit layer.
        (
            (8, 8),
            dict(kernel_size=3, binarize_weight=False),
            'Convolution on signs',
        ),
        (
            (8, 8),
            dict(kernel_size=3, binarize_activation=False, shift=0.5),
            'Convolution',
        ),
    ],
)
def test_a_convolution_computes_what_torch_does(channels, keywords, computes):
    torch.manual_seed(0)
    layer = SURGEConv2d(*channels, **keywords)
    if layer.shift is not None:
        layer.shift.data = _grid(channels[0])
    assert operation(layer) == computes

    network, got, expected = _run(layer, 2, channels[0], 14, 15)

    binary = 'BinaryConvolution' in computes
    assert ('BinaryConvolution' in _operations(network)) == binary
    assert len(_cases(network.model)) == binary
    check_layers(network.model, network.settings)
    # Sums of some hundred ones are exact, their products with alpha round
    # in the seventh digit.
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('shape', [(5, 24), (2, 3, 16), (4, 10)])
def test_a_linear_layer_computes_what_torch_does(shape):
    torch.manual_seed(0)
    layer = SURGELinear(shape[-1], 20, shift=0.5)
    layer.shift.data = _grid(shape[-1])

    model = convert(layer.eval(), torch.zeros(shape))
    network = Network(model, threads=1)
    x = _grid(*shape)

    binary = shape[-1] % 8 == 0
    assert ('BinaryConvolution' in _operations(network)) == binary
    model.reshape(list(shape))
    got = network.compiled(shape)(x.numpy())[0]
    np.testing.assert_allclose(got, layer(x).detach(), rtol=1e-5, atol=1e-5)


def test_shifts_in_front_become_thresholds():
    torch.manual_seed(0)
    conv = nn.Sequential(LearnedShift(16), SURGEConv2d(16, 8, 3, padding=1))
    conv[0].shift.data = _grid(16)
    network, got, expected = _run(conv, 2, 16, 6, 7)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    assert _operations(network).count('Add') == 1  # the bias

    linear = nn.Sequential(LearnedShift(16), SURGELinear(16, 8, bias=False))
    linear[0].shift.data = _grid(16)
    network, got, expected = _run(linear, 70, 16)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    assert 'Add' not in _operations(network)


class _Block(nn.Module):
    """A shortcut, and a norm between it and the next sign."""

    def __init__(self):
        super().__init__()
        self.first = SURGEConv2d(16, 24, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(24)
        self.shortcut = nn.Conv2d(16, 24, 1)
        self.act = RPReLU(24)
        self.norm2 = nn.BatchNorm2d(24)
        self.second = SURGEConv2d(24, 16, 3, padding=1)

    def forward(self, x):
        y = self.norm1(self.first(x)) + self.shortcut(x)
        z = self.norm2(y)
        return self.second(z) + self.second(self.act(y))


@pytest.mark.parametrize('sign', [1, -1])
def test_what_follows_a_layer_merges_with_it(sign):
    torch.manual_seed(0)
    block = _Block()
    for norm in (block.norm1, block.norm2):
        nn.init.uniform_(norm.weight, 0.5, 2)
        norm.weight.data[::2] *= sign
        nn.init.normal_(norm.bias)
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 2)
    nn.init.normal_(block.act[0].shift)
    nn.init.normal_(block.act[2].shift)

    network, got, expected = _run(block, 2, 16, 8, 9)

    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    runtime = network.compiled((1, 16, 8, 9)).get_runtime_model()
    layers = [
        (
            node.get_rt_info()['layerType'].astype(str),
            node.get_rt_info()['originalLayersNames'].astype(str),
        )
        for node in runtime.get_ordered_ops()
    ]
    # A sign that merges with a convolution behind a shortcut goes wrong.
    assert not [
        names
        for kind, names in layers
        if kind == 'BinaryConvolution' and '/sign' in names
    ]
    kinds = [kind for kind, _ in layers]
    assert kinds.count('BinaryConvolution') == 3
    assert kinds.count('FakeQuantize') == 3


def test_a_threshold_is_right_below_its_start():
    start = np.array([0, -0.0, 1, -2.5, 1e-40, -1e-40], np.float32)
    threshold = below(start)
    tiny = np.finfo(np.float32).tiny
    assert threshold.dtype == np.float32
    assert list(threshold[:2]) == [-tiny, -tiny]
    for first, t in zip(start[2:4], threshold[2:4]):
        assert t < first
        assert np.nextafter(t, np.float32(np.inf)) == first
    assert list(threshold[4:]) == [0, -tiny]
    assert list(above(threshold[:4])) == list(start[:4])
    assert list(above(threshold[4:])) == [tiny, 0]


class _Times(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.register_buffer('factor', factor.view(-1, 1, 1))

    def forward(self, x):
        return x * self.factor


@pytest.mark.parametrize('shift', [0.0, 0.5])
def test_a_factor_in_front_moves_the_threshold(shift):
    torch.manual_seed(0)
    # Of two, so that sums with a shift are exactly 0 still.
    factor = 2.0 ** torch.randint(0, 3, (16,))
    net = nn.Sequential(_Times(factor), SURGEConv2d(16, 8, 3, shift=shift))
    network, got, expected = _run(net, 2, 16, 6, 7)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    assert _operations(network).count('Multiply') == 1  # the scale
    (sign,) = (
        node
        for node in network.model.get_ordered_ops()
        if node.get_type_name() == 'FakeQuantize'
    )
    # A processor may take subnormal numbers for the zero that they are not.
    tiny = np.finfo(np.float32).tiny
    assert (np.abs(sign.input_value(1).get_node().data) >= tiny).all()


def test_conversion_leaves_the_module_as_it_is():
    torch.manual_seed(0)
    layer = SURGEConv2d(8, 8, 3)
    x = torch.randn(1, 8, 5, 5)
    # A forward of its own stays as well.
    for _ in range(2):
        before, own = layer(x), dict(vars(layer))
        network = nn.Sequential(layer, nn.Dropout())
        network[1].eval()
        convert(network, x)
        assert network.training
        assert not network[1].training
        assert torch.equal(layer(x), before)
        assert vars(layer) == own
        layer.forward = functools.partial(SURGEConv2d.forward, layer)


def test_training_that_goes_on_leaves_the_converted_network_as_it_is():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        SURGEConv2d(8, 8, 3, shift=0.5),
        nn.PReLU(8),
        nn.Linear(5, 4),
    )
    x = torch.randn(2, 3, 9, 9)
    network = Network(convert(net.eval(), x, sizes_vary=False), threads=1)
    with torch.no_grad():
        expected = net(x)
        for parameter in net.parameters():
            parameter.add_(1)
    torch.testing.assert_close(
        network.tensors(x)[0], expected, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize('module', [SURGEConv2d, nn.Conv2d])
@pytest.mark.parametrize('batch', [1, 3])
def test_maps_are_given_and_taken_in_channels_last(module, batch):
    torch.manual_seed(0)
    net = nn.Sequential(module(16, 24, 3, padding=1), nn.PReLU()).eval()
    model = convert(net, torch.zeros(1, 16, 9, 7))
    network = Network(model, threads=1)
    x = _grid(batch, 16, 9, 7)

    (usual,) = network.tensors(x)
    (last,) = network.tensors(x.contiguous(memory_format=torch.channels_last))
    # Neither layout: a part of a wider map.
    (part,) = network.tensors(torch.cat([x, x], 3)[..., :7])

    with torch.no_grad():
        torch.testing.assert_close(usual, net(x), rtol=1e-5, atol=1e-5)
    assert torch.equal(usual, last)
    assert torch.equal(usual, part)
    for maps in (usual, last, part):
        assert maps.shape == (batch, 24, 9, 7)
        assert maps.is_contiguous(memory_format=torch.channels_last)
    network.channels_last = False
    (standard,) = network.tensors(x)
    assert standard.is_contiguous()
    assert torch.equal(standard, usual)
    # Compiled once for each layout; the model itself stays as it was.
    layouts = [key[-2:] for key in network._requests]
    assert layouts == [(True, True), (False, True), (False, False)]
    assert model.input(0).partial_shape[1].get_length() == 16


def test_the_self_check_finds_a_kernel_that_computes_something_else(
    monkeypatch,
):
    # Twelve channels do not fill bytes: OpenVINO runs them, and wrongly.
    torch.manual_seed(0)
    layer = nn.Sequential(SURGEConv2d(12, 8, 2)).eval()
    monkeypatch.setattr(lowering_module, '_PACK', 4)
    network = Network(convert(layer, torch.zeros(1, 12, 6, 6)), threads=1)
    with pytest.raises(
        RuntimeError, match=r'wrong values on this CPU .* 0 \('
    ):
        check_layers(network.model, network.settings)


@pytest.mark.parametrize(
    ('module', 'reason'),
    [
        (SURGEConv2d(8, 8, 3, dtype=torch.float64), 'torch.float64'),
        (nn.Conv2d(8, 8, 3, device='meta'), 'on meta'),
        (nn.Conv2d(8, 8, 3), None),
        (SURGELinear(7, 8), None),
    ],
)
def test_what_cannot_be_exported_is_named(module, reason):
    problem = FORMATS['openvino'].plan(module)[-1].problem
    assert (problem is None) == (reason is None)
    assert reason is None or reason in problem[0]
