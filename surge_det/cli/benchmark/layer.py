"""One convolution, by all contestants."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.grad import conv2d_input, conv2d_weight

from surge_det.core import SURGEConv2d

from .measure import MIB, interleaved, kept_bytes, peak_bytes, timed
from .reference import (
    ReferenceSTEConv2d,
    ReferenceSURGEConv2d,
    as_reference,
    binary_weight,
)

FLOAT, REF_STE, REF_SURGE = 'float', 'reference STE', 'reference SURGE'
SURGE, NARROW, STE = 'SURGEConv2d', 'SURGEConv2d aux bf16', 'SURGEConv2d STE'
ETA = 0.2
# Rows and columns of the maps that gradients are compared on.
CHECKED = 40, 64


class Shape(NamedTuple):
    """A convolution and the size of its input."""

    name: str
    c_in: int
    c_out: int
    height: int
    width: int
    kernel: int = 3
    stride: int = 1

    def shrunk(self, by: int) -> Shape:
        """Return it with a map whose sides are divided."""
        return self._replace(
            height=max(self.height // by, 1), width=max(self.width // by, 1)
        )


@dataclass
class Measured:
    """What one contestant took on one layer, by turns where it is time."""

    forward: list[float]
    backward: list[float]
    eval: list[float]
    kept: float
    peak: float | None
    error: float

    @property
    def both(self) -> list[float]:
        """Forward and backward."""
        return [f + b for f, b in zip(self.forward, self.backward)]

    def of(self, quantity: str) -> float | None:
        """Median of a quantity, in its printed unit."""
        value = getattr(self, quantity)
        if isinstance(value, list):
            return statistics.median(value) * 1000
        return value


class Bench:
    """The contestants on one layer's shape.

    Args:
        shape: The layer.
        args: The command line.
        names: Which contestants; ``None`` for all.
    """

    def __init__(
        self,
        shape: Shape,
        args: argparse.Namespace,
        names: Sequence[str] | None = None,
    ) -> None:
        self.device = torch.device(args.device)
        pure = torch.bfloat16 if args.dtype == 'bfloat16' else torch.float32
        self.autocast = args.dtype == 'autocast'
        self.clock = time.thread_time if args.cpu_time else time.perf_counter
        torch.manual_seed(0)
        kwargs = dict(
            kernel_size=shape.kernel,
            stride=shape.stride,
            padding=shape.kernel // 2,
            bias=False,
            eta=ETA,
            device=self.device,
            dtype=pure,
        )
        layer = SURGEConv2d(shape.c_in, shape.c_out, **kwargs)
        ste = SURGEConv2d(shape.c_in, shape.c_out, compensate=False, **kwargs)
        narrow = SURGEConv2d(
            shape.c_in, shape.c_out, aux_dtype='bfloat16', **kwargs
        )
        for other in (ste, narrow):
            other.load_state_dict(layer.state_dict())
        self.layers: dict[str, nn.Conv2d] = {
            FLOAT: as_reference(layer, nn.Conv2d),
            REF_STE: as_reference(layer, ReferenceSTEConv2d),
            REF_SURGE: as_reference(layer, ReferenceSURGEConv2d, factor=ETA),
            SURGE: layer,
            NARROW: narrow,
            STE: ste,
        }
        if names is not None:
            self.layers = {name: self.layers[name] for name in names}
        size = args.batch, shape.c_in, shape.height, shape.width
        x = torch.randn(size, device=self.device).to(pure)
        if args.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
            for contestant in self.layers.values():
                contestant.to(memory_format=torch.channels_last)
        self.x = x.requires_grad_()
        with torch.no_grad():
            out = layer(x)
        self.grad = torch.randn_like(out)

    def _autocast(self) -> AbstractContextManager:
        if not self.autocast:
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def _forward(self, layer: nn.Module) -> Tensor:
        with self._autocast():
            return layer(self.x)

    def _train(self, layer: nn.Module) -> tuple[float, float]:
        layer.zero_grad(set_to_none=True)
        self.x.grad = None
        out = None

        def forward() -> None:
            nonlocal out
            out = self._forward(layer)

        first = timed(forward, self.device, self.clock)
        return first, timed(
            lambda: out.backward(self.grad.to(out.dtype)),
            self.device,
            self.clock,
        )

    def _eval(self, layer: nn.Module) -> float:
        layer.eval()
        with torch.no_grad():
            seconds = timed(
                lambda: self._forward(layer), self.device, self.clock
            )
        layer.train()
        return seconds

    def measure(
        self, rounds: int, warmup: int, tick: Callable[[], None]
    ) -> dict[str, Measured]:
        """Measure all contestants."""

        def turn(layer: nn.Module) -> Callable[[], tuple]:
            return lambda: (*self._train(layer), self._eval(layer))

        taken = interleaved(
            {name: turn(layer) for name, layer in self.layers.items()},
            rounds,
            warmup,
            tick,
        )
        results = {}
        for name, layer in self.layers.items():
            forward, backward, evaluation = map(list, zip(*taken[name]))
            kept = kept_bytes(
                lambda layer=layer: self._forward(layer), layer.parameters()
            )
            peak = peak_bytes(
                lambda layer=layer: self._train(layer), self.device
            )
            error = self._error(name, layer)
            results[name] = Measured(
                forward,
                backward,
                evaluation,
                kept / MIB,
                None if peak is None else peak / MIB,
                error,
            )
        return results

    def _error(self, name: str, layer: nn.Conv2d) -> float:
        """Largest relative difference of a gradient from the formula's.

        On a part of the maps, because convolutions in float64 are slow.
        """
        rows, columns = CHECKED
        part = self.x.detach()[:, :, :rows, :columns].clone()
        part.requires_grad_()
        layer.zero_grad(set_to_none=True)
        with self._autocast():
            out = layer(part)
        grad = self.grad[:, :, : out.shape[2], : out.shape[3]]
        out.backward(grad.to(out.dtype))
        ours = [part.grad, *(p.grad for p in layer.parameters())]
        x, grad = part.detach().double(), grad.double()
        kwargs = dict(
            stride=layer.stride, padding=layer.padding, groups=layer.groups
        )

        def adjoint(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
            return (
                conv2d_input(x.shape, weight, grad, **kwargs),
                conv2d_weight(x, weight.shape, grad, **kwargs),
            )

        weight = layer.weight.detach().double()
        if name == FLOAT:
            expected = adjoint(x, weight)
        else:
            sign = torch.where(x >= 0, 1.0, -1.0).double()
            g_b, g_w = adjoint(sign, binary_weight(weight))
            g_b = g_b * (x.abs() <= 1)
            scale = weight.abs().mean((1, 2, 3), keepdim=True)
            expected = [g_b, scale * g_w]
            if len(ours) == 3:
                replica = layer.aux_weight.detach().double()
                g_a, g_aux = adjoint(x, replica)
                factor = getattr(layer, 'factor', None)
                if factor is None:
                    factor = ETA * g_b.norm() / (g_a.norm() + layer.ags.eps)
                expected = [g_b + factor * g_a, scale * g_w, factor * g_aux]
        return max(
            ((mine.double() - wanted).abs().max() / wanted.abs().max()).item()
            for mine, wanted in zip(ours, expected, strict=True)
        )
