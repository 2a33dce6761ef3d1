"""A detector's networks: taken out of it for OpenVINO, and put back in.

OpenVINO runs a one-stage detector's backbone, neck and head as one network,
and a two-stage one's RoI head as a second one. Everything else stays mmdet's:
data preprocessor, anchors, decoding, NMS, RoI extractor.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.detectors import SingleStageDetector, TwoStageDetector
from mmdet.models.roi_heads import StandardRoIHead
from torch import Tensor, nn

from surge_det.deploy.trained import binarization_of

# What stands before a layer's name in a network.
PART = 'part.'


def detector_problem(model: nn.Module) -> str | None:
    """Say why a detector as a whole cannot be exported to OpenVINO, if so.

    What mmdet does around the networks, decoding and NMS among it, must be
    what the base classes do: the networks are put in there.
    """
    name = type(model).__name__
    if isinstance(model, TwoStageDetector):
        head = model.roi_head if model.with_roi_head else None
        if _differs(model, TwoStageDetector, 'predict') or not model.with_rpn:
            return f'{name} is no two-stage detector with RPN'
        own = ('predict', 'predict_bbox', '_bbox_forward')
        if _differs(head, StandardRoIHead, *own):
            return f'{type(head).__name__} has stages or paths of its own'
        for part in ('mask', 'shared_head'):
            if getattr(head, f'with_{part}'):
                return f'its RoI head has a part more: {part}'
        dense = model.rpn_head
    elif isinstance(model, SingleStageDetector):
        if _differs(model, SingleStageDetector, 'predict'):
            return f'{name} predicts in a way of its own'
        dense = model.bbox_head
    else:
        return (
            f'{name} is neither a one-stage detector with a dense head nor a '
            'two-stage one'
        )
    if _differs(dense, BaseDenseHead, 'predict'):
        return f'{type(dense).__name__} predicts in a way of its own'
    return None


def _differs(module: Any, base: type, *methods: str) -> bool:
    """Whether a module is no ``base``, or has other methods."""
    return not isinstance(module, base) or any(
        getattr(type(module), name) is not getattr(base, name)
        for name in methods
    )


class Flattened(nn.Module):
    """A function of one tensor, its output as a flat tuple.

    Args:
        part: The detector, so that layers have the names they have there.
        run: Calls it; returns tensors in lists, tuples and dicts.

    Attributes:
        structure: Of the last output: the same with numbers for tensors.
    """

    def __init__(self, part: nn.Module, run: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.part = part
        self.run = run
        self.structure: Any = None

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Run; order of the tensors as in ``structure``."""
        leaves: list[Tensor] = []
        self.structure = _flatten(self.run(x), leaves)
        return tuple(leaves)


def dense_network(model: nn.Module) -> Flattened:
    """Return all of a detector that runs once per image.

    Args:
        model: mmdet's detector, 1-bit or real, that
            :func:`detector_problem` has nothing against.

    Returns:
        Takes images as the data preprocessor leaves them, (N, 3, H, W). Its
        outputs are, for a one-stage detector, those of the head; for a
        two-stage one the features of the neck, then the RPN's outputs.

    Raises:
        ValueError: If there is something against the detector.
    """
    if problem := detector_problem(model):
        raise ValueError(f'{problem}; use --format packed')
    if not hasattr(model, 'roi_head'):
        return Flattened(
            model, lambda x: model.bbox_head(model.extract_feat(x))
        )

    def run(x: Tensor) -> Any:
        features = model.extract_feat(x)
        return list(features), model.rpn_head(features)

    return Flattened(model, run)


def roi_network(model: nn.Module) -> Flattened | None:
    """Return what a two-stage detector runs on its regions.

    Args:
        model: As :func:`dense_network`'s.

    Returns:
        Takes pooled features (R, C, h, w); its outputs are class scores and
        box deltas. ``None`` for a one-stage detector.
    """
    if not hasattr(model, 'roi_head'):
        return None
    return Flattened(model, model.roi_head.bbox_head)


def roi_example(model: nn.Module) -> Tensor:
    """Return random pooled features of a few regions."""
    extractor = model.roi_head.bbox_roi_extractor
    size = extractor.roi_layers[0].output_size
    return torch.randn(4, extractor.out_channels, *size)


def fingerprint(model: nn.Module) -> str:
    """Return what differs for detectors of other layers; without replicas."""
    layers = sorted(
        f'{name} {tuple(parameter.shape)}'
        for name, parameter in model.named_parameters()
    )
    layers += sorted(f'{k}: {v}' for k, v in binarization_of(model).items())
    return hashlib.sha256('\n'.join(layers).encode()).hexdigest()


def install_networks(
    model: nn.Module, networks: Sequence[Callable[[Tensor], Any]]
) -> None:
    """Let networks compute what a detector's own layers do, and drop these.

    Args:
        model: Changed in place.
        networks: The dense part's :class:`~.runtime.Network`; of a two-stage
            detector, the RoI head's too.
    """
    dense, *roi = networks
    dense.channels_last = takes_channels_last(model)
    if not roi:
        # What the head has to do is done: it is handed its own outputs.
        model.extract_feat = dense
        heads = {model.bbox_head: _identity}
    else:
        model.extract_feat = functools.partial(_features, dense)
        heads = {
            model.rpn_head: _rpn_outputs,
            model.roi_head.bbox_head: roi[0],
        }
    for head, forward in heads.items():
        head.forward = forward
        _drop_parameters(head)
    model.backbone = nn.Identity()
    if model.with_neck:
        model.neck = None


def takes_channels_last(model: nn.Module) -> bool:
    """Say whether a detector's dense network gives maps in that layout.

    mmdet's usual decoding permutes maps to it. Decoding of another kind, such
    as CenterNet's, may view them in the standard layout, which RoIAlign wants
    too.
    """
    if hasattr(model, 'roi_head'):
        return False
    head = type(model.bbox_head)
    return head.predict_by_feat is BaseDenseHead.predict_by_feat


class _Features(tuple):
    """Features of the neck, and what the RPN makes of them."""

    rpn: Any


def _features(dense: Callable[[Tensor], Any], x: Tensor) -> _Features:
    features, rpn = dense(x)
    features = _Features(features)
    features.rpn = rpn
    return features


def _identity(outputs: Any) -> Any:
    return outputs


def _rpn_outputs(features: _Features) -> Any:
    return features.rpn


def _drop_parameters(head: nn.Module) -> None:
    for name, child in list(head.named_children()):
        # What decoding has without parameters, such as GFL's integral, stays.
        if next(child.parameters(), None) is not None:
            delattr(head, name)
    for name in list(head._parameters):
        delattr(head, name)


def _flatten(value: Any, leaves: list[Tensor]) -> Any:
    if isinstance(value, Tensor):
        leaves.append(value)
        return len(leaves) - 1
    if isinstance(value, dict):
        return {key: _flatten(item, leaves) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_flatten(item, leaves) for item in value]
    if value is None:
        return None
    raise ValueError(
        f'the head returns a {type(value).__name__}: tensors in lists, '
        'tuples and dicts are allowed'
    )


def rebuild(structure: Any, tensors: list[Tensor]) -> Any:
    """Put tensors where ``structure`` has their numbers."""
    if isinstance(structure, dict):
        return {k: rebuild(v, tensors) for k, v in structure.items()}
    if isinstance(structure, (list, tuple)):
        return [rebuild(item, tensors) for item in structure]
    return None if structure is None else tensors[structure]
