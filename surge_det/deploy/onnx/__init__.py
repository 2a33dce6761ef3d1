"""Detectors as ONNX graphs, with the operators of ``surge_runtime``.

===================  ======================================================
``trace``            a network of torch as ONNX, layers of ours as one node
``layout``           the same with maps as NHWC and our operators
``epilogue``         what follows a 1-bit convolution becomes its end
===================  ======================================================

:mod:`surge_det.deploy.formats.onnx` writes and reads the files.
"""
