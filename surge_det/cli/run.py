"""Run a script of the toolbox, unchanged.

Scripts that import ``mmcv.ops`` before they read a config (mmdet's stock
``tools/test.py``) run where mmcv has no compiled ops, because importing
`surge_det` came first; and ``_base_ = 'surge_det::NAME.py'`` works in them.

Example::

    surge-det run mmdetection/tools/train.py my_config.py
"""

from __future__ import annotations

import argparse
import runpy
import sys

from surge_det.cli.common import existing_file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add = parser.add_argument
    add('script', type=existing_file, metavar='SCRIPT')
    add(
        'arguments',
        nargs=argparse.REMAINDER,
        metavar='...',
        help="the script's own arguments",
    )


def run(args: argparse.Namespace) -> None:
    """Run the script as ``python SCRIPT ...`` would."""
    sys.argv[:] = [str(args.script), *args.arguments]
    sys.path.insert(0, str(args.script.resolve().parent))
    runpy.run_path(sys.argv[0], run_name='__main__')
