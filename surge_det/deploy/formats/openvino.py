"""The format ``openvino``: a detector's networks, 1-bit weights as bits.

One network is all that runs once per image: backbone, neck and dense head. A
two-stage detector has a second one for its regions. Data preprocessor,
anchors, decoding, NMS and RoI extractor are mmdet's and run in torch.

====================  ===================================================
``NAME.xml``          the first network, and in its ``rt_info`` the rest
``NAME.bin``          its constants
``NAME.roi.xml``      the second network, of two stages
``NAME.roi.bin``      its constants
====================  ===================================================
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import uuid
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from surge_det.core.layers import SURGELayer
from surge_det.core.packed_layers import PackedLayer
from surge_det.deploy.config import (
    config_text,
    meta_text,
    read_config,
    read_meta,
)
from surge_det.deploy.extra import require
from surge_det.deploy.openvino.conversion import (
    convert,
    evaluating,
    exact_arithmetic,
)
from surge_det.deploy.openvino.detector import (
    Flattened,
    dense_network,
    detector_problem,
    fingerprint,
    install_networks,
    roi_example,
    roi_network,
)
from surge_det.deploy.openvino.lowering import operation, stored_as_bits
from surge_det.deploy.openvino.runtime import Network, shared_core
from surge_det.deploy.openvino.self_check import (
    TRIALS,
    check_input,
    check_layers,
    check_network,
    record,
)
from surge_det.deploy.trained import build_detector, shortened
from surge_det.version import __version__

from .base import (
    ExportError,
    Format,
    Problem,
    bytes_of_signs,
    code_of_its_own,
)

FORMAT = 'surge_det.openvino'
VERSION = '2'
ROI_SUFFIX = '.roi.xml'
_SUFFIXES = ('.xml', '.bin', ROI_SUFFIX, '.roi.bin')
_KEYS = (
    'format',
    'version',
    'surge_det',
    'export',
    'layers',
    'config',
    'dataset_meta',
    'outputs',
    'check',
    'weights',
)
# Pixels: an image is tried from the smallest on, since some detectors have
# nothing left of one after their last levels.
_SIZES = (64, 128, 256, 320, 512)
# Operators of mmcv's extension, by class name: it may not be installed.
_FOREIGN = ('DeformConv', 'ModulatedDeformConv', 'MultiScaleDeformable')


class OpenVINOFormat(Format):
    """Networks for OpenVINO's 1-bit CPU kernels.

    Each is compared with torch, on an image of another size than it was
    traced with, before anything is written, and checked on small inputs when
    it is loaded. A loaded detector has no parameters of its networks, and
    cannot be trained.
    """

    name = 'openvino'
    suffix = '.xml'
    packages = ('openvino',)
    cpu_only = True
    one_process = True
    one_bit_limits = (
        'OpenVINO, whose 1-bit convolution wants weights and activations of 1 '
        'bit, one group, and input channels in multiples of 8'
    )

    def files(self, path: Path) -> list[Path]:
        """Return all files that an export to ``path`` may write."""
        return [path.with_suffix(suffix) for suffix in _SUFFIXES]

    def save(
        self,
        model: nn.Module,
        cfg: Config,
        path: str | Path,
        dataset_meta: dict[str, Any],
    ) -> list[Path]:
        """Write a detector's networks; the first file is ``NAME.bin``."""
        path = Path(path)
        if path.suffix != self.suffix or path.name.endswith(ROI_SUFFIX):
            raise ValueError(f'path={str(path)!r} is not allowed: NAME.xml')
        if not path.parent.is_dir():
            raise FileNotFoundError(f'{path.parent}: there is no such folder')
        for file in self.files(path):
            # Before one of several files has been replaced.
            if file.is_dir():
                raise IsADirectoryError(
                    f'{file}: is a folder, where a file is to be written'
                )
        return super().save(model, cfg, path, dataset_meta)

    def _write(
        self,
        model: nn.Module,
        cfg: Config,
        path: Path,
        dataset_meta: dict[str, Any],
    ) -> list[Path]:
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
        save_model = require('openvino').save_model
        written = []
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            for target, converted in models.items():
                for key, value in info.items():
                    converted.set_rt_info(value, ['surge_det', key])
                new = Path(folder) / target.name
                save_model(converted, new, compress_to_fp16=False)
                # Known only now; the other file stays as it is.
                converted.set_rt_info(
                    _digest(new.with_suffix('.bin')), ['surge_det', 'weights']
                )
                save_model(converted, new, compress_to_fp16=False)
                written += [target.with_suffix('.bin'), target]
            for target in written:
                os.replace(Path(folder) / target.name, target)
        return written

    def load(
        self,
        path: str | Path,
        config: Config | None = None,
        threads: int | None = None,
    ) -> nn.Module:
        """Restore a detector around its networks.

        Args:
            path: The first ``.xml`` file; the others lie beside it.
            config: As :meth:`.Format.load`'s.
            threads: Number of OpenVINO's threads; ``None`` for as many as
                torch has.
        """
        path = Path(path)
        if path.name.endswith(ROI_SUFFIX):
            raise ValueError(
                f'{path}: the second network of a detector; name the first '
                f'one, {path.name.removesuffix(ROI_SUFFIX)}.xml'
            )
        info, network = _load(path, threads)
        if config is None:
            config = read_config(info['config'], path)
        model = build_detector(config)
        if fingerprint(model) != info['layers']:
            raise ValueError(
                f'{path}: does not fit this config, whose '
                f'{type(model).__name__} has other layers, or computes them '
                'otherwise'
            )
        problem = detector_problem(model)
        if problem:
            raise ValueError(f'{path}: does not fit this config: {problem[0]}')
        networks = [network]
        if hasattr(model, 'roi_head'):
            roi_path = path.with_suffix(ROI_SUFFIX)
            roi_info, roi = _load(roi_path, threads)
            if roi_info['export'] != info['export']:
                raise ValueError(
                    f'{roi_path} and {path} are of different exports: export '
                    'both again'
                )
            networks.append(roi)
        install_networks(model, networks)
        model.dataset_meta = read_meta(info['dataset_meta'], path)
        return model

    def read_config(self, path: str | Path) -> Config:
        """Read the config in a file, without running it."""
        path = Path(path)
        return read_config(_info(_read(path), path)['config'], path)

    def bits(self, layer: nn.Module) -> str:
        """Return the bits; of a 1-bit layer, it is both or nothing."""
        if isinstance(layer, SURGELayer):
            return '1/1' if stored_as_bits(layer) else '32/32'
        return super().bits(layer)

    def operation(self, layer: nn.Module) -> str:
        """Return the operation of OpenVINO's."""
        return operation(layer)

    def sizes(self, layer: nn.Module, sizes: dict[str, int]) -> dict[str, int]:
        """Estimate: shift, scale and norm of a layer merge."""
        if stored_as_bits(layer):
            return {**sizes, 'weight': bytes_of_signs(layer.weight)}
        if isinstance(layer, _BatchNorm):
            return {k: v for k, v in sizes.items() if k in ('weight', 'bias')}
        return sizes

    def problem(self, layer: nn.Module) -> Problem | None:
        """Say why OpenVINO has no such layer, and what would help."""
        for parameter in layer.parameters(recurse=False):
            if parameter.dtype != torch.float32:
                return (
                    f'its parameters are {parameter.dtype}',
                    'model.float() before the export',
                )
            if parameter.device.type != 'cpu':
                return (
                    f'its parameters are on {parameter.device}',
                    'model.cpu() before the export',
                )
        if type(layer).__name__.startswith(_FOREIGN):
            return (
                f'OpenVINO has no {type(layer).__name__}',
                'use an ordinary convolution there, or --format packed',
            )
        if isinstance(layer, PackedLayer):
            return (
                'it is packed already',
                "export the training's checkpoint, not a packed file",
            )
        return super().problem(layer) or code_of_its_own(layer)

    def detector_problem(self, model: nn.Module) -> Problem | None:
        """Say why OpenVINO cannot run a detector's networks, if so."""
        return detector_problem(model)


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


