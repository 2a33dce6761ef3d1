"""Say what a detector costs, 1-bit beside float, before any training.

Layer by layer and in total: bits, parameters, operations, bytes of the
stored weights. No data and no weights are needed or fetched.

Example::

    surge-det summary surge_faster_rcnn_r18_voc
"""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from surge_det.cli.common import (
    add_cfg_options,
    add_config,
    fail,
    load_config,
    positive_int,
    table_and_picture,
)
from surge_det.cli.tables import print_table, write_csv
from surge_det.whole_files import replacing

if TYPE_CHECKING:
    from surge_det.models.complexity import LayerCost, ModelCost


CONVENTIONS = (
    'BOPs: multiply-accumulates of 1-bit weights with 1-bit activations. '
    'FLOPs: the other ones of convolutions and linear layers. '
    'OPs = BOPs / 64 + FLOPs. Bytes: a 1-bit layer takes 1 bit a weight, and '
    '4 bytes for each bias and each scale (one an output channel); '
    'everything else takes 4 bytes a parameter. Replicas are dropped after '
    'training and do not count. Float twin: the same layers at 32 bit.'
)
# Layers of a longer table are put together by the first names of theirs.
LONG = 80
# Smaller shares of every total have one colour together in the picture.
VISIBLE = 0.01


def short(number: float) -> str:
    """Write a number with three digits and K, M, G or T."""
    if number < 1000 and float(number).is_integer():
        return f'{number:.0f}'
    # Rounded first, so that 999.6 K becomes 1.00 M.
    number = float(f'{number:.3g}')
    units = ['', 'K', 'M', 'G', 'T']
    while number >= 1000 and len(units) > 1:
        number /= 1000
        units.pop(0)
    return f'{number:#.3g}'.rstrip('.') + units[0]


def _dims(shape: Sequence[int]) -> str:
    return 'x'.join(map(str, shape))


def _ratio(float_value: float, value: float) -> str:
    return f'{float_value / value:.2f}x' if value else '-'


def _groups(
    layers: Sequence[LayerCost], depth: int | None
) -> dict[str, list[LayerCost]]:
    groups: dict[str, list[LayerCost]] = {}
    others: list[LayerCost] = []
    for layer in layers:
        if not layer.weight_shape:
            others.append(layer)
            continue
        name = '.'.join(layer.name.split('.')[:depth])
        groups.setdefault(name, []).append(layer)
    if others:
        kinds = list(dict.fromkeys(layer.kind for layer in others))
        text = ', '.join(kinds[:2]) + (', ...' if len(kinds) > 2 else '')
        groups[f'{others[0].part}: {text}'] = others
    return groups


def print_layers(cost: ModelCost, depth: int | None = None) -> None:
    """Print the layers, part by part.

    Args:
        cost: What to show.
        depth: Layers that agree in so many components of their name are put
            together in one row; ``None`` gives each its own.
    """
    from surge_det.models.complexity import TOTALS, total_cost

    header = (
        *('layer', 'weights', 'output', 'bits w/a', 'params'),
        *('BOPs', 'FLOPs', 'OPs', 'bytes', 'float OPs', 'float bytes'),
    )
    rows: list[Sequence[str]] = []
    for layers in cost.parts().values():
        if rows:
            rows.append(())
        for name, group in _groups(layers, depth).items():
            weights = output = bits = ''
            if group[0].weight_shape:
                same = {(c.weight_bits, c.activation_bits) for c in group}
                bits = '/'.join(map(str, same.pop()))
                bits = 'mixed' if same else bits
                weights = f'{len(group)} layers'
            if len(group) == 1 and group[0].weight_shape:
                weights = _dims(group[0].weight_shape)
                shapes = group[0].output_shapes
                output = _dims(shapes[0]) if shapes else 'not run'
                if len(shapes) > 1:
                    output += f' +{len(shapes) - 1}'
            total = total_cost(group)
            rows.append(
                (name, weights, output, bits)
                + tuple(short(total[key]) for key in TOTALS)
            )
    print_table(header, rows, left=3)


def print_parts(cost: ModelCost) -> None:
    """Print totals: a row for each part, and one for all."""
    from surge_det.models.complexity import total_cost

    header = (
        *('part', '1-bit layers', 'params', 'BOPs', 'FLOPs'),
        *('OPs', 'float OPs', 'saved', 'bytes', 'float bytes', 'saved'),
    )
    rows: list[Sequence[str]] = []
    for name, layers in [*cost.parts().items(), ('total', cost.layers)]:
        if name == 'total':
            rows.append(())
        total = total_cost(layers)
        weights = [layer for layer in layers if layer.weight_shape]
        binary = sum(c.weight_bits == c.activation_bits == 1 for c in weights)
        rows.append(
            (
                name,
                f'{binary} of {len(weights)}',
                *(short(total[k]) for k in ('parameters', 'bops', 'flops')),
                short(total['ops']),
                short(total['float_ops']),
                _ratio(total['float_ops'], total['ops']),
                short(total['bytes']),
                short(total['float_bytes']),
                _ratio(total['float_bytes'], total['bytes']),
            )
        )
    print_table(header, rows)


