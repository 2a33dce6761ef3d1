from pathlib import Path

import pytest
import torch
from mmcv.cnn import build_conv_layer
from mmengine.analysis import FlopAnalyzer
from mmengine.config import Config
from mmengine.runner import CheckpointLoader
from torch import nn

from surge_det.core import SURGEConv2d, SURGELinear
from surge_det.models import SURGEFPN, SURGEResNet, SURGERPNHead
from surge_det.models.complexity import (
    TOTALS,
    count_cost,
    detector_cost,
    total_cost,
)

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
REAL = dict(
    type='SURGEConv2d',
    compensate=False,
    binarize_weight=False,
    binarize_activation=False,
)


class Classifier(nn.Module):
    """ResNet-18 with the ImageNet classifier."""

    def __init__(self):
        super().__init__()
        self.body = SURGEResNet(18, out_indices=(3,))
        self.fc = nn.Linear(512, 1000)

    def forward(self, x):
        return self.fc(self.body(x)[0].mean((2, 3)))


def by_name(cost):
    return {layer.name: layer for layer in cost.layers}


def config(text, tmp_path):
    path = tmp_path / 'config.py'
    path.write_text(text)
    return Config.fromfile(path)


def test_resnet18_at_224():
    model = Classifier().eval()
    cost = count_cost(model, lambda: model(torch.zeros(1, 3, 224, 224)))
    total = total_cost(cost.layers)
    # Stem 64*3*7*7 at 112x112; each downsample C*2C at half the size, which
    # is 128*64*28*28 for all three; classifier.
    real = 64 * 3 * 49 * 112**2 + 3 * 128 * 64 * 28**2 + 512 * 1000
    # 64*64*9 at 56x56 in all convolutions but the first of stages 2 to 4,
    # which has half the input channels.
    binary = 64 * 64 * 9 * 56**2
    assert total['flops'] == real
    assert total['bops'] == 13 * binary + 3 * binary // 2
    assert total['ops'] == real + total['bops'] / 64
    assert total['ops'] == pytest.approx(1.64e8, rel=0.01)
    assert total['float_ops'] == real + total['bops']
    # The published 1.81e9 of the float ResNet-18.
    assert total['float_ops'] == pytest.approx(1.81e9, rel=0.01)
    assert not cost.notes
    replicas = sum(
        p.numel()
        for name, p in model.named_parameters()
        if name.endswith('aux_weight')
    )
    everything = sum(p.numel() for p in model.parameters())
    assert total['parameters'] == everything - replicas
    assert replicas > 1e7


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.twice = SURGEConv2d(4, 4, 3, padding=1, groups=2)
        self.up = nn.ConvTranspose2d(4, 5, 2, stride=2, bias=False)
        self.last = SURGELinear(5, 7, binarize_activation=False)

    def forward(self, x):
        x = self.norm(self.stem(x))
        x = self.twice(self.twice(x))
        return self.last(self.up(x).mean((2, 3)))


def test_small_network_by_hand():
    model = Small().eval()
    cost = count_cost(model, lambda: model(torch.zeros(1, 3, 8, 6)))
    layers = by_name(cost)
    assert list(layers) == ['stem', 'norm', 'twice', 'up', 'last']
    # 8x6 becomes 4x3: 4 filters of 3*3*3 at 12 places.
    assert layers['stem'].flops == 4 * 27 * 12 == 1296
    assert layers['stem'].output_shapes == [(1, 4, 4, 3)]
    # Two groups: 4 filters of 2*3*3 at 12 places, applied twice.
    assert layers['twice'].bops == 2 * 4 * 18 * 12 == 1728
    assert layers['twice'].flops == 0
    assert layers['twice'].ops == 1728 / 64 == 27
    assert layers['twice'].output_shapes == [(1, 4, 4, 3)] * 2
    # Each of 4*12 inputs goes to 5 channels at 2*2 places.
    assert layers['up'].flops == 48 * 20 == 960
    assert layers['up'].output_shapes == [(1, 5, 8, 6)]
    # 1-bit weights on real activations: no BOPs, but small.
    last = layers['last']
    assert (last.weight_bits, last.activation_bits) == (1, 32)
    assert (last.bops, last.flops) == (0, 35)
    # 35 bits in 5 bytes; 7 scales and 7 biases.
    assert last.bytes == 5 + 4 * 14 == 61
    # 72 bits in 9 bytes; 4 scales and 4 biases.
    assert layers['twice'].bytes == 9 + 4 * 8 == 41
    assert layers['twice'].float_bytes == 4 * (72 + 4) == 304
    assert layers['norm'].kind == 'BatchNorm2d'
    assert layers['norm'].weight_shape == ()
    assert layers['norm'].bytes == layers['norm'].float_bytes == 4 * 8
    assert total_cost(cost.layers) == dict(
        parameters=(108 + 4) + 8 + (72 + 4) + 80 + (35 + 7),
        bops=1728,
        flops=1296 + 960 + 35,
        ops=1296 + 960 + 35 + 27,
        bytes=4 * 112 + 32 + 41 + 4 * 80 + 61,
        float_ops=1296 + 1728 + 960 + 35,
        float_bytes=4 * (112 + 8 + 76 + 80 + 42),
    )


