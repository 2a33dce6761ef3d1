"""How time and kept bytes of a 1-bit convolution grow.

Drawn and printed for *reference STE*, *reference SURGE* and ``SURGEConv2d``,
with the exponent of growth: 1 is linear. Multiply-accumulates grow with the
square of the channels.
"""

from __future__ import annotations

import argparse
import math
import statistics
from functools import partial
from pathlib import Path

from .contestants import Bench
from .layers import BOTH, KEPT, REF_STE, REF_SURGE, SURGE, Shape, value_of
from .report import Table, publish

# layer2's convolutions.
CHANNELS, HEIGHT, WIDTH = 128, 76, 124
SWEEPS = {
    'area': [0.25, 0.5, 1, 2, 4],
    'batch': [1, 2, 4, 8],
    'channels': [32, 64, 128, 256, 512],
}
SHOWN = [REF_STE, REF_SURGE, SURGE]
# Sweep and contestant -> value, milliseconds and MiB of each point.
Points = dict[tuple[str, str], list[tuple[float, float, float]]]


def exponent(x: list[float], y: list[float]) -> float:
    """Slope of the line through the logarithms, by least squares."""
    x, y = ([math.log(value) for value in values] for values in (x, y))
    return statistics.linear_regression(x, y).slope


def run(args: argparse.Namespace) -> None:
    """Measure, print and write."""
    points: Points = {(s, name): [] for s in SWEEPS for name in SHOWN}
    for sweep, values in SWEEPS.items():
        for value in values:
            side = math.sqrt(value) if sweep == 'area' else 1
            channels = value if sweep == 'channels' else CHANNELS
            batch = value if sweep == 'batch' else args.batch
            size = round(HEIGHT * side), round(WIDTH * side)
            shape = Shape(f'{sweep} {value:g}', channels, channels, *size)
            bench = Bench(shape.shrunk(args.shrink), batch, args, SHOWN)
            for name, one in bench.measure(shape.name).items():
                point = value, value_of(one, BOTH), value_of(one, KEPT)
                points[sweep, name].append(point)
    rows, lines = [], []
    for (sweep, name), found in points.items():
        values, *measured = zip(*found)
        slopes = [f'{exponent(values, y):.2f}' for y in measured]
        rows.append([sweep, name, *slopes])
        lines += [
            [sweep, f'{value:g}', name, f'{ms:.3f}', f'{mib:.3f}']
            for value, ms, mib in found
        ]
    publish(
        args,
        'growth',
        [Table(['growing', 'layer', 'time', 'kept bytes'], rows, 2)],
        Table(['growing', 'value', 'layer', 'ms', 'kept_mib'], lines),
        partial(draw, points),
    )


def draw(points: Points, path: Path) -> None:
    """Draw all sweeps, both axes logarithmic."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 7), layout='constrained')
    axes = figure.subplots(2, len(SWEEPS))
    for column, sweep in zip(axes.T, SWEEPS):
        for row, title in enumerate(('forward and backward, ms', 'kept, MiB')):
            ax = column[row]
            for i, name in enumerate(SHOWN, 1):
                values, *measured = zip(*points[sweep, name])
                heights = measured[row]
                slope = exponent(values, heights)
                label = f'{name}: exponent {slope:.2f}'
                ax.loglog(
                    values, heights, marker='o', color=f'C{i}', label=label
                )
            ax.set_xticks(values, [f'{value:g}' for value in values])
            ax.minorticks_off()
            ax.set_xlabel(sweep)
            ax.set_ylabel(title)
            ax.grid(alpha=0.3)
            ax.legend(fontsize='small')
    figure.savefig(path, dpi=120)
