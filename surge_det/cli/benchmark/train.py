"""Time and memory of a detector's training step, by several kinds of layers.

Each config's detector trains with its 1-bit convolutions as they are
(*SURGE*), with the replica's products in bfloat16, without replica, and
replaced by float convolutions, *reference STE* and *reference SURGE* (see
surge_det/cli/benchmark/reference.py). The contestants take turns step by step.
Everything else of the step is the config's: optimizer, clipping, losses.

With --as-is the contestants are the configs, as they are; ratios are to the
first. The images are noise, or with --data the first config's.

Example::

    surge-det benchmark train surge_faster_rcnn_r18_voc \\
        surge_ssd300_vgg16_voc --batch 2 --out work_dirs/train
    surge-det benchmark train ste_faster_rcnn_r18_bccd \\
        fsg_faster_rcnn_r18_bccd --as-is --data --threads 1 \\
        --cpu-time --warmup 6 --rounds 8
"""

from __future__ import annotations

import argparse
import statistics
from functools import partial

from surge_det.cli.common import config_file, fail

from . import arguments
from .layers import FLOAT, REF_STE, REF_SURGE
from .report import Panel, Table, draw_bars, number, publish, ratio

SURGE, NARROW, STE = 'SURGE', 'SURGE aux bf16', 'SURGE layers, STE'
CONTESTANTS = [FLOAT, REF_STE, REF_SURGE, SURGE, NARROW, STE]
AS_IS = 'as is'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command line's arguments."""
    parser.add_argument(
        'configs', nargs='+', type=config_file, metavar='CONFIG'
    )
    contestants = parser.add_mutually_exclusive_group()
    contestants.add_argument(
        '--contestants',
        nargs='+',
        choices=CONTESTANTS,
        default=CONTESTANTS,
        metavar='NAME',
        help=f'of {CONTESTANTS}; ratios are to {REF_STE!r}, or the first',
    )
    contestants.add_argument(
        '--as-is', action='store_true', help='compare the configs themselves'
    )
    parser.add_argument(
        '--data',
        action='store_true',
        help="the first config's training images and batch, instead of noise",
    )
    arguments.add(
        parser,
        *('size', 'batch', *arguments.MACHINE, 'out'),
        rounds=5,
        warmup=2,
    )


def run(args: argparse.Namespace) -> None:
    """Measure, print and write."""
    from .train_step import measure

    names = [path.stem for path in args.configs]
    if len(set(names)) < len(names):
        fail(f'CONFIG: each name once only, not {names}')
    base = REF_STE if REF_STE in args.contestants else args.contestants[0]
    groups = [([path], args.contestants) for path in args.configs]
    if args.as_is:
        base = names[0]
        groups = [(args.configs, [AS_IS])]
    rows, lines = [], []
    times: dict[str, list[float | None]] = {}
    peaks: dict[str, list[float | None]] = {}
    for paths, contestants in groups:
        try:
            taken, process_peak = measure(paths, contestants, args)
        except (OSError, ValueError) as error:
            fail(f'{", ".join(map(str, paths))}: {error}')
        base_seconds, base_peak = next(
            found for key, found in taken.items() if base in key
        )
        for (config, layers), (seconds, peak) in taken.items():
            time_ratio = ratio(seconds, base_seconds)
            peak_ratio = peak / base_peak if peak and base_peak else None
            times.setdefault(layers, []).append(time_ratio)
            peaks.setdefault(layers, []).append(peak_ratio)
            rows.append(
                [config, layers, f'{statistics.median(seconds):.3f}']
                + [f'{time_ratio:.2f}', number(peak, '.0f')]
                + [number(peak_ratio, '.2f')]
            )
            lines += [
                [config, layers, i, f'{s:.6g}', number(peak, '.1f', '')]
                for i, s in enumerate(seconds)
            ]
    images = "the config's images" if args.data else f'batch {args.batch}'
    notes = f'{images}, {arguments.conditions(args)}'
    if args.as_is:
        notes += f'\npeak memory of this process: {process_peak:.0f} MiB'
    by_base = f'/ {base}'
    header = ['config', 'layers', 's / step', by_base, 'peak, MiB', by_base]
    configs = [name.replace('_', ' ') for name in names]
    panels = [
        Panel(f'time of a step\n{by_base}', configs, times),
        Panel(f'peak memory of a step\n{by_base}', configs, peaks),
    ]
    publish(
        args,
        'train',
        [Table(header, rows, 2), notes],
        Table(['config', 'layers', 'round', 's', 'peak_mib'], lines),
        partial(draw_bars, panels),
    )
