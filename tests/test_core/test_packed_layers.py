import copy

import pytest
import torch
from torch import nn

from surge_det.core import SURGEConv2d, SURGELinear
from surge_det.core.binarization import binarization_of
from surge_det.core.bits import pack_signs, unpack_signs
from surge_det.core.packed_layers import (
    PackedConv2d,
    PackedLinear,
    pack_model,
    unpack_model,
)

pytestmark = pytest.mark.isa


def test_bits_by_hand():
    # 1 for +1, first value in the lowest bit, zero counts as +1; the second
    # byte of each channel is filled up with zeros.
    weight = torch.tensor(
        [
            [1.0, -1, -1, -1, -1, -1, -1, 2, 0.0],
            [-0.0, 3, -2, -2, 5, -2, -2, -2, -7],
        ]
    )
    expected = [[0b10000001, 0b1], [0b00010011, 0b0]]
    bits = pack_signs(weight)
    assert bits.dtype == torch.uint8
    assert bits.tolist() == expected
    assert unpack_signs(bits, (2, 9)).tolist() == [
        [1, -1, -1, -1, -1, -1, -1, 1, 1],
        [1, 1, -1, -1, 1, -1, -1, -1, -1],
    ]


@pytest.mark.parametrize(
    'shape', [(1,), (5,), (1, 1), (3, 8), (4, 9), (6, 3, 3, 3), (2, 7, 1, 5)]
)
def test_signs_come_back(shape):
    torch.manual_seed(0)
    weight = torch.randn(shape)
    signs = unpack_signs(pack_signs(weight), shape, torch.float64)
    assert signs.dtype == torch.float64
    assert torch.equal(signs, torch.where(weight >= 0, 1.0, -1.0).double())


def test_bits_that_do_not_fit():
    with pytest.raises(ValueError, match=r'\(2, 2\)'):
        unpack_signs(torch.zeros(2, 1, dtype=torch.uint8), (2, 9))
    with pytest.raises(ValueError, match='int32'):
        unpack_signs(torch.zeros(2, 2, dtype=torch.int32), (2, 9))
    with pytest.raises(ValueError, match='no dimension'):
        pack_signs(torch.tensor(1.0))


CONVS = [
    {},
    dict(bias=False, stride=2, padding=1),
    dict(padding='same', kernel_size=(4, 3)),
    dict(padding=(2, 1), dilation=(1, 2), groups=3, pad_value=-1.0),
    dict(padding=1, pad_value=1.0, shift=0.1),
    dict(weight_binarizer=dict(type='IRNet'), normalize_input=True),
    dict(weight_binarizer=dict(type='ReCU')),
    dict(binarize_activation=False, padding=1, shift=-0.2),
    dict(compensate=False, activation_estimator=dict(type='ReSTE')),
]


def conv(kwargs, seed=0):
    torch.manual_seed(seed)
    kwargs = {'kernel_size': 3, **kwargs}
    layer = SURGEConv2d(6, 9, **kwargs)
    with torch.no_grad():
        layer.weight[0, 0] = 0
        if layer.shift is not None:
            layer.shift.normal_()
    return layer.eval()


@pytest.mark.parametrize('kwargs', CONVS, ids=str)
@pytest.mark.parametrize('grad', [False, True])
def test_packed_convolution_has_the_layers_bits(kwargs, grad):
    layer = conv(kwargs)
    packed = PackedConv2d(layer)
    x = torch.randn(2, 6, 11, 8)
    x[0, :, :3] = 0
    with torch.set_grad_enabled(grad):
        expected, found = layer(x), packed(x)
    assert torch.equal(found, expected)
    assert torch.equal(packed(x[0]), layer(x[0]))
    assert not found.requires_grad
    unpacked = packed.unpacked()
    assert torch.equal(unpacked(x), expected)
    kinds = [binarization_of(nn.Sequential(x)) for x in (layer, unpacked)]
    assert kinds[0] == kinds[1]


@pytest.mark.parametrize(
    'kwargs', [{}, dict(bias=False, shift=0.3), dict(compensate=False)]
)
def test_packed_linear_has_the_layers_bits(kwargs):
    torch.manual_seed(0)
    layer = SURGELinear(19, 7, **kwargs).eval()
    packed = PackedLinear(layer)
    x = torch.randn(4, 3, 19)
    assert torch.equal(packed(x), layer(x))
    assert torch.equal(packed(x[:0]), layer(x[:0]))
    assert torch.equal(packed.unpacked()(x), layer(x))


def test_a_model_is_unpacked_in_a_copy():
    layer = conv(dict(padding=1))
    # A channel of zeros has signs, and a scale of 0.
    nn.init.zeros_(layer.weight[3])
    model = nn.Sequential(layer, nn.ReLU(), nn.Conv2d(9, 6, 1), layer).eval()
    x = torch.randn(1, 6, 5, 5)
    expected = model(x)
    assert unpack_model(model) is model
    pack_model(model)
    unpacked = unpack_model(model)
    assert torch.equal(unpacked(x), expected)
    assert unpacked[0] is unpacked[3]
    assert isinstance(model[0], PackedConv2d)


