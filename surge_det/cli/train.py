"""Train a detector: mmdet's ``tools/train.py`` with SURGE registered.

Example::

    python tools/train.py configs/surge_faster_rcnn_r18_voc.py
"""

from __future__ import annotations

import argparse

# First: closes the toolbox's gaps before anything of it is imported.
import surge_det  # noqa: F401

# isort: split
from mmdet.utils import setup_cache_size_limit_of_dynamo
from mmengine.config import Config

from surge_det.cli.common import (
    add_common_arguments,
    build_runner,
    fail,
    leave,
    load_config,
)

# mmdet's own tool puts mmengine's wrapper here and loses AGS.
AMP_TWINS = {
    'OptimWrapper': 'AmpOptimWrapper',
    'AGSOptimWrapper': 'AGSAmpOptimWrapper',
    'FSGOptimWrapper': 'FSGAmpOptimWrapper',
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description='Train a detector')
    parser.add_argument('config', help='train config file path')
    add_common_arguments(parser)
    parser.add_argument(
        '--amp',
        action='store_true',
        help='automatic mixed precision (bfloat16 on a CPU); keeps AGS',
    )
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help="scale the learning rate by the batch size, as the config's "
        'auto_scale_lr says',
    )
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        help='resume from this checkpoint, or without a value from the '
        'latest in the work directory',
    )
    return parser.parse_args(argv)


def apply_flags(cfg: Config, args: argparse.Namespace) -> None:
    """Turn ``--amp``, ``--auto-scale-lr``, ``--resume`` into settings."""
    if args.amp:
        wrapper = cfg.optim_wrapper
        kind = wrapper.get('type', 'OptimWrapper')
        if kind not in AMP_TWINS and kind not in AMP_TWINS.values():
            fail(
                f'--amp: optim_wrapper.type={kind!r} has no AMP twin; '
                f'allowed are {sorted(AMP_TWINS)}'
            )
        wrapper.type = AMP_TWINS.get(kind, kind)
        wrapper.setdefault('loss_scale', 'dynamic')
    if args.auto_scale_lr:
        if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
            fail('--auto-scale-lr: the config has no auto_scale_lr')
        cfg.auto_scale_lr.enable = True
    if args.resume is not None:
        cfg.resume = True
        cfg.load_from = None if args.resume == 'auto' else args.resume


def main(argv: list[str] | None = None) -> None:
    """Run the tool."""
    args = parse_args(argv)
    setup_cache_size_limit_of_dynamo()
    cfg = load_config(args, ('train', 'val'))
    apply_flags(cfg, args)
    build_runner(cfg).train()


if __name__ == '__main__':
    main()
    leave()
