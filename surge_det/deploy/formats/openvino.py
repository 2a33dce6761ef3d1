"""The format ``openvino``: a detector's networks, 1-bit weights as bits.

One network is all that runs once per image: backbone, neck and dense head. A
two-stage detector has a second one for its regions. Data preprocessor,
anchors, decoding, NMS and RoI extractor are mmdet's and run in torch.

====================  ===================================================
``NAME.xml``          the first network, and in its ``rt_info`` the rest
``NAME.bin``          its constants
``NAME.roi.xml``      the network of regions, of two stages
``NAME.roi.bin``      its constants
====================  ===================================================
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import tempfile
import uuid
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from surge_det.deploy import comparison, networks
from surge_det.deploy.config import config_text, meta_text, read_meta
from surge_det.deploy.extra import require
from surge_det.deploy.openvino import conversion, detector, self_check
from surge_det.deploy.openvino.lowering import operation, stored_as_bits
from surge_det.deploy.openvino.runtime import Network, shared_core
from surge_det.models.preflight import evaluating
from surge_det.text import brief, shortened
from surge_det.version import __version__

from .base import (
    EngineFormat,
    ExportError,
    Problem,
    other_than_float,
)
from .digest import DAMAGED

FORMAT = 'surge_det.openvino'
VERSION = '3'
# Values of a recorded input, of which an export has about a million: a
# file may say more than fits into memory.
_LARGEST = 1 << 24
# As rt_info has it in a file, and as long as a digest.
_ENTRY = rb'<digest value="([0-9a-f]{64})" />'
_UNKNOWN = '0' * 64
ROI_SUFFIX = '.roi.xml'
_SUFFIXES = ('.xml', '.bin', ROI_SUFFIX, '.roi.bin')
_KEYS = {'export', 'layers', 'config', 'dataset_meta'}
_KEYS |= {'outputs', 'check', 'digest'}
# Operators of mmcv's extension, by class name: it may not be installed.
_FOREIGN = ('DeformConv', 'ModulatedDeformConv', 'MultiScaleDeformable')


class OpenVINOFormat(EngineFormat):
    """Networks for OpenVINO's 1-bit CPU kernels.

    Each is compared with torch, on an image of another size than it was
    traced with, before anything is written, and checked on small inputs when
    it is loaded. A loaded detector has no parameters of its networks, and
    cannot be trained.
    """

    name = 'openvino'
    suffix = export_suffix = '.xml'
    packages = ('openvino',)
    cpu_only = True
    one_bit_limits = (
        'OpenVINO, whose 1-bit convolution wants weights and activations of 1 '
        'bit, one group, and input channels in multiples of 8'
    )
    _stored_as_bits = staticmethod(stored_as_bits)
    _operation = staticmethod(operation)

    def files(self, path: Path) -> list[Path]:
        """Return all files that an export to ``path`` may write."""
        return [path.with_suffix(suffix) for suffix in _SUFFIXES]

    def save(self, model: nn.Module, path: str | Path) -> list[Path]:
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
        return super().save(model, path)

    def _write(self, model: nn.Module, path: Path) -> list[Path]:
        info = {
            'format': FORMAT,
            'version': VERSION,
            'surge_det': __version__,
            # The two networks of one detector know one another by it.
            'export': uuid.uuid4().hex,
            'layers': detector.fingerprint(model),
            'config': config_text(model.cfg),
            'dataset_meta': meta_text(model.dataset_meta),
        }
        with evaluating(model):
            models = {path: _dense(model)}
            roi = networks.roi_network(model)
            if roi is not None:
                example = networks.roi_example(model)
                models[path.with_suffix(ROI_SUFFIX)] = _converted(
                    roi, example, (7, *example.shape[1:]), sizes_vary=False
                )
        save_model = require('openvino').save_model
        written = []
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            for target, converted in models.items():
                for key, value in info.items():
                    converted.set_rt_info(value, ['surge_det', key])
                new = Path(folder) / target.name
                converted.set_rt_info(_UNKNOWN, ['surge_det', 'digest'])
                save_model(converted, new, compress_to_fp16=False)
                _seal(new)
                written += [target.with_suffix('.bin'), target]
            for target in written:
                os.replace(Path(folder) / target.name, target)
        return written

    def _read(self, path: str) -> dict[str, Any]:
        if path.endswith(ROI_SUFFIX):
            raise ValueError(
                f'{path}: the second network of a detector; name the first '
                f'one, {Path(path).name.removesuffix(ROI_SUFFIX)}.xml'
            )
        return _read(Path(path))

    def _restore(
        self,
        model: nn.Module,
        stored: Any,
        path: str,
        threads: int | None = None,
    ) -> None:
        if detector.fingerprint(model) != stored['layers']:
            raise ValueError(
                f'{path}: does not fit this config, whose '
                f'{type(model).__name__} has other layers, or computes them '
                'otherwise'
            )
        if problem := networks.detector_problem(model):
            raise ValueError(f'{path}: does not fit this config: {problem}')
        found = [_network(stored, path, threads)]
        if hasattr(model, 'roi_head'):
            roi_path = Path(path).with_suffix(ROI_SUFFIX)
            roi = _read(roi_path)
            if roi['export'] != stored['export']:
                raise ValueError(
                    f'{roi_path} and {path} are of different exports: export '
                    'both again'
                )
            found.append(_network(roi, roi_path, threads))
        detector.install_networks(model, found)
        model.dataset_meta = stored['dataset_meta']

    def _problem(self, layer: nn.Module) -> Problem | None:
        name = type(layer).__name__
        if name.startswith(_FOREIGN) and not other_than_float(layer):
            remedy = 'use an ordinary convolution there, or --format packed'
            return f'OpenVINO has no {name}', remedy
        return super()._problem(layer)

    def _detector_problem(self, model: nn.Module) -> Problem | None:
        problem = networks.detector_problem(model)
        return (problem, 'use --format packed') if problem else None


def _dense(model: nn.Module) -> Any:
    network = networks.dense_network(model)
    try:
        example = comparison.smallest_image(network)
    except ValueError as error:
        raise ExportError(str(error)) from error
    # Multiples of 32 more, so that levels stay whole.
    size = example.shape[-1]
    return _converted(network, example, (1, 3, size + 64, size + 128))


def _converted(
    network: networks.Flattened,
    example: Tensor,
    shape: tuple[int, ...],
    sizes_vary: bool = True,
) -> Any:
    """Convert, and compare with torch at another shape than the example's."""
    try:
        converted = conversion.convert(network, example, sizes_vary)
    except Exception as error:
        # OpenVINO's and torch's tracing raise errors of many types.
        raise ExportError(
            f'OpenVINO cannot convert the network: {error}; --format packed '
            'runs wherever torch does'
        ) from error
    runner, recorded = Network(converted, threads=1), []
    with torch.no_grad(), conversion.exact_arithmetic(network):
        for trial in range(comparison.TRIALS):
            x = comparison.check_input(shape, trial)
            recorded.append(comparison.record(shape, network(x), trial))
    try:
        self_check.check_layers(converted, runner.settings)
        comparison.check_network(
            runner.tensors, recorded, 'the converted network'
        )
    except RuntimeError as error:
        raise ExportError(str(error)) from error
    converted.set_rt_info(
        json.dumps(network.structure), ['surge_det', 'outputs']
    )
    converted.set_rt_info(json.dumps(recorded), ['surge_det', 'check'])
    return converted


