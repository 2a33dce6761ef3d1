"""A network in another engine beside what torch computes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

# Values of each output that are compared.
_SAMPLES = 64
TOLERANCE = 0.25
# Inputs that a network may be compared on.
TRIALS = 3
# Pixels: an image is tried from the smallest on, since some detectors have
# nothing left of one after their last levels.
_SIZES = (64, 128, 256, 320, 512)


def smallest_image(network: Callable[[Tensor], Any]) -> Tensor:
    """Return a small image that a network runs on, (1, 3, size, size).

    Raises:
        ValueError: If there is none.
    """
    for size in _SIZES:
        image = check_input((1, 3, size, size))
        try:
            with torch.no_grad():
                network(image)
        except (RuntimeError, ValueError) as error:
            # Torch says so where a kernel is larger than what it sees, or a
            # norm has one value.
            reason = error
            continue
        return image
    raise ValueError(
        f'the network does not run on images up to {_SIZES[-1]} pixels: '
        f'{reason}'
    )


def check_input(shape: tuple[int, ...], trial: int = 0) -> Tensor:
    """Return an input of :func:`check_network`: numbers from -2 to 2.

    The same on every machine, another for each trial.
    """
    places = torch.arange(math.prod(shape)) + 1_000_003 * trial
    return ((places * 7919 + places // 31 * 104729) % 513 - 256).view(
        shape
    ) / 128


def record(
    shape: tuple[int, ...], outputs: Sequence[Tensor], trial: int = 0
) -> dict[str, Any]:
    """Write down what a network makes of :func:`check_input`.

    Args:
        shape: Of the input.
        outputs: What torch computes, with
            :func:`~.networks.exact_arithmetic`.
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
    run: Callable[[Tensor], Sequence[Tensor]],
    recorded: Iterable[dict[str, Any]],
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
    run: Callable[[Tensor], Sequence[Tensor]],
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


def _sample(output: Tensor) -> Tensor:
    flat = output.detach().flatten().float()
    step = max(1, len(flat) // _SAMPLES)
    return flat[::step][:_SAMPLES]
