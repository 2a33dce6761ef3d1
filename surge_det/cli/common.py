"""What the command-line tools share."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path
from typing import NoReturn

import torch
from mmengine.config import Config, ConfigDict, DictAction
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from surge_det.datasets import check_data, data_root, merge_options


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add mmdet's flags that training and testing have in common."""
    parser.add_argument('--work-dir', help='folder for logs and checkpoints')
    add_cfg_options(parser)
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='job launcher',
    )
    # torch.distributed.launch passes this one.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)


def add_cfg_options(parser: argparse.ArgumentParser) -> None:
    """Add mmdet's flag that changes a config."""
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='override settings of the config: key=value pairs, nested keys '
        'with dots, lists as key="[a,b]" or key=a,b',
    )


def read_config(path: str | Path) -> Config:
    """Read a config file.

    Raises:
        ValueError: If that fails, for whatever reason: a config is a program.
    """
    try:
        return Config.fromfile(path)
    except Exception as error:
        reason = f'{type(error).__name__}: {error}'
        raise ValueError(f'config {str(path)!r}: {reason}') from error


def fail(message: object) -> NoReturn:
    """End the program with a message for the user and status 2."""
    print(f'error: {message}', file=sys.stderr)
    raise SystemExit(2)


def load_config(args: argparse.Namespace, modes: tuple[str, ...]) -> Config:
    """Read the config, apply the flags and see that its data is there.

    Args:
        args: The parsed command line.
        modes: Which of train, val, test the program is going to run.
    """
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    if not Path(args.config).is_file():
        fail(f'config {args.config!r} does not exist')
    try:
        data_root()
    except ValueError as error:
        fail(error)
    try:
        cfg = read_config(args.config)
        merge_options(cfg, args.cfg_options)
        check_data(cfg, modes)
    except (FileNotFoundError, ValueError) as error:
        fail(error)
    cfg.launcher = args.launcher
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = str(Path('work_dirs') / Path(args.config).stem)
    if args.launcher == 'pytorch' and not torch.cuda.is_available():
        _distribute_on_cpu(cfg)
    return cfg


def _distribute_on_cpu(cfg: Config) -> None:
    # mmengine's launcher sets a CUDA device, and its default wrapper names
    # one; a group that is there already, and a wrapper of the config's own,
    # it takes as they are.
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group('gloo')
    cfg.setdefault(
        'model_wrapper_cfg',
        ConfigDict(
            type='MMDistributedDataParallel',
            device_ids=None,
            broadcast_buffers=False,
            find_unused_parameters=cfg.get('find_unused_parameters', False),
        ),
    )


def leave() -> None:
    """End the process, whole, after all is done."""
    dist = torch.distributed
    if dist.is_initialized() and dist.get_backend() == 'gloo':
        # gloo's threads now and then abort a process that ends by itself.
        dist.barrier()
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def build_runner(cfg: Config) -> Runner:
    """Build the runner that the config asks for."""
    return RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
