"""What becomes of a layer in OpenVINO, and what cannot go there.

``BinaryConvolution`` (operation set 1) of OpenVINO 2026.4 computes
``conv2d(sign(x), sign(w))`` exactly, on x86, within these limits, outside of
which it fails or gives wrong numbers:

- static shapes, one group, input channels in multiples of 8;
- a padding of the columns that is at most 4 (2 without AVX-512), or the
  output's width where that is less;
- with zeros as padding (also where there is none to pad), strides below 3.

Layers that it cannot compute get around the limits (:func:`needs_pad`), or
become an ordinary convolution of signs.
"""

from __future__ import annotations

import torch
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.detectors import SingleStageDetector, TwoStageDetector
from mmdet.models.roi_heads import StandardRoIHead
from torch import nn

from surge_det.core.layers import SURGEConv2d, SURGELayer
from surge_det.core.packed_layers import PackedLayer

_PACK = 8
# Operators of mmcv's extension, by class name: it may not be installed.
_FOREIGN = ('DeformConv', 'ModulatedDeformConv', 'MultiScaleDeformable')


def is_packed(layer: nn.Module) -> bool:
    """Whether a layer's weights are bits in the file.

    Those of other layers, also of 1-bit ones that become an ordinary
    convolution of signs, are float32.
    """
    if not isinstance(layer, SURGELayer):
        return False
    channels = layer.weight.shape[1]
    return (
        layer.binarize_weight
        and layer.binarize_activation
        and channels % _PACK == 0
        and getattr(layer, 'groups', 1) == 1
    )


def needs_pad(layer: SURGEConv2d) -> bool:
    """Whether an operation of its own has to pad the layer's input."""
    left, right, top, bottom = layer.pads
    if max(left, right) > 1:
        return True
    if layer.pad_value != 0 or not any((left, right, top, bottom)):
        return False
    # A window may lie in the padding with all its rows, or between them.
    rows, dilation = layer.kernel_size[0], layer.dilation[0]
    centred = rows % 2 and top == bottom == dilation * (rows - 1) // 2
    return max(layer.stride) > 2 or (dilation > 1 and not centred)


def operation(layer: nn.Module) -> str:
    """Return what computes a layer in OpenVINO."""
    linear = isinstance(layer, nn.Linear)
    if not isinstance(layer, SURGELayer):
        if isinstance(layer, nn.Conv2d):
            return 'GroupConvolution' if layer.groups > 1 else 'Convolution'
        return 'MatMul' if linear else type(layer).__name__
    if is_packed(layer):
        if linear:
            return 'BinaryConvolution, 1x1'
        padded = 'Pad and ' if needs_pad(layer) else ''
        return f'{padded}BinaryConvolution'
    if linear:
        name = 'MatMul'
    else:
        name = 'GroupConvolution' if layer.groups > 1 else 'Convolution'
    return name + ' on signs' * layer.binarize_activation


def problem(name: str, layer: nn.Module) -> tuple[str, str] | None:
    """Say why a layer cannot be exported to OpenVINO, and what would help.

    Args:
        name: Its name in the detector.
        layer: Any module.

    Returns:
        Reason and remedy, or ``None``.
    """
    for parameter in layer.parameters(recurse=False):
        if parameter.dtype != torch.float32:
            return (
                f'its parameters are {parameter.dtype}',
                'model.float() before the export',
            )
        if parameter.device.type != 'cpu':
            return (
                f'its parameters are on {parameter.device}',
                'model.cpu() before the export',
            )
    if type(layer).__name__.startswith(_FOREIGN):
        return (
            f'OpenVINO has no {type(layer).__name__}',
            'use an ordinary convolution there, or --format packed',
        )
    if isinstance(layer, PackedLayer):
        return (
            'it is packed already',
            "export the training's checkpoint, not a packed file",
        )
    return None


def detector_problem(model: nn.Module) -> tuple[str, str] | None:
    """Say why a detector as a whole cannot be exported to OpenVINO.

    What mmdet does around the networks, decoding and NMS among it, must be
    what the base classes do: the networks are put in there.

    Args:
        model: What mmdet built.

    Returns:
        Reason and remedy, or ``None``.
    """
    kind = type(model)
    remedy = 'use --format packed'
    if isinstance(model, TwoStageDetector):
        roi_head = model.roi_head if model.with_roi_head else None
        head = type(roi_head)
        if kind.predict is not TwoStageDetector.predict or not model.with_rpn:
            return f'{kind.__name__} is no two-stage detector with RPN', remedy
        if not isinstance(roi_head, StandardRoIHead) or any(
            getattr(head, name) is not getattr(StandardRoIHead, name)
            for name in ('predict', 'predict_bbox', '_bbox_forward')
        ):
            return f'{head.__name__} has stages or paths of its own', remedy
        for part in ('mask', 'shared_head'):
            if getattr(roi_head, f'with_{part}'):
                return f'its RoI head has a part more: {part}', remedy
        dense = model.rpn_head
    elif isinstance(model, SingleStageDetector):
        if kind.predict is not SingleStageDetector.predict:
            return f'{kind.__name__} predicts in a way of its own', remedy
        dense = model.bbox_head
    else:
        return (
            f'{kind.__name__} is neither a one-stage detector with a dense '
            'head nor a two-stage one',
            remedy,
        )
    if (
        not isinstance(dense, BaseDenseHead)
        or type(dense).predict is not BaseDenseHead.predict
    ):
        return f'{type(dense).__name__} predicts in a way of its own', remedy
    return None
