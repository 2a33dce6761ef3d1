"""Replicas without a training step of the whole model."""

import torch
from torch import nn

from surge_det.core.layers import named_surge_layers


def begin_training(model):
    """Run every 1-bit layer of a model alone, forward, in training mode.

    After that each replica stands where training begins.
    """
    for _, layer in named_surge_layers(model):
        if isinstance(layer, nn.Linear):
            shape = (1, layer.in_features)
        else:
            sizes = zip(layer.kernel_size, layer.dilation)
            rows, columns = (d * (k - 1) + 1 for k, d in sizes)
            shape = (1, layer.in_channels, rows, columns)
        mode = layer.training
        layer.train()(torch.zeros(shape, dtype=layer.weight.dtype))
        layer.train(mode)
