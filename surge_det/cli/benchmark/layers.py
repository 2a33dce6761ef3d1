"""Time and memory of a binarized convolution, layer by layer.

The contestants take turns on the same shapes: a float convolution,
*reference STE* and *reference SURGE* as they are usually written (see
surge_det/cli/benchmark/reference.py), ``SURGEConv2d`` with its replica in full
precision and in bfloat16, and without replica. Printed are times of
training's forward and backward pass and of evaluation's forward pass, bytes
kept for the backward pass, peak memory, and the largest difference of a
gradient from the formula in float64, relative to the gradient's largest
value; then the geometric means over the layers of the ratios that matter.

With --growth the area of the maps, the batch and the number of channels of
one layer are changed one at a time, to see how time and kept bytes grow.

Example::

    surge-det benchmark layers --threads 2 --out work_dirs/layers
    surge-det benchmark layers --growth --threads 2 --out work_dirs/growth
"""

from __future__ import annotations

import argparse
import statistics
from functools import partial
from typing import NamedTuple

from surge_det.cli.common import fail, positive_int

from . import arguments
from .report import Panel, Table, draw_bars, number, publish, ratio

FLOAT, REF_STE, REF_SURGE = 'float', 'reference STE', 'reference SURGE'
SURGE, NARROW, STE = 'SURGEConv2d', 'SURGEConv2d aux bf16', 'SURGEConv2d STE'
FORWARD, BACKWARD, BOTH = 'forward, ms', 'backward, ms', 'both, ms'
EVAL, KEPT, PEAK = 'evaluation, ms', 'kept, MiB', 'peak, MiB'
ERROR = 'gradient error'
QUANTITIES = [FORWARD, BACKWARD, BOTH, EVAL, KEPT, PEAK, ERROR]
# What ratios are of.
TITLES = {
    BOTH: 'time, forward and backward',
    EVAL: 'time, evaluation',
    KEPT: 'bytes kept for backward',
    PEAK: 'peak memory',
}
# By quantity: seconds of all turns, or a number, if it could be measured.
Measured = dict[str, 'list[float] | float | None']
# Layer -> contestant -> what it took.
Results = dict[str, dict[str, Measured]]


class Shape(NamedTuple):
    """A convolution and the size of its input."""

    name: str
    c_in: int
    c_out: int
    height: int
    width: int
    kernel: int = 3
    stride: int = 1

    def shrunk(self, by: int) -> Shape:
        """Return it with a map whose sides are divided."""
        return self._replace(
            height=max(self.height // by, 1), width=max(self.width // by, 1)
        )


# Of Faster R-CNN R18-FPN at this size.
FULL_SIZE = 600, 1000
SHAPES = [
    Shape('layer1', 64, 64, 150, 250),
    Shape('layer2.0', 64, 128, 150, 250, stride=2),
    Shape('layer2', 128, 128, 75, 125),
    Shape('layer3.0', 128, 256, 75, 125, stride=2),
    Shape('layer3', 256, 256, 38, 63),
    Shape('layer4.0', 256, 512, 38, 63, stride=2),
    Shape('layer4', 512, 512, 19, 32),
    Shape('lateral2', 64, 256, 150, 250, kernel=1),
    Shape('lateral3', 128, 256, 75, 125, kernel=1),
    Shape('lateral4', 256, 256, 38, 63, kernel=1),
    Shape('lateral5', 512, 256, 19, 32, kernel=1),
    Shape('fpn2', 256, 256, 150, 250),
    Shape('fpn3', 256, 256, 75, 125),
    Shape('fpn4', 256, 256, 38, 63),
    Shape('fpn5', 256, 256, 19, 32),
]
# Two contestants, and the measured quantity.
RATIOS = [
    (SURGE, REF_SURGE, BOTH),
    (SURGE, REF_STE, BOTH),
    (NARROW, REF_STE, BOTH),
    (STE, REF_STE, BOTH),
    (SURGE, FLOAT, EVAL),
    (SURGE, REF_STE, KEPT),
    (SURGE, REF_SURGE, KEPT),
    (NARROW, REF_STE, KEPT),
    (STE, REF_STE, KEPT),
    (SURGE, REF_STE, PEAK),
    (SURGE, REF_SURGE, PEAK),
]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command line's arguments."""
    names = [shape.name for shape in SHAPES]
    add = parser.add_argument
    add('--layers', nargs='+', choices=names, metavar='LAYER')
    add('--growth', action='store_true', help='of one layer; see below')
    add('--shrink', type=positive_int, default=1, help='divide sides of maps')
    arguments.add(
        parser, 'batch', *arguments.MACHINE, 'out', rounds=7, warmup=2
    )


def run(args: argparse.Namespace) -> None:
    """Measure, print and write."""
    from . import growth
    from .contestants import Bench

    if args.growth:
        if args.layers:
            fail('--growth: without --layers')
        growth.run(args)
        return
    results: Results = {}
    for shape in SHAPES:
        if not args.layers or shape.name in args.layers:
            bench = Bench(shape.shrunk(args.shrink), args.batch, args)
            results[shape.name] = bench.measure(shape.name)
    rows, lines = [], []
    for layer, measured in results.items():
        for name, one in measured.items():
            values = [value_of(one, quantity) for quantity in QUANTITIES]
            lines.append(
                [layer, name, *(number(v, '.4g', '') for v in values)]
            )
            cells = [number(value, '.1f') for value in values[:-1]]
            rows.append([layer, name, *cells, f'{values[-1]:.1e}'])
    header = ['layer', 'contestant', *QUANTITIES]
    conditions = f'batch {args.batch}, {arguments.conditions(args)}'
    publish(
        args,
        'layers',
        [Table(header, rows, 2), ratio_table(results), conditions],
        Table(header, lines),
        partial(draw_bars, panels(results)),
    )


def value_of(measured: Measured, quantity: str) -> float | None:
    """Return a quantity; of times the median, in milliseconds."""
    value = measured[quantity]
    if isinstance(value, list):
        return statistics.median(value) * 1000
    return value


def relative(
    results: Results, mine: str, base: str, quantity: str
) -> list[float | None]:
    """Return a contestant's quantity by another's on each layer."""
    ratios: list[float | None] = []
    for measured in results.values():
        a, b = measured[mine][quantity], measured[base][quantity]
        if isinstance(a, list):
            ratios.append(ratio(a, b))
        else:
            # A peak may be 0, where memory freed before was enough.
            ratios.append(a / b if a and b else None)
    return ratios


def ratio_table(results: Results) -> Table:
    """Make a table of ratios: geometric mean over the layers, range."""
    rows = []
    for mine, base, quantity in RATIOS:
        values = relative(results, mine, base, quantity)
        cells = ['—', '—']
        if None not in values:
            mean = statistics.geometric_mean(values)
            cells = [f'{mean:.2f}', f'{min(values):.2f} to {max(values):.2f}']
        rows.append([f'{mine} / {base}', TITLES[quantity], *cells])
    return Table(['ratio', 'of', 'geometric mean', 'range'], rows, 2)


def panels(results: Results) -> list[Panel]:
    """Show time and kept bytes relative to reference STE, by layer."""
    names = FLOAT, REF_SURGE, SURGE, NARROW, STE
    return [
        Panel(
            f'{TITLES[quantity]}\n/ {REF_STE}',
            list(results),
            {n: relative(results, n, REF_STE, quantity) for n in names},
        )
        for quantity in (BOTH, KEPT)
    ]
