"""Write a trained detector as a file that runs.

Formats:

- pth: a checkpoint of mmengine's without anything of training;
- packed: one safetensors file with signs as bits, for any device of torch's;
- onnx: one file, from image to boxes, for surge_runtime on any CPU;
- openvino: networks for OpenVINO's 1-bit CPU kernels.

Example::

    surge-det export surge_faster_rcnn_r18_voc CHECKPOINT \\
        --format packed --out detector.safetensors
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from surge_det.cli.common import (
    add_cfg_options,
    add_config,
    fail,
    load_config,
    model_or_address,
)
from surge_det.cli.tables import print_table
from surge_det.shipped import WEIGHTS

if TYPE_CHECKING:
    from surge_det.deploy import Format, Row

# Formats and the endings of their files, as surge_det.deploy.FORMATS has them.
SUFFIXES = {
    'pth': '.pth',
    'packed': '.safetensors',
    'onnx': '.onnx',
    'openvino': '.xml',
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add = parser.add_argument
    add_config(parser)
    add(
        'checkpoint',
        type=model_or_address,
        metavar='CHECKPOINT',
        help='checkpoint file; for onnx and openvino a packed file, or a '
        "shipped detector's name, such as bccd, too",
    )
    add('--format', choices=SUFFIXES, required=True, help='what to write')
    add(
        '--out',
        type=Path,
        metavar='FILE',
        help='file to write; default: CHECKPOINT with another ending '
        '(.safetensors, .onnx, .xml, .deploy.pth)',
    )
    add_cfg_options(parser)


def output_path(args: argparse.Namespace, format: Format) -> Path:
    """Return the file to write; end the program if it cannot be that."""
    out = args.out
    if out is None:
        if '://' in args.checkpoint:
            fail('--out is missing: CHECKPOINT is an address')
        if Path(args.checkpoint).is_relative_to(WEIGHTS):
            fail('--out is missing: CHECKPOINT is a shipped detector')
        out = Path(args.checkpoint).with_suffix(format.export_suffix)
    if out.is_dir():
        fail(f'--out {str(out)!r} is a folder; name a file')
    for file in format.files(out):
        if file.resolve() == Path(args.checkpoint).resolve():
            fail(
                f'{str(file)!r} would be written, and is CHECKPOINT; give '
                'another name with --out'
            )
    return out


def print_layers(rows: Sequence[Row]) -> None:
    """Print a line for each layer."""
    print_table(
        ('layer', 'kind', 'bits w/a', 'operation', 'bytes', 'float bytes'),
        [
            (row.name, row.kind, row.bits, row.operation)
            + (f'{row.bytes:,}', f'{row.float_bytes:,}')
            for row in rows
        ],
        left=4,
    )


def print_parts(rows: Sequence[Row]) -> None:
    """Print sums: of each part, of all 1-bit weights, of all."""
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
    print_table(('part', 'bytes', 'float bytes', 'of it'), lines)


def slow_layers(rows: Sequence[Row]) -> list[str]:
    """Name binarized layers that are computed as real ones."""
    return [
        row.name for row in rows if row.kind != 'real' and row.bits == '32/32'
    ]


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    suffix = SUFFIXES[args.format]
    if args.out is not None and args.out.suffix != suffix:
        fail(
            f'--out {str(args.out)!r}: the name must end in {suffix} for '
            f'--format {args.format}'
        )
    from surge_det.deploy import FORMATS, check
    from surge_det.deploy.formats import format_of

    format, given = FORMATS[args.format], format_of(args.checkpoint)
    if given.cpu_only:
        fail(
            f'CHECKPOINT {args.checkpoint}: a checkpoint or a packed file is '
            f'allowed, not one of the format {given.name}'
        )
    out = output_path(args, format)
    try:
        format.require_packages()
        cfg = load_config(args)
        model = given.load(args.checkpoint, cfg)
        rows = format.plan(model)
        print_layers(rows)
        print()
        print_parts(rows)
        print(flush=True)
        slow = slow_layers(rows)
        if slow:
            print(
                f'{len(slow)} binarized layers gain nothing in '
                f'{format.one_bit_limits}: {", ".join(slow)}\n',
                flush=True,
            )
        check(rows)
        out.parent.mkdir(parents=True, exist_ok=True)
        files = format.save(model, out)
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
