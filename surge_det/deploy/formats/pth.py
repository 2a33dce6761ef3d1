"""The format ``pth``: a checkpoint of mmengine's, for inference."""

from __future__ import annotations

import pickle
import struct
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.runner import CheckpointLoader, load_state_dict
from torch import nn
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from surge_det.compat.safe_load import UnsafeCheckpointError
from surge_det.core.binarization import (
    BINARIZED,
    binarization_of,
    check_binarization,
    stored_binarization,
)
from surge_det.core.layers import named_surge_layers
from surge_det.datasets.classes import metainfo_of_config, stored_meta
from surge_det.deploy.config import checked_meta, config_text, meta_text
from surge_det.deploy.trained import build_detector, check_is_checkpoint
from surge_det.text import shortened
from surge_det.version import __version__
from surge_det.whole_files import save

from .base import Format
from .digest import DAMAGED, digest

# What unpicklers and loaders raise on files of another kind.
_UNREADABLE = (AttributeError, EOFError, LookupError, RuntimeError, TypeError)
_UNREADABLE += (pickle.UnpicklingError, struct.error)


class PthFormat(Format):
    """A checkpoint without anything of training; training's own are read too.

    It has ``state_dict`` without replicas, and ``meta`` with ``dataset_meta``
    and the text of ``cfg``, and a digest of all that. Optimizer, AGS, FSG,
    schedules and logged values are left out.
    """

    name = 'pth'
    suffix = '.pth'
    # Beside the checkpoint that it is made of.
    export_suffix = '.deploy.pth'

    def _write(self, model: nn.Module, path: Path) -> list[Path]:
        state = {
            key: value.detach().cpu().clone()
            for key, value in model.state_dict().items()
            if not key.endswith('.aux_weight')
        }
        # Plain values only.
        meta_text(model.dataset_meta)
        meta = {
            'cfg': config_text(model.cfg, inference=False),
            'dataset_meta': model.dataset_meta,
            'surge_det_version': __version__,
            BINARIZED: binarization_of(model),
        }
        meta['digest'] = digest(state, meta)
        save({'meta': meta, 'state_dict': state}, path)
        return [path]

    def _read(self, path: str) -> dict[str, Any]:
        check_is_checkpoint(path)
        try:
            checkpoint = CheckpointLoader.load_checkpoint(
                path, 'cpu', logger='silent'
            )
        except UnsafeCheckpointError as error:
            raise ValueError(str(error)) from error
        except _UNREADABLE as error:
            raise ValueError(
                f'{path}: no checkpoint: {shortened(error)}'
            ) from error
        if not isinstance(checkpoint, dict):
            kind = type(checkpoint).__name__
            raise ValueError(f'{path}: no checkpoint: it holds a {kind}')
        meta = checkpoint.get('meta')
        meta = {} if meta is None else meta
        state = checkpoint.get('state_dict', checkpoint)
        _check_digest(state, meta, path)
        return {
            'config': meta.get('cfg'),
            'arithmetic': stored_binarization(meta),
            'dataset_meta': checked_meta(stored_meta(meta), path),
            'state_dict': state,
        }

    def _build(
        self,
        config: Config,
        stored: Any,
        path: str,
        building: AbstractContextManager,
        replicas: bool = False,
    ) -> nn.Module:
        with building:
            model = build_detector(config, replicas)
        self._restore(model, stored, path)
        with_replica = [
            (name, layer)
            for name, layer in named_surge_layers(model)
            if layer.ags is not None
        ]
        # Where a file has none they stay as they are built.
        missing = [
            n for n, layer in with_replica if not layer.aux_weight.any()
        ]
        if missing:
            raise ValueError(
                f'{path}: has no replica for {len(missing)} of '
                f'{len(with_replica)} layers, such as {missing[0]}; give a '
                'checkpoint of a training with replicas, not an export'
            )
        return model

    def _restore(self, model: nn.Module, stored: Any, path: str) -> None:
        state = stored['state_dict']
        try:
            consume_prefix_in_state_dict_if_present(state, 'module.')
            load_state_dict(model, state, strict=True)
        except _UNREADABLE as error:
            raise ValueError(
                f'{path}: no checkpoint of this config: {shortened(error)}'
            ) from error
        # A 1-bit layer and its float twin have the same parameters.
        if stored['arithmetic'] is not None:
            check_binarization(model, stored['arithmetic'], path)
        model.dataset_meta = _dataset_meta(model.cfg, stored['dataset_meta'])


def _check_digest(state: Any, meta: Any, path: str) -> None:
    """See that an export is as it was written; trainings write no digest."""
    if not isinstance(meta, dict):
        raise ValueError(f'{path}: no checkpoint: its meta is no dict')
    if 'surge_det_version' not in meta:
        return
    if 'digest' not in meta:
        raise ValueError(
            f'{path}: exported by an earlier surge_det, without a digest of '
            'all that is in it: export the checkpoint again'
        )
    meta = dict(meta)
    written = meta.pop('digest')
    try:
        same = digest(state, meta) == written
    # What is no tensor, or no plain value.
    except (AttributeError, RuntimeError, TypeError, ValueError):
        same = False
    if not same:
        raise ValueError(f'{path}: {DAMAGED}')


def _dataset_meta(cfg: Config, stored: dict[str, Any]) -> dict[str, Any]:
    """Return classes and palette that a detector's outputs stand for.

    Those of the test data set, which need not be there, where the checkpoint
    has none.
    """
    meta = dict(stored)
    if 'classes' not in meta or 'palette' not in meta:
        meta = {**metainfo_of_config(cfg), **meta}
    meta.setdefault('palette', 'random')
    return meta
