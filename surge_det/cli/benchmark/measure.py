"""Time and memory of contestants that take turns."""

from __future__ import annotations

import argparse
import ctypes
import gc
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from torch import Tensor, nn

MIB = 2**20
_STATUS = Path('/proc/self/status')
_CLEAR = Path('/proc/self/clear_refs')
_Key, _Taken = TypeVar('_Key'), TypeVar('_Taken')


def interleaved(
    contestants: Mapping[_Key, Callable[[], _Taken]],
    args: argparse.Namespace,
    title: str | None = None,
) -> dict[_Key, list[_Taken]]:
    """Let contestants take turns, so that all meet what the machine does.

    Args:
        contestants: Each runs once and returns its seconds, one number or
            more.
        args: The command line, with ``rounds`` and ``warmup``.
        title: Of the progress bar on stderr; ``None`` for no bar.

    Returns:
        What each turn that counted returned.
    """
    taken = {name: [] for name in contestants}
    # No thread refreshes the bar: it would take time from the contestants.
    for i in track(
        range(args.warmup + args.rounds),
        escape(title or ''),
        console=Console(stderr=True),
        auto_refresh=False,
        disable=title is None,
    ):
        for name, run in contestants.items():
            seconds = run()
            if i >= args.warmup:
                taken[name].append(seconds)
    return taken


def timed(
    run: Callable[[], object], device: torch.device, cpu_time: bool = False
) -> float:
    """Seconds that a call takes, GPU work included.

    Args:
        run: The call.
        device: Where it works.
        cpu_time: Whether the CPU time of the process counts, which other
            work on the machine prolongs less.
    """
    clock = time.process_time if cpu_time else time.perf_counter
    _synchronize(device)
    start = clock()
    run()
    _synchronize(device)
    return clock() - start


def _synchronize(device: torch.device) -> None:
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


def kept_mib(run: Callable[[], object], model: nn.Module) -> float:
    """MiB that a forward pass keeps for the backward pass.

    Each storage counts once; the model's parameters, which live anyway, do
    not.
    """
    known = {p.untyped_storage().data_ptr() for p in model.parameters()}
    storages: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        # Named, so that no storage is freed, and its address taken again.
        out = run()
    del out
    return sum(storages.values()) / MIB


def peak_mib(run: Callable[[], object], device: torch.device) -> float | None:
    """MiB that a call allocates at its peak, beyond what was there.

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
        return (torch.cuda.max_memory_allocated(device) - before) / MIB
    with suppress(OSError, AttributeError):
        # What was freed goes back to the system first.
        ctypes.CDLL(None).malloc_trim(0)
    try:
        _CLEAR.write_text('5')
        before = _resident('VmRSS')
    except OSError:
        return None
    run()
    return (_resident('VmHWM') - before) / MIB


def _resident(field: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise OSError(f'{_STATUS} has no {field}')
