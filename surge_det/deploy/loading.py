"""One call for every file that holds a detector."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from torch import nn

from surge_det.deploy.checkpoint import load_trained, read_checkpoint_config
from surge_det.deploy.config import inference_part
from surge_det.deploy.packed import load_packed, read_packed_config

# Files that are no checkpoints.
DEPLOYED = ('.safetensors', '.xml')


def load_detector(
    path: str | Path,
    config: Config | str | Path | None = None,
    device: str | torch.device = 'cpu',
) -> nn.Module:
    """Load a detector for inference.

    Args:
        path: A checkpoint of training, or what ``tools/export.py`` wrote:
            a checkpoint, a packed file (``.safetensors``) or an OpenVINO
            model (``.xml``).
        config: Config, or its file, to build the detector from; by default
            the one that the file holds.
        device: Where the detector is to be; an OpenVINO model runs on the
            CPU.

    Returns:
        mmdet's model in eval mode, with ``cfg`` and ``dataset_meta``; its
        ``test_step`` and ``predict`` are mmdet's.

    Raises:
        ImportError: If a package of the extra ``deploy`` is missing.
        OSError: If a file cannot be read.
        RuntimeError: If an OpenVINO model computes wrong values here.
        ValueError: If the file is damaged, or not this config's.
    """
    suffix = Path(path).suffix
    if suffix in DEPLOYED and not Path(path).is_file():
        raise FileNotFoundError(f'{path}: there is no such file')
    if isinstance(config, (str, Path)):
        config = Config.fromfile(config)
    if suffix == '.safetensors':
        return load_packed(path, config, device)
    if suffix == '.xml':
        if torch.device(device).type != 'cpu':
            raise ValueError(
                f'device={str(device)!r} is not allowed for {path}: an '
                "OpenVINO model runs on 'cpu'"
            )
        from surge_det.deploy.openvino import load_openvino

        return load_openvino(path, config)
    if config is None:
        config = read_detector_config(path)
    model, _ = load_trained(config, path)
    return model.to(device)


def read_detector_config(path: str | Path) -> Config:
    """Read the config that a detector's file holds.

    Args:
        path: As :func:`load_detector`'s.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it is damaged, or holds no config.
    """
    suffix = Path(path).suffix
    if not Path(path).is_file():
        raise FileNotFoundError(f'{path}: there is no such file')
    if suffix == '.safetensors':
        return read_packed_config(path)
    if suffix == '.xml':
        from surge_det.deploy.openvino import read_openvino_config

        return read_openvino_config(path)
    return read_checkpoint_config(path)


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


@MODELS.register_module(name='SURGEDetectorFromFile')
def _from_file(path: str, config: dict) -> nn.Module:
    return load_detector(path, Config(config))
