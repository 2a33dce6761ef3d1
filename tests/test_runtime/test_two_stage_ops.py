"""Proposals, RoIAlign and RoIBoxes against mmdet's own heads."""

import numpy as np
import pytest
import torch

pytest.importorskip('mmdet', reason='needs the toolbox')
pytest.importorskip('onnxruntime', reason='needs ONNX Runtime')
pytest.importorskip('surge_runtime', reason='surge_runtime is not installed')

import surge_det  # noqa: F401

# isort: split
from mmdet.models.roi_heads.bbox_heads import BBoxHead
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from one_op import run_op
from onnx import TensorProto
from surge_runtime.library import kernel_path

MAX_RATIO = abs(np.log(16 / 1000))
DETECTIONS = (TensorProto.FLOAT, TensorProto.FLOAT, TensorProto.INT64)
STRIDES = [4, 8, 16, 32, 64]


@pytest.fixture(autouse=True)
def stable_sort(monkeypatch):
    # mmdet sorts without asking for a stable order; which one it gets for
    # equal scores depends on the processor.
    sort = torch.Tensor.sort

    def stable(self, dim=-1, descending=False, stable=True):
        return sort(self, dim=dim, descending=descending, stable=True)

    monkeypatch.setattr(torch.Tensor, 'sort', stable)


def image_info(img, new=None, old=None):
    new, old = new or img, old or new or img
    return np.array([*img, *new, *old, *img], np.float32)


def nhwc(tensor):
    return tensor.permute(0, 2, 3, 1).contiguous().numpy()


# Proposals


def rpn_head(stds=(1.0, 1.0, 1.0, 1.0)):
    return MODELS.build(
        dict(
            type='mmdet.RPNHead',
            in_channels=8,
            feat_channels=8,
            anchor_generator=dict(
                type='AnchorGenerator',
                scales=[8],
                ratios=[0.5, 1.0, 2.0],
                strides=STRIDES,
            ),
            bbox_coder=dict(
                type='DeltaXYWHBBoxCoder',
                target_means=[0.1, 0.0, 0.0, -0.1],
                target_stds=list(stds),
            ),
        )
    )


