"""Command-line arguments that the benchmarks share."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch


def parser_of(doc: str) -> argparse.ArgumentParser:
    """Make a parser that shows a tool's docstring."""
    head, _, rest = doc.partition('\n')
    return argparse.ArgumentParser(
        description=head,
        epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_machine_arguments(parser: argparse.ArgumentParser) -> None:
    """Add where and in which type to compute."""
    add = parser.add_argument
    add('--device', default='cpu')
    add(
        '--dtype',
        choices=['float32', 'bfloat16', 'autocast'],
        default='float32',
    )
    add('--channels-last', action='store_true')
    add('--threads', type=int, help="CPU threads; default: torch's own")


def add_layer_arguments(parser: argparse.ArgumentParser) -> None:
    """Add where to compute, and what only single layers can do."""
    add_machine_arguments(parser)
    parser.add_argument(
        '--shrink', type=int, default=1, help='divide the size of the maps'
    )
    add_cpu_time_argument(parser)


def add_cpu_time_argument(parser: argparse.ArgumentParser) -> None:
    """Add measuring CPU time."""
    parser.add_argument(
        '--cpu-time',
        action='store_true',
        help='CPU time of one thread, for a busy machine; with --threads 1',
    )


def add_turn_arguments(
    parser: argparse.ArgumentParser, rounds: int, warmup: int
) -> None:
    """Add how often each contestant takes its turn."""
    add = parser.add_argument
    add('--rounds', type=int, default=rounds, help='turns of each that count')
    add(
        '--warmup',
        type=int,
        default=warmup,
        help="turns before, which don't",
    )


def add_out_argument(
    parser: argparse.ArgumentParser, required: bool = False
) -> None:
    """Add the folder for what is written."""
    parser.add_argument(
        '--out',
        type=Path,
        required=required,
        help='folder for table, CSV and picture',
    )


def check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End the program, as argparse does, at a value that cannot be."""
    least = dict(batch=1, shrink=1, threads=1, rounds=1, warmup=0)
    for name, low in least.items():
        given = getattr(args, name, None)
        for value in given if isinstance(given, list) else [given]:
            if value is not None and value < low:
                parser.error(f'--{name} {value}: at least {low}')
    device = getattr(args, 'device', 'cpu')
    try:
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:
        parser.error(f'--device {device!r}: {error}')
    if getattr(args, 'cpu_time', False) and (
        args.threads not in (1, [1]) or device != 'cpu'
    ):
        parser.error('--cpu-time: with --threads 1 on a CPU only')


def conditions(args: argparse.Namespace) -> str:
    """Say under which conditions the figures were taken."""
    layout = 'channels_last' if args.channels_last else 'default format'
    return (
        f'{args.dtype}, {args.device}, {layout}, '
        f'{torch.get_num_threads()} threads, torch {torch.__version__}'
    )
