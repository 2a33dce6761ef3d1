"""Trained detectors from checkpoints, and the format ``pth``."""

from __future__ import annotations

import logging
import os
import pickle
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from mmdet.registry import DATASETS, MODELS
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import init_default_scope
from mmengine.runner import load_checkpoint
from torch import nn

from surge_det.compat.checkpoint import UnsafeCheckpointError, safe_load
from surge_det.deploy.config import (
    config_text,
    read_config,
    without_compensation,
)
from surge_det.deploy.plan import arithmetic
from surge_det.version import __version__

# What unpicklers and loaders raise on files of another kind.
_UNREADABLE = (
    AttributeError,
    EOFError,
    LookupError,
    RuntimeError,
    TypeError,
    pickle.UnpicklingError,
    struct.error,
)


def build_detector(cfg: Config) -> nn.Module:
    """Build the detector of a config for inference, weights as they come.

    Args:
        cfg: A whole config; not changed.

    Returns:
        The detector in eval mode, without replicas; ``cfg`` is its ``cfg``.

    Raises:
        ValueError: If the config has no model.
    """
    if 'type' not in (cfg.get('model') or {}):
        raise ValueError("config has no model: 'model.type' is missing")
    init_default_scope(cfg.get('default_scope') or 'mmdet')
    with _quiet():
        model = MODELS.build(without_compensation(cfg).model)
    # Only a group of processes can run SyncBN.
    model = revert_sync_batchnorm(model).eval()
    model.cfg = cfg
    return model


def load_trained(
    cfg: Config, path: str | Path
) -> tuple[nn.Module, dict[str, Any]]:
    """Build a config's detector with the weights of a checkpoint.

    Args:
        cfg: A whole config; not changed.
        path: A checkpoint of training, or what :func:`save_pth` wrote; a
            file, or an address that mmengine reads.

    Returns:
        The detector, in eval mode, on the CPU, without replicas, and its
        ``dataset_meta`` (classes, palette), which it has as an attribute
        too.

    Raises:
        OSError: If the checkpoint cannot be read.
        ValueError: If it is none, or not this config's.
    """
    model, meta = _load(cfg, path)
    model.dataset_meta = dataset_meta(cfg, meta.get('dataset_meta'))
    return model, model.dataset_meta


def check_trained(cfg: Config, path: str | Path) -> None:
    """See that a checkpoint is one of a config's detector.

    It has all of the detector's values and no others, and its layers were
    trained to compute what this config has them compute.

    Args:
        cfg: A whole config; not changed.
        path: As :func:`load_trained`'s.

    Raises:
        OSError: If the checkpoint cannot be read.
        ValueError: If it is none, or not this config's.
    """
    _load(cfg, path)


def _load(cfg: Config, path: str | Path) -> tuple[nn.Module, dict[str, Any]]:
    check_is_checkpoint(path)
    model = build_detector(cfg)
    try:
        with _quiet():
            checkpoint = load_checkpoint(model, str(path), 'cpu', strict=True)
    except UnsafeCheckpointError as error:
        raise ValueError(str(error)) from error
    except _UNREADABLE as error:
        raise ValueError(
            f'{path}: no checkpoint of this config: {shortened(error)}'
        ) from error
    meta = checkpoint.get('meta') or {}
    _check_stored(model, meta.get('cfg'), path)
    return model, meta


def _check_stored(model: nn.Module, text: object, path: str | Path) -> None:
    """Compare with the layers of the config that a checkpoint holds.

    A 1-bit layer and its float twin have the same parameters.
    """
    if not isinstance(text, str):
        return
    try:
        # Which config it is, the user has said: no program of this one runs.
        stored = read_config(text, path, imports=False)
        if without_compensation(stored).get('model') == (
            without_compensation(model.cfg).model
        ):
            return
        trained = arithmetic(build_detector(stored))
    except Exception:
        # Made by other versions, or with a package that is not here: then
        # only the parameters speak.
        return
    check_arithmetic(arithmetic(model), trained, path)


