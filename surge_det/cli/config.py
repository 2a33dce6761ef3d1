"""Print the path of a shipped config, or start one of your own from it.

Example::

    surge-det config surge_faster_rcnn_r18_bccd --out my_detector.py
"""

from __future__ import annotations

import argparse
from pathlib import Path

from surge_det.cli.common import fail
from surge_det.shipped import CONFIGS, config_names, shipped_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add = parser.add_argument
    add(
        'name',
        nargs='?',
        metavar='NAME',
        help='of a shipped config; without it, all names are listed',
    )
    add(
        '--out',
        type=Path,
        metavar='FILE',
        help='write a config that has the shipped one as its base',
    )


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    if args.name is None:
        print('\n'.join(config_names()))
        return
    try:
        path = shipped_config(args.name)
        if args.out is None:
            print(path)
            return
        base = path.relative_to(CONFIGS).as_posix()
        with open(args.out, 'x', encoding='utf-8') as file:
            file.write(
                f"_base_ = 'surge_det::{base}'\n"
                "custom_imports = dict(imports=['surge_det'])\n"
                '# Below, what is to be different: '
                'train_cfg = dict(max_epochs=24), ...\n'
            )
    except (OSError, ValueError) as error:
        fail(error)
    print(f'Written: {args.out}')
