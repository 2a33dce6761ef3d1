"""Train a detector, as mmdet's ``tools/train.py`` does.

Example::

    surge-det train surge_faster_rcnn_r18_voc --amp
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from surge_det.cli.common import (
    add_config,
    add_run_arguments,
    build_data,
    build_runner,
    fail,
    load_config,
    loading_weights,
    prepare_run,
)

if TYPE_CHECKING:
    from mmengine.config import Config

# mmdet's own tool puts mmengine's wrapper here and loses AGS.
AMP_TWINS = {
    'OptimWrapper': 'AmpOptimWrapper',
    'AGSOptimWrapper': 'AGSAmpOptimWrapper',
    'FSGOptimWrapper': 'FSGAmpOptimWrapper',
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add = parser.add_argument
    add_config(parser)
    add_run_arguments(parser)
    add(
        '--amp',
        action='store_true',
        help='automatic mixed precision (bfloat16 on a CPU); keeps AGS',
    )
    add(
        '--auto-scale-lr',
        action='store_true',
        help="scale the learning rate by the batch size, as the config's "
        'auto_scale_lr says',
    )
    add(
        '--resume',
        nargs='?',
        const='auto',
        help='resume from this checkpoint, or without a value from the '
        'newest in the work directory that is whole',
    )


def apply_flags(cfg: Config, args: argparse.Namespace) -> None:
    """Turn flags into settings; take the checkpoint hook that is safe."""
    from mmengine.hooks import CheckpointHook
    from mmengine.registry import HOOKS

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
    # An interruption leaves half a file of mmengine's own, which it also takes
    # where a config names none.
    hooks = cfg.get('default_hooks') or {}
    hook = hooks.get('checkpoint', {'type': 'CheckpointHook', 'interval': 1})
    kind = hook and hook.get('type')
    if kind is CheckpointHook or (
        isinstance(kind, str) and HOOKS.get(kind) is CheckpointHook
    ):
        hook = {**hook, 'type': 'SURGECheckpointHook'}
        cfg.default_hooks = {**hooks, 'checkpoint': hook}
    if args.resume is not None:
        cfg.resume = True
        cfg.load_from = (
            _newest(cfg.work_dir) if args.resume == 'auto' else args.resume
        )


def _newest(work_dir: str) -> str | None:
    from surge_det.whole_files import newest_checkpoint

    try:
        path, broken = newest_checkpoint(Path(work_dir))
    except ValueError as error:
        fail(error)
    for reason in broken:
        print(f'--resume: passed over {reason}')
    if path is None:
        # mmengine follows the pointer, which may lead to another folder.
        pointer = Path(work_dir, 'last_checkpoint')
        what = f'goes on from what {pointer} names'
        if not pointer.is_file():
            what = f'no checkpoint in {work_dir}, training starts anew'
        print(f'--resume: {what}')
        return None
    print(f'--resume: goes on from {path}')
    return str(path)


def run(args: argparse.Namespace) -> int:
    """Run the command.

    Returns:
        The exit status: 0, or 143 after SIGTERM.
    """
    from surge_det.datasets.classes import ClassesError
    from surge_det.engine import NonFiniteError, Terminated, WeightsError
    from surge_det.models.distillation import TeacherError

    cfg = load_config(args, ('train', 'val'))
    prepare_run(args, cfg)
    apply_flags(cfg, args)
    runner = build_runner(cfg, args.verbose)
    build_data(runner, 'train', 'val')
    try:
        with loading_weights(cfg):
            runner.train()
    except (
        ClassesError,
        NonFiniteError,
        TeacherError,
        WeightsError,
    ) as error:
        fail(error)
    except Terminated as end:
        return end.code
    return 0
