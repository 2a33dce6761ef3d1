"""Command-line arguments that the benchmarks share."""

from __future__ import annotations

import argparse
from typing import Any

from surge_det.cli.common import fail, folder, positive_int

_OPTIONS: dict[str, dict[str, Any]] = {
    'size': dict(
        nargs=2,
        type=positive_int,
        metavar=('ROWS', 'COLUMNS'),
        help="of the images; default: the config's",
    ),
    'batch': dict(
        type=positive_int, default=2, help='images of a process; default: 2'
    ),
    'device': dict(default='cpu'),
    'dtype': dict(choices=['float32', 'autocast'], default='float32'),
    'channels-last': dict(action='store_true'),
    'threads': dict(type=positive_int, help="default: torch's own"),
    'cpu-time': dict(
        action='store_true',
        help='CPU time, for a busy machine; with --threads 1',
    ),
    'rounds': dict(type=positive_int, help='turns of each that count'),
    'warmup': dict(type=int, help='turns of each before these, not counted'),
    'out': dict(type=folder, help='folder for tables, CSV and picture'),
}
MACHINE = 'device', 'dtype', 'channels-last', 'threads', 'cpu-time'


def add(
    parser: argparse.ArgumentParser, *names: str, **defaults: object
) -> None:
    """Add some of the shared arguments, rounds and warm-up among them.

    Args:
        parser: Gets them.
        names: Which.
        defaults: Values of arguments, also of some that users cannot change.
    """
    for name in (*names, 'rounds', 'warmup'):
        parser.add_argument(f'--{name}', **_OPTIONS[name])
    parser.set_defaults(**defaults)


def prepare(args: argparse.Namespace) -> None:
    """Check the shared arguments, set torch's threads, make the folder."""
    import torch

    if args.warmup < 0:
        fail(f'--warmup {args.warmup}: at least 0 is allowed')
    try:
        torch.empty(0, device=args.device)
    except (AssertionError, RuntimeError) as error:
        fail(f'--device {args.device!r}: {error}')
    if args.cpu_time and (
        args.threads not in (1, [1]) or args.device != 'cpu'
    ):
        fail('--cpu-time: with --threads 1 on a CPU only')
    if isinstance(args.threads, int):
        torch.set_num_threads(args.threads)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)


def conditions(args: argparse.Namespace) -> str:
    """Say under which conditions the figures were taken."""
    import torch

    layout = 'channels_last' if args.channels_last else 'default format'
    return (
        f'{args.dtype}, {args.device}, {layout}, '
        f'{torch.get_num_threads()} threads, torch {torch.__version__}'
    )
