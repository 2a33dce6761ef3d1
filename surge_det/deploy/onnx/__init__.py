"""Detectors as ONNX graphs, with the operators of ``surge_runtime``.

===================  ======================================================
``trace``            a network of torch as ONNX, layers of ours as one node
``layout``           the same with maps as NHWC and our operators
``epilogue``         what follows a 1-bit convolution becomes its end
``conversion``       these three in turn
``rules``            attributes of our operators around the networks
``detector``         a whole detector as one graph, compared with torch
``checks``           what a 1-bit layer's kernel must give at load
``runtime``          mmdet's detector around a file
===================  ======================================================

:mod:`surge_det.deploy.formats.onnx` writes and reads the files.
"""
