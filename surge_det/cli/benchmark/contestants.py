"""One convolution, by all contestants."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from surge_det.core import SURGEConv2d
from surge_det.core.ags import EPS

from . import layers
from .layers import FLOAT, NARROW, REF_STE, REF_SURGE, STE, SURGE
from .measure import interleaved, kept_mib, peak_mib, timed
from .reference import REFERENCES, copy_as

ETA = 0.2
# Rows and columns of the maps that gradients are compared on.
CHECKED = 40, 64
# Keywords of the contestants' layers.
CONTESTANTS = {
    FLOAT: {},
    REF_STE: {},
    REF_SURGE: dict(factor=ETA),
    SURGE: dict(eta=ETA),
    NARROW: dict(eta=ETA, aux_dtype='bfloat16'),
    STE: dict(compensate=False),
}


class Bench:
    """The contestants on one layer's shape.

    Args:
        shape: The layer.
        batch: Number of images.
        args: The command line.
        names: Which contestants.
    """

    def __init__(
        self,
        shape: layers.Shape,
        batch: int,
        args: argparse.Namespace,
        names: Sequence[str] = tuple(CONTESTANTS),
    ) -> None:
        self.device = torch.device(args.device)
        self.args = args
        layout = torch.contiguous_format
        if args.channels_last:
            layout = torch.channels_last
        torch.manual_seed(0)
        layer = nn.Conv2d(
            shape.c_in,
            shape.c_out,
            shape.kernel,
            shape.stride,
            shape.kernel // 2,
            bias=False,
            device=self.device,
        )
        self.layers = {
            name: copy_as(
                layer, REFERENCES.get(name, SURGEConv2d), **CONTESTANTS[name]
            ).to(memory_format=layout)
            for name in names
        }
        size = batch, shape.c_in, shape.height, shape.width
        x = torch.randn(size, device=self.device)
        self.x = x.contiguous(memory_format=layout).requires_grad_()
        with torch.no_grad():
            self.grad = torch.randn_like(layer(self.x))

    def _forward(self, layer: nn.Module, x: Tensor | None = None) -> Tensor:
        with torch.autocast(
            self.device.type,
            torch.bfloat16,
            enabled=self.args.dtype == 'autocast',
        ):
            return layer(self.x if x is None else x)

    def _train(self, layer: nn.Module) -> tuple[float, float]:
        layer.zero_grad(set_to_none=True)
        self.x.grad = None
        out = None

        def forward() -> None:
            nonlocal out
            out = self._forward(layer)

        def backward() -> None:
            out.backward(self.grad.to(out.dtype))

        return self._timed(forward), self._timed(backward)

    def _turn(self, layer: nn.Module) -> tuple[float, float, float]:
        training = self._train(layer)
        layer.eval()
        with torch.no_grad():
            evaluation = self._timed(partial(self._forward, layer))
        layer.train()
        return *training, evaluation

    def _timed(self, run: Callable[[], object]) -> float:
        return timed(run, self.device, self.args.cpu_time)

    def measure(self, title: str) -> dict[str, layers.Measured]:
        """Measure all contestants, under a title for the progress bar."""
        turns = {
            name: partial(self._turn, layer)
            for name, layer in self.layers.items()
        }
        taken = interleaved(turns, self.args, title)
        results = {}
        for name, layer in self.layers.items():
            forward, backward, evaluation = map(list, zip(*taken[name]))
            results[name] = {
                layers.FORWARD: forward,
                layers.BACKWARD: backward,
                layers.BOTH: [f + b for f, b in zip(forward, backward)],
                layers.EVAL: evaluation,
                layers.KEPT: kept_mib(partial(self._forward, layer), layer),
                layers.PEAK: peak_mib(
                    partial(self._train, layer), self.device
                ),
                layers.ERROR: self._error(name, layer),
            }
        return results

    def _error(self, name: str, layer: nn.Conv2d) -> float:
        """Largest relative difference of a gradient from the formula's.

        On a part of the maps, because convolutions in float64 are slow.
        """
        rows, columns = CHECKED
        part = self.x.detach()[:, :, :rows, :columns].clone()
        part.requires_grad_()
        layer.zero_grad(set_to_none=True)
        out = self._forward(layer, part)
        grad = self.grad[:, :, : out.shape[2], : out.shape[3]]
        out.backward(grad.to(out.dtype))
        ours = [part.grad, *(p.grad for p in layer.parameters())]

        def formula(name: str, **kwargs) -> list[Tensor]:
            reference = copy_as(layer, REFERENCES[name], **kwargs).double()
            x = part.detach().double().requires_grad_()
            reference(x).backward(grad.double())
            return [x.grad, *(p.grad for p in reference.parameters())]

        if name in (SURGE, NARROW):
            # The replica still is what the weights are.
            g_b, g_a = formula(REF_STE)[0], formula(FLOAT)[0]
            factor = ETA * g_b.norm() / (g_a.norm() + EPS)
            expected = formula(REF_SURGE, factor=factor)
        elif name == STE:
            expected = formula(REF_STE)
        else:
            expected = formula(name, **CONTESTANTS[name])
        return max(
            ((mine.double() - right).abs().max() / right.abs().max()).item()
            for mine, right in zip(ours, expected, strict=True)
        )
