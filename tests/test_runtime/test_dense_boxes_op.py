"""DenseBoxes against the one-stage heads of mmdet's own configs."""

import numpy as np
import pytest
import torch

pytest.importorskip('mmdet', reason='needs the toolbox')
pytest.importorskip('onnxruntime', reason='needs ONNX Runtime')
pytest.importorskip('surge_runtime', reason='surge_runtime is not installed')

import surge_det  # noqa: F401

# isort: split
from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from mmengine.hub import get_config
from mmengine.registry import DefaultScope
from one_op import run_op
from onnx import TensorProto

DETECTIONS = (TensorProto.FLOAT, TensorProto.FLOAT, TensorProto.INT64)
MAX_RATIO = abs(np.log(16 / 1000))
CONFIGS = {
    'ssd': 'ssd/ssd300_coco.py',
    'retinanet': 'retinanet/retinanet_r50_fpn_1x_coco.py',
    'atss': 'atss/atss_r50_fpn_1x_coco.py',
    'fcos': 'fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py',
    'rtmdet': 'rtmdet/rtmdet_tiny_8xb32-300e_coco.py',
    'yolox': 'yolox/yolox_tiny_8xb8-300e_coco.py',
}
WITH_FACTOR = ('atss', 'fcos', 'yolox')


@pytest.fixture(autouse=True)
def stable_sort(monkeypatch):
    # See test_two_stage_ops.py.
    sort = torch.Tensor.sort
    monkeypatch.setattr(
        torch.Tensor,
        'sort',
        lambda self, dim=-1, descending=False: sort(
            self, dim=dim, descending=descending, stable=True
        ),
    )


def head_of(name, classes):
    config = get_config('mmdet::' + CONFIGS[name]).model
    head = dict(config.bbox_head, num_classes=classes)
    with DefaultScope.overwrite_default_scope('mmdet'):
        return MODELS.build(dict(head, test_cfg=config.test_cfg))


