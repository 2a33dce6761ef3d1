"""Bring a published backbone's checkpoint into one of ours.

Reads the key layouts of BiDet's, ReActNet's and Bi-Real Net's public code
and of torchvision, lists what became of every key, and writes a file for
``init_cfg=dict(type='Pretrained', checkpoint=OUT)`` of the backbone.

Statuses: loaded (same name), renamed, copied (a replica: its layer copies the
latent weight when it loads the file), set (written, though the source has no
such thing), missing (ours, stays at its start value), unused (in the source,
not taken).

Example::

    surge-det convert checkpoint.pth.tar checkpoints/reactnet18.pth
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from surge_det.cli.common import fail, file_or_address, positive_int
from surge_det.cli.tables import print_table
from surge_det.whole_files import save

if TYPE_CHECKING:
    from surge_det.models.backbones.published import Conversion

# As surge_det.models.backbones.published knows them.
LAYOUTS = (
    *('bidet', 'bidet-vgg', 'reactnet', 'birealnet'),
    *('torchvision', 'torchvision-vgg'),
)
STATUSES = ('loaded', 'renamed', 'copied', 'set', 'missing', 'unused')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add = parser.add_argument
    add(
        'input',
        type=file_or_address,
        metavar='IN',
        help='checkpoint file, or an address such as torchvision://resnet18',
    )
    add('output', metavar='OUT', type=Path, help='file to write')
    add(
        '--layout',
        choices=['auto', *LAYOUTS],
        default='auto',
        help='whose keys IN has; auto tells by the keys',
    )
    add(
        '--depth',
        type=positive_int,
        help='of the backbone; default: 18 for ResNet, 16 for VGG',
    )


def read(path: str) -> object:
    """Read a checkpoint with ``weights_only`` safety."""
    from mmengine.runner import CheckpointLoader

    from surge_det.compat.safe_load import UnsafeCheckpointError, safe_load

    if '://' in path:
        # surge_det has put safe_load into mmengine's loaders.
        return CheckpointLoader.load_checkpoint(path, map_location='cpu')
    try:
        return safe_load(path, map_location='cpu')
    except UnsafeCheckpointError:
        raise
    except (EOFError, RuntimeError) as error:
        raise ValueError(f'{path!r} is no checkpoint: {error}') from error


def show(conversion: Conversion) -> None:
    """Print a line for each key, then the totals and the notes."""
    print_table(
        ('status', 'our key', 'their key', 'shape', 'note'),
        [
            (
                row.status,
                row.key or '-',
                row.source or '-',
                'x'.join(map(str, row.shape)) or 'scalar',
                row.note,
            )
            for row in conversion.rows
        ],
        left=5,
    )
    totals = conversion.totals()
    ours = sum(totals.values()) - totals['unused']
    counts = ', '.join(f'{totals[s]} {s}' for s in STATUSES[:-1])
    print(f'\nlayout: {conversion.layout}')
    print(f'{ours} keys of ours: {counts}')
    print(f'{totals["unused"]} keys of theirs unused')
    print('What differs:', *conversion.notes, sep='\n- ')


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    if args.output.suffix != '.pth':
        fail(f'OUT {str(args.output)!r}: the name must end in .pth')
    if Path(args.input).resolve() == args.output.resolve():
        fail('OUT is IN; give another name')
    from mmdet.registry import MODELS
    from mmengine.registry import init_default_scope

    from surge_det.compat.safe_load import UnsafeCheckpointError
    from surge_det.models.backbones.published import (
        convert_published,
        default_backbone,
        detect_layout,
        unwrap,
    )

    init_default_scope('mmdet')
    try:
        state = read(args.input)
        try:
            state = unwrap(state)
            layout = args.layout
            if layout == 'auto':
                layout = detect_layout(state)
        except ValueError as error:
            raise ValueError(f'{args.input}: {error}') from error
        name, depth = default_backbone(layout)
        backbone = MODELS.build(dict(type=name, depth=args.depth or depth))
        conversion = convert_published(state, backbone, layout)
    except (OSError, ValueError, UnsafeCheckpointError) as error:
        fail(error)
    show(conversion)
    if conversion.random:
        print(
            f'warning: {len(conversion.random)} convolution(s) are not in '
            f'the file and stay random: {", ".join(conversion.random)}',
            file=sys.stderr,
        )
    args.output.parent.mkdir(parents=True, exist_ok=True)
    save(conversion.state_dict, args.output)
    print(
        f'\nwrote {args.output}; in the config of the {name}: '
        f"init_cfg=dict(type='Pretrained', checkpoint='{args.output}')"
    )
