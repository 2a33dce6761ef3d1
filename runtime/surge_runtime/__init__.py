"""Runs 1-bit detectors on CPUs with ONNX Runtime, without a training stack.

Example::

    from surge_runtime import Detector

    found = Detector('detector.onnx')('image.jpg')
    found.boxes, found.scores, found.names
"""

from .detector import Detections, Detector

__all__ = ['Detections', 'Detector']
__version__ = '0.1.0'
