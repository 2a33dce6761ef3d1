"""What is rearranged in a converted model before OpenVINO's own passes."""

from __future__ import annotations

from typing import Any

import numpy as np

from surge_det.deploy.extra import require

from .lowering import SIGN, above, below

_TINY = np.finfo(np.float32).tiny


def fold_shifts(model: Any) -> None:
    """Move shifts that only signs see into the signs' thresholds, in place.

    ``x + shift >= 0`` is ``x >= -shift`` in floating point too, which OpenVINO
    itself, adding to a threshold that is already below zero, would miss. A
    positive factor before the shift, as a norm has one, follows: OpenVINO
    would move it too, and make two constants of the one that both ends of a
    range share.
    """
    for node in model.get_ordered_ops():
        is_sign = node.get_friendly_name().endswith(SIGN)
        if node.get_type_name() == 'FakeQuantize' and is_sign:
            _fold_shift(node)


def _fold_shift(sign: Any) -> None:
    shape = tuple(sign.input_value(1).get_node().get_output_shape(0))
    # From where on it is +1.
    start = above(sign.input_value(1).get_node().data.ravel())
    # A linear layer's rows are reshaped and transposed first.
    last = sign
    while last.input_value(0).get_node().get_type_name() in (
        'Reshape',
        'Transpose',
    ) and _only_consumer(last.input_value(0)):
        last = last.input_value(0).get_node()
    axis = 1 if last is sign else -1
    moved = start
    # A threshold that has a shift in it would be rounded.
    if not start.any():
        shift, rest = _operands(last, 'Add', start.size, axis)
        if shift is not None:
            moved = -shift
            last.input(0).replace_source_output(rest)
    factor, rest = _operands(last, 'Multiply', start.size, axis)
    if factor is not None and (factor > _TINY).all():
        moved = moved / factor
        last.input(0).replace_source_output(rest)
    if moved is start:
        return
    ops = require('openvino.opset1')
    threshold = ops.constant(below(moved).reshape(shape))
    for place in (1, 2):
        sign.input(place).replace_source_output(threshold.output(0))


def separate_constants(model: Any) -> None:
    """Give each operation after a shared layer factors of its own, in place.

    As an RPN's layer on several levels: otherwise the CPU plugin does not
    merge them with the convolution. In the file equal ones are one.
    """
    ops = require('openvino.opset1')
    for node in model.get_ordered_ops():
        if node.get_type_name() != 'Constant':
            continue
        consumers = [
            port
            for port in node.output(0).get_target_inputs()
            if port.get_node().get_type_name() in ('Add', 'Multiply', 'PRelu')
        ]
        for port in consumers[1:]:
            port.replace_source_output(ops.constant(node.data).output(0))


def _operands(
    node: Any, kind: str, channels: int, axis: int
) -> tuple[np.ndarray | None, Any]:
    """Return what an operation before ``node`` adds or multiplies.

    One number per channel, and what it is added to or multiplied with.
    """
    before = node.input_value(0).get_node()
    if before.get_type_name() == kind and _only_consumer(before.output(0)):
        for port in (0, 1):
            constant = before.input_value(port).get_node()
            if constant.get_type_name() != 'Constant':
                continue
            shape = tuple(constant.get_output_shape(0))
            # Channels stand second in an image, last in rows.
            expected = (channels, 1, 1) if axis == 1 else (channels,)
            if shape in (expected, (1, *expected)):
                return constant.data.ravel(), before.input_value(1 - port)
    return None, None


def _only_consumer(output: Any) -> bool:
    return len(output.get_target_inputs()) == 1
