"""Time and memory of a binarized convolution, layer by layer.

The contestants take turns on the same shapes: a float convolution,
*reference STE* and *reference SURGE* as they are usually written (see
surge_det/cli/benchmark/reference.py), ``SURGEConv2d`` with its replica in full
precision and in bfloat16, and without replica. Printed are seconds of
training's forward and backward pass and of evaluation's forward pass, bytes
kept for the backward pass, peak memory, and the largest difference of a
gradient from the formula in float64, relative to the gradient's largest
value; then the geometric means over the layers of the ratios that matter.

Example::

    python tools/benchmark_layers.py --threads 2 --out work_dirs/layers
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt
import torch

from surge_det.cli.benchmark import arguments
from surge_det.cli.benchmark.layer import (
    FLOAT,
    NARROW,
    REF_STE,
    REF_SURGE,
    STE,
    SURGE,
    Bench,
    Measured,
    Shape,
)
from surge_det.cli.benchmark.measure import geometric_mean, ratio

# Of Faster R-CNN R18-FPN at 600x1000.
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
# What a ratio is called, its two contestants, and the measured quantity.
RATIOS = [
    (f'{SURGE} / {REF_SURGE}', SURGE, REF_SURGE, 'both'),
    (f'{SURGE} / {REF_STE}', SURGE, REF_STE, 'both'),
    (f'{NARROW} / {REF_STE}', NARROW, REF_STE, 'both'),
    (f'{STE} / {REF_STE}', STE, REF_STE, 'both'),
    (f'{SURGE} / {FLOAT}, evaluation', SURGE, FLOAT, 'eval'),
    (f'{SURGE} / {REF_STE}', SURGE, REF_STE, 'kept'),
    (f'{SURGE} / {REF_SURGE}', SURGE, REF_SURGE, 'kept'),
    (f'{NARROW} / {REF_STE}', NARROW, REF_STE, 'kept'),
    (f'{STE} / {REF_STE}', STE, REF_STE, 'kept'),
    (f'{SURGE} / {REF_STE}', SURGE, REF_STE, 'peak'),
    (f'{SURGE} / {REF_SURGE}', SURGE, REF_SURGE, 'peak'),
]
QUANTITIES = {
    'forward': 'forward, ms',
    'backward': 'backward, ms',
    'both': 'both, ms',
    'eval': 'evaluation, ms',
    'kept': 'kept, MiB',
    'peak': 'peak, MiB',
    'error': 'gradient error',
}


def table(results: dict[str, dict[str, Measured]]) -> str:
    """Make a Markdown table with a row for each layer and contestant."""
    lines = [
        f'| layer | contestant | {" | ".join(QUANTITIES.values())} |',
        '|---' * (len(QUANTITIES) + 2) + '|',
    ]
    for layer, measured in results.items():
        for name, one in measured.items():
            cells = [_cell(one.of(q), q) for q in QUANTITIES]
            lines.append(f'| {layer} | {name} | {" | ".join(cells)} |')
    return '\n'.join(lines)


def _cell(value: float | None, quantity: str) -> str:
    if value is None:
        return '—'
    return f'{value:.1e}' if quantity == 'error' else f'{value:.1f}'


def ratios(
    results: dict[str, dict[str, Measured]],
) -> list[tuple[str, str, float | None, float | None, float | None]]:
    """Ratios as name, quantity, geometric mean, smallest and largest."""
    rows = []
    for title, mine, base, quantity in RATIOS:
        values = []
        for measured in results.values():
            a = getattr(measured[mine], quantity)
            b = getattr(measured[base], quantity)
            if a is None or b is None:
                break
            values.append(ratio(a, b) if isinstance(a, list) else a / b)
        else:
            mean = geometric_mean(values)
            rows.append((title, quantity, mean, min(values), max(values)))
            continue
        rows.append((title, quantity, None, None, None))
    return rows


def ratio_table(rows: Sequence[tuple]) -> str:
    """Make a Markdown table of :func:`ratios`."""
    what = {
        'both': 'time, forward and backward',
        'eval': 'time',
        'kept': 'bytes kept for backward',
        'peak': 'peak memory',
    }
    lines = ['| ratio | of | geometric mean | range |', '|---|---|---|---|']
    for title, quantity, mean, low, high in rows:
        cells = (
            ['—', '—']
            if mean is None
            else [f'{mean:.2f}', f'{low:.2f} to {high:.2f}']
        )
        lines.append(f'| {title} | {what[quantity]} | {" | ".join(cells)} |')
    return '\n'.join(lines)


def write_csv(results: dict[str, dict[str, Measured]], path: Path) -> None:
    """Write a row for each layer and contestant."""
    with open(path, 'w', newline='') as file:
        writer = csv.writer(file)
        writer.writerow(['layer', 'contestant', *QUANTITIES.values()])
        for layer, measured in results.items():
            for name, one in measured.items():
                values = [one.of(q) for q in QUANTITIES]
                cells = ['' if v is None else f'{v:.4g}' for v in values]
                writer.writerow([layer, name, *cells])


def draw(results: dict[str, dict[str, Measured]], path: Path) -> None:
    """Draw time and kept bytes relative to reference STE, by layer."""
    names = [name for name in next(iter(results.values())) if name != REF_STE]
    figure, axes = plt.subplots(
        2, 1, figsize=(1.5 + 0.8 * len(results), 7), layout='constrained'
    )
    width = 0.8 / len(names)
    titles = {
        'both': 'time of forward and backward',
        'kept': 'bytes kept for backward',
    }
    for ax, (quantity, title) in zip(axes, titles.items()):
        for i, name in enumerate(names):
            heights = []
            for measured in results.values():
                a = getattr(measured[name], quantity)
                b = getattr(measured[REF_STE], quantity)
                heights.append(ratio(a, b) if isinstance(a, list) else a / b)
            places = [j + (i + 0.5) * width - 0.4 for j in range(len(results))]
            ax.bar(places, heights, width, label=name, color=f'C{i}')
        ax.axhline(1, color='black', linewidth=0.8)
        ax.set_xticks(range(len(results)), results)
        ax.set_ylabel(f'{title}\n/ {REF_STE}')
        ax.grid(axis='y', alpha=0.3)
    axes[0].legend(ncols=3, fontsize='small', loc='upper left')
    axes[0].set_ylim(top=axes[0].get_ylim()[1] * 1.2)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = arguments.parser_of(__doc__)
    names = [shape.name for shape in SHAPES]
    add = parser.add_argument
    add('--layers', nargs='+', choices=names, default=names, metavar='LAYER')
    add('--batch', type=int, default=2)
    arguments.add_layer_arguments(parser)
    arguments.add_turn_arguments(parser, rounds=7, warmup=2)
    arguments.add_out_argument(parser)
    args = parser.parse_args(argv)
    arguments.check(parser, args)
    return args


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark."""
    args = parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    shapes = [shape for shape in SHAPES if shape.name in args.layers]
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
    results: dict[str, dict[str, Measured]] = {}
    for i, shape in enumerate(shapes):
        shape = shape.shrunk(args.shrink)
        done = 0

        def tick(i: int = i, shape: Shape = shape) -> None:
            nonlocal done
            done += 1
            print(
                f'\r{shape.name} ({i + 1} of {len(shapes)}): round {done} of '
                f'{args.warmup + args.rounds}   ',
                end='',
                file=sys.stderr,
                flush=True,
            )

        bench = Bench(shape, args)
        results[shape.name] = bench.measure(args.rounds, args.warmup, tick)
        del bench
    print(file=sys.stderr)
    text = (
        f'{table(results)}\n\n{ratio_table(ratios(results))}\n\n'
        f'batch {args.batch}, {arguments.conditions(args)}'
    )
    print(text)
    if args.out:
        (args.out / 'layers.md').write_text(text + '\n')
        write_csv(results, args.out / 'layers.csv')
        draw(results, args.out / 'layers.png')
        print(f'Table, layers.csv and layers.png: {args.out}')


if __name__ == '__main__':
    main()
