"""Attributes of our operators for what mmdet does around the networks.

Each function reads one part of a detector or of its config. What the operator
cannot do is refused: :class:`ValueError`, with the part and the reason.
"""

from __future__ import annotations

from typing import Any

import mmdet.models.dense_heads as heads
import mmdet.models.task_modules as tasks
import numpy as np
from mmdet.models.data_preprocessors import DetDataPreprocessor
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.roi_heads.bbox_heads import BBoxHead
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from mmengine.config import Config
from torch import nn

from surge_det.datasets.root import test_pipeline

# |log(wh_ratio_clip)| of mmdet's decoding.
_MAX_RATIO = float(abs(np.log(16 / 1000)))
# Steps of a test pipeline that change nothing of the image.
_NEUTRAL = ('LoadAnnotations', 'PackDetInputs')
_LOAD = ('LoadImageFromFile', 'LoadImageFromNDArray')
# Steps of a test pipeline that Preprocess does.
RESIZE = ('Resize', 'Pad')

Attributes = dict[str, Any]


def preprocess(model: nn.Module, cfg: Config) -> Attributes:
    """Return ``Preprocess``'s attributes.

    Args:
        model: The detector.
        cfg: Its config, with a test pipeline.
    """
    found: Attributes = dict(
        pad_size=[0, 0], pad_to_square=0, pad_divisor=1, pad_value=[0, 0, 0]
    )
    steps = []
    for step in test_pipeline(cfg):
        kind = kind_of(step)
        rest = {key: value for key, value in step.items() if key != 'type'}
        if kind in _LOAD:
            _only(kind, rest, 'backend_args', imdecode_backend='cv2')
        elif kind in RESIZE:
            steps.append(kind)
            found |= (_resize if kind == 'Resize' else _pad)(rest)
        elif kind not in _NEUTRAL:
            raise ValueError(f'its test pipeline has the step {kind}')
    if steps not in (['Resize'], ['Resize', 'Pad']):
        raise ValueError(
            f'its test pipeline has {steps or "no Resize"}: Resize, and '
            'perhaps Pad after it, are allowed'
        )
    given = model.data_preprocessor
    if type(given) is not DetDataPreprocessor:
        raise ValueError(f'its data preprocessor is a {type(given).__name__}')
    mean, std = [0.0] * 3, [1.0] * 3
    if given._enable_normalize:
        mean, std = (
            value.flatten().tolist() for value in (given.mean, given.std)
        )
        if len(mean) != 3 or len(std) != 3:
            raise ValueError('its data preprocessor has not three means')
    return found | dict(
        mean=mean,
        std=std,
        to_rgb=int(given._channel_conversion),
        batch_divisor=int(given.pad_size_divisor),
        batch_value=float(given.pad_value),
    )


def kind_of(step: dict[str, Any]) -> str:
    """Return a step's type without the name of its registry."""
    return step['type'].rpartition('.')[2]


def _only(kind: str, given: dict, *ignored: str, **allowed: Any) -> None:
    """Refuse keywords of a step with values that would change the image."""
    for key, value in given.items():
        if key not in ignored and value != allowed.get(key):
            raise ValueError(f'its test pipeline has {kind} with {key}')


def _resize(given: dict[str, Any]) -> Attributes:
    rest = dict(given)
    scale, keep_ratio = rest.pop('scale', None), rest.pop('keep_ratio', False)
    _only('Resize', rest, backend='cv2', interpolation='bilinear')
    if isinstance(scale, int):
        scale = (scale, scale)
    if scale is None or len(scale) != 2:
        raise ValueError('its test pipeline has Resize without a scale')
    return dict(scale=list(map(int, scale)), keep_ratio=int(keep_ratio))


def _pad(given: dict[str, Any]) -> Attributes:
    rest = dict(given)
    size, value = rest.pop('size', None), rest.pop('pad_val', 0)
    divisor = rest.pop('size_divisor', None)
    square = rest.pop('pad_to_square', False)
    _only('Pad', rest, padding_mode='constant')
    if isinstance(value, dict):
        value = value.get('img', 0)
    if isinstance(value, (int, float)):
        value = [value] * 3
    if any(number != int(number) for number in value):
        raise ValueError(f'its test pipeline has Pad with pad_val={value}')
    return dict(
        pad_size=list(map(int, size or (0, 0))),
        pad_to_square=int(square),
        pad_divisor=int(divisor or 1),
        pad_value=list(map(int, value)),
    )


def proposals(head: Any) -> Attributes:
    """Return ``Proposals``'s attributes for an RPN's head."""
    name = type(head).__name__
    _same(head, heads.RPNHead, '_predict_by_feat_single', '_bbox_post_process')
    _same(head, BaseDenseHead, 'predict_by_feat')
    if not head.use_sigmoid_cls:
        raise ValueError(f'{name} has a softmax')
    cfg = head.test_cfg
    return dict(
        **_anchors(head),
        **_delta_coder(head.bbox_coder),
        **_nms(cfg, name),
        nms_pre=int(cfg.get('nms_pre', -1)),
        min_bbox_size=float(cfg.get('min_bbox_size', -1)),
    )


