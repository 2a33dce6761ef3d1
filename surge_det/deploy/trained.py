"""A config's detector for inference, and whether weights are of it."""

from __future__ import annotations

import copy
import logging
from pathlib import Path

from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import init_default_scope
from torch import nn

from surge_det.core.layers import named_surge_layers
from surge_det.datasets.classes import (
    ClassesError,
    class_names,
    difference,
    metainfo_of_config,
)
from surge_det.engine.hooks.check_hook import numbers_of_classes
from surge_det.whole_files import ZIP


def build_detector(cfg: Config, replicas: bool = False) -> nn.Module:
    """Build the detector of a config for inference, weights as they come.

    Args:
        cfg: A whole config; not changed.
        replicas: Whether layers keep theirs.

    Returns:
        The detector in eval mode; ``cfg`` is its ``cfg``.

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
        # A copy, because mmdet writes train_cfg and test_cfg into the parts.
        model = MODELS.build(copy.deepcopy(cfg.model))
    finally:
        logger.setLevel(level)
    if not replicas:
        for _, layer in named_surge_layers(model):
            layer.strip()
    # Only a group of processes can run SyncBN.
    model = revert_sync_batchnorm(model).eval()
    model.cfg = cfg
    return model


def check_classes(cfg: Config, dataset_meta: object, path: str | Path) -> None:
    """See that a detector was trained for the classes that a config names.

    Args:
        cfg: The whole config; its test dataset names them.
        dataset_meta: What the file tells of its classes.
        path: The file, for messages.

    Raises:
        ClassesError: If they are others, or stand in another order; a config
            or a file that tells no classes passes.
    """
    trained = class_names(dataset_meta)
    names = trained and class_names(metainfo_of_config(cfg))
    text = names and difference(str(path), trained, 'the config', names)
    if text:
        raise ClassesError(
            f'{text}. Give the config that it was trained with, or the same '
            'metainfo.classes'
        )


def check_names(model: nn.Module, path: str | Path) -> None:
    """See that there is a name for each class that a detector finds.

    Args:
        model: As it was loaded. One that reads its classes as text passes,
            as one without names does.
        path: The file, for messages.

    Raises:
        ClassesError: If there are fewer.
    """
    names = model.dataset_meta.get('classes')
    if names is None or hasattr(model, 'language_model'):
        return
    # In panoptic data there are more names than things.
    for key, number in numbers_of_classes(model).items():
        if len(names) < number:
            raise ClassesError(
                f'{path}: {key}={number}, and there are names of '
                f'{len(names)} classes, {names}'
            )


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
        start = file.read(len(ZIP))
    # torch before 1.6 wrote bare pickles.
    if start != ZIP and not start.startswith(b'\x80'):
        raise ValueError(f'{path}: no checkpoint, or a part of one')