def check_arithmetic(
    mine: dict[str, str], trained: dict[str, str], path: str | Path
) -> None:
    """See that layers compute what they were trained to.

    Args:
        mine: What :func:`~.plan.arithmetic` says of a config's detector.
        trained: What it said of the detector that a file is of.
        path: The file, for messages.

    Raises:
        ValueError: If a layer differs.
    """
    other = [
        name
        for name in {**mine, **trained}
        if mine.get(name) != trained.get(name)
    ]
    if other:
        name = other[0]
        raise ValueError(
            f'{path}: was trained with another config: {len(other)} layers '
            f'compute something else in this one, such as {name} '
            f'({trained.get(name, "real")} there, {mine.get(name, "real")} '
            'here); give the config that it was trained with'
        )


def shortened(error: object, limit: int = 300) -> str:
    """Return a message on one line, cut where it gets long.

    Torch lists every key of a state dict that does not fit.
    """
    text = ' '.join(str(error).split())
    return text if len(text) <= limit else f'{text[:limit]} ...'


def dataset_meta(cfg: Config, stored: dict | None = None) -> dict[str, Any]:
    """Return classes and palette that a detector's outputs stand for.

    Args:
        cfg: A whole config; its test data set's are taken where the
            checkpoint's has none, and need not be there.
        stored: The checkpoint's.
    """
    meta = {key.lower(): value for key, value in (stored or {}).items()}
    if 'classes' not in meta or 'palette' not in meta:
        dataset = cfg.test_dataloader.dataset.to_dict()
        built = DATASETS.build({**dataset, 'lazy_init': True})
        meta = {**built.metainfo, **meta}
    meta.setdefault('palette', 'random')
    return meta


def save_pth(
    model: nn.Module,
    cfg: Config,
    path: str | Path,
    dataset_meta: dict[str, Any],
) -> None:
    """Write what inference needs as a checkpoint of mmengine's.

    It has ``state_dict`` without replicas, and ``meta`` with
    ``dataset_meta`` and ``cfg`` with compensation off. Optimizer, AGS, FSG,
    schedules and logged values stay behind.

    Args:
        model: From :func:`load_trained`.
        cfg: The whole config.
        path: File to write; one that is there is replaced.
        dataset_meta: Classes and palette.

    Raises:
        ValueError: If the config cannot be stored.
    """
    state = {
        key: value.detach().cpu().clone()
        for key, value in model.state_dict().items()
        if not key.endswith('.aux_weight')
    }
    meta = {
        'cfg': config_text(cfg, inference=False),
        'dataset_meta': dataset_meta,
        'surge_det_version': __version__,
    }
    with replacing(path) as new:
        torch.save({'meta': meta, 'state_dict': state}, new)


def read_checkpoint_config(path: str | Path) -> Config:
    """Read the config that a checkpoint holds, without running it.

    Raises:
        ValueError: If it holds none, or one that would have to be run.
    """
    check_is_checkpoint(path)
    try:
        checkpoint = safe_load(path, map_location='cpu')
    except _UNREADABLE as error:
        raise ValueError(
            f'{path}: no checkpoint: {shortened(error)}'
        ) from error
    meta = checkpoint.get('meta') if isinstance(checkpoint, dict) else None
    text = (meta or {}).get('cfg')
    if not isinstance(text, str):
        raise ValueError(f'{path}: holds no config; name one beside it')
    return read_config(text, path)


def check_is_checkpoint(path: str | Path) -> None:
    """See that a file can be one, before anything unpickles it.

    On other files unpicklers raise whatever comes.

    Args:
        path: The file; addresses pass.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is no checkpoint.
    """
    if '://' in str(path):
        return
    with open(path, 'rb') as file:
        # torch before 1.6 wrote bare pickles.
        is_pickle = file.read(1) == b'\x80'
    if not is_pickle and not zipfile.is_zipfile(path):
        raise ValueError(f'{path}: no checkpoint, or a part of one')


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give a name to write to; what is written there becomes ``path``.

    So that an interruption leaves no half of a file under its name.
    """
    path = Path(path)
    new = path.with_name(f'{path.name}.part')
    try:
        yield new
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)


@contextmanager
def _quiet() -> Iterator[None]:
    # The converter lists layers for people that train.
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)