def test_bits_and_bytes_of_one_layer():
    layer = SURGEConv2d(3, 5, 3)
    cost = count_cost(layer, lambda: layer(torch.zeros(1, 3, 3, 3)))
    (row,) = cost.layers
    assert (row.weight_bits, row.activation_bits) == (1, 1)
    assert row.weight_shape == (5, 3, 3, 3)
    assert row.parameters == 135 + 5
    # 135 bits fill 17 bytes; 5 scales and 5 biases.
    assert row.bytes == 17 + 20 + 20
    assert row.float_bytes == 4 * 140
    # Whether there is a replica makes no difference.
    layer.strip()
    again = count_cost(layer, lambda: layer(torch.zeros(1, 3, 3, 3)))
    assert again.layers == cost.layers


class Pyramid(nn.Module):
    def __init__(self, conv_cfg):
        super().__init__()
        self.backbone = SURGEResNet(18, conv_cfg=conv_cfg)
        self.neck = SURGEFPN([64, 128, 256, 512], 32, 5, conv_cfg=conv_cfg)
        self.rpn_head = SURGERPNHead(
            32, conv_cfg, num_classes=1, feat_channels=32
        )

    def forward(self, x):
        return self.rpn_head(self.neck(self.backbone(x)))


@pytest.mark.parametrize('conv_cfg', [None, REAL])
def test_float_twin_is_what_mmengine_counts(conv_cfg):
    model = Pyramid(conv_cfg).eval()
    x = torch.zeros(1, 3, 64, 96)
    cost = count_cost(model, lambda: model(x))
    theirs = FlopAnalyzer(model, (x,)).unsupported_ops_warnings(False)
    counts = theirs.by_module_and_operator()
    layers = {n: c for n, c in by_name(cost).items() if c.weight_shape}
    assert len(layers) == 20 + 8 + 3
    for name, layer in layers.items():
        assert layer.float_ops == counts[name]['conv'], name
    total = total_cost(cost.layers)
    assert total['float_ops'] == counts['']['conv']
    assert (total['bops'] == 0) is (conv_cfg is REAL)
    # One layer for all levels, stored once.
    assert len(layers['rpn_head.rpn_cls'].output_shapes) == 5
    assert list(cost.parts()) == ['backbone', 'neck', 'rpn_head']


def test_attention_projections_count_and_products_are_named():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.attn = nn.MultiheadAttention(8, 2, batch_first=True)
            self.norm = nn.Parameter(torch.zeros(3))

        def forward(self, x, memory):
            return self.attn(x, memory, memory, need_weights=False)

    model = Attention().eval()
    x, memory = torch.zeros(1, 4, 8), torch.zeros(1, 5, 8)
    cost = count_cost(model, lambda: model(x, memory))
    layers = by_name(cost)
    assert list(layers) == ['(model)', 'attn.in_proj_weight', 'attn.out_proj']
    # 8x8 for each of 4 queries, 5 keys and 5 values.
    assert layers['attn.in_proj_weight'].flops == 64 * (4 + 5 + 5)
    assert layers['attn.in_proj_weight'].parameters == 3 * 64 + 24
    assert layers['attn.out_proj'].flops == 64 * 4
    assert layers['(model)'].parameters == 3
    # 2 heads of 4 channels: 4x5 scores, and as many to weight the values.
    (note,) = cost.notes
    assert f'(MultiheadAttention: {2 * 2 * 4 * 4 * 5})' in note


