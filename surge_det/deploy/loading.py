"""One call for every file that holds a detector."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from torch import nn

from surge_det.deploy.config import inference_part
from surge_det.deploy.formats import format_of


def load_detector(
    path: str | Path,
    config: Config | str | Path | None = None,
    device: str | torch.device = 'cpu',
) -> nn.Module:
    """Load a detector for inference.

    Args:
        path: A checkpoint of training, or what an export wrote: a file of
            one of the formats (:mod:`surge_det.deploy.formats`).
        config: Config, or its file, to build the detector from; by default
            the one that the file holds.
        device: Where the detector is to be; an OpenVINO model runs on the
            CPU.

    Returns:
        mmdet's model in eval mode, with ``cfg`` and ``dataset_meta``; its
        ``test_step`` and ``predict`` are mmdet's.

    Raises:
        ValueError: If the file cannot run on this device. Others are those
            of :meth:`.Format.load`.
    """
    format = format_of(path)
    if format.cpu_only and torch.device(device).type != 'cpu':
        raise ValueError(
            f'device={str(device)!r} is not allowed for {path}: a model in '
            f"the format {format.name!r} runs on 'cpu'"
        )
    if isinstance(config, (str, Path)):
        config = Config.fromfile(config)
    return format.load(path, config).to(device)


def as_model_cfg(path: str | Path, cfg: Config) -> dict[str, Any]:
    """Return a ``model`` for a config whose runner takes it from a file.

    Args:
        path: What :func:`load_detector` reads.
        cfg: The whole config that the runner has otherwise.
    """
    return {
        'type': 'SURGEDetectorFromFile',
        'path': str(path),
        'config': inference_part(cfg),
    }


class LoadError(RuntimeError):
    """A runner cannot load its detector from the file; says why."""


@MODELS.register_module(name='SURGEDetectorFromFile')
def _from_file(path: str, config: dict) -> nn.Module:
    try:
        return load_detector(path, Config(config))
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        raise LoadError(str(error)) from error
