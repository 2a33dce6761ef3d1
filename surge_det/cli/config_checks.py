"""Mistakes in configs that the toolbox passes over in silence."""

from __future__ import annotations

import inspect
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mmengine import registry
from mmengine.config import Config
from mmengine.registry import Registry
from mmengine.runner import Runner

from surge_det.compat.registration import LOCATIONS
from surge_det.core.binarizers import BINARIZERS
from surge_det.core.estimators import ESTIMATORS
from surge_det.datasets.root import has_data_in, leaf_datasets

# What the toolbox reads beside the runner's arguments.
_MORE_KEYS = {
    'custom_imports',
    'find_unused_parameters',
    'model_wrapper_cfg',
    'runner_type',
    'tta_model',
    'tta_pipeline',
}
# Keys of mmdet 2.x, and what they are called now.
_OLD_KEYS = {
    'checkpoint_config': 'default_hooks.checkpoint',
    'data': 'train_dataloader, val_dataloader, test_dataloader',
    'dist_params': 'env_cfg.dist_cfg',
    'evaluation': 'val_evaluator, train_cfg.val_interval',
    'log_config': 'default_hooks.logger',
    'lr_config': 'param_scheduler',
    'optimizer': 'optim_wrapper.optimizer',
    'optimizer_config': 'optim_wrapper.clip_grad',
    'resume_from': 'load_from, resume=True',
    'runner': 'train_cfg',
    'total_epochs': 'train_cfg.max_epochs',
}
# Keys whose unknown types mmcv reports as "Cannot find None".
_LAYERS = ('act_cfg', 'conv_cfg', 'norm_cfg')


def warnings(cfg: Config) -> Iterator[str]:
    """Tell what nothing reads, and what was lost of the base.

    Args:
        cfg: A config as read from a file, and then changed.
    """
    yield from _unread_keys(cfg)
    hooks = _hooks(cfg)
    root = cfg.get('data_root') or ''
    unused = isinstance(root, str) and not has_data_in(cfg, root)
    # Without any hook, they were taken out on purpose.
    if not cfg.filename or not (hooks or unused):
        return
    for path in dict.fromkeys(_base_files(cfg.filename)):
        base = Config.fromfile(path)
        lost = [name for name in _hooks(base) if name not in hooks]
        if hooks and lost:
            yield (
                f'custom_hooks replaces the list of {path}, so '
                f'{", ".join(lost)} will not run; to add to the list: '
                'custom_hooks = [*_base_.custom_hooks, dict(type=...)]'
            )
        old = base.get('data_root')
        if unused and _roots(cfg) == {old}:
            yield (
                f'data_root={root!r} is used by no dataset: those of {path} '
                f'have {old!r}; give *_dataloader.dataset.data_root and '
                '*_evaluator.ann_file'
            )
            return


def _roots(cfg: Config) -> set[str | None]:
    loaders = [cfg.get(f'{mode}_dataloader') for mode in ('train', 'val')]
    return {
        dataset.get('data_root')
        for loader in loaders
        for dataset in leaf_datasets((loader or {}).get('dataset'))
    }


def _unread_keys(cfg: Config) -> Iterator[str]:
    known = {*inspect.signature(Runner).parameters, *_MORE_KEYS}
    for key in cfg:
        # A variable of the config's own stands where it is used, too.
        if key in known or len(re.findall(rf'\b{key}\b', cfg.text)) > 1:
            continue
        near = [_OLD_KEYS[key]] if key in _OLD_KEYS else None
        near = near or get_close_matches(key, known, 1, cutoff=0.82)
        if near:
            yield f'nothing reads {key}; did you mean {near[0]}?'


def _base_files(path: str) -> Iterator[str]:
    """Yield all files that a config has as base, and these have, and so on."""
    with TemporaryDirectory() as folder:
        # As Config.fromfile does: names of bases may have variables in them.
        text = str(Path(folder, 'config').with_suffix(Path(path).suffix))
        shutil.copyfile(path, text)
        Config._substitute_predefined_vars(path, text)
        Config._substitute_env_variables(text, text)
        names = Config._get_base_files(text)
    for name in names:
        base, _ = Config._get_cfg_path(name, path)
        yield base
        yield from _base_files(base)


def _hooks(cfg: Config) -> list[str]:
    return [
        str(getattr(kind, '__name__', kind)).rpartition('.')[-1]
        for hook in cfg.get('custom_hooks') or []
        if (kind := hook.get('type'))
    ]


def check_types(cfg: Config) -> None:
    """Refuse unknown types whose name is near one of ours, and of layers.

    Raises:
        ValueError: With the type's key, the nearest type and the allowed ones.
    """
    ours = {kind: _ours(kind) for kind in LOCATIONS}
    for key, name in _types(cfg):
        kind, near = _nearest(name, ours)
        of_layer = key.split('.')[-2] in _LAYERS
        if (near or of_layer) and near != name and not _known(name):
            kind = kind or 'MODELS'
            raise ValueError(
                f'{key}={name!r} is not registered; '
                + f'did you mean {near!r}? ' * bool(near)
                + f"surge_det's own {kind} are {', '.join(ours[kind])}"
            )


def _types(node: Any, key: str = '') -> Iterator[tuple[str, str]]:
    """Yield the names of types in a config, each after its key."""
    if isinstance(node, list | tuple):
        node = dict(enumerate(node))
    if not isinstance(node, Mapping | Config):
        return
    for name, value in node.items():
        if name == 'type' and isinstance(value, str):
            yield f'{key}.type', value
        else:
            yield from _types(value, f'{key}.{name}' if key else str(name))


def _registries(kind: str) -> list[Registry]:
    root = getattr(registry, kind)
    return [root, *root.children.values()]


def _ours(kind: str) -> list[str]:
    for each in _registries(kind):
        each.import_from_location()
    return sorted(
        name
        for each in _registries(kind)
        for name, made in each.module_dict.items()
        if made.__module__.startswith('surge_det.')
    )


def _nearest(name: str, ours: dict[str, list[str]]) -> tuple[str, str]:
    name = name.rpartition('.')[-1].lower()
    for kind, names in ours.items():
        by_lower = {each.lower(): each for each in names}
        for near in get_close_matches(name, by_lower, 1, cutoff=0.82):
            return kind, by_lower[near]
    return '', ''


def _known(name: str) -> bool:
    kinds = [
        kind
        for kind, value in vars(registry).items()
        if isinstance(value, Registry)
    ]
    for each in [each for kind in kinds for each in _registries(kind)]:
        # What is no name of a module is an error there, or None.
        with suppress(Exception):
            if each.get(name) is not None:
                return True
    return name in ESTIMATORS or name in BINARIZERS
