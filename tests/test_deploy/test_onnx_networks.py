"""Networks as ONNX graphs, each beside its own arithmetic in torch."""

import collections
import importlib.util

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip('mmdet', reason='needs the toolbox')
if importlib.util.find_spec('onnx') is None:
    pytest.skip('needs the extra deploy', allow_module_level=True)

import surge_det  # noqa: F401

# isort: split
from mmengine.registry import init_default_scope
from onnx_reference import evaluate
from small_detector import small_config, train

from surge_det.core import SURGEConv2d, SURGELinear
from surge_det.core.activations import LearnedShift, RPReLU
from surge_det.deploy.networks import (
    dense_network,
    exact_arithmetic,
    roi_network,
)
from surge_det.deploy.onnx.conversion import convert
from surge_det.deploy.onnx.layers import stored_as_bits
from surge_det.deploy.trained import build_detector
from surge_det.engine.apply_method import apply_method

# Names of a BinaryConv's optional inputs, from the fourth on.
ENDS = ('bias', 'factor', 'offset', 'residual', 'pre', 'slope', 'post')
ADDED = 'added'


def _grid(*shape):
    """Multiples of 1/2, so that many sums with a shift are exactly 0."""
    return torch.randint(-3, 4, shape) / 2.0


def _first(y):
    y = torch.from_numpy(y)
    return y.permute(0, 3, 1, 2) if y.dim() == 4 else y


def _run(module, *shape):
    """Convert and run at a larger size; return the model and both outputs."""
    module = module.eval()
    model = convert(module, torch.zeros(1, *shape[1:]), channels_last=True)
    x = _grid(*shape[:2], *(size + 3 for size in shape[2:]))
    with torch.no_grad(), exact_arithmetic(module, stored_as_bits, True):
        expected = module(x)
    (found,) = evaluate(model, data=x.permute(0, 2, 3, 1).numpy())
    return model, _first(found), expected


def _operations(model):
    return collections.Counter(node.op_type for node in model.graph.node)


def _ends(model):
    """Say what each 1-bit convolution has taken in."""
    return [
        [end for end, name in zip((*ENDS, ADDED), node.input[4:]) if name]
        for node in model.graph.node
        if node.op_type == 'BinaryConv'
    ]


@pytest.mark.parametrize(
    ('channels', 'keywords'),
    [
        ((8, 1), dict(kernel_size=3, padding=1)),
        ((16, 33), dict(kernel_size=1, stride=2)),
        ((3, 9), dict(kernel_size=3, bias=False)),
        ((20, 6), dict(kernel_size=(3, 2), padding=1, pad_value=-1)),
        ((24, 8), dict(kernel_size=3, padding=1, pad_value=1, shift=0.5)),
        ((7, 8), dict(kernel_size=2, padding='same')),
        ((8, 8), dict(kernel_size=3, padding=6, dilation=(6, 4))),
        ((12, 8), dict(kernel_size=3, padding=1, groups=4, stride=(2, 1))),
    ],
)
def test_one_bit_convolutions(channels, keywords):
    torch.manual_seed(0)
    layer = SURGEConv2d(*channels, compensate=False, **keywords)
    model, found, expected = _run(layer, 1, channels[0], 9, 11)
    assert torch.equal(found, expected)
    # Channels stand last in the graph.
    assert _operations(model) == dict(BinaryConv=1)


@pytest.mark.parametrize(
    'keywords',
    [
        dict(binarize_weight=False, shift=0.25),
        dict(binarize_activation=False),
        dict(binarize_weight=False, padding=1, pad_value=-1, groups=2),
    ],
)
def test_half_a_one_bit_layer_is_a_real_convolution(keywords):
    torch.manual_seed(0)
    layer = SURGEConv2d(8, 6, 3, compensate=False, **keywords)
    model, found, expected = _run(layer, 1, 8, 9, 11)
    assert torch.equal(found, expected)
    assert _operations(model)['Conv'] == 1
    assert not _operations(model)['BinaryConv']


@pytest.mark.parametrize('size', [(8, 5), (1, 3)])
def test_linear_layers_in_a_row(size):
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Flatten(),
        LearnedShift(8 * 6),
        SURGELinear(8 * 6, 16, compensate=False),
        nn.PReLU(16),
        LearnedShift(16),
        SURGELinear(16, 4, compensate=False, binarize_weight=False),
    ).eval()
    for layer in layers:
        if isinstance(layer, LearnedShift):
            layer.shift.data.copy_(_grid(len(layer.shift)))
    model = convert(layers, torch.zeros(2, 8, 2, 3), True, sizes_vary=False)
    x = _grid(size[0], 8, 2, 3)
    with torch.no_grad(), exact_arithmetic(layers, stored_as_bits, True):
        expected = layers(x)
    (found,) = evaluate(model, data=x.permute(0, 2, 3, 1).numpy())
    assert torch.allclose(torch.from_numpy(found), expected, atol=1e-6)
    # Columns stand in another order, shifts are part of thresholds.
    assert _ends(model) == [['bias', 'slope', 'post']]
    assert _operations(model)['Transpose'] == 0


