"""What the commands share. Importing this imports nothing heavy."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from traceback import walk_tb
from typing import TYPE_CHECKING, Any, NoReturn

from surge_det.cli.cfg_options import setting
from surge_det.cli.logs import shorten
from surge_det.shipped import shipped_config, shipped_weights
from surge_det.text import printable, shortened

if TYPE_CHECKING:
    from mmengine.config import Config
    from mmengine.logging import MMLogger
    from mmengine.runner import Runner
    from torch.utils.data import DataLoader


def fail(message: object) -> NoReturn:
    """End the program with a message for the user and status 2."""
    print_error(message)
    raise SystemExit(2)


def print_error(message: object) -> None:
    """Print a message for the user, of whatever is in the files it quotes."""
    print(printable(f'error: {message}'), file=sys.stderr)


# Types of arguments: argparse names the argument in front of the message.


def existing_file(text: str) -> Path:
    """Type of an argument that names a file."""
    path = Path(text)
    if not path.is_file():
        raise argparse.ArgumentTypeError(f'{text!r} does not exist')
    return path


def folder(text: str) -> Path:
    """Type of an argument that names a folder to write to, there or not."""
    path = Path(text)
    there = next(each for each in (path, *path.parents) if each.exists())
    if not there.is_dir():
        raise argparse.ArgumentTypeError(
            f'{str(there)!r} is a file: a folder is allowed'
        )
    return path


def file_or_address(text: str) -> str:
    """Type of an argument that names a file or an address with ``://``."""
    return text if '://' in text else str(existing_file(text))


