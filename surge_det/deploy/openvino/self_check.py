"""Whether this machine's kernels compute what the file says."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from surge_det.core.bits import unpack_signs
from surge_det.core.operators import ConvOperator
from surge_det.deploy.extra import require

from .lowering import above
from .runtime import shared_core

# Values of each output that a file keeps.
_SAMPLES = 64
TOLERANCE = 0.25
# Inputs that a network may be compared on.
TRIALS = 3


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


def check_layers(model: Any, settings: dict[str, Any]) -> int:
    """Compare the 1-bit layers of a model with the reference arithmetic.

    Each ``BinaryConvolution``, with its own weights, geometry and
    thresholds, gets one small random input, in which many values lie at the
    threshold and right above it; the result must be the same exactly.

    Args:
        model: An ``openvino.Model`` as it was read.
        settings: What it is to be compiled with.

    Returns:
        The number of layers compared.

    Raises:
        RuntimeError: If a layer computes something else, or cannot run;
            names the layer.
    """
    cases = _cases(model)
    if not cases:
        return 0
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
    return len(cases)


def check_input(shape: tuple[int, ...], trial: int = 0) -> torch.Tensor:
    """Return an input of :func:`check_network`: numbers from -2 to 2.

    The same on every machine, another for each trial.
    """
    places = torch.arange(math.prod(shape)) + 1_000_003 * trial
    return ((places * 7919 + places // 31 * 104729) % 513 - 256).view(
        shape
    ) / 128


def record(
    shape: tuple[int, ...], outputs: Sequence[torch.Tensor], trial: int = 0
) -> dict[str, Any]:
    """Write down what a network makes of :func:`check_input`.

    Args:
        shape: Of the input.
        outputs: What torch computes, with
            :func:`~.conversion.exact_arithmetic`.
        trial: Which input it was.

    Returns:
        A dict of plain values, for :func:`check_network`.
    """
    return {
        'input': list(shape),
        'trial': trial,
        'outputs': [
            {
                'shape': list(output.shape),
                'deviation': output.double().std(correction=0).item(),
                'values': _sample(output).tolist(),
            }
            for output in outputs
        ],
    }


def check_network(
    run: Callable[[torch.Tensor], Sequence[torch.Tensor]],
    recorded: Sequence[dict[str, Any]],
    name: str,
) -> None:
    """Compare a whole network with what torch has computed.

    What the check finds is a platform on which operations that were merged
    compute something else, or a network that fits one size only. A sum that
    is rounded otherwise may flip a sign here and there, and on so small an
    input one that lies early can change much of the output; so the network is
    wrong only if it is on each of the inputs.

    Args:
        run: The network.
        recorded: What :func:`record` returned, for one input or more.
        name: Of the network, for messages.

    Raises:
        RuntimeError: If for each input an output has another shape, or values
            that are on average more than ``TOLERANCE`` standard deviations
            off.
    """
    first = None
    for trial in recorded:
        problem = _problem(run, trial)
        if problem is None:
            return
        first = first or problem
    raise RuntimeError(
        f'{name}: {first}. This model cannot run here; a packed file or a '
        'checkpoint can'
    )


def _problem(
    run: Callable[[torch.Tensor], Sequence[torch.Tensor]],
    recorded: dict[str, Any],
) -> str | None:
    shape = tuple(recorded['input'])
    outputs = run(check_input(shape, recorded['trial']))
    if len(outputs) != len(recorded['outputs']):
        return (
            f'it has {len(outputs)} outputs instead of '
            f'{len(recorded["outputs"])}'
        )
    for index, (output, entry) in enumerate(zip(outputs, recorded['outputs'])):
        place = f'output {index} for an input of size {list(shape)}'
        if list(output.shape) != entry['shape']:
            return (
                f'{place} has shape {list(output.shape)} instead of '
                f'{entry["shape"]}'
            )
        expected = torch.tensor(entry['values'], dtype=torch.float64)
        difference = (_sample(output).double() - expected).abs().mean().item()
        allowed = TOLERANCE * entry['deviation'] + 1e-5
        if not difference <= allowed:
            return (
                f'{place} is wrong: on average {difference:.3g} off what '
                f'torch computes, at most {allowed:.3g} is allowed '
                f'({TOLERANCE} standard deviations)'
            )
    return None


def _sample(output: torch.Tensor) -> torch.Tensor:
    flat = output.detach().flatten().float()
    step = max(1, len(flat) // _SAMPLES)
    return flat[::step][:_SAMPLES]


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
