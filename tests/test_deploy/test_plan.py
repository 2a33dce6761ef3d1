from pathlib import Path

import pytest
import torch

pytest.importorskip('mmdet', reason='needs the toolbox')

import surge_det  # noqa: F401

# isort: split
from small_detector import small_config, train
from torch import nn

from surge_det.core import SURGEConv2d, SURGELinear
from surge_det.core.activations import LearnedShift
from surge_det.deploy import FORMATS, ExportError, check, format_of
from surge_det.deploy.trained import build_detector


class Doubled(SURGELinear):
    def forward(self, x):
        return 2 * super().forward(x)


def net(**kwargs):
    torch.manual_seed(0)
    body = SURGEConv2d(4, 10, 3, shift=0.1, **kwargs)
    return nn.ModuleDict(
        {
            'stem': nn.Conv2d(3, 4, 3, bias=False),
            'body': nn.Sequential(nn.BatchNorm2d(4), body, LearnedShift(10)),
            'again': body,
            'head': SURGELinear(10, 2, bias=False),
        }
    )


def test_rows_by_hand():
    rows = {row.name: row for row in FORMATS['packed'].plan(net())}
    assert list(rows) == ['stem', 'body.0', 'body.1', 'body.2', 'head']
    assert rows['stem'].bytes == rows['stem'].float_bytes == 4 * 108
    assert (rows['stem'].kind, rows['stem'].bits) == ('real', '32/32')
    assert rows['body.0'].bytes == rows['body.0'].float_bytes == 4 * 8
    body = rows['body.1']
    # 36 bits fill 5 bytes; a scale, a bias for each output, a shift for each
    # input. The float twin has no scale.
    assert body.bytes == 10 * (5 + 4) + 4 * (10 + 4)
    assert body.float_bytes == 4 * (360 + 10 + 4)
    assert (body.kind, body.bits, body.part) == ('1-bit', '1/1', 'body')
    assert body.operation == 'conv2d on scaled signs'
    assert rows['head'].bytes == 2 * (2 + 4)
    assert rows['head'].operation == 'linear on scaled signs'


@pytest.mark.parametrize(
    ('kwargs', 'kind', 'bits', 'operation'),
    [
        ({'binarize_weight': False}, 'activations 1-bit', '32/1', 'on signs'),
        (
            {'binarize_activation': False},
            'weights 1-bit',
            '1/32',
            'on scaled signs',
        ),
        (
            {'binarize_weight': False, 'binarize_activation': False},
            'real',
            '32/32',
            '',
        ),
        ({'weight_binarizer': {'type': 'ReCU'}}, '1-bit', '1/1', None),
    ],
)
def test_partly_binarized_layers(kwargs, kind, bits, operation):
    rows = {row.name: row for row in FORMATS['packed'].plan(net(**kwargs))}
    row = rows['body.1']
    assert (row.kind, row.bits) == (kind, bits)
    if operation is not None:
        assert row.operation == f'conv2d {operation}'.strip()
    weight = 4 * 360 if bits.startswith('32') else 10 * (5 + 4)
    assert row.bytes == weight + 4 * (10 + 4)
    assert row.float_bytes == 4 * (360 + 10 + 4)


def test_pth_holds_a_state_dict():
    model = net(compensate=False)
    rows = FORMATS['pth'].plan(model)
    state = model.state_dict()
    own = [v for k, v in state.items() if not k.startswith('again')]
    replica = 4 * 20  # of the head
    sizes = sum(v.numel() * v.element_size() for v in own)
    assert sum(row.bytes for row in rows) == sizes - replica


def test_detectors_parts_and_float_twin():
    model = train(build_detector(small_config()))
    rows = FORMATS['packed'].plan(model)
    check(rows)
    assert {r.part for r in rows} == {
        'backbone',
        'neck',
        'rpn_head',
        'roi_head',
    }
    parameters = sum(p.numel() for p in model.parameters())
    assert sum(row.float_bytes for row in rows) == 4 * parameters
    assert sum(row.kind == '1-bit' for row in rows) == 16 + 8 + 1 + 2


def test_norms_that_do_not_fold_are_counted_whole():
    model = nn.Sequential(nn.BatchNorm2d(4), nn.BatchNorm2d(4, affine=False))
    model[0].running_var[0] = -1
    rows = FORMATS['packed'].plan(model)
    assert [row.bytes for row in rows] == [4 * 16, 4 * 8]
    assert [row.float_bytes for row in rows] == [4 * 8, 0]


def test_all_problems_at_once():
    model = net()
    model['stem'].weight.data[0] = float('inf')
    model['head'] = Doubled(10, 2)
    model['lazy'] = nn.LazyLinear(3)
    model['made'] = nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))
    with pytest.raises(ExportError) as error:
        check(FORMATS['packed'].plan(model))
    said = str(error.value)
    assert 'stem (real): weight has values that are not finite' in said
    assert 'head (1-bit): Doubled has a forward of its own' in said
    assert 'lazy (real): its shape is not known' in said
    assert 'made' in said
    assert 'body' not in said
    assert said.count('remedy: ') >= 4
    # A checkpoint holds what the class has, whatever it computes.
    with pytest.raises(ExportError) as error:
        check(FORMATS['pth'].plan(model))
    assert 'Doubled' not in str(error.value)


def test_openvino_has_rules_of_its_own():
    rows = FORMATS['openvino'].plan(net())
    # Four input channels do not pack: an ordinary convolution, float32.
    (body,) = (row for row in rows if row.name == 'body.1')
    assert body.operation == 'Convolution on signs'
    assert body.bytes == 4 * (360 + 10 + 4)
    with pytest.raises(ExportError, match=r'\(detector\)(?s:.*)ModuleDict'):
        check(rows)
    detector = build_detector(small_config())
    rows = FORMATS['openvino'].plan(detector)
    check(rows)
    packed = [r for r in rows if r.operation.startswith('BinaryConvolution')]
    assert len(packed) == 16 + 8 + 1 + 2


@pytest.mark.parametrize(
    ('path', 'name'),
    [
        ('a/detector.pth', 'pth'),
        ('detector.safetensors', 'packed'),
        ('a.pth/detector.xml', 'openvino'),
        # Checkpoints of training may have any name, or an address.
        ('last_checkpoint', 'pth'),
        ('https://host/detector.pt', 'pth'),
    ],
)
def test_the_format_of_a_file(path, name):
    assert format_of(path) is FORMATS[name]
    assert format_of(Path(path)).name == name