def model_file(text: str) -> Path:
    """Type of an argument that names a model: a file, or a shipped one."""
    path = Path(text)
    if path.is_file():
        return path
    try:
        return shipped_weights(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def model_or_address(text: str) -> str:
    """Type of an argument that names a model or an address with ``://``."""
    return text if '://' in text else str(model_file(text))


def config_file(text: str) -> Path:
    """Type of an argument that names a config: a file, or a shipped one."""
    path = Path(text)
    if path.is_file():
        return path
    try:
        return shipped_config(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f'{text!r} does not exist, and {error}'
        ) from None


def number(
    kind: Callable[[str], float], allowed: str, test: Callable[[float], bool]
) -> Callable[[str], float]:
    """Return a type of an argument that is a number.

    Args:
        kind: ``int`` or ``float``.
        allowed: What the message says is allowed.
        test: Whether a number is.
    """

    def read(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not test(value):
            raise argparse.ArgumentTypeError(
                f'{text!r} is not allowed: {allowed}'
            )
        return value

    return read


positive_int = number(int, 'a whole number of at least 1', lambda n: n >= 1)
fraction = number(float, 'a number from 0 to 1', lambda n: 0 <= n <= 1)
not_negative = number(
    float, 'a number of at least 0', lambda n: 0 <= n < math.inf
)


# Arguments that several commands have.


def add_config(parser: argparse.ArgumentParser) -> None:
    """Add the positional argument ``config``."""
    parser.add_argument(
        'config',
        type=config_file,
        metavar='CONFIG',
        help='config file, or the name of a shipped config',
    )


def add_cfg_options(parser: argparse.ArgumentParser) -> None:
    """Add mmdet's flag that changes a config; `main` makes it a dict."""
    parser.add_argument(
        '--cfg-options',
        action='extend',
        nargs='+',
        type=setting,
        metavar='KEY=VALUE',
        help='override settings of the config; nested keys with dots, lists '
        'as key="[a,b]" or key=a,b, spaces as "key=a b"',
    )


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add mmdet's flags that training and testing have in common."""
    add = parser.add_argument
    add('--work-dir', type=folder, help='folder for logs and checkpoints')
    add_cfg_options(parser)
    add(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='job launcher',
    )
    add(
        '--verbose',
        action='store_true',
        help='show environment, config and hooks on the terminal too, and not '
        'in the log file only',
    )
    # torch.distributed.launch passes this one.
    add(
        '--local_rank',
        '--local-rank',
        type=int,
        default=0,
        help=argparse.SUPPRESS,
    )


def table_and_picture(out: Path, stem: str) -> tuple[Path, Path]:
    """Return names of a CSV and of a picture, in a folder that is made.

    Args:
        out: One of them, or a folder.
        stem: Of both names in a folder.
    """
    if out.suffix not in ('.csv', '.png'):
        out = out / f'{stem}.csv'
    out.parent.mkdir(parents=True, exist_ok=True)
    return out.with_suffix('.csv'), out.with_suffix('.png')


# What commands do with a config.

# Those in which errors come from weights that are being loaded.
_LOADERS = (
    'mmengine.runner.checkpoint',
    'surge_det.models.backbones.pretrained',
)


def read_config(
    path: str | Path, options: Mapping[str, Any] | None = None
) -> Config:
    """Read a config file, change it by ``--cfg-options``, warn of mistakes.

    Raises:
        ValueError: If that fails, for whatever reason: a config is a program.
    """
    from mmengine.config import Config
    from mmengine.logging import MMLogger

    from surge_det.cli.config_checks import check_types, warnings
    from surge_det.datasets.root import merge_options, use_data_root

    shorten(MMLogger.get_current_instance())
    try:
        cfg = Config.fromfile(path)
    except Exception as error:
        reason = f'{type(error).__name__}: {error}'
        raise ValueError(f'config {str(path)!r}: {reason}') from error
    try:
        use_data_root(cfg)
        merge_options(cfg, options)
        check_types(cfg)
    except ValueError as error:
        raise ValueError(f'config {str(path)!r}: {error}') from error
    for warning in warnings(cfg):
        print(f'warning: {path}: {warning}', file=sys.stderr)
    return cfg


def load_config(args: argparse.Namespace, modes: Sequence[str] = ()) -> Config:
    """Read the config as the command line has it, and look for its data.

    Ends the program with a message where one of these fails.

    Args:
        args: The parsed command line, with ``config`` and ``cfg_options``.
        modes: For which of train, val, test data must be there.
    """
    from surge_det.datasets.root import (
        check_data,
        data_root,
        use_checked_datasets,
    )

    try:
        data_root()
        cfg = read_config(args.config, args.cfg_options)
        use_checked_datasets(cfg)
        check_data(cfg, modes)
    except (FileNotFoundError, ValueError) as error:
        fail(error)
    return cfg


def prepare_run(args: argparse.Namespace, cfg: Config) -> None:
    """Apply the flags of :func:`add_run_arguments` to a config."""
    import torch
    from mmdet.utils import setup_cache_size_limit_of_dynamo
    from mmengine.config import ConfigDict

    setup_cache_size_limit_of_dynamo()
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg.launcher = args.launcher
    if args.work_dir is not None:
        cfg.work_dir = str(args.work_dir)
    elif cfg.get('work_dir') is None:
        cfg.work_dir = str(Path('work_dirs', args.config.stem))
    if args.launcher == 'pytorch' and not torch.cuda.is_available():
        # mmengine's launcher sets a CUDA device, and its default wrapper
        # names one; a group that is there already, and a wrapper of the
        # config's own, it takes as they are.
        if not torch.distributed.is_initialized():
            torch.distributed.init_process_group('gloo')
        cfg.setdefault(
            'model_wrapper_cfg',
            ConfigDict(
                type='MMDistributedDataParallel',
                device_ids=None,
                broadcast_buffers=False,
                find_unused_parameters=cfg.get(
                    'find_unused_parameters', False
                ),
            ),
        )


def build_runner(cfg: Config, verbose: bool = False) -> Runner:
    """Build the runner that the config asks for, with hooks that check it.

    Args:
        cfg: The whole config.
        verbose: Whether the terminal gets all of the log, which it gets from
            a config's own kind of runner anyway.
    """
    from mmengine.registry import RUNNERS
    from mmengine.runner import Runner

    from surge_det.engine import (
        SURGECheckHook,
        SURGEFiniteHook,
        SURGESeedHook,
    )

    class Shortened(Runner):
        def build_logger(self, *args: Any, **kwargs: Any) -> MMLogger:
            logger = super().build_logger(*args, **kwargs)
            shorten(logger)
            logger.info(f'Environment and config: {logger.log_file}')
            return logger

    runner = (
        RUNNERS.build(cfg)
        if 'runner_type' in cfg
        else (Runner if verbose else Shortened).from_cfg(cfg)
    )
    for kind in (SURGECheckHook, SURGEFiniteHook, SURGESeedHook):
        if not any(isinstance(hook, kind) for hook in runner.hooks):
            runner.register_hook(kind())
    return runner


def build_data(runner: Runner, *modes: str) -> None:
    """Build datasets and metrics of a runner, before it needs them.

    Ends the program with a message where what they read is at fault.

    Args:
        runner: As :func:`build_runner` returns it.
        modes: Of train, val, test.
    """
    try:
        for mode in modes:
            getattr(runner, f'{mode}_loop')
    except (FileNotFoundError, ValueError) as error:
        fail(error)


@contextmanager
def loading_weights(cfg: Config) -> Iterator[None]:
    """End the program with a message where a config's weights do not load.

    That is often a machine without network: mmdet's backbones start from
    weights that are downloaded.

    Args:
        cfg: The config by which weights are initialized inside the context.
    """
    from pickle import UnpicklingError

    try:
        yield
    except (
        *(EOFError, KeyError, OSError, RuntimeError),
        *(UnpicklingError, ValueError),
    ) as error:
        from surge_det.engine import WeightsError

        frames = [frame for frame, _ in walk_tb(error.__traceback__)]
        of_loaders = any(f.f_globals['__name__'] in _LOADERS for f in frames)
        if not of_loaders or isinstance(error, WeightsError):
            raise
        if not any(f.f_code.co_name == 'init_weights' for f in frames):
            fail(f'cannot load {cfg.get("load_from")!r}: {shortened(error)}')
        named = dict(_pretrained(cfg.model, 'model'))
        listed = ', '.join(
            f'{key}.checkpoint={file!r}' for key, file in named.items()
        )
        key = next(iter(named), 'model.backbone.init_cfg')
        fail(
            f'cannot load the pretrained weights of the config ({listed}): '
            f'{shortened(error)}. --cfg-options {key}.checkpoint=FILE names a '
            f'file on this machine, {key}=None starts from scratch'
        )


def _pretrained(node: Any, key: str) -> Iterator[tuple[str, str]]:
    if isinstance(node, list | tuple):
        node = dict(enumerate(node))
    if not isinstance(node, Mapping):
        return
    if node.get('type') == 'Pretrained' and 'checkpoint' in node:
        yield key, node['checkpoint']
    for name, value in node.items():
        yield from _pretrained(value, f'{key}.{name}')


def training_data(cfg: Config) -> DataLoader:
    """Build the training's data loader, without processes of its own."""
    from mmengine.runner import Runner

    settings = cfg.train_dataloader.copy()
    settings.update(num_workers=0, persistent_workers=False)
    settings.pop('prefetch_factor', None)
    return Runner.build_dataloader(settings, seed=0)
