"""Detectors as a config and a checkpoint of training describe them."""

from __future__ import annotations

import logging
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

from mmdet.registry import DATASETS, MODELS
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import init_default_scope
from mmengine.runner import CheckpointLoader, load_state_dict
from torch import nn
from torch.nn.modules.utils import (
    consume_prefix_in_state_dict_if_present,
)

from surge_det.compat.safe_load import UnsafeCheckpointError
from surge_det.core.layers import named_surge_layers
from surge_det.deploy.config import read_config

# (bits of weights, bits of activations) -> what a layer is called.
KINDS = {
    (1, 1): '1-bit',
    (1, 32): 'weights 1-bit',
    (32, 1): 'activations 1-bit',
    (32, 32): 'real',
}
# What unpicklers and loaders raise on files of another kind.
_UNREADABLE = (AttributeError, EOFError, LookupError, RuntimeError, TypeError)
_UNREADABLE += (pickle.UnpicklingError, struct.error)


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
    logger = MMLogger.get_current_instance()
    level = logger.level
    # The converter lists layers for people that train.
    logger.setLevel(logging.WARNING)
    try:
        model = MODELS.build(cfg.model)
    finally:
        logger.setLevel(level)
    for _, layer in named_surge_layers(model):
        layer.strip()
    # Only a group of processes can run SyncBN.
    model = revert_sync_batchnorm(model).eval()
    model.cfg = cfg
    return model


def load_trained(cfg: Config | None, path: str | Path) -> nn.Module:
    """Build a config's detector with the weights of a checkpoint.

    Args:
        cfg: A whole config; not changed. ``None`` for the one that the
            checkpoint holds, which is read without running it.
        path: A checkpoint of training, or an exported one; a file, or an
            address that mmengine reads.

    Returns:
        The detector, in eval mode, on the CPU, without replicas, with
        ``cfg`` and ``dataset_meta`` (classes, palette).

    Raises:
        OSError: If the checkpoint cannot be read.
        ValueError: If it is none, or not this config's: it has all of the
            detector's values and no others, and its layers were trained to
            binarize what this config has them binarize.
    """
    checkpoint, meta = _read(path)
    if cfg is None:
        cfg = _stored_config(meta, path)
    model = build_detector(cfg)
    try:
        state = checkpoint.get('state_dict', checkpoint)
        consume_prefix_in_state_dict_if_present(state, 'module.')
        load_state_dict(model, state, strict=True)
    except _UNREADABLE as error:
        raise ValueError(
            f'{path}: no checkpoint of this config: {shortened(error)}'
        ) from error
    _compare_configs(model, meta.get('cfg'), path)
    model.dataset_meta = _dataset_meta(cfg, meta.get('dataset_meta'))
    return model


def read_stored_config(path: str | Path) -> Config:
    """Read the config that a checkpoint holds, without running it.

    Raises:
        OSError: If the checkpoint cannot be read.
        ValueError: If it holds none, or one that would have to be run.
    """
    return _stored_config(_read(path)[1], path)


def _stored_config(meta: dict[str, Any], path: str | Path) -> Config:
    text = meta.get('cfg')
    if not isinstance(text, str):
        raise ValueError(f'{path}: holds no config; name one beside it')
    return read_config(text, path)


def _read(path: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a checkpoint and its ``meta``."""
    check_is_checkpoint(path)
    try:
        checkpoint = CheckpointLoader.load_checkpoint(str(path), 'cpu')
    except UnsafeCheckpointError as error:
        raise ValueError(str(error)) from error
    except _UNREADABLE as error:
        raise ValueError(
            f'{path}: no checkpoint: {shortened(error)}'
        ) from error
    if not isinstance(checkpoint, dict):
        raise ValueError(
            f'{path}: no checkpoint: it holds a {type(checkpoint).__name__}'
        )
    return checkpoint, checkpoint.get('meta') or {}


def _compare_configs(model: nn.Module, text: object, path: str | Path) -> None:
    """Compare with the layers of the config that a checkpoint holds.

    A 1-bit layer and its float twin have the same parameters.
    """
    if not isinstance(text, str):
        return
    try:
        # Which config it is, the user has said: no program of this one runs.
        stored = read_config(text, path, imports=False)
        if stored.get('model') == model.cfg.model:
            return
        trained = binarization_of(build_detector(stored))
    except Exception:
        # Made by other versions, or with a package that is not here: then
        # only the parameters speak.
        return
    check_binarization(model, trained, path)


def binarization_of(model: nn.Module) -> dict[str, str]:
    """Say what the layers of a model binarize, and how.

    Args:
        model: A detector.

    Returns:
        A text for each layer that binarizes something, by its name. Two
        models of the same parameters that differ here give different outputs.
    """
    found = {}
    for name, layer in named_surge_layers(model):
        bits = layer.weight_bits, layer.activation_bits
        if bits == (32, 32):
            continue
        words = [KINDS[bits]]
        if layer.weight_bits == 1:
            words.append(type(layer.weight_binarizer).__name__)
        if layer.activation_bits == 1 and any(layer.pads):
            words.append(f'pad_value={layer.pad_value:g}')
        found[name] = ', '.join(words)
    return found


def check_binarization(
    model: nn.Module, trained: dict[str, str], path: str | Path
) -> None:
    """See that a model's layers binarize what they were trained to.

    Args:
        model: The detector that a config gives.
        trained: What :func:`binarization_of` said of the one in a file.
        path: The file, for messages.

    Raises:
        ValueError: If a layer differs.
    """
    mine = binarization_of(model)
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


def _dataset_meta(cfg: Config, stored: dict | None) -> dict[str, Any]:
    """Return classes and palette that a detector's outputs stand for.

    Those of the test data set, which need not be there, where the checkpoint
    has none.
    """
    meta = {key.lower(): value for key, value in (stored or {}).items()}
    if 'classes' not in meta or 'palette' not in meta:
        dataset = cfg.test_dataloader.dataset.to_dict()
        built = DATASETS.build({**dataset, 'lazy_init': True})
        meta = {**built.metainfo, **meta}
    meta.setdefault('palette', 'random')
    return meta


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