def test_layers_that_cannot_be_counted_or_do_not_run_are_named():
    class Deformable(nn.Module):
        def __init__(self):
            super().__init__()
            self.v1 = build_conv_layer(dict(type='DCN'), 3, 4, 3, padding=1)
            self.v2 = build_conv_layer(dict(type='DCNv2'), 4, 5, 3, padding=1)
            self.idle = nn.Linear(2, 3)
            self.words = nn.Embedding(4, 5)

        def forward(self, x):
            return self.v2(self.v1(x)).sum() + self.words.weight.sum()

    model = Deformable().eval()
    cost = count_cost(model, lambda: model(torch.zeros(1, 3, 6, 6)))
    assert len(cost.notes) == 3
    notes = ' | '.join(cost.notes)
    assert 'cannot be counted: 1 DeformConv2dPack (v1)' in notes
    assert 'cannot be counted: 1 ModulatedDeformConv2dPack (v2)' in notes
    assert 'did not run: 1 Linear (idle)' in notes
    layers = by_name(cost)
    # The convolutions inside that make the offsets do count.
    assert layers['v1.conv_offset'].flops == 18 * 27 * 36
    assert layers['v1'].macs == 0
    assert layers['v1'].float_bytes == 4 * 4 * 27
    assert layers['idle'].float_bytes == 4 * 9
    assert layers['words'].float_bytes == 4 * 20
    assert layers['words'].weight_shape == ()


def test_counting_leaves_no_trace():
    model = Small().eval()
    x = torch.randn(1, 3, 8, 6)
    before = model(x)
    with pytest.raises(RuntimeError, match='channel'):
        count_cost(model, lambda: model(torch.zeros(1, 2, 8, 6)))
    count_cost(model, lambda: model(x))
    assert torch.equal(model(x), before)
    assert model(x).abs().sum() > 0
    assert not any(m._forward_hooks for m in model.modules())
    assert torch.backends.mha.get_fastpath_enabled()


def test_two_stage_detector(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError('a checkpoint is read')

    monkeypatch.setattr(CheckpointLoader, 'load_checkpoint', refuse)
    cfg = Config.fromfile(CONFIGS / 'surge_faster_rcnn_r18_bccd.py')
    cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint='x.pth')
    cost = detector_cost(cfg)
    assert '240x320' in cost.notes[0]
    assert '200 proposals (test_cfg.rpn.max_per_img)' in cost.notes[1]
    assert list(cost.parts()) == ['backbone', 'neck', 'rpn_head', 'roi_head']
    layers = by_name(cost)
    # 200 proposals of 64 channels at 7x7.
    fc = layers['roi_head.bbox_head.shared_fcs.0']
    assert fc.flops == 200 * 64 * 49 * 256
    # 240x320 over 4, 8, 16, 32 and 64, rounded up.
    places = 60 * 80 + 30 * 40 + 15 * 20 + 8 * 10 + 4 * 5
    hidden = layers['rpn_head.rpn_conv.0.conv']
    assert hidden.bops == 64 * 64 * 9 * places
    cfg.model.test_cfg.rpn.max_per_img = 7
    fewer = by_name(detector_cost(cfg, (64, 64)))
    assert fewer[fc.name].flops == 7 * 64 * 49 * 256


def test_float_twin_config_costs_what_the_1_bit_one_says():
    ours, twin = (
        detector_cost(
            Config.fromfile(CONFIGS / f'{name}_faster_rcnn_r18_bccd.py'),
            (64, 64),
        )
        for name in ('surge', 'float')
    )
    ours, twin = total_cost(ours.layers), total_cost(twin.layers)
    assert set(ours) == set(TOTALS)
    for key in ('parameters', 'float_ops', 'float_bytes'):
        assert ours[key] == twin[key]
    assert twin['ops'] == ours['float_ops'] > 1.5 * ours['ops']
    assert twin['bytes'] == ours['float_bytes'] > 5 * ours['bytes']
    assert twin['bops'] == 0