@pytest.mark.parametrize('binarizer', ['ScaledSign', 'IRNet'])
def test_other_types_and_autocast(binarizer):
    layer = conv(dict(padding=1, weight_binarizer=dict(type=binarizer)))
    x = torch.randn(1, 6, 5, 5)
    packed = PackedConv2d(layer)
    with torch.autocast('cpu', torch.bfloat16):
        expected, found = layer(x), packed(x)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, expected)
    for dtype in (torch.float64, torch.bfloat16):
        narrow = copy.deepcopy(layer).to(dtype)
        packed = PackedConv2d(narrow)
        assert torch.equal(packed(x.to(dtype)), narrow(x.to(dtype)))


def test_weight_is_scale_times_sign():
    layer = conv({})
    alpha = layer.weight.abs().mean((1, 2, 3), keepdim=True)
    expected = torch.where(layer.weight >= 0, alpha, -alpha)
    assert torch.equal(PackedConv2d(layer).weight, expected)


def test_size_of_the_state():
    layer = SURGEConv2d(64, 64, 3, bias=False)
    state = PackedConv2d(layer).state_dict()
    assert set(state) == {'bits', 'scale'}
    sizes = sum(t.numel() * t.element_size() for t in state.values())
    assert sizes == 64 * 64 * 9 // 8 + 4 * 64
    assert 4 * layer.weight.numel() / sizes > 30


def test_training_is_refused():
    packed = PackedConv2d(conv({}))
    assert not packed.training
    packed.eval()
    with pytest.raises(RuntimeError, match='cannot be trained'):
        nn.Sequential(packed).train()
    assert not list(packed.parameters())


@pytest.mark.parametrize(
    ('cls', 'layer', 'said'),
    [
        (PackedConv2d, nn.Conv2d(2, 2, 1), 'Conv2d'),
        (PackedConv2d, SURGELinear(2, 2), 'SURGELinear'),
        (PackedLinear, SURGEConv2d(2, 2, 1), 'SURGEConv2d'),
        (PackedLinear, SURGELinear(2, 2, binarize_weight=False), 'real'),
    ],
)
def test_what_cannot_be_packed(cls, layer, said):
    with pytest.raises(ValueError, match=said):
        cls(layer)


class Other(SURGELinear):
    def forward(self, x):
        return 2 * super().forward(x)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3)
        self.body = nn.Sequential(nn.BatchNorm2d(6), conv({}))
        self.weights_real = SURGEConv2d(9, 9, 1, binarize_weight=False)
        self.shared = SURGEConv2d(9, 9, 1)
        self.again = nn.Sequential(self.shared)
        self.head = SURGELinear(9, 4)

    def forward(self, x):
        x = self.weights_real(self.body(self.stem(x)))
        x = self.again(self.shared(x) - 0.1)
        return self.head(x.mean((2, 3)))


def test_pack_swaps_in_place():
    torch.manual_seed(0)
    model = Net().eval()
    x = torch.randn(2, 3, 9, 9)
    expected = model(x)
    done = pack_model(model)
    assert done == {
        'body.1': 'packed',
        'weights_real': 'real weights',
        'shared': 'packed',
        'head': 'packed',
    }
    assert torch.equal(model(x), expected)
    assert model.again[0] is model.shared
    assert isinstance(model.body[1], PackedConv2d)
    assert isinstance(model.weights_real, SURGEConv2d)
    assert not any('aux_weight' in key for key in model.state_dict())
    assert 'head.bits' in model.state_dict()


def test_packed_state_loads_into_another_packed_model():
    torch.manual_seed(0)
    model, other = Net().eval(), Net().eval()
    pack_model(model)
    pack_model(other)
    other.load_state_dict(model.state_dict())
    x = torch.randn(1, 3, 9, 9)
    assert torch.equal(model(x), other(x))


def test_pack_changes_nothing_where_one_layer_cannot_be():
    model = nn.Sequential(SURGELinear(2, 2), Other(2, 2))
    with pytest.raises(ValueError, match='1: layer is a Other'):
        pack_model(model)
    assert type(model[0]) is SURGELinear
    assert model[0].aux_weight is not None
    with pytest.raises(ValueError, match='a layer itself'):
        pack_model(SURGELinear(2, 2))


def test_trace_is_an_ordinary_convolution():
    packed = PackedConv2d(conv(dict(padding=1)))
    x = torch.randn(1, 6, 5, 5)
    traced = torch.jit.trace(packed, x)
    assert 'aten::_convolution' in str(traced.inlined_graph)
    assert torch.equal(traced(-x), packed(-x))
