"""Whether this machine's 1-bit kernels compute what they should."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from surge_det.core.bits import unpack_signs
from surge_det.core.operators import ConvOperator
from surge_det.deploy.extra import require

from .lowering import above
from .runtime import shared_core


class _Case:
    """A ``BinaryConvolution``, and a small random input for it."""

    def __init__(self, node: Any, random: np.random.Generator) -> None:
        self.node, self.geometry = node, node.get_attributes()
        self.sign, self.bits = (v.get_node() for v in node.input_values())
        self.threshold = self.sign.input_value(1).get_node().data
        shape = tuple(self.bits.get_output_shape(0))
        packed = np.array(self.bits.data).reshape(shape[0], -1)
        self.weight = unpack_signs(torch.from_numpy(packed), shape)
        keys = 'strides', 'dilations', 'pads_begin', 'pads_end'
        sizes = (
            # Four windows and a bit, those in the padding included.
            max(dilation * (kernel - 1) + 2 + 3 * stride - before - after, 1)
            for kernel, stride, dilation, before, after in zip(
                shape[2:], *(self.geometry[key] for key in keys)
            )
        )
        full = (1, shape[1], *sizes)
        start = np.broadcast_to(self.threshold, full)
        # At the threshold, right above it, or somewhere near.
        self.x = np.choose(
            random.integers(0, 3, full),
            [start, above(start), start + random.standard_normal(full)],
        ).astype(np.float32)

    def expected(self) -> np.ndarray:
        """Compute with torch what the node should give."""
        signs = np.where(self.x > self.threshold, np.float32(1), -1)
        x = torch.from_numpy(signs.astype(np.float32))
        geometry = self.geometry
        top, left = geometry['pads_begin']
        bottom, right = geometry['pads_end']
        convolve = ConvOperator(
            tuple(geometry['strides']),
            (left, right, top, bottom),
            tuple(geometry['dilations']),
            groups=1,
        ).forward
        return convolve(x, self.weight, None, geometry['pad_value']).numpy()


def check_layers(model: Any, settings: dict[str, Any]) -> None:
    """Compare the 1-bit layers of a model with the reference arithmetic.

    Each ``BinaryConvolution``, with its own weights, geometry and
    thresholds, gets one small random input, in which many values lie at the
    threshold and right above it; the result must be the same exactly.

    Args:
        model: An ``openvino.Model`` as it was read.
        settings: What it is to be compiled with.

    Raises:
        RuntimeError: If a layer computes something else, or cannot run;
            names the layer.
    """
    cases = _cases(model)
    if not cases:
        return
    try:
        branches = _branches(cases)
        compiled = shared_core().compile_model(branches, 'CPU', settings)
        outputs = compiled([case.x for case in cases])
    except RuntimeError as error:
        raise RuntimeError(
            f'this CPU cannot run the 1-bit layers of the model: {error}'
        ) from error
    wrong = []
    for index, case in enumerate(cases):
        difference = np.abs(outputs[index] - case.expected()).max()
        if difference != 0:
            name = case.node.get_friendly_name()
            wrong.append(f'{name} (largest difference {difference:g})')
    if wrong:
        version = require('openvino').__version__
        raise RuntimeError(
            f'OpenVINO {version} computes wrong values on this CPU for '
            f'{len(wrong)} of {len(cases)} 1-bit layers, so this model '
            'cannot run here (a packed file or a checkpoint can): '
            + ', '.join(wrong[:5])
            + (', ...' if len(wrong) > 5 else '')
        )


def _cases(model: Any) -> list[_Case]:
    random = np.random.default_rng(0)
    cases: dict[Any, _Case] = {}
    for node in model.get_ordered_ops():
        if node.get_type_name() != 'BinaryConvolution':
            continue
        case = _Case(node, random)
        # One layer may be applied at several places, with what went into its
        # threshold there.
        key = (
            case.bits.get_friendly_name(),
            str(case.geometry),
            case.threshold.tobytes(),
        )
        cases.setdefault(key, case)
    return list(cases.values())


def _branches(cases: list[_Case]) -> Any:
    """Return a model with a branch for each case."""
    ov, ops = require('openvino'), require('openvino.opset1')
    inputs, outputs = [], []
    for case in cases:
        x = ops.parameter(case.x.shape, np.float32)
        sign = ops.fake_quantize(
            x, *case.sign.input_values()[1:], **case.sign.get_attributes()
        )
        inputs.append(x)
        outputs.append(
            ops.binary_convolution(sign, case.bits, **case.geometry)
        )
    return ov.Model(outputs, inputs, 'self_check')
