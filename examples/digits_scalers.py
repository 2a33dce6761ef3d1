"""Experiments with the digits: other ways to scale the replica's gradient.

Each takes one thing away from AGS or changes one, so that a run says what
that thing is worth.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from surge_det.core import AGS


class ClippedOnly(AGS):
    """Experiment: compensate only where STE passes no gradient.

    For STE alone, whose derivative is exactly 0 there. The replica's own
    gradient differs by ``lambda`` only.
    """

    def scale(
        self, grad_b: Tensor, grad_a: Tensor, dropped: Tensor | None = None
    ) -> Tensor:
        """Zero ``grad_a`` in place where ``grad_b`` is not 0."""
        grad_a.masked_fill_(grad_b != 0, 0)
        return super().scale(grad_b, grad_a, dropped)


class DirectionOnly(AGS):
    """Experiment: SURGE's input gradient, as long as STE's."""

    def scale(
        self, grad_b: Tensor, grad_a: Tensor, dropped: Tensor | None = None
    ) -> Tensor:
        """Shorten both in place."""
        factor = super().scale(grad_b, grad_a, dropped)
        growth = _growth(grad_b, grad_a, factor)
        grad_b.div_(growth)
        grad_a.div_(growth)
        return factor


class LengthOnly(AGS):
    """Experiment: STE's input gradient, as long as SURGE's."""

    def scale(
        self, grad_b: Tensor, grad_a: Tensor, dropped: Tensor | None = None
    ) -> Tensor:
        """Lengthen ``grad_b`` and zero ``grad_a``, both in place."""
        factor = super().scale(grad_b, grad_a, dropped)
        grad_b.mul_(_growth(grad_b, grad_a, factor))
        grad_a.zero_()
        return factor


def _growth(grad_b: Tensor, grad_a: Tensor, factor: Tensor) -> Tensor:
    norm, tiny = torch.linalg.vector_norm, torch.finfo(grad_b.dtype).tiny
    longer = norm(grad_b + factor * grad_a)
    return longer.clamp_min(tiny) / norm(grad_b).clamp_min(tiny)


class _InParts(AGS):
    """Experiment: norms, and so lambda, of parts of a gradient.

    The replica learns as in SURGE, with the lambda of the whole.
    """

    dims: tuple[int, ...]

    def scale(
        self, grad_b: Tensor, grad_a: Tensor, dropped: Tensor | None = None
    ) -> Tensor:
        """Lengthen or shorten the parts of ``grad_a`` in place."""
        factor = super().scale(grad_b, grad_a, dropped)
        norm_b, norm_a = (
            torch.linalg.vector_norm(grad, dim=self.dims, keepdim=True)
            for grad in (grad_b, grad_a)
        )
        whole = self.last_norm_b / self.last_norm_a.clamp_min(_TINY)
        part = norm_b / norm_a.clamp_min(_TINY)
        grad_a.mul_(part / whole.clamp_min(_TINY))
        return factor


class PerSample(_InParts):
    """Experiment: one lambda for each sample."""

    dims = (1, 2, 3)


class PerChannel(_InParts):
    """Experiment: one lambda for each input channel."""

    dims = (0, 2, 3)


class Smoothed(AGS):
    """Experiment: lambda is its mean over the passes so far.

    Each has 0.95 of the weight of the next.
    """

    def scale(
        self, grad_b: Tensor, grad_a: Tensor, dropped: Tensor | None = None
    ) -> Tensor:
        """Compute lambda of this pass, and return the mean."""
        factor = super().scale(grad_b, grad_a, dropped)
        pair = torch.stack([factor, torch.ones_like(factor)])
        known = getattr(self, 'known', torch.zeros_like(pair))
        self.known = torch.lerp(pair, known, 0.95)
        return self.known[0] / self.known[1]


_TINY = torch.finfo(torch.float32).tiny

SCALERS = {
    'clipped': ClippedOnly,
    'direction': DirectionOnly,
    'length': LengthOnly,
    'per_sample': PerSample,
    'per_channel': PerChannel,
    'smoothed': Smoothed,
}
# What eta is multiplied by, where training is at p, 0 to 1.
SCHEDULES = {
    'warmup': lambda p: min(1.0, p / 0.2),
    'decay': lambda p: (1 + math.cos(math.pi * p)) / 2,
}
# Where there is compensation, at depth d, 0 to 1.
DEPTHS = {
    'early': lambda d: d < 0.5,
    'late': lambda d: d >= 0.5,
}