def _network(
    stored: dict[str, Any], path: str | Path, threads: int | None
) -> Network:
    """Return the network of a file, after it was tried on this machine."""
    try:
        structure, recorded = (
            json.loads(stored[key]) for key in ('outputs', 'check')
        )
        for trial in recorded:
            if math.prod(trial['input']) > _LARGEST:
                shape = brief(trial['input'])
                raise ValueError(f'an input of shape {shape} is too large')
        network = Network(stored['model'], structure, threads)
        self_check.check_layers(network.model, network.settings)
        comparison.check_network(network.tensors, recorded, str(path))
    # Of what stands there in place of a record.
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise ValueError(f'{path}: damaged: {brief(error)}') from error
    return network


def _read(path: Path) -> dict[str, Any]:
    """Return what an export has written, and the ``openvino.Model``."""
    for file in (path, path.with_suffix('.bin')):
        if not file.is_file():
            raise FileNotFoundError(f'{file}: there is no such file')
    _check_digest(path)
    try:
        model = shared_core().read_model(path)
    except RuntimeError as error:
        raise ValueError(
            f'{path}: OpenVINO cannot read it, or {path.stem}.bin: '
            f'{shortened(error)}'
        ) from error
    info = {}
    if model.has_rt_info(['surge_det']):
        info = model.get_rt_info(['surge_det']).value
    if not isinstance(info, dict) or 'format' not in info:
        raise ValueError(
            f'{path}: not written by surge-det export --format openvino'
        )
    found = info['format'], info.get('version')
    if found != (FORMAT, VERSION):
        raise ValueError(
            f'{path}: format {brief(found[0])}, version '
            f'{brief(found[1])}; this surge_det reads {FORMAT!r}, version '
            f'{VERSION!r}: export again'
        )
    missing = _KEYS - set(info)
    if missing:
        raise ValueError(f'{path}: damaged, {sorted(missing)} are missing')
    meta = read_meta(info['dataset_meta'], path)
    return {**info, 'dataset_meta': meta, 'model': model}


def _seal(path: Path) -> None:
    """Write the digest of both files of a network into the first one."""
    text = path.read_bytes()
    new = text.replace(_UNKNOWN.encode(), _digest(path, text).encode())
    path.write_bytes(new)


def _check_digest(path: Path) -> None:
    """See that both files of a network are as they were written."""
    text = path.read_bytes()
    found = re.findall(_ENTRY, text)
    if len(found) != 1:
        raise ValueError(
            f'{path}: damaged, or not written by surge-det export --format '
            'openvino of this version: export again'
        )
    written = found[0]
    if _digest(path, text.replace(written, _UNKNOWN.encode())) != (
        written.decode()
    ):
        raise ValueError(
            f'{path}, or {path.stem}.bin: {DAMAGED}; both belong together'
        )


def _digest(path: Path, text: bytes) -> str:
    """Return the SHA-256 of both files, the digest itself left out."""
    found = hashlib.sha256(text)
    with path.with_suffix('.bin').open('rb') as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()