def test_stock_detectors(tmp_path):
    cfg = config(
        "_base_ = 'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py'", tmp_path
    )
    cost = detector_cost(cfg, (64, 64))
    total = total_cost(cost.layers)
    assert total['bops'] == 0
    assert total['ops'] == total['float_ops'] == total['flops']
    # 80 classes and 9 anchors at each place of five levels.
    layer = by_name(cost)['bbox_head.retina_cls']
    places = 8**2 + 4**2 + 2**2 + 1 + 1
    assert layer.flops == 720 * 256 * 9 * places
    # Without --shape: what its pipeline makes of an image.
    resize = cfg.test_dataloader.dataset.pipeline[1]
    assert resize.scale == (1333, 800)
    resize.scale = (100, 60)
    note = detector_cost(cfg).notes[0]
    assert 'input 60x100 (height x width), padded to 64x128' in note


def test_mask_head_says_at_how_many_boxes(tmp_path):
    cfg = config(
        "_base_ = 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'\n"
        'model = dict(backbone=dict(depth=18),'
        ' neck=dict(in_channels=[64, 128, 256, 512]),'
        ' test_cfg=dict(rpn=dict(max_per_img=9)))',
        tmp_path,
    )
    cost = detector_cost(cfg, (64, 64))
    assert 'mask head at 9 boxes' in cost.notes[2]
    layer = by_name(cost)['roi_head.mask_head.convs.0.conv']
    assert layer.flops == 9 * 256 * 256 * 9 * 14 * 14
    cfg.model.type = 'FastRCNN'
    cfg.model.pop('rpn_head')
    with pytest.raises(ValueError, match='has no rpn_head'):
        detector_cost(cfg, (64, 64))


@pytest.mark.parametrize(
    ('pipeline', 'note'),
    [
        (
            [
                dict(type='Resize', scale=(96, 64), keep_ratio=True),
                dict(type='Pad', pad_to_square=True),
            ],
            '96x96',
        ),
        ([dict(type='Resize', scale=64)], '64x64'),
        ([dict(type='mmdet.Resize', scale=(96, 64))], '64x96'),
    ],
)
def test_shape_of_the_test_pipeline(pipeline, note):
    cfg = Config.fromfile(CONFIGS / 'surge_faster_rcnn_r18_demo.py')
    load = dict(type='LoadImageFromFile')
    inner = dict(pipeline=[load, *pipeline])
    cfg.test_dataloader.dataset = dict(
        type='ConcatDataset', _delete_=True, datasets=[inner]
    )
    assert f'input {note} (' in detector_cost(cfg).notes[0]
    cfg.test_dataloader.dataset = dict(pipeline=[load])
    with pytest.raises(ValueError, match='no Resize with a scale'):
        detector_cost(cfg)


def test_bad_arguments_are_refused():
    cfg = Config.fromfile(CONFIGS / 'surge_faster_rcnn_r18_demo.py')
    with pytest.raises(ValueError, match=r'shape=\(0, 5\)'):
        detector_cost(cfg, (0, 5))
    with pytest.raises(ValueError, match='model.type'):
        detector_cost(Config(dict(x=1)), (64, 64))
    cfg.model = dict(type='SURGEResNet', depth=18)
    with pytest.raises(ValueError, match="'SURGEResNet' is no detector"):
        detector_cost(cfg, (64, 64))


def test_a_learned_scale_is_stored_once():
    costs = []
    for binarizer in (None, dict(type='ReCU')):
        layer = SURGEConv2d(4, 5, 3, weight_binarizer=binarizer)
        model = nn.Sequential(layer).eval()
        cost = count_cost(
            model, lambda model=model: model(torch.zeros(1, 4, 8, 8))
        )
        assert [c.name for c in cost.layers] == ['0']
        costs.append(total_cost(cost.layers))
    assert costs[0] == costs[1]


def test_bits_are_those_of_our_layers_only():
    # Other toolboxes' layers may have attributes of these names.
    layer = nn.Linear(4, 3)
    layer.weight_bits, layer.activation_bits = 8, 8
    (row,) = count_cost(layer, lambda: layer(torch.zeros(1, 4))).layers
    assert (row.weight_bits, row.activation_bits) == (32, 32)
