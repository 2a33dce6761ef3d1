"""A whole detector as one graph, from the image to its boxes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from surge_det.deploy.comparison import (
    TRIALS,
    check_input,
    check_network,
    record,
    smallest_image,
)
from surge_det.deploy.extra import require
from surge_det.deploy.networks import (
    TO_FIRST,
    TO_LAST,
    Flattened,
    dense_network,
    detector_problem,
    exact_arithmetic,
    roi_example,
    roi_network,
)
from surge_det.models.preflight import evaluating

from . import rules
from .checks import add_checks
from .conversion import add_network
from .graph import Graph
from .layers import stored_as_bits

IMAGE, OUTPUTS = 'image', ('boxes', 'scores', 'labels')
# Of the RoIs' features and of the network's input in the graph.
_DATA, _POOLED = 'data', 'pooled'


def problem(model: nn.Module) -> str | None:
    """Say why a detector with ``cfg`` cannot be one graph, if so."""
    if found := detector_problem(model):
        return found
    try:
        _attributes(model)
    except ValueError as error:
        return str(error)
    return None


def _attributes(model: nn.Module) -> dict[str, rules.Attributes]:
    """Return the attributes of each of our operators that it needs."""
    found = {'Preprocess': rules.preprocess(model, model.cfg)}
    if not hasattr(model, 'roi_head'):
        found['DenseBoxes'] = rules.dense_boxes(model.bbox_head)
        return found
    head = model.roi_head
    found['Proposals'] = rules.proposals(model.rpn_head)
    found['RoIAlign'] = rules.roi_align(head.bbox_roi_extractor)
    found['RoIBoxes'] = rules.roi_boxes(head)
    return found


@dataclass
class _Part:
    """A network in the graph: its input there, and its outputs."""

    network: Flattened
    example: Tensor
    given: str
    found: list[str]
    channels_last: bool = False


def build(model: nn.Module) -> Any:
    """Write a detector as an ``onnx.ModelProto``.

    Args:
        model: Detector with ``cfg`` that :func:`problem` has nothing
            against; float32, on the CPU; not changed.

    Returns:
        The model: ``image`` uint8 (H, W, 3) in, blue first; ``boxes`` (N, 4),
        ``scores`` and ``labels`` out.

    Raises:
        RuntimeError: If ONNX Runtime computes something else than torch.
        ValueError: If there is something against the detector.
    """
    attributes = _attributes(model)
    graph = Graph()
    graph.unique(IMAGE)
    with evaluating(model):
        parts = _add_all(graph, model, attributes)
        add_checks(graph)
        for part in parts:
            _compare(graph, part)
    types = require('onnx').TensorProto
    return graph.model(
        {IMAGE: (types.UINT8, ['rows', 'columns', 3])},
        dict(zip(OUTPUTS, (types.FLOAT, types.FLOAT, types.INT64))),
    )


def _add_all(
    graph: Graph, model: nn.Module, attributes: dict[str, rules.Attributes]
) -> list[_Part]:
    def ours(
        operator: str, inputs: Sequence[str], *outputs: str, **more: Any
    ) -> list[str]:
        names = [graph.unique(name) for name in outputs]
        graph.ours(
            operator,
            inputs,
            '',
            outputs=names,
            **attributes[operator],
            **more,
        )
        return names

    data, info = ours('Preprocess', [IMAGE], _DATA, 'info')
    # With its rank known, the engine keeps the first real convolutions and
    # max pools in its own layout.
    graph.shapes[data] = [1, 3, 'height', 'width']
    network = dense_network(model)
    example = smallest_image(network)
    found = add_network(graph, network, example, data)
    parts = [_Part(network, example, data, found)]
    if not hasattr(model, 'roi_head'):
        groups, rest = divmod(
            len(found), len(attributes['DenseBoxes']['strides'])
        )
        if rest or groups not in (2, 3):
            raise ValueError(
                f'{type(model.bbox_head).__name__} has {len(found)} maps: '
                'scores, boxes and perhaps one factor per level are allowed'
            )
        has_factor = int(groups == 3)
        ours('DenseBoxes', [info, *found], *OUTPUTS, has_factor=has_factor)
        return parts
    levels = len(attributes['Proposals']['strides'])
    maps, outputs = found[: -2 * levels], found[-2 * levels :]
    (rois,) = ours('Proposals', [info, *outputs], 'rois')
    maps = maps[: len(attributes['RoIAlign']['strides'])]
    (pooled,) = ours('RoIAlign', [rois, *maps], _POOLED)
    network, example = roi_network(model), roi_example(model)
    found = add_network(graph, network, example, pooled, True, False)
    parts.append(_Part(network, example, pooled, found, True))
    ours('RoIBoxes', [info, rois, *found], *OUTPUTS)
    return parts


def _compare(graph: Graph, part: _Part) -> None:
    """See that the engine computes what torch does, at another size.

    Raises:
        RuntimeError: If it does not.
    """
    shape = list(part.example.shape)
    if part.channels_last:
        shape[0] += 3
    else:
        # Multiples of 32 more, so that levels stay whole.
        shape[2:] = [shape[2] + 64, shape[3] + 128]
    sizes = [shape[axis] for axis in TO_LAST] if part.channels_last else shape
    float32 = require('onnx').TensorProto.FLOAT
    model = graph.model(
        {part.given: (float32, sizes)}, dict.fromkeys(part.found, float32)
    )
    session = open_session(model.SerializeToString())

    def run(x: Tensor) -> list[Tensor]:
        if part.channels_last:
            x = x.permute(TO_LAST)
        found = session.run(part.found, {part.given: x.contiguous().numpy()})
        return [
            torch.from_numpy(y).permute(TO_FIRST)
            if y.ndim == 4
            else torch.from_numpy(y)
            for y in found
        ]

    with (
        torch.no_grad(),
        exact_arithmetic(part.network, stored_as_bits, norms=True),
    ):
        # The next one only if the one before differs.
        recorded = (
            record(shape, part.network(check_input(shape, trial)), trial)
            for trial in range(TRIALS)
        )
        check_network(run, recorded, 'the converted network')


def open_session(model: bytes, threads: int | None = None) -> Any:
    """Return an ``onnxruntime.InferenceSession`` with our operators.

    Args:
        model: Serialized.
        threads: Number of threads; ``None`` for as many as torch has.

    Raises:
        RuntimeError: If ONNX Runtime refuses the model.
    """
    runtime = require('onnxruntime')
    options = runtime.SessionOptions()
    options.register_custom_ops_library(
        require('surge_runtime.library').library_path()
    )
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.inter_op_num_threads = 1
    # Errors are raised; what it would log of them is said twice.
    options.log_severity_level = 4
    try:
        return runtime.InferenceSession(
            model, options, providers=['CPUExecutionProvider']
        )
    # The engine's errors have no common type.
    except Exception as error:
        raise RuntimeError(
            f'ONNX Runtime refuses the network: {error}'
        ) from error
