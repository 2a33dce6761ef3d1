"""Runs 1-bit detectors with ONNX Runtime; needs neither torch nor mmdet."""
