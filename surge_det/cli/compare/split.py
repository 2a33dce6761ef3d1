"""The split of the data in a config."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from mmengine.config import Config

from surge_det.datasets.root import leaf_datasets, metrics_of

_SPLIT = re.compile(r'train(?:val)?|val|test')


def choose_split(cfg: Config, split: str) -> None:
    """Make validation, and so the comparison, use a split of the data.

    The file that lists the images is the one that the config validates on,
    with ``train``, ``val`` or ``test`` in its name replaced.

    Raises:
        ValueError: If there is no such file, or it lists training images.
    """
    option = f'--split {split}'
    path = _use_split(cfg, split, option)
    if split == 'val':
        _refuse_trained(cfg, path, option)


def lr_split_config(cfg: Config, split: str) -> Config:
    """Return a config that tests on the split that chooses learning rates.

    Its test data and evaluator are those of validation, with the file that
    lists the images replaced as by :func:`choose_split`.

    Args:
        cfg: The config of a training; it is not changed.
        split: ``'val'`` or ``'test'``.

    Raises:
        ValueError: If there is no such file, or it lists training images or
            images that are reported on.
    """
    option = f'--lr-split {split}'
    own = Config(cfg.to_dict())
    reported = _list(cfg.val_dataloader.dataset)
    path = _use_split(own, split, option)
    if reported.is_file() and path.samefile(reported):
        raise ValueError(
            f'{option}: {path} is what the comparison reports on; learning '
            'rates must be chosen on other images (--lr-split and --split '
            'name two lists)'
        )
    _refuse_trained(own, path, option)
    _refuse_common(path, reported, option, 'are reported on')
    own.test_dataloader = own.val_dataloader
    own.test_evaluator = own.val_evaluator
    if not own.get('test_cfg'):
        own.test_cfg = dict(type='TestLoop')
    own.resume = False
    return own


def _list(dataset: Mapping) -> Path:
    return Path(dataset.get('data_root') or '', dataset.get('ann_file') or '')


def _use_split(cfg: Config, split: str, option: str) -> Path:
    dataset = cfg.val_dataloader.dataset
    old = dataset.get('ann_file') or ''
    stem = Path(old).name
    found = _SPLIT.search(stem)
    if not found:
        raise ValueError(
            f'{option}: val_dataloader.dataset.ann_file={old!r} has '
            "no 'val' or 'test' in its name; name the file by --cfg-options"
        )
    new = str(Path(old).with_name(_SPLIT.sub(split, stem, count=1)))
    root = dataset.get('data_root') or ''
    path = Path(root, new)
    if not path.is_file():
        raise ValueError(f'{option}: there is no {path}')
    dataset.ann_file = new
    for evaluator in metrics_of(cfg.get('val_evaluator')):
        if evaluator.get('ann_file'):
            evaluator.ann_file = str(path)
    return path


def _refuse_trained(cfg: Config, path: Path, option: str) -> None:
    for dataset in leaf_datasets(cfg.train_dataloader.dataset):
        other = _list(dataset)
        if other.parent == path.parent:
            _refuse_common(path, other, option, 'are trained on')


def _refuse_common(path: Path, other: Path, option: str, use: str) -> None:
    if path.suffix != '.txt' or not other.is_file():
        return
    wanted = set(path.read_text().split())
    both = wanted & set(other.read_text().split())
    if both:
        raise ValueError(
            f'{option}: {len(both)} of {len(wanted)} images of {path} {use} '
            f'(in {other})'
        )
