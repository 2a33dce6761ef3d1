"""Bring a published backbone's checkpoint into one of ours.

Reads the key layouts of BiDet's, ReActNet's and Bi-Real Net's public code
and of torchvision, lists what became of every key, and writes a file for
``init_cfg=dict(type='Pretrained', checkpoint=OUT)`` of the backbone.

Example::

    python tools/convert_checkpoint.py checkpoint.pth.tar \\
        checkpoints/reactnet18.pth
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

# First: closes the toolbox's gaps before anything of it is imported.
import surge_det  # noqa: F401

# isort: split
import torch
from mmdet.registry import MODELS
from mmengine.registry import init_default_scope
from mmengine.runner import CheckpointLoader

from surge_det.cli.common import fail
from surge_det.compat.checkpoint import UnsafeCheckpointError, safe_load
from surge_det.models.backbones.published import (
    LAYOUTS,
    Conversion,
    convert_published,
    default_backbone,
    detect_layout,
    unwrap,
)

STATUSES = ('loaded', 'renamed', 'copied', 'set', 'missing', 'unused')


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog='Statuses: loaded (same name), renamed, copied (a replica: '
        'its layer copies the latent weight when it loads the file), set '
        '(written, though the source has no such thing), missing (ours, '
        'stays at its start value), unused (in the source, not taken).',
    )
    parser.add_argument(
        'input',
        metavar='IN',
        help='checkpoint file, or an address such as torchvision://resnet18',
    )
    parser.add_argument(
        'output', metavar='OUT', type=Path, help='file to write'
    )
    parser.add_argument(
        '--layout',
        choices=['auto', *LAYOUTS],
        default='auto',
        help='whose keys IN has; auto tells by the keys',
    )
    parser.add_argument(
        '--depth',
        type=int,
        help='of the backbone; default: 18 for ResNet, 16 for VGG',
    )
    parser.add_argument(
        '--backbone',
        help='registered name; default: SURGEResNet, or SURGESSDVGG for the '
        'layouts of VGG',
    )
    args = parser.parse_args(argv)
    if args.output.suffix != '.pth':
        parser.error(f'OUT {str(args.output)!r}: the name must end in .pth')
    if Path(args.input).resolve() == args.output.resolve():
        parser.error('OUT is IN; give another name')
    return args


def read(path: str) -> object:
    """Read a checkpoint with ``weights_only`` safety."""
    if '://' in path:
        # surge_det has put safe_load into mmengine's loaders.
        return CheckpointLoader.load_checkpoint(path, map_location='cpu')
    if not Path(path).is_file():
        raise ValueError(f'{path!r} does not exist')
    try:
        return safe_load(path, map_location='cpu')
    except UnsafeCheckpointError:
        raise
    except (EOFError, RuntimeError) as error:
        raise ValueError(f'{path!r} is no checkpoint: {error}') from error


def table(conversion: Conversion) -> str:
    """Lay out the rows, one key a line, then the totals and the notes."""
    head = ('status', 'our key', 'their key', 'shape', 'note')
    lines = [head] + [
        (
            row.status,
            row.key or '-',
            row.source or '-',
            'x'.join(map(str, row.shape)) or 'scalar',
            row.note,
        )
        for row in conversion.rows
    ]
    widths = [max(len(line[i]) for line in lines) for i in range(5)]
    text = [
        '  '.join(cell.ljust(n) for cell, n in zip(line, widths)).rstrip()
        for line in lines
    ]
    text.insert(1, '  '.join('-' * n for n in widths))
    totals = conversion.totals()
    ours = sum(totals.values()) - totals['unused']
    counts = ', '.join(f'{totals[s]} {s}' for s in STATUSES[:-1])
    text += [
        '',
        f'layout: {conversion.layout}',
        f'{ours} keys of ours: {counts}',
        f'{totals["unused"]} keys of theirs unused',
        'What differs:',
        *(f'- {note}' for note in conversion.notes),
    ]
    return '\n'.join(text)


def main(argv: list[str] | None = None) -> None:
    """Run the tool."""
    args = parse_args(argv)
    init_default_scope('mmdet')
    try:
        state = unwrap(read(args.input))
        layout = args.layout
        if layout == 'auto':
            layout = detect_layout(state)
        name, depth = default_backbone(layout)
        name = args.backbone or name
        if MODELS.get(name) is None:
            fail(f'--backbone {name!r} is not registered with mmdet')
        backbone = MODELS.build(dict(type=name, depth=args.depth or depth))
        conversion = convert_published(state, backbone, layout)
    except (OSError, ValueError, UnsafeCheckpointError) as error:
        fail(error)
    print(table(conversion))
    if conversion.random:
        print(
            f'warning: {len(conversion.random)} convolution(s) are not in '
            f'the file and stay random: {", ".join(conversion.random)}',
            file=sys.stderr,
        )
    args.output.parent.mkdir(parents=True, exist_ok=True)
    torch.save(conversion.state_dict, args.output)
    print(
        f'\nwrote {args.output}; in the config of the {name}: '
        f"init_cfg=dict(type='Pretrained', checkpoint='{args.output}')"
    )


if __name__ == '__main__':
    main()
