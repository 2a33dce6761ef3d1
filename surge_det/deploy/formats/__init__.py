"""File formats of detectors, an object each.

A format is a module here, with a subclass of :class:`~.base.Format`, and its
place in ``FORMATS``. It says what becomes of a layer, writes and reads, and
what it needs to do so; everything else asks it.
"""

from __future__ import annotations

from pathlib import Path

from .base import ExportError, Format, Row, check
from .onnx import ONNXFormat
from .openvino import OpenVINOFormat
from .packed import PackedFormat
from .pth import PthFormat

FORMATS: dict[str, Format] = {
    format.name: format
    for format in (PthFormat(), PackedFormat(), ONNXFormat(), OpenVINOFormat())
}


def format_of(path: str | Path) -> Format:
    """Return the format of a file, by the end of its name.

    A checkpoint of training may have any name: what is no other format's is
    ``pth``, which sees for itself whether it can be one.
    """
    for format in FORMATS.values():
        if str(path).endswith(format.suffix):
            return format
    return FORMATS[PthFormat.name]


__all__ = ['FORMATS', 'ExportError', 'Format', 'Row', 'check', 'format_of']
