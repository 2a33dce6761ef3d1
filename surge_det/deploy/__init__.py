"""Trained detectors as files that run: export, loading, inference.

====================  ====================================================
``load_detector``     mmdet's model from a checkpoint, packed or OpenVINO
                      file
``DetInferencer``     mmdet's, for the same files
``load_trained``      model and ``dataset_meta`` from config and checkpoint
``plan_export``       what an export would write, layer by layer
``check``             raises :class:`ExportError` where something cannot be
``save_pth``          checkpoint without anything of training
``save_packed``       signs as bits, in one safetensors file
====================  ====================================================

``tools/export.py``, ``tools/infer.py`` and ``tools/test.py`` are made of
these. The extra ``deploy`` has what they need besides mmdet.
"""

from .checkpoint import load_trained, save_pth
from .inferencer import DetInferencer
from .loading import load_detector
from .packed import load_packed, save_packed
from .plan import FORMATS, ExportError, Row, check, plan_export

__all__ = [
    'FORMATS',
    'DetInferencer',
    'ExportError',
    'Row',
    'check',
    'load_detector',
    'load_packed',
    'load_trained',
    'plan_export',
    'save_packed',
    'save_pth',
]
