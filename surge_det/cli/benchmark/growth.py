"""How time and kept bytes of a 1-bit convolution grow.

Around one layer of ResNet-18 at 600x1000 the area of the maps, the batch and
the number of channels are changed one at a time. Drawn and printed for
*reference STE*, *reference SURGE* and ``SURGEConv2d``, with the exponent of
growth: 1 is linear. Multiply-accumulates grow with the square of the channels.

Example::

    python tools/benchmark_growth.py --threads 2 --out work_dirs/growth
"""

from __future__ import annotations

import argparse
import csv
import math
import statistics
import sys
from pathlib import Path

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt
import torch

from surge_det.cli.benchmark import arguments
from surge_det.cli.benchmark.layer import (
    REF_STE,
    REF_SURGE,
    SURGE,
    Bench,
    Shape,
)

# layer2's convolutions.
CHANNELS, HEIGHT, WIDTH, BATCH = 128, 76, 124, 2
SWEEPS = {
    'area': [0.25, 0.5, 1, 2, 4],
    'batch': [1, 2, 4, 8],
    'channels': [32, 64, 128, 256, 512],
}
SHOWN = [REF_STE, REF_SURGE, SURGE]
QUANTITIES = {'both': 'forward and backward, ms', 'kept': 'kept, MiB'}

Points = dict[str, dict[str, list[tuple[float, float, float]]]]


def shape_at(sweep: str, value: float) -> tuple[Shape, int]:
    """Return the layer and the batch of a point of a sweep."""
    side = math.sqrt(value) if sweep == 'area' else 1
    channels = int(value) if sweep == 'channels' else CHANNELS
    shape = Shape(
        f'{sweep} {value:g}',
        channels,
        channels,
        round(HEIGHT * side),
        round(WIDTH * side),
    )
    return shape, int(value) if sweep == 'batch' else BATCH


def exponent(points: list[tuple[float, float]]) -> float:
    """Slope of the line through the logarithms, by least squares."""
    x, y = ([math.log(v) for v in values] for values in zip(*points))
    return statistics.linear_regression(x, y).slope


def measure(args: argparse.Namespace) -> Points:
    """Measure all points: sweep -> contestant -> (value, ms, MiB)."""
    points: Points = {}
    for sweep, values in SWEEPS.items():
        points[sweep] = {name: [] for name in SHOWN}
        for value in values:
            print(f'\r{sweep} {value:g}      ', end='', file=sys.stderr)
            shape, batch = shape_at(sweep, value)
            own = argparse.Namespace(**vars(args), batch=batch)
            bench = Bench(shape.shrunk(args.shrink), own, SHOWN)
            found = bench.measure(args.rounds, args.warmup, lambda: None)
            for name in SHOWN:
                one = found[name]
                points[sweep][name].append(
                    (value, one.of('both'), one.of('kept'))
                )
    print(file=sys.stderr)
    return points


def table(points: Points) -> str:
    """Make a Markdown table of the exponents."""
    lines = ['| growing | layer | time | kept bytes |', '|---|---|---|---|']
    for sweep, by_name in points.items():
        for name, found in by_name.items():
            time = exponent([(v, ms) for v, ms, _ in found])
            kept = exponent([(v, mib) for v, _, mib in found])
            lines.append(f'| {sweep} | {name} | {time:.2f} | {kept:.2f} |')
    return '\n'.join(lines)


def write_csv(points: Points, path: Path) -> None:
    """Write a row for each point."""
    with open(path, 'w', newline='') as file:
        writer = csv.writer(file)
        writer.writerow(['growing', 'value', 'layer', 'ms', 'kept_mib'])
        for sweep, by_name in points.items():
            for name, found in by_name.items():
                for value, ms, mib in found:
                    writer.writerow(
                        [sweep, f'{value:g}', name, f'{ms:.3f}', f'{mib:.3f}']
                    )


def draw(points: Points, path: Path) -> None:
    """Draw all sweeps, both axes logarithmic."""
    figure, axes = plt.subplots(
        2, len(points), figsize=(12, 7), layout='constrained'
    )
    for column, (sweep, by_name) in zip(axes.T, points.items()):
        for row, (ax, title) in enumerate(zip(column, QUANTITIES.values())):
            for i, (name, found) in enumerate(by_name.items()):
                values = [point[0] for point in found]
                heights = [point[1 + row] for point in found]
                slope = exponent(list(zip(values, heights)))
                ax.loglog(
                    values,
                    heights,
                    marker='o',
                    color=f'C{i + 1}',
                    label=f'{name}: exponent {slope:.2f}',
                )
            ax.set_xticks(values, [f'{v:g}' for v in values])
            ax.minorticks_off()
            ax.set_xlabel(sweep)
            ax.set_ylabel(title)
            ax.grid(alpha=0.3)
            ax.legend(fontsize='small')
    figure.savefig(path, dpi=120)
    plt.close(figure)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = arguments.parser_of(__doc__)
    arguments.add_layer_arguments(parser)
    arguments.add_turn_arguments(parser, rounds=5, warmup=1)
    arguments.add_out_argument(parser, required=True)
    args = parser.parse_args(argv)
    arguments.check(parser, args)
    return args


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark."""
    args = parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    points = measure(args)
    args.out.mkdir(parents=True, exist_ok=True)
    text = table(points)
    print(text)
    (args.out / 'growth.md').write_text(text + '\n')
    write_csv(points, args.out / 'growth.csv')
    draw(points, args.out / 'growth.png')
    print(f'Table, growth.csv and growth.png: {args.out}')


if __name__ == '__main__':
    main()
