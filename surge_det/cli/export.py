"""Write a trained detector as a file that runs.

Formats:

- pth: a checkpoint of mmengine's without anything of training;
- packed: one safetensors file with signs as bits, for any device of torch's;
- openvino: networks for OpenVINO's 1-bit CPU kernels.

Example::

    python tools/export.py configs/surge_faster_rcnn_r18_voc.py CHECKPOINT \\
        --format packed --out detector.safetensors
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path

# First: closes the toolbox's gaps before anything of it is imported.
import surge_det  # noqa: F401

# isort: split
from surge_det.cli.common import add_cfg_options, fail, read_config
from surge_det.datasets import merge_options
from surge_det.deploy import FORMATS, Row, check, load_trained


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('config', type=Path, help='config file path')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument(
        '--format', choices=FORMATS, required=True, help='what to write'
    )
    parser.add_argument(
        '--out',
        type=Path,
        metavar='FILE',
        help='file to write; default: CHECKPOINT with another ending: '
        + ', '.join(f.export_suffix for f in FORMATS.values()),
    )
    add_cfg_options(parser)
    args = parser.parse_args(argv)
    format = FORMATS[args.format]
    if args.out is None:
        if '://' in args.checkpoint:
            parser.error('--out is missing: CHECKPOINT is an address')
        args.out = Path(args.checkpoint).with_suffix(format.export_suffix)
    elif args.out.suffix != format.suffix:
        parser.error(
            f'--out {str(args.out)!r}: the name must end in {format.suffix} '
            f'for --format {format.name}'
        )
    if args.out.is_dir():
        parser.error(f'--out {str(args.out)!r} is a folder; name a file')
    for file in format.files(args.out):
        if file.resolve() == Path(args.checkpoint).resolve():
            parser.error(
                f'{str(file)!r} would be written, and is CHECKPOINT; give '
                'another name with --out'
            )
    return args


def _aligned(
    header: Sequence[str], rows: Iterable[Sequence[str]], left: int
) -> str:
    rows = [header, *rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
    lines = [
        '  '.join(
            f'{cell:<{width}}' if i < left else f'{cell:>{width}}'
            for i, (cell, width) in enumerate(zip(row, widths))
        ).rstrip()
        for row in rows
    ]
    lines.insert(1, '  '.join('-' * width for width in widths))
    return '\n'.join(lines)


def layer_table(rows: Sequence[Row]) -> str:
    """One line per layer."""
    header = ('layer', 'kind', 'bits w/a', 'operation')
    return _aligned(
        (*header, 'bytes', 'float bytes'),
        [
            (row.name, row.kind, row.bits, row.operation)
            + (f'{row.bytes:,}', f'{row.float_bytes:,}')
            for row in rows
        ],
        4,
    )


def part_table(rows: Sequence[Row]) -> str:
    """Sums: a line for each part, one for 1-bit weights, one for all."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.part, []).append(row)
    one_bit = [row for row in rows if row.bits.startswith('1/')]
    lines = []
    for name, group in (
        *groups.items(),
        ('layers of 1-bit weights', one_bit),
        ('total', rows),
    ):
        size = sum(row.bytes for row in group)
        float_size = sum(row.float_bytes for row in group)
        share = f'1/{float_size / size:.1f}' if size and float_size else '-'
        lines.append((name, f'{size:,}', f'{float_size:,}', share))
    return _aligned(('part', 'bytes', 'float bytes', 'of it'), lines, 1)


def slow_layers(rows: Sequence[Row]) -> list[str]:
    """Name binarized layers that are computed as real ones."""
    return [
        row.name for row in rows if row.kind != 'real' and row.bits == '32/32'
    ]


def main(argv: list[str] | None = None) -> None:
    """Run the tool."""
    args = parse_args(argv)
    if not args.config.is_file():
        fail(f'config {str(args.config)!r} does not exist')
    if '://' not in args.checkpoint and not Path(args.checkpoint).is_file():
        fail(f'checkpoint {args.checkpoint!r} does not exist')
    format = FORMATS[args.format]
    try:
        format.require_packages()
        cfg = read_config(args.config)
        merge_options(cfg, args.cfg_options)
        model = load_trained(cfg, args.checkpoint)
        rows = format.plan(model)
        print(f'{layer_table(rows)}\n\n{part_table(rows)}\n', flush=True)
        slow = slow_layers(rows)
        if slow:
            print(
                f'{len(slow)} binarized layers gain nothing in '
                f'{format.one_bit_limits}: {", ".join(slow)}\n',
                flush=True,
            )
        check(rows)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        files = format.save(model, args.out)
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        fail(error)
    checkpoint = Path(args.checkpoint)
    for file in [checkpoint] * checkpoint.is_file() + files:
        print(f'{file}: {file.stat().st_size:,} bytes')
    size = sum(file.stat().st_size for file in files)
    float_size = sum(row.float_bytes for row in rows)
    print(
        f'exported {size:,} bytes, 1/{float_size / size:.1f} of the float '
        "twin's 32-bit parameters"
    )


if __name__ == '__main__':
    main()
