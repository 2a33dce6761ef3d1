"""The networks of a detector, taken out of it for another engine.

A one-stage detector's backbone, neck and head are one network; a two-stage
one's RoI head is a second one. Around them are data preprocessor, anchors,
decoding, NMS and RoI extractor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.detectors import SingleStageDetector, TwoStageDetector
from mmdet.models.roi_heads import StandardRoIHead
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from surge_det.core.layers import SURGELayer, named_surge_layers
from surge_det.core.sign import binary_sign
from surge_det.deploy.norms import factor_and_offset

# What stands before a layer's name in a network.
PART = 'part.'
# From (N, C, H, W) to (N, H, W, C) and back.
TO_LAST, TO_FIRST = (0, 2, 3, 1), (0, 3, 1, 2)


def detector_problem(model: nn.Module) -> str | None:
    """Say why a detector's networks cannot be taken out of it, if so.

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


@contextmanager
def unchanged(layers: Sequence[nn.Module]) -> Iterator[None]:
    """Take away what is set on layers meanwhile, such as a forward."""
    before = [dict(vars(layer)) for layer in layers]
    try:
        yield
    finally:
        for layer, own in zip(layers, before):
            vars(layer).clear()
            vars(layer).update(own)


@contextmanager
def exact_arithmetic(
    network: nn.Module,
    stored_as_bits: Callable[[nn.Module], bool],
    norms: bool = False,
) -> Iterator[None]:
    """Let 1-bit layers sum signs, and scale the sum.

    That is what is converted. Torch sums scaled signs and rounds as it does,
    so that a sum of zero, which untrained norms pass on as such, comes out
    on either side of it.

    Args:
        network: Has the layers.
        stored_as_bits: Says which of them are meant.
        norms: Whether norms of maps are one multiplication and one addition,
            each rounded, which torch fuses where the processor can.
    """
    layers = {
        layer: _exact_forward
        for _, layer in named_surge_layers(network)
        if stored_as_bits(layer)
    }
    if norms:
        layers |= {
            module: _exact_norm
            for module in network.modules()
            if isinstance(module, _BatchNorm) and module.track_running_stats
        }
    with unchanged(list(layers)):
        for layer, forward in layers.items():
            layer.forward = partial(forward, layer)
        yield


def _exact_forward(layer: SURGELayer, x: Tensor) -> Tensor:
    _, scale, signs = layer.binarized_weight()
    # Channels stand third from last in a convolution's output.
    places = (1, 1) * isinstance(layer, nn.Conv2d)
    x = binary_sign(layer.shifted(x))
    y = layer.operator.forward(x, signs, None, layer.pad_value)
    y = y * scale.view(-1, *places)
    return y if layer.bias is None else y + layer.bias.view(-1, *places)


def _exact_norm(norm: _BatchNorm, x: Tensor) -> Tensor:
    if x.dim() != 4:
        return type(norm).forward(norm, x)
    factor, offset = factor_and_offset(norm)
    return x * factor.view(-1, 1, 1) + offset.view(-1, 1, 1)