def random_maps(name, head, size, seed, score=(-3.0, 2.0), spread=0.5):
    """Outputs of a head: scores, deltas and, if it has them, factors."""
    generator = torch.Generator().manual_seed(seed)

    def normal(channels, stride):
        return torch.randn(
            1,
            channels,
            *(max(n // stride[0], 1) for n in size),
            generator=generator,
        )

    strides = head.prior_generator.strides
    strides = [s if isinstance(s, tuple) else (s, s) for s in strides]
    priors = head.prior_generator.num_base_priors
    scores = [
        normal(n * head.cls_out_channels, s) * score[1] + score[0]
        for n, s in zip(priors, strides)
    ]
    deltas = [normal(4 * n, s) * spread for n, s in zip(priors, strides)]
    if name in ('fcos', 'rtmdet'):
        deltas = [d.exp() * s[0] * 2 for d, s in zip(deltas, strides)]
    outputs = [scores, deltas]
    if name in WITH_FACTOR:
        outputs.append([normal(n, s) for n, s in zip(priors, strides)])
    return outputs


def attributes(name, head, cfg):
    strides = [s[0] for s in head.prior_generator.strides]
    attrs = dict(
        coder='delta',
        strides=[float(s) for s in strides],
        num_classes=head.num_classes,
        softmax=int(name == 'ssd'),
        has_factor=int(name in WITH_FACTOR),
        score_thr=float(cfg.score_thr),
        iou_thr=cfg.nms.iou_threshold,
        max_per_img=-1,
    )
    if name == 'yolox':
        return attrs | dict(coder='yolox', offset=0.0)
    attrs.update(
        max_per_img=cfg.max_per_img,
        nms_pre=cfg.nms_pre,
        min_bbox_size=float(cfg.get('min_bbox_size', -1)),
    )
    if name in ('fcos', 'rtmdet'):
        return attrs | dict(
            coder='distance',
            offset=float(head.prior_generator.offset),
            clip_border=1,
        )
    base = head.prior_generator.base_anchors
    return attrs | dict(
        anchors=torch.cat(base).flatten().tolist(),
        anchors_per_level=[len(b) for b in base],
        means=list(head.bbox_coder.means),
        stds=list(head.bbox_coder.stds),
        max_ratio=MAX_RATIO,
        clip_border=1,
    )


def compare(name, outputs, head, size, old, **changes):
    """Compare; return the number of detections."""
    cfg = ConfigDict(dict(head.test_cfg) | changes)
    meta = dict(
        img_shape=size, scale_factor=(size[1] / old[1], size[0] / old[0])
    )
    copies = [[m.clone() for m in maps] for maps in outputs]
    (expected,) = head.predict_by_feat(
        *copies, batch_img_metas=[meta], cfg=cfg, rescale=True
    )
    info = np.array([*size, *size, *old, *size], np.float32)
    maps = [m.permute(0, 2, 3, 1).numpy() for maps in outputs for m in maps]
    boxes, scores, labels = run_op(
        'DenseBoxes', [info, *maps], DETECTIONS, **attributes(name, head, cfg)
    )
    assert np.array_equal(labels, expected.labels.numpy())
    np.testing.assert_allclose(
        scores, expected.scores.numpy(), rtol=2e-6, atol=1e-7
    )
    np.testing.assert_allclose(
        boxes, expected.bboxes.numpy(), rtol=2e-6, atol=2e-4
    )
    return len(expected)


@pytest.mark.parametrize('classes', [1, 3, 20])
@pytest.mark.parametrize('name', CONFIGS)
def test_boxes_are_mmdets(name, classes):
    head = head_of(name, classes)
    size = (300, 300) if name == 'ssd' else (224, 288)
    outputs = random_maps(name, head, size, classes)
    assert compare(name, outputs, head, size, (333, 500)) > 20


@pytest.mark.parametrize('name', ['rtmdet', 'yolox'])
def test_more_boxes_than_split_threshold(name):
    # Then mmcv suppresses label by label; a YOLOX box beyond the border may
    # meet other labels' boxes below this number, and does not above it.
    head = head_of(name, 3)
    size = (896, 896)
    outputs = random_maps(name, head, size, 0)
    # Of so many random scores, two would be one rounding apart.
    count = sum(m.numel() for m in outputs[0])
    order = torch.randperm(count, generator=torch.Generator().manual_seed(1))
    spread = torch.linspace(-2, 4, count)[order]
    for maps, part in zip(
        outputs[0], spread.split([m.numel() for m in outputs[0]])
    ):
        maps.copy_(part.view_as(maps))
    if name == 'yolox':
        for deltas, objectness in zip(*outputs[1:]):
            deltas[:, 2:] += 2.0
            objectness.fill_(5.0)
    changes = dict(max_per_img=500, nms_pre=30000, score_thr=0.1)
    assert compare(name, outputs, head, size, (500, 500), **changes) >= 500


@pytest.mark.parametrize('name', CONFIGS)
def test_edges(name):
    head = head_of(name, 3)
    # One pixel on every level.
    outputs = random_maps(name, head, (1, 1), 4, score=(1.0, 3.0))
    compare(name, outputs, head, (1, 1), (2, 3))
    # Deltas and distances far beyond everything.
    outputs = random_maps(name, head, (96, 64), 5, spread=6.0)
    compare(name, outputs, head, (96, 64), (96, 64))
    # Nothing above the threshold.
    outputs = random_maps(name, head, (96, 64), 6)
    assert compare(name, outputs, head, (96, 64), (9, 9), score_thr=1.1) == 0


@pytest.mark.parametrize('name', CONFIGS)
def test_equal_scores_keep_their_order(name):
    head = head_of(name, 3)
    outputs = random_maps(name, head, (96, 128), 7)
    for maps in (outputs[0], *outputs[2:]):
        for m in maps:
            m.fill_(0.5)
    changes = dict(score_thr=0.1)
    assert compare(name, outputs, head, (96, 128), (48, 64), **changes)


@pytest.mark.parametrize('name', CONFIGS)
@pytest.mark.parametrize('group', [0, 1, 2])
def test_nan(name, group):
    head = head_of(name, 3)
    outputs = random_maps(name, head, (96, 128), 8, score=(0.0, 2.0))
    if group == len(outputs):
        pytest.skip('this head has no such maps')
    outputs[group][0][0, :, 3, 5] = float('nan')
    assert compare(name, outputs, head, (96, 128), (48, 64))


def test_unknown_coder_is_told():
    with pytest.raises(Exception, match='coder is magic, not delta, distance'):
        run_op(
            'DenseBoxes',
            [np.ones(8, np.float32)],
            DETECTIONS,
            coder='magic',
            strides=[8.0],
            num_classes=1,
            softmax=0,
            has_factor=0,
            score_thr=0.5,
            iou_thr=0.5,
            max_per_img=1,
            nms_pre=1,
            min_bbox_size=0.0,
        )


@pytest.mark.parametrize(
    ('anchors_per_level', 'num_classes', 'message'),
    [
        # Lengths computed from them are negative in 64 bits.
        ([2**62 + 1, 1], 3, 'anchors_per_level is below 1, or above'),
        ([1, 1], 2**63 - 1, 'num_classes is 9223372036854775807, not from'),
        ([1, 1], 0, 'num_classes is 0, not from 1 to 65536'),
    ],
)
def test_numbers_too_large_are_refused(
    anchors_per_level, num_classes, message
):
    with pytest.raises(Exception, match=message):
        run_op(
            'DenseBoxes',
            [
                np.ones(8, np.float32),
                np.ones((1, 2, 2, 15), np.float32),
                np.ones((1, 2, 2, 3), np.float32),
                np.zeros((1, 2, 2, 4), np.float32),
                np.zeros((1, 2, 2, 4), np.float32),
            ],
            DETECTIONS,
            coder='delta',
            strides=[8.0, 8.0],
            anchors=[0.0, 0.0, 1.0, 1.0] * 2,
            anchors_per_level=anchors_per_level,
            num_classes=num_classes,
            means=[0.0] * 4,
            stds=[1.0] * 4,
            max_ratio=4.0,
            clip_border=0,
            softmax=0,
            has_factor=0,
            score_thr=0.1,
            iou_thr=0.5,
            max_per_img=10,
            nms_pre=10,
            min_bbox_size=-1.0,
        )
