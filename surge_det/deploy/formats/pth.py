"""The format ``pth``: a checkpoint of mmengine's, for inference."""

from __future__ import annotations

from pathlib import Path

import torch
from mmengine.config import Config
from torch import nn

from surge_det.deploy.config import config_text
from surge_det.deploy.trained import load_trained, read_stored_config
from surge_det.version import __version__

from .base import Format, replacing


class PthFormat(Format):
    """A checkpoint without anything of training; training's own are read too.

    It has ``state_dict`` without replicas, and ``meta`` with ``dataset_meta``
    and the text of ``cfg``. Optimizer, AGS, FSG, schedules and logged values
    are left out.
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
        meta = {
            'cfg': config_text(model.cfg, inference=False),
            'dataset_meta': model.dataset_meta,
            'surge_det_version': __version__,
        }
        with replacing(path) as new:
            torch.save({'meta': meta, 'state_dict': state}, new)
        return [path]

    def load(
        self, path: str | Path, config: Config | None = None
    ) -> nn.Module:
        """Restore a detector; the path may be an address."""
        return load_trained(config, path)

    def read_config(self, path: str | Path) -> Config:
        """Read the config in a checkpoint."""
        return read_stored_config(path)