def _load(path: Path, threads: int | None) -> tuple[dict[str, str], Network]:
    model = _read(path)
    info = _info(model, path)
    weights = path.with_suffix('.bin')
    if _digest(weights) != info['weights']:
        raise ValueError(
            f'{weights}: damaged, or of another export than {path}: export '
            'again, or copy both files again'
        )
    network = Network(model, json.loads(info['outputs']), threads)
    check_layers(model, network.settings)
    check_network(network.tensors, json.loads(info['check']), str(path))
    return info, network


def _digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with open(path, 'rb') as file:
        found = hashlib.sha256()
        while block := file.read(2**20):
            found.update(block)
    return found.hexdigest()


def _read(path: Path) -> Any:
    for file in (path, path.with_suffix('.bin')):
        if not file.is_file():
            raise FileNotFoundError(f'{file}: there is no such file')
    try:
        return shared_core().read_model(path)
    except RuntimeError as error:
        raise ValueError(
            f'{path}: OpenVINO cannot read it, or {path.stem}.bin: '
            f'{shortened(error)}'
        ) from error


def _info(model: Any, path: Path) -> dict[str, str]:
    if not model.has_rt_info(['surge_det', 'format']):
        raise ValueError(
            f'{path}: not written by tools/export.py --format openvino'
        )
    found = {
        key: model.get_rt_info(['surge_det', key]).astype(str)
        for key in ('format', 'version')
    }
    if found != {'format': FORMAT, 'version': VERSION}:
        raise ValueError(
            f'{path}: format {found["format"]!r}, version '
            f'{found["version"]!r}; this surge_det reads {FORMAT!r}, version '
            f'{VERSION!r}: export again'
        )
    missing = [k for k in _KEYS if not model.has_rt_info(['surge_det', k])]
    if missing:
        raise ValueError(f'{path}: damaged, {missing} are missing in it')
    return {
        key: model.get_rt_info(['surge_det', key]).astype(str) for key in _KEYS
    }
