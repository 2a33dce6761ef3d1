"""A detector whose networks OpenVINO runs."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from torch import Tensor, nn

from surge_det.core.binarization import binarization_of


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
