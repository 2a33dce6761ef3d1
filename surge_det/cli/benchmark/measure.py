"""Time and memory of contestants that take turns."""

from __future__ import annotations

import ctypes
import gc
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor, nn

MIB = 2**20
_STATUS = Path('/proc/self/status')
_CLEAR = Path('/proc/self/clear_refs')


def synchronize(device: torch.device) -> None:
    """Wait for what was given to a GPU."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


def interleaved(
    contestants: Mapping[str, Callable[[], Sequence[float]]],
    rounds: int,
    warmup: int,
    after_round: Callable[[], None] = lambda: None,
) -> dict[str, list[Sequence[float]]]:
    """Let contestants take turns, so that all meet what the machine does.

    Args:
        contestants: Each runs once and returns its seconds, one number or
            more.
        rounds: Turns of each that count.
        warmup: Turns before, which don't.
        after_round: Called after every round, to show progress.

    Returns:
        What each turn that counted returned.
    """
    taken = {name: [] for name in contestants}
    for i in range(warmup + rounds):
        for name, run in contestants.items():
            seconds = run()
            if i >= warmup:
                taken[name].append(seconds)
        after_round()
    return taken


def timed(
    run: Callable[[], object],
    device: torch.device,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Seconds that a call takes, GPU work included.

    Args:
        run: The call.
        device: Where it works.
        clock: ``time.thread_time`` for the CPU time of one thread, which other
            work on the machine prolongs less.
    """
    synchronize(device)
    start = clock()
    run()
    synchronize(device)
    return clock() - start


def ratio(mine: Iterable[float], base: Iterable[float]) -> float:
    """Median of the ratios of paired turns."""
    return statistics.median(a / b for a, b in zip(mine, base, strict=True))


def kept_bytes(
    run: Callable[[], object], parameters: Iterable[nn.Parameter]
) -> int:
    """Bytes that a forward pass keeps for the backward pass.

    Each storage counts once; parameters do not.

    Args:
        run: The forward pass.
        parameters: What lives anyway.
    """
    known = {p.untyped_storage().data_ptr() for p in parameters}
    storages: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        out = run()
    del out
    return sum(storages.values())


def peak_bytes(
    run: Callable[[], object], device: torch.device
) -> float | None:
    """Bytes that a call allocates at its peak, beyond what was there.

    On CUDA by torch's counter. On a CPU by the process's resident size, which
    Linux lets start its peak anew; ``None`` where that is not to be had.
    """
    gc.collect()
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with suppress(OSError, AttributeError):
        # What was freed goes back to the system first.
        ctypes.CDLL(None).malloc_trim(0)
    try:
        _CLEAR.write_text('5')
        before = _resident('VmRSS')
    except OSError:
        return None
    run()
    return _resident('VmHWM') - before


def _resident(field: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise OSError(f'{_STATUS} has no {field}')


def geometric_mean(values: Iterable[float]) -> float:
    """Of positive numbers."""
    return statistics.geometric_mean(values)