class _Half(nn.Module):
    """Half a block of SURGEResNet, or what looks like one."""

    def __init__(self, order, second_reader=False):
        super().__init__()
        self.order, self.second_reader = order, second_reader
        self.shift = LearnedShift(8)
        self.conv = SURGEConv2d(8, 8, 3, padding=1, compensate=False)
        self.norm = nn.BatchNorm2d(8)
        self.act = RPReLU(8)

    def forward(self, x):
        y = self.conv(self.shift(x))
        first = y
        for step in self.order:
            if step == 'norm':
                y = self.norm(y)
            elif step == 'add':
                y = y + x
            else:
                y = self.act(y)
        return y + first if self.second_reader else y


def _half(*args, **kwargs):
    torch.manual_seed(0)
    module = train(_Half(*args, **kwargs))
    module.norm.running_var.fill_(0.5)
    return module


@pytest.mark.parametrize(
    ('order', 'taken', 'left'),
    [
        (('norm', 'add', 'act'), ENDS, {}),
        (('act',), ('bias', 'offset', 'slope', 'post'), {}),
        # Places that come before those taken: nothing is put out of order.
        (('add', 'norm'), ('bias', 'residual'), dict(Mul=1, Add=1)),
        (('act', 'add'), ('bias', 'offset', 'slope', 'post'), dict(Add=1)),
    ],
)
def test_what_follows_a_one_bit_convolution_becomes_its_end(
    order, taken, left
):
    model, found, expected = _run(_half(order), 1, 8, 9, 11)
    assert torch.equal(found, expected)
    assert _ends(model) == [list(taken)]
    assert _operations(model) == dict(BinaryConv=1, **left)


def test_what_somebody_else_reads_stays():
    module = _half(('norm', 'act'), second_reader=True)
    model, found, expected = _run(module, 1, 8, 9, 11)
    assert torch.equal(found, expected)
    # The bias is the layer's own.
    assert _ends(model) == [['bias']]


def test_the_maximum_comes_before_a_norm():
    # In the engine's layout; channels of a negative factor change their sign.
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, bias=True),
        nn.BatchNorm2d(8),
        nn.MaxPool2d(3, 2, 1),
        SURGEConv2d(8, 8, 3, compensate=False),
    )
    train(module)
    module[1].weight.data[::2].neg_()
    module[1].running_mean.data.zero_()
    module = module.eval()
    model = convert(module, torch.zeros(1, 3, 32, 32))
    x = _grid(1, 3, 40, 48)
    with torch.no_grad(), exact_arithmetic(module, stored_as_bits, True):
        expected = module(x)
    (found,) = evaluate(model, data=x.numpy())
    assert torch.equal(_first(found), expected)
    kinds = [node.op_type for node in model.graph.node]
    # The norm's offset is part of the threshold.
    assert kinds == [*('Conv', 'MaxPool', 'Transpose', 'Mul', 'BinaryConv')]


class _Two(nn.Module):
    """Real 1x1 convolutions of one map."""

    def __init__(self, stride):
        super().__init__()
        self.hidden = SURGEConv2d(6, 8, 3, padding=1, compensate=False)
        # One slope for all channels.
        self.act = nn.PReLU()
        self.first = nn.Conv2d(8, 3, 1, stride)
        self.second = nn.Conv2d(8, 5, 1, stride)

    def forward(self, x):
        x = self.act(self.hidden(x))
        return torch.cat([self.second(x), self.first(x)], 1)


@pytest.mark.parametrize('stride', [1, 2])
def test_real_products_of_one_map_are_one(stride):
    torch.manual_seed(0)
    model, found, expected = _run(_Two(stride), 1, 6, 7, 10)
    assert torch.allclose(found, expected, atol=1e-6)
    pool = {'Pool': 1} if stride > 1 else {}
    assert _operations(model) == dict(
        **dict(BinaryConv=1, MatMul=1, Add=1, Split=1, Concat=1),
        **pool,
    )
    assert _ends(model) == [['bias', 'slope']]


