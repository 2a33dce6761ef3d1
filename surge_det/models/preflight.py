"""Whether every 1-bit layer sees both signs and learns, before training."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from mmengine.logging import MessageHub
from mmengine.model import revert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from surge_det.core import binary_sign
from surge_det.core.layers import SURGEConv2d, SURGELayer, named_surge_layers


@dataclass(frozen=True)
class LayerReport:
    """What one layer's sign saw, over all calls, and what it learns from.

    Attributes:
        name: The layer's name in the model.
        negative: Share of the input's values that are -1, 0 to 1.
        constant_channels: Share of the input's channels that never change
            sign, 0 to 1.
        constant: Whether the whole input has one sign, or no channel of it
            ever changes sign: the layer sees nothing.
        ran: Whether the layer was called on anything at all; if not, the
            values above mean nothing. A layer whose weight is only read by
            other code is not.
        gradient: 2-norm of the gradient of the layer's latent weights;
            ``None`` if they are frozen.
    """

    name: str
    negative: float
    constant_channels: float
    constant: bool
    ran: bool
    gradient: float | None

    @property
    def blind(self) -> bool:
        """Whether the layer cannot work: never called, or on one sign."""
        return self.constant or not self.ran

    @property
    def stuck(self) -> bool:
        """Whether the layer cannot learn: it should, and has no gradient."""
        return self.gradient is not None and not 0 < self.gradient < math.inf


def preflight(model: nn.Module, batch: dict) -> list[LayerReport]:
    """Run one training step's passes; look at every sign and gradient.

    It runs a copy: the model keeps its buffers, flags and counters, and the
    random generators their state.

    Args:
        model: A detector with SURGE layers.
        batch: ``inputs`` and ``data_samples``: a raw batch of the dataset
            (a list of images) or what the model's ``data_preprocessor`` made
            of one.

    Returns:
        One report for each layer that binarizes its input, in order of
        definition.

    Raises:
        ValueError: If no layer binarizes its input, or the batch has no
            ``inputs``.
    """
    if not isinstance(batch, dict) or 'inputs' not in batch:
        raise ValueError(
            f'batch={type(batch).__name__} is not allowed: a dict with '
            "'inputs' and 'data_samples'"
        )
    # Only a group of processes can run SyncBN.
    model = revert_sync_batchnorm(copy.deepcopy(model)).train()
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.register_forward_pre_hook(_normalize_single_values)
        # With one image, stochastic depth drops a whole branch. By name, for
        # each toolbox has its own.
        if type(module).__name__ == 'DropPath':
            module.eval()
    counts = {
        name: _Count(layer)
        for name, layer in named_surge_layers(model)
        if layer.binarize_activation
    }
    if not counts:
        raise ValueError('model has no layer that binarizes its input')
    with torch.enable_grad(), kept_random_state(), first_iteration():
        batch = copy.deepcopy(batch)
        if not _is_preprocessed(batch['inputs']):
            batch = model.data_preprocessor(batch, True)
        loss, _ = model.parse_losses(model(**batch, mode='loss'))
        if loss.requires_grad:
            loss.backward()
    return [count.report(name) for name, count in counts.items()]


def _normalize_single_values(module: nn.Module, args: tuple) -> None:
    # One image gives an output of 1x1, as SSD's last, one value a channel:
    # no statistics to train with.
    if args[0].numel() == args[0].size(1):
        module.eval()


def _is_preprocessed(inputs: Any) -> bool:
    return isinstance(inputs, Tensor) and inputs.is_floating_point()


class _Count:
    """Counts the -1 of each channel of a layer's binarized input."""

    def __init__(self, layer: SURGELayer) -> None:
        self.weight = layer.weight
        self.negative: Tensor | int = 0
        self.total = 0
        layer.register_forward_pre_hook(self._count, with_kwargs=True)

    @torch.no_grad()
    def _count(self, layer: SURGELayer, args: tuple, kwargs: dict) -> None:
        x = layer.shifted(args[0] if args else next(iter(kwargs.values())))
        channel = -3 if isinstance(layer, SURGEConv2d) else -1
        negative = binary_sign(x.movedim(channel, 0).flatten(1)) < 0
        self.negative = self.negative + negative.sum(1)
        self.total += negative.size(1)

    def report(self, name: str) -> LayerReport:
        gradient = self._gradient()
        if not self.total:
            return LayerReport(name, 0.0, 0.0, False, False, gradient)
        share = self.negative.double() / self.total
        fixed = (share == 0) | (share == 1)
        overall = share.mean().item()
        # One value a channel, as after global pooling, cannot change.
        constant = overall in (0, 1) or (self.total > 1 and bool(fixed.all()))
        one_sign = fixed.double().mean().item()
        return LayerReport(name, overall, one_sign, constant, True, gradient)

    def _gradient(self) -> float | None:
        if not self.weight.requires_grad:
            return None
        if self.weight.grad is None:
            return 0.0
        return self.weight.grad.double().norm().item()


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Put a network into eval mode meanwhile."""
    training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def kept_random_state() -> Iterator[None]:
    """Give the random generators their state back at the end."""
    # mmdet's samplers and augmentations draw from all three.
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@contextmanager
def first_iteration() -> Iterator[None]:
    """Say that a training is at its first iteration, if none says more."""
    # mmdet's batch augmentations ask for the runner's iteration.
    hub = MessageHub.get_current_instance()
    missing = [key for key in ('iter', 'epoch') if hub.get_info(key) is None]
    for key in missing:
        hub.update_info(key, 0)
    try:
        yield
    finally:
        for key in missing:
            hub.pop_info(key)
