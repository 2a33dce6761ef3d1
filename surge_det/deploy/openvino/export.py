"""Writing a detector as OpenVINO models."""

from __future__ import annotations

import json
import os
import tempfile
import uuid
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from torch import Tensor, nn

from surge_det.deploy.config import config_text, meta_text
from surge_det.deploy.extra import require
from surge_det.deploy.plan import ExportError, check, plan_export
from surge_det.version import __version__

from .conversion import convert, evaluating, exact_arithmetic
from .network import (
    Flattened,
    dense_network,
    fingerprint,
    roi_example,
    roi_network,
)
from .runtime import (
    ENDINGS,
    FORMAT,
    ROI_SUFFIX,
    VERSION,
    Network,
    digest,
)
from .self_check import (
    TRIALS,
    check_input,
    check_layers,
    check_network,
    record,
)

# Pixels: an image is tried from the smallest on, since some detectors have
# nothing left of one after their last levels.
_SIZES = (64, 128, 256, 320, 512)


def export_openvino(
    model: nn.Module,
    cfg: Config,
    path: str | Path,
    dataset_meta: dict[str, Any],
) -> list[Path]:
    """Write a detector's networks as OpenVINO models, 1-bit weights as bits.

    One network is all that runs once per image: backbone, neck and dense
    head. A two-stage detector has a second one for its regions. Each is
    compared with torch, on an image of another size than it was traced with,
    before anything is written.

    Args:
        model: mmdet's detector in the form that ``cfg`` builds, on the CPU;
            not changed.
        cfg: The whole config.
        path: File to write, ``NAME.xml``; ``NAME.bin`` and, for two stages,
            ``NAME.roi.xml`` and ``NAME.roi.bin`` come beside it.
        dataset_meta: Classes and palette.

    Returns:
        The files.

    Raises:
        ImportError: If openvino is not installed.
        OSError: If the folder is missing.
        ExportError: If detector or layer cannot be exported; says which, why,
            and what to do.
        ValueError: If ``path`` is no ``.xml``, or config or ``dataset_meta``
            cannot be stored.
    """
    ov = require('openvino')
    path = Path(path)
    if path.suffix != '.xml' or path.name.endswith(ROI_SUFFIX):
        raise ValueError(f'path={str(path)!r} is not allowed: NAME.xml')
    if not path.parent.is_dir():
        raise FileNotFoundError(f'{path.parent}: there is no such folder')
    for suffix in ENDINGS:
        # Before one of several files has been replaced.
        if path.with_suffix(suffix).is_dir():
            raise IsADirectoryError(
                f'{path.with_suffix(suffix)}: is a folder, where a file is to '
                'be written'
            )
    check(plan_export(model, 'openvino'))
    info = {
        'format': FORMAT,
        'version': VERSION,
        'surge_det': __version__,
        # The two networks of one detector know one another by it.
        'export': uuid.uuid4().hex,
        'layers': fingerprint(model),
        'config': config_text(cfg),
        'dataset_meta': meta_text(dataset_meta),
    }
    with evaluating(model):
        models = {path: _dense(model)}
        roi = roi_network(model)
        if roi is not None:
            models[path.with_suffix(ROI_SUFFIX)] = _roi(model, roi)
    written = []
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        for target, converted in models.items():
            for key, value in info.items():
                converted.set_rt_info(value, ['surge_det', key])
            new = Path(folder) / target.name
            ov.save_model(converted, new, compress_to_fp16=False)
            # Known only now; the other file stays as it is.
            converted.set_rt_info(
                digest(new.with_suffix('.bin')), ['surge_det', 'weights']
            )
            ov.save_model(converted, new, compress_to_fp16=False)
            written += [target.with_suffix('.bin'), target]
        for target in written:
            os.replace(Path(folder) / target.name, target)
    return written


def _dense(model: nn.Module) -> Any:
    network = dense_network(model)
    size = _smallest(network)
    # Multiples of 32 more, so that levels stay whole.
    return _converted(
        network, check_input((1, 3, size, size)), (1, 3, size + 64, size + 128)
    )


def _roi(model: nn.Module, network: Flattened) -> Any:
    example = roi_example(model)
    return _converted(network, example, (7, *example.shape[1:]), False)


def _smallest(network: Flattened) -> int:
    for size in _SIZES:
        try:
            with torch.no_grad():
                network(check_input((1, 3, size, size)))
        except (RuntimeError, ValueError) as error:
            # Torch says so where a kernel is larger than what it sees, or a
            # norm has one value.
            reason = error
            continue
        return size
    raise ExportError(
        f'the network does not run on images up to {_SIZES[-1]} pixels: '
        f'{reason}'
    )


def _converted(
    network: Flattened,
    example: Tensor,
    shape: tuple[int, ...],
    sizes_vary: bool = True,
) -> Any:
    """Convert, and compare with torch at another shape than the example's."""
    try:
        converted = convert(network, example, sizes_vary)
    except Exception as error:
        # OpenVINO's and torch's tracing raise errors of many types.
        raise ExportError(
            f'OpenVINO cannot convert the network: {error}; --format packed '
            'runs wherever torch does'
        ) from error
    runner = Network(converted, threads=1)
    with torch.no_grad(), exact_arithmetic(network):
        recorded = [
            record(shape, network(check_input(shape, trial)), trial)
            for trial in range(TRIALS)
        ]
    try:
        check_layers(converted, runner.settings)
        check_network(runner.tensors, recorded, 'the converted network')
    except RuntimeError as error:
        raise ExportError(str(error)) from error
    converted.set_rt_info(
        json.dumps(network.structure), ['surge_det', 'outputs']
    )
    converted.set_rt_info(json.dumps(recorded), ['surge_det', 'check'])
    return converted