class _TopDown(nn.Module):
    """What a feature pyramid does with two levels."""

    def __init__(self, by_size):
        super().__init__()
        self.by_size = by_size
        self.low, self.high = (
            SURGEConv2d(8, 8, 3, padding=1, compensate=False) for _ in range(2)
        )
        self.act = nn.PReLU(8)

    def forward(self, x):
        low = self.act(self.low(x))
        high = self.high(nn.functional.max_pool2d(x, 2))
        how = dict(scale_factor=2)
        if self.by_size:
            how = dict(size=low.shape[2:])
        return low + nn.functional.interpolate(high, mode='nearest', **how)


@pytest.mark.parametrize(('by_size', 'size'), [(True, 9), (False, 10)])
def test_a_map_that_is_enlarged_and_added(by_size, size):
    torch.manual_seed(0)
    module = _TopDown(by_size).eval()
    model = convert(module, torch.zeros(1, 8, size, size), channels_last=True)
    x = _grid(1, 8, size + 2, size + 4)
    with torch.no_grad(), exact_arithmetic(module, stored_as_bits, True):
        expected = module(x)
    (found,) = evaluate(model, data=x.permute(0, 2, 3, 1).numpy())
    assert torch.equal(_first(found), expected)
    assert _operations(model) == dict(BinaryConv=2, Pool=1)
    assert _ends(model) == [['bias'], ['bias', 'slope', ADDED]]


@pytest.fixture(scope='module')
def detector():
    init_default_scope('mmdet')
    torch.manual_seed(0)
    return train(build_detector(small_config()))


def test_a_one_bit_network_stays_as_nhwc(detector):
    network = dense_network(detector)
    model = convert(network, torch.zeros(1, 3, 96, 96))
    x = torch.randn(1, 3, 128, 160)
    with torch.no_grad(), exact_arithmetic(network, stored_as_bits, True):
        expected = network(x)
    found = [_first(y) for y in evaluate(model, data=x.numpy())]
    for place, (one, other) in enumerate(zip(found, expected, strict=True)):
        if place < 5:
            # The whole body, its real 1x1 convolutions included.
            assert torch.equal(one, other)
        else:
            assert torch.allclose(one, other, rtol=1e-5, atol=1e-5)
    assert _operations(model) == dict(
        # The first layer, in the engine's layout.
        **dict(Conv=1, MaxPool=1, Transpose=1),
        # Shortcuts, and a level more.
        **dict(Pool=3 + 1),
        # Norms of the first layer and of shortcuts; biases of the RPN.
        **dict(Mul=1 + 3, Add=1 + 3 + 5),
        **dict(MatMul=3 + 5, Split=5),
        **dict(BinaryConv=16 + 4 + 4 + 5),
    )
    # Body, lateral and output convolutions.
    assert _ends(model)[:15] == [list(ENDS[1:])] * 15
    assert _ends(model)[16:] == [
        ['bias', 'slope'],
        *[['bias', 'slope', ADDED]] * 3,
        *[['bias', 'slope']] * 9,
    ]
    # No norm is where the engine would fold it into a real convolution.
    makers = {name: n for n in model.graph.node for name in n.output}
    for node in model.graph.node:
        if node.op_type in ('Mul', 'Add') and node.input[0] in makers:
            assert makers[node.input[0]].op_type != 'Conv'


def test_pooled_features_come_in_as_nhwc(detector):
    network = roi_network(detector)
    model = convert(network, torch.zeros(4, 16, 7, 7), True, sizes_vary=False)
    x = torch.randn(5, 16, 7, 7)
    with torch.no_grad(), exact_arithmetic(network, stored_as_bits, True):
        expected = network(x)
    found = evaluate(model, data=x.permute(0, 2, 3, 1).numpy())
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
    assert _operations(model)['Transpose'] == 0
    assert _ends(model) == [['bias', 'slope']] * 2


def test_a_float_twin_is_what_the_engine_knows():
    init_default_scope('mmdet')
    cfg = apply_method(small_config(), 'float')
    network = dense_network(train(build_detector(cfg)))
    model = convert(network, torch.zeros(1, 3, 96, 96))
    x = torch.randn(1, 3, 128, 160)
    with torch.no_grad():
        expected = network(x)
    found = [_first(y) for y in evaluate(model, data=x.numpy())]
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-3)
    assert {node.domain for node in model.graph.node} == {''}
    operations = _operations(model)
    # Only outputs are transposed; norms are part of convolutions.
    assert operations['Transpose'] == len(model.graph.output)
    assert not operations['BatchNormalization'] + operations['Mul']