def write_layers(cost: ModelCost, path: Path) -> None:
    """Write every layer, and the totals in the last row."""
    from surge_det.models.complexity import TOTALS, total_cost

    header = ['part', 'layer', 'kind', 'weight_shape', 'output_shapes']
    header += ['weight_bits', 'activation_bits', *TOTALS]
    rows = [
        (
            *(layer.part, layer.name, layer.kind),
            _dims(layer.weight_shape),
            ' '.join(map(_dims, layer.output_shapes)),
            *(layer.weight_bits, layer.activation_bits),
            *(getattr(layer, key) for key in TOTALS),
        )
        for layer in cost.layers
    ]
    total = total_cost(cost.layers)
    rows.append(('total', *[''] * 6, *(total[key] for key in TOTALS)))
    write_csv(path, header, rows)


def draw(cost: ModelCost, title: str, path: Path) -> None:
    """Draw OPs and bytes, each 1-bit above float, stacked by part."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    from surge_det.models.complexity import total_cost

    total = total_cost(cost.layers)
    parts, rest = {}, []
    for name, layers in cost.parts().items():
        sums = total_cost(layers)
        if any(sums[key] > VISIBLE * total[key] for key in sums):
            parts[name] = sums
        else:
            rest += layers
    if rest:
        parts['others'] = total_cost(rest)
    colors = colormaps['tab10'].colors
    figure = Figure(figsize=(8, 4.2), layout='constrained')
    rows = figure.subplots(2, 1)
    for axes, key, label in zip(
        rows,
        ('ops', 'bytes'),
        ('OPs = BOPs/64 + FLOPs, for one image', 'bytes of weights'),
    ):
        most = total[f'float_{key}']
        for y, field in ((1, key), (0, f'float_{key}')):
            left = 0
            for i, (part, sums) in enumerate(parts.items()):
                axes.barh(
                    y,
                    sums[field],
                    left=left,
                    height=0.62,
                    color=colors[i % len(colors)],
                    label=part if y else None,
                )
                left += sums[field]
            text = short(left)
            if left < most:
                text += f'  ({_ratio(most, left)} less)'
            axes.text(left + 0.01 * most, y, text, va='center')
        axes.set_yticks([1, 0], ['this config', 'float twin'])
        axes.set_xlim(0, 1.18 * most)
        axes.set_title(label, loc='left', fontsize=10)
        axes.xaxis.set_major_formatter(EngFormatter(sep=''))
        axes.spines[['top', 'right']].set_visible(False)
        axes.grid(axis='x', alpha=0.25)
        axes.set_axisbelow(True)
    handles, labels = rows[0].get_legend_handles_labels()
    for columns in range(len(labels), 0, -1):
        legend = figure.legend(
            handles,
            labels,
            loc='outside lower center',
            ncols=columns,
            frameon=False,
        )
        if legend.get_window_extent().width < figure.bbox.width:
            break
        legend.remove()
    figure.suptitle(title)
    with replacing(path) as new:
        figure.savefig(new, dpi=130)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add = parser.add_argument
    add_config(parser)
    add(
        '--shape',
        nargs=2,
        type=positive_int,
        metavar=('H', 'W'),
        help='image size in pixels; default: as the test pipeline resizes',
    )
    add(
        '--depth',
        type=positive_int,
        help='put layers together that agree in so many components of their '
        f'name; default: 3 in a table of more than {LONG} layers. The CSV '
        'has every layer',
    )
    add(
        '--out',
        type=Path,
        metavar='FILE_OR_FOLDER',
        help='write every layer as CSV, and a picture beside it: names '
        'ending in .csv and .png, or else a folder',
    )
    add_cfg_options(parser)


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    from surge_det.models.complexity import detector_cost

    cfg = load_config(args)
    try:
        cost = detector_cost(cfg, args.shape)
    except (NotImplementedError, OSError, ValueError) as error:
        fail(f'{args.config}: {error}')
    depth = args.depth
    rows = sum(bool(layer.weight_shape) for layer in cost.layers)
    if depth is None and rows > LONG:
        depth = 3
    print_layers(cost, depth)
    print()
    print_parts(cost)
    print()
    for note in (*cost.notes, CONVENTIONS):
        print(textwrap.fill(note[0].upper() + note[1:], 79))
    if args.out:
        try:
            table, picture = table_and_picture(args.out, args.config.stem)
            write_layers(cost, table)
            draw(cost, args.config.stem, picture)
        except OSError as error:
            fail(f'--out {args.out}: {error}')
        print(f'\nWritten: {table}, {picture}')