def maps(size, channels, seed, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(
            1,
            channels,
            -(-size[0] // s),
            -(-size[1] // s),
            generator=generator,
        )
        * scale
        for s in STRIDES
    ]


def proposals(head, scores, deltas, size, cfg):
    """RoIs of mmdet's head, RoIs of the operator."""
    (expected,) = head.predict_by_feat(
        scores,
        deltas,
        batch_img_metas=[dict(img_shape=size)],
        cfg=ConfigDict(cfg),
    )
    base = head.prior_generator.base_anchors
    (rois,) = run_op(
        'Proposals',
        [image_info(size), *map(nhwc, scores), *map(nhwc, deltas)],
        strides=[float(s) for s in STRIDES],
        anchors=torch.cat(base).flatten().tolist(),
        anchors_per_level=[len(b) for b in base],
        means=list(head.bbox_coder.means),
        stds=list(head.bbox_coder.stds),
        max_ratio=MAX_RATIO,
        clip_border=1,
        nms_pre=cfg['nms_pre'],
        iou_thr=cfg['nms']['iou_threshold'],
        max_per_img=cfg['max_per_img'],
        min_bbox_size=float(cfg['min_bbox_size']),
    )
    return expected.bboxes.numpy(), rois


def rpn_cfg(**changes):
    return dict(
        nms_pre=200,
        max_per_img=100,
        nms=dict(type='nms', iou_threshold=0.7),
        min_bbox_size=0,
    ) | dict(changes)


@pytest.mark.parametrize(
    ('size', 'delta_scale', 'changes'),
    [
        ((240, 320), 0.3, {}),
        ((240, 320), 0.3, dict(nms_pre=500, max_per_img=200)),
        ((231, 317), 3.0, dict(min_bbox_size=10)),
        ((231, 317), 30.0, dict(min_bbox_size=-1)),
        ((3, 5), 0.3, {}),
        ((100, 90), 0.3, dict(nms_pre=-1, max_per_img=5000)),
        ((240, 320), 0.3, dict(nms=dict(type='nms', iou_threshold=0.0))),
    ],
)
def test_proposals_are_mmdets(size, delta_scale, changes):
    head = rpn_head(stds=(0.1, 0.1, 0.2, 0.2))
    expected, rois = proposals(
        head,
        maps(size, 3, 0, 3.0),
        maps(size, 12, 1, delta_scale * 5),
        size,
        rpn_cfg(**changes),
    )
    assert rois.shape == expected.shape
    assert len(rois)
    np.testing.assert_allclose(rois, expected, rtol=0, atol=2e-4)


def test_proposals_more_than_split_threshold():
    # From 10000 boxes on, mmcv suppresses level by level.
    size = (320, 320)
    expected, rois = proposals(
        rpn_head(),
        maps(size, 3, 2, 2.0),
        maps(size, 12, 3, 0.2),
        size,
        rpn_cfg(nms_pre=20000, max_per_img=3000),
    )
    assert len(expected) == 3000
    np.testing.assert_allclose(rois, expected, rtol=0, atol=2e-4)


def test_proposals_of_equal_scores_keep_their_order():
    size = (64, 96)
    scores = [torch.full_like(m, 30.0) for m in maps(size, 3, 0)]
    expected, rois = proposals(
        rpn_head(), scores, maps(size, 12, 1, 0.3), size, rpn_cfg()
    )
    np.testing.assert_allclose(rois, expected, rtol=0, atol=2e-4)


def test_proposals_may_be_none():
    size = (64, 96)
    expected, rois = proposals(
        rpn_head(),
        maps(size, 3, 0),
        maps(size, 12, 1),
        size,
        rpn_cfg(min_bbox_size=1000),
    )
    assert expected.shape == rois.shape == (0, 4)


@pytest.mark.parametrize('which', ['scores', 'deltas'])
def test_proposals_with_nan(which):
    size = (64, 96)
    scores, deltas = maps(size, 3, 0), maps(size, 12, 1, 0.3)
    (scores if which == 'scores' else deltas)[0][0, :2, 5, 7] = float('nan')
    expected, rois = proposals(rpn_head(), scores, deltas, size, rpn_cfg())
    np.testing.assert_allclose(rois, expected, rtol=0, atol=2e-4)


# RoIAlign


def random_rois(count, size, seed):
    generator = torch.Generator().manual_seed(seed)
    height, width = size
    centre = torch.rand(count, 2, generator=generator)
    centre *= torch.tensor([width, height])
    side = torch.exp(torch.rand(count, 2, generator=generator) * 5)
    return torch.cat([centre - side / 2, centre + side / 2], 1)


def roi_align(rois, features, strides, **arguments):
    """Pooled maps of mmdet's extractor and of the operator, [R, C, s, s]."""
    layer = (
        dict(output_size=7, sampling_ratio=0, aligned=True)
        | dict(type='RoIAlign')
        | arguments
    )
    extractor = SingleRoIExtractor(
        layer, out_channels=features[0].shape[1], featmap_strides=strides
    )
    batch = torch.cat([torch.zeros(len(rois), 1), rois], 1)
    expected = extractor(features, batch).numpy()
    (pooled,) = run_op(
        'RoIAlign',
        [rois.numpy(), *map(nhwc, features)],
        strides=[float(s) for s in strides],
        output_size=layer['output_size'],
        sampling_ratio=layer['sampling_ratio'],
        finest_scale=56.0,
        aligned=int(layer['aligned']),
    )
    return expected, pooled.transpose(0, 3, 1, 2)


@pytest.mark.parametrize('isa', ['avx512', 'avx2', 'neon', 'generic'])
@pytest.mark.parametrize('channels', [64, 40, 13, 256])
def test_roi_align_is_torchvisions(channels, isa, monkeypatch):
    monkeypatch.setenv('SURGE_ISA', isa)
    try:
        kernel_path()
    except ValueError:
        pytest.skip(f'this processor has no {isa}')
    size = (240, 320)
    features = maps(size, channels, 0)[:4]
    rois = random_rois(50, size, 1)
    expected, pooled = roi_align(rois, features, STRIDES[:4])
    assert np.array_equal(expected, pooled)


@pytest.mark.parametrize(
    'arguments',
    [
        dict(sampling_ratio=2),
        dict(aligned=False),
        dict(output_size=14, sampling_ratio=1),
        dict(output_size=1),
    ],
)
def test_roi_align_arguments(arguments):
    size = (100, 130)
    rois = random_rois(40, size, 2)
    expected, pooled = roi_align(
        rois, maps(size, 16, 3)[:4], STRIDES[:4], **arguments
    )
    assert np.array_equal(expected, pooled)


def test_roi_align_edges():
    size = (64, 64)
    rois = torch.tensor(
        [
            [0.0, 0, 64, 64],
            [-500, -500, -400, -400],
            [-20, -20, 90, 90],
            [30, 30, 30, 30],
            [63.9, 63.9, 64, 64],
            [0, 0, 1e4, 1e4],
            # At the borders between levels.
            [0, 0, 112, 112],
            [0, 0, 224, 224],
            [0, 0, 448, 448],
        ]
    )
    expected, pooled = roi_align(rois, maps(size, 8, 4)[:4], STRIDES[:4])
    assert np.array_equal(expected, pooled)


def test_roi_align_of_one_pixel_and_one_level():
    features = [torch.randn(1, 8, 1, 1)]
    rois = random_rois(20, (16, 16), 5)
    expected, pooled = roi_align(rois, features, [16])
    assert np.array_equal(expected, pooled)


def test_roi_align_of_no_rois():
    (pooled,) = run_op(
        'RoIAlign',
        [np.zeros((0, 4), np.float32), np.ones((1, 4, 4, 8), np.float32)],
        strides=[4.0],
        output_size=7,
        sampling_ratio=0,
        finest_scale=56.0,
        aligned=1,
    )
    assert pooled.shape == (0, 7, 7, 8)


# RoIBoxes


def roi_boxes(rois, cls, deltas, info_sizes, shared=False, **changes):
    """Results of mmdet's head and of the operator."""
    cfg = dict(
        score_thr=0.05,
        nms=dict(type='nms', iou_threshold=0.5),
        max_per_img=100,
    ) | dict(changes)
    classes = cls.shape[1] - 1
    head = BBoxHead(
        in_channels=8,
        roi_feat_size=1,
        num_classes=classes,
        reg_class_agnostic=shared,
        bbox_coder=dict(
            type='DeltaXYWHBBoxCoder',
            target_means=[0.0, 0.0, 0.0, 0.0],
            target_stds=[0.1, 0.1, 0.2, 0.2],
        ),
    )
    new, old = info_sizes
    meta = dict(img_shape=new, scale_factor=(new[1] / old[1], new[0] / old[0]))
    (expected,) = head.predict_by_feat(
        (torch.cat([torch.zeros(len(rois), 1), rois], 1),),
        (cls,),
        (deltas,),
        [meta],
        ConfigDict(cfg),
        rescale=True,
    )
    found = run_op(
        'RoIBoxes',
        [image_info(new, new, old), rois.numpy(), cls.numpy(), deltas.numpy()],
        DETECTIONS,
        means=[0.0] * 4,
        stds=[0.1, 0.1, 0.2, 0.2],
        max_ratio=MAX_RATIO,
        clip_border=1,
        num_classes=classes,
        score_thr=cfg['score_thr'],
        iou_thr=cfg['nms']['iou_threshold'],
        max_per_img=cfg['max_per_img'],
    )
    return expected, found


def assert_same(expected, found):
    boxes, scores, labels = found
    assert np.array_equal(labels, expected.labels.numpy())
    np.testing.assert_allclose(
        scores, expected.scores.numpy(), rtol=1e-6, atol=1e-7
    )
    np.testing.assert_allclose(
        boxes, expected.bboxes.numpy(), rtol=1e-6, atol=2e-4
    )


@pytest.mark.parametrize('shared', [False, True])
@pytest.mark.parametrize(('classes', 'scale'), [(3, 2.0), (20, 4.0)])
def test_roi_boxes_are_mmdets(classes, scale, shared):
    size = (240, 320)
    generator = torch.Generator().manual_seed(classes)
    rois = random_rois(200, size, 7)
    cls = torch.randn(200, classes + 1, generator=generator) * scale
    deltas = torch.randn(200, 4 * (1 if shared else classes)) * 3
    expected, found = roi_boxes(
        rois, cls, deltas, (size, (479, 641)), shared=shared
    )
    assert len(expected) == 100
    assert_same(expected, found)


def test_roi_boxes_above_split_threshold():
    rois = random_rois(1000, (240, 320), 8)
    cls = torch.randn(1000, 21)
    deltas = torch.randn(1000, 80)
    expected, found = roi_boxes(
        rois, cls, deltas, ((240, 320), (240, 320)), score_thr=0.0
    )
    assert_same(expected, found)


@pytest.mark.parametrize('rois', [0, 50])
def test_roi_boxes_may_be_none(rois):
    expected, found = roi_boxes(
        random_rois(rois, (240, 320), 9),
        torch.randn(rois, 4),
        torch.randn(rois, 12),
        ((240, 320), (240, 320)),
        score_thr=1.0,
    )
    assert len(expected) == 0
    assert [f.shape for f in found] == [(0, 4), (0,), (0,)]


def test_roi_boxes_with_nan_and_equal_scores():
    rois = random_rois(60, (240, 320), 10)
    cls = torch.zeros(60, 4)
    cls[7] = float('nan')
    expected, found = roi_boxes(
        rois, cls, torch.randn(60, 12), ((240, 320), (240, 320))
    )
    assert len(expected)
    assert_same(expected, found)


def test_wrong_sizes_are_told():
    with pytest.raises(Exception, match=r'input cls has shape .*not \(5, 4\)'):
        run_op(
            'RoIBoxes',
            [
                np.ones(8, np.float32),
                np.ones((5, 4), np.float32),
                np.ones((5, 3), np.float32),
                np.ones((5, 12), np.float32),
            ],
            DETECTIONS,
            means=[0.0] * 4,
            stds=[1.0] * 4,
            max_ratio=1.0,
            clip_border=1,
            num_classes=3,
            score_thr=0.5,
            iou_thr=0.5,
            max_per_img=10,
        )


def test_missing_attribute_is_told():
    with pytest.raises(Exception, match='attribute strides is missing'):
        run_op('RoIAlign', [np.ones((5, 4), np.float32)])


@pytest.mark.parametrize('size', [0, 1025, 2**32])
def test_output_size_out_of_range_is_told(size):
    with pytest.raises(Exception, match='output_size must be from 1 to 1024'):
        run_op(
            'RoIAlign',
            [np.ones((5, 4), np.float32), np.ones((1, 4, 4, 8), np.float32)],
            strides=[4.0],
            output_size=size,
            sampling_ratio=0,
            finest_scale=56.0,
            aligned=1,
        )
