"""The parts of a detector that OpenVINO runs, as modules of one tensor."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor, nn

from surge_det.deploy.plan import arithmetic

from .rules import detector_problem

# What stands before a layer's name in a network.
PART = 'part.'


class Flattened(nn.Module):
    """A function of one tensor, its output as a flat tuple.

    Args:
        part: The detector, so that layers have the names they have there.
        run: Calls it; returns tensors in lists, tuples and dicts.

    Attributes:
        structure: Of the last output: the same with numbers for tensors.
    """

    def __init__(self, part: nn.Module, run: Any) -> None:
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
            :func:`~.rules.detector_problem` has nothing against.

    Returns:
        Takes images as the data preprocessor leaves them, (N, 3, H, W). Its
        outputs are, for a one-stage detector, those of the head; for a
        two-stage one the features of the neck, then the RPN's outputs.

    Raises:
        ValueError: If there is something against the detector.
    """
    _check(model)
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

    Raises:
        ValueError: If there is something against the detector.
    """
    _check(model)
    if not hasattr(model, 'roi_head'):
        return None
    head = model.roi_head.bbox_head
    return Flattened(model, head)


def roi_example(model: nn.Module) -> Tensor:
    """Return random pooled features of a few regions."""
    extractor = model.roi_head.bbox_roi_extractor
    size = extractor.roi_layers[0].output_size
    return torch.randn(4, extractor.out_channels, *size)


def fingerprint(model: nn.Module) -> str:
    """Return what differs for detectors of other layers.

    Args:
        model: With or without the replicas that only training has.
    """
    layers = sorted(
        f'{name} {tuple(parameter.shape)}'
        for name, parameter in model.named_parameters()
        if not name.endswith('.aux_weight')
    )
    layers += sorted(f'{k}: {v}' for k, v in arithmetic(model).items())
    return hashlib.sha256('\n'.join(layers).encode()).hexdigest()


def rebuild(structure: Any, tensors: list[Tensor]) -> Any:
    """Put tensors where ``structure`` has their numbers."""
    if isinstance(structure, dict):
        return {k: rebuild(v, tensors) for k, v in structure.items()}
    if isinstance(structure, (list, tuple)):
        return [rebuild(item, tensors) for item in structure]
    return None if structure is None else tensors[structure]


def _check(model: nn.Module) -> None:
    problem = detector_problem(model)
    if problem:
        raise ValueError(f'{problem[0]}; {problem[1]}')


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
