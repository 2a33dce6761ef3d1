"""The format ``onnx``: one file, from the image to its boxes.

``surge_runtime`` runs it, without torch and mmdet; so does this package, for
evaluation. The file is an ONNX model with two entries of metadata:

- ``surge_runtime``: JSON with ``version``, ``classes``, ``dataset_meta``,
  ``surge_det`` and ``config``;
- ``sha256``: the digest of all bytes before this entry, which is the last.
"""

from __future__ import annotations

import copy
import hashlib
import json
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from torch import nn

from surge_det.datasets.root import test_datasets
from surge_det.deploy.config import config_text, meta_text, read_meta
from surge_det.deploy.extra import require
from surge_det.deploy.onnx.layers import operation, stored_as_bits
from surge_det.version import __version__
from surge_det.whole_files import replacing

from .base import (
    EngineFormat,
    ExportError,
    Problem,
)

ENTRY, DIGEST = 'surge_runtime', 'sha256'
VERSION = 1


class ONNXFormat(EngineFormat):
    """One file for ``surge_runtime``: ONNX Runtime and operators of ours.

    Its networks are compared with torch before anything is written, and its
    1-bit layers with stored values when it is loaded. A loaded detector takes
    images as they are, of any size; it has no parameters.
    """

    name = 'onnx'
    suffix = export_suffix = '.onnx'
    packages = ('onnx', 'onnxruntime', 'surge_runtime')
    cpu_only = True
    whole = True
    _stored_as_bits = staticmethod(stored_as_bits)
    _operation = staticmethod(operation)
    one_bit_limits = (
        'surge_runtime, whose 1-bit layers want weights and activations of 1 '
        'bit'
    )

    def _write(self, model: nn.Module, path: Path) -> list[Path]:
        from surge_det.deploy.onnx import detector

        entry = json.dumps(
            {
                'version': VERSION,
                'classes': _classes(model),
                'dataset_meta': meta_text(model.dataset_meta),
                'surge_det': __version__,
                'config': config_text(model.cfg),
            }
        )
        try:
            built = detector.build(model)
        except (RuntimeError, ValueError) as error:
            raise ExportError(str(error)) from error
        body = built.SerializeToString() + _metadata(ENTRY, entry)
        digest = hashlib.sha256(body).hexdigest()
        with replacing(path) as new:
            new.write_bytes(body + _metadata(DIGEST, digest))
            # It has to run; what it finds here does not matter.
            found = require('surge_runtime').Detector(new)
            found(np.zeros((48, 64, 3), np.uint8))
        return [path]

    def _read(self, path: str) -> dict[str, Any]:
        # It refuses what is no such file, or was changed.
        detector = require('surge_runtime').Detector(
            path, threads=torch.get_num_threads()
        )
        proto = require('onnx').load(path, load_external_data=False)
        entries = {entry.key: entry.value for entry in proto.metadata_props}
        about = json.loads(entries[ENTRY])
        missing = {'config', 'dataset_meta'} - set(about)
        if missing:
            raise ValueError(f'{path}: {sorted(missing)} are missing in it')
        about['dataset_meta'] = read_meta(about['dataset_meta'], path)
        return {**about, 'detector': detector}

    def _build(
        self,
        config: Config,
        stored: Any,
        path: str,
        building: AbstractContextManager,
    ) -> nn.Module:
        from surge_det.deploy.onnx.runtime import WholeDetector

        with building:
            model_cfg = config.get('model') or {}
            wanted = model_cfg.get('bbox_head') or model_cfg.get('roi_head')
            if 'bbox_head' in (wanted or {}):
                wanted = wanted['bbox_head']
            number = (wanted or {}).get('num_classes')
        if number != len(stored['classes']):
            raise ValueError(
                f'{path}: does not fit this config: it detects '
                f'{len(stored["classes"])} classes, not {number}'
            )
        model = WholeDetector(stored['detector']).eval()
        model.cfg = self.adapted(config)
        model.dataset_meta = stored['dataset_meta']
        return model

    def adapted(self, config: Config) -> Config:
        """Leave out what the detector does to an image by itself."""
        from surge_det.deploy.onnx.rules import RESIZE, kind_of

        config = copy.deepcopy(config)
        for dataset in test_datasets(config):
            dataset['pipeline'] = [
                step
                for step in dataset.get('pipeline') or []
                if kind_of(step) not in RESIZE
            ]
        return config

    def _detector_problem(self, model: nn.Module) -> Problem | None:
        from surge_det.deploy.onnx import detector

        problem = detector.problem(model)
        return (problem, 'use --format packed') if problem else None


def _classes(model: nn.Module) -> list[str]:
    head = getattr(model, 'bbox_head', None)
    if head is None:
        head = model.roi_head.bbox_head
    classes = model.dataset_meta.get('classes') or ()
    if len(classes) != head.num_classes:
        raise ExportError(
            f'dataset_meta has {len(classes)} classes, the head '
            f'{head.num_classes}: set the classes of the test data set'
        )
    return list(map(str, classes))


def _metadata(key: str, value: str) -> bytes:
    """Return an entry of metadata; protobuf merges what is concatenated."""
    onnx = require('onnx')
    entry = onnx.StringStringEntryProto(key=key, value=value)
    return onnx.ModelProto(metadata_props=[entry]).SerializeToString()
