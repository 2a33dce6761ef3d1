"""Trained detectors as files that run: export, loading, inference.

====================  ====================================================
``FORMATS``           of files: describe, save, load
``load_detector``     mmdet's model from a file of any format
``DetInferencer``     mmdet's, for the same files
``check``             raises :class:`ExportError` where something cannot be
                      exported
====================  ====================================================

``surge-det export``, ``infer`` and ``test`` are made of these. The extra
``deploy`` has what they need besides mmdet.
"""

from .formats import FORMATS, ExportError, Format, Row, check, format_of
from .inferencer import DetInferencer
from .loading import load_detector

__all__ = [
    'FORMATS',
    'DetInferencer',
    'ExportError',
    'Format',
    'Row',
    'check',
    'format_of',
    'load_detector',
]
