"""Replicas without a training step."""

from surge_det.core.layers import named_surge_layers


def begin_training(model):
    """Let every replica of a model stand where training begins."""
    for _, layer in named_surge_layers(model):
        layer.begin_training()
