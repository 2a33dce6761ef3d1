"""Class names: of datasets, of configs, of what checkpoints were trained on.

A label is a place in a list of names, so all that come together must have the
same list in the same order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmdet.registry import DATASETS
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from torch.utils.data import Dataset

from .root import class_of, test_datasets


class ClassesError(ValueError):
    """Datasets, heads or weights are of other classes than one another."""


def class_names(meta: Any) -> tuple[str, ...] | None:
    """Return the class names in a ``metainfo`` or ``dataset_meta``.

    Args:
        meta: A dict with ``classes`` (``CLASSES`` in old checkpoints); a list
            of them, as mmdet's ``ConcatDataset`` has where its datasets
            differ in anything, stands for its first.

    Returns:
        The names, or None where there are none.
    """
    names = _lowered(meta).get('classes')
    if isinstance(names, str):
        names = [names]
    return tuple(map(str, names)) if names else None


def stored_meta(meta: dict[str, Any]) -> dict[str, Any]:
    """Return what a checkpoint's ``meta`` tells of the dataset.

    Returns:
        ``dataset_meta`` (before mmdet 3, ``meta`` itself) with keys in small
        letters; empty where there are no classes in it.
    """
    stored = _lowered(meta.get('dataset_meta')) or _lowered(meta)
    return stored if 'classes' in stored else {}


def _lowered(meta: Any) -> dict[str, Any]:
    # mmdet's ConcatDataset has a list; before mmdet 3 keys were capitals.
    if isinstance(meta, (list, tuple)):
        meta = meta[0] if meta else {}
    if not isinstance(meta, Mapping):
        return {}
    return {str(key).lower(): value for key, value in meta.items()}


def metainfo_of_config(cfg: Config) -> dict[str, Any]:
    """Return the test dataset's metainfo, without reading its data.

    Returns:
        The metainfo; empty where the config has no such dataset, or its class
        tells it only when it reads the data.
    """
    for dataset in test_datasets(cfg):
        cls = class_of(DATASETS, dataset.get('type'))
        if cls is None or not issubclass(cls, BaseDataset):
            break
        lazy = {**dataset, 'lazy_init': True, 'pipeline': []}
        return DATASETS.build(lazy).metainfo
    return {}


def leaves(dataset: Any) -> Iterator[Any]:
    """Yield the datasets inside built wrappers: repeated, concatenated, ..."""
    inner = getattr(dataset, 'datasets', None)
    if inner is None:
        inner = [getattr(dataset, 'dataset', None)]
    inner = [each for each in inner if isinstance(each, Dataset)]
    for each in inner:
        yield from leaves(each)
    if not inner:
        yield dataset


def difference(
    name: str, names: Sequence[str], other: str, others: Sequence[str]
) -> str | None:
    """Say how two lists of class names differ, with both; None if not.

    Args:
        name: What the first list is of.
        names: The first list.
        other: What the second list is of.
        others: The second list.
    """
    if tuple(names) == tuple(others):
        return None
    what = 'the same in another order'
    if sorted(names) != sorted(others):
        what = 'other ones'
    return (
        f'{name} has {len(names)} classes, {tuple(names)}, and {other} has '
        f'{what}: {len(others)}, {tuple(others)}'
    )