def roi_align(extractor: Any) -> Attributes:
    """Return ``RoIAlign``'s attributes for a RoI head's extractor."""
    name = type(extractor).__name__
    if type(extractor) is not SingleRoIExtractor:
        raise ValueError(f'its RoI extractor is a {name}')
    layers = extractor.roi_layers
    kinds = {type(layer).__name__ for layer in layers}
    if kinds != {'RoIAlign'}:
        raise ValueError(f'its RoI extractor has {kinds.pop()}')
    first = layers[0]
    rows, columns = np.broadcast_to(first.output_size, 2).tolist()
    if getattr(first, 'pool_mode', 'avg') != 'avg' or rows != columns:
        raise ValueError('its RoIAlign has no average over squares')
    return dict(
        strides=list(map(float, extractor.featmap_strides)),
        output_size=rows,
        sampling_ratio=int(first.sampling_ratio),
        aligned=int(first.aligned),
        finest_scale=float(extractor.finest_scale),
    )


def roi_boxes(roi_head: Any) -> Attributes:
    """Return ``RoIBoxes``'s attributes for a RoI head."""
    head, cfg = roi_head.bbox_head, roi_head.test_cfg
    name = type(head).__name__
    _same(head, BBoxHead, 'predict_by_feat', '_predict_by_feat_single')
    if head.custom_cls_channels or head.custom_activation:
        raise ValueError(f'{name} has an activation of its own')
    if not (head.with_cls and head.with_reg):
        raise ValueError(f'{name} lacks class scores or deltas')
    return dict(
        num_classes=int(head.num_classes),
        score_thr=float(cfg.score_thr),
        **_delta_coder(head.bbox_coder),
        **_nms(cfg, name),
    )


def dense_boxes(head: Any) -> Attributes:
    """Return ``DenseBoxes``'s attributes for a one-stage head.

    Whether it has a factor is only known from its outputs.
    """
    name, cfg = type(head).__name__, head.test_cfg
    common = dict(
        num_classes=int(head.num_classes), score_thr=float(cfg.score_thr)
    )
    if isinstance(head, heads.YOLOXHead):
        _same(head, heads.YOLOXHead, 'predict_by_feat', '_bbox_decode')
        _same(head, heads.YOLOXHead, '_bbox_post_process')
        return dict(
            **common,
            **_nms({**cfg, 'max_per_img': -1}, name),
            **_points(head),
            coder='yolox',
            softmax=0,
        )
    own = ('predict_by_feat', '_predict_by_feat_single', '_bbox_post_process')
    _same(head, BaseDenseHead, *own)
    if getattr(getattr(head, 'loss_cls', None), 'custom_activation', False):
        raise ValueError(f'{name} has an activation of its own')
    if cfg.get('nms_pre', 0) < 1:
        raise ValueError(f'{name} has no nms_pre in its test_cfg')
    common |= dict(
        **_nms(cfg, name),
        softmax=int(not head.use_sigmoid_cls),
        nms_pre=int(cfg.nms_pre),
        min_bbox_size=float(cfg.get('min_bbox_size', -1)),
    )
    coder = head.bbox_coder
    if type(coder) is tasks.DistancePointBBoxCoder:
        return dict(
            **common,
            **_points(head),
            coder='distance',
            clip_border=int(coder.clip_border),
        )
    return dict(
        **common, **_anchors(head), **_delta_coder(coder), coder='delta'
    )


def _same(module: Any, base: type, *methods: str) -> None:
    """Refuse a part that does something in a way of its own."""
    name = type(module).__name__
    if not isinstance(module, base):
        raise ValueError(f'{name} is no {base.__name__}')
    for method in methods:
        if getattr(type(module), method) is not getattr(base, method):
            raise ValueError(f'{name} has a {method} of its own')


def _nms(cfg: Any, name: str) -> Attributes:
    nms = dict(cfg.get('nms') or {})
    kind, threshold = nms.pop('type', 'nms'), nms.pop('iou_threshold', None)
    split = nms.pop('split_thr', 10000)
    if kind != 'nms' or nms or threshold is None:
        raise ValueError(
            f'{name} has nms={dict(cfg.get("nms") or {})}: type nms with an '
            'iou_threshold is allowed'
        )
    return dict(
        iou_thr=float(threshold),
        split_thr=int(split),
        max_per_img=int(cfg.get('max_per_img', -1)),
    )


def _anchors(head: Any) -> Attributes:
    generator = head.prior_generator
    base = tasks.AnchorGenerator
    _same(generator, base, 'single_level_grid_priors')
    bases = [anchors.tolist() for anchors in generator.base_anchors]
    return dict(
        strides=_strides(generator),
        anchors=[
            number for level in bases for anchor in level for number in anchor
        ],
        anchors_per_level=[len(level) for level in bases],
    )


def _points(head: Any) -> Attributes:
    generator = head.prior_generator
    _same(generator, tasks.MlvlPointGenerator, 'single_level_grid_priors')
    return dict(strides=_strides(generator), offset=float(generator.offset))


def _strides(generator: Any) -> list[float]:
    strides = [tuple(np.broadcast_to(s, 2)) for s in generator.strides]
    if any(width != height for width, height in strides):
        raise ValueError(f'its levels have strides {strides}')
    return [float(width) for width, _ in strides]


def _delta_coder(coder: Any) -> Attributes:
    name = type(coder).__name__
    if type(coder) is not tasks.DeltaXYWHBBoxCoder:
        raise ValueError(f'its boxes are decoded by {name}')
    if coder.add_ctr_clamp:
        raise ValueError(f'{name} has add_ctr_clamp')
    return dict(
        means=list(map(float, coder.means)),
        stds=list(map(float, coder.stds)),
        max_ratio=_MAX_RATIO,
        clip_border=int(coder.clip_border),
    )
