"""Straight-through estimator."""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from .. import checks
from .base import Estimator, register_estimator

_WIDE = (torch.float32, torch.float64)


@register_estimator
class STE(Estimator):
    r"""(Clipped) straight-through estimator.

    Forward: :math:`\mathrm{sign}(x)`, with :math:`\mathrm{sign}(0) = +1`.
    Derivative:

    .. math::

        h(x) = 1 \text{ where } |x| \le \text{clip}, \quad
        \text{leak elsewhere}

    or ``h(x) = 1`` everywhere with ``clip=None``. SURGE uses ``clip=1`` for
    activations and ``clip=None`` for weights. A wider window or a leak is
    what a replica that passes gradients beyond the window has to beat: they
    cost nothing.

    Source: Bengio et al. 2013 (arXiv 1308.3432); clipped form: Hubara et al.
    2016 (arXiv 1602.02830), eq. 4.

    Args:
        clip: Half-width of the window that passes gradients, in units of the
            input, > 0; ``None`` passes all.
        leak: Derivative outside of the window, 0 to 1.

    Raises:
        ValueError: If ``clip`` is neither ``None`` nor a positive number, or
            ``leak`` is out of range or without a window.

    Examples:
        >>> STE(clip=1.0).derivative(torch.tensor([-2.0, -1.0, 0.3]))
        tensor([0., 1., 1.])
    """

    def __init__(self, clip: float | None = 1.0, leak: float = 0.0) -> None:
        if not isinstance(clip, float) or clip != math.inf:
            checks.number('clip', clip, above=0, or_none=True)
        self.clip = clip
        self.leak = checks.number('leak', leak, low=0, high=1)
        if clip is None and leak:
            raise ValueError(
                f'leak={leak!r} is what passes outside of a window; with '
                'clip=None only 0 is allowed'
            )

    @property
    def is_identity(self) -> bool:
        """Whether the derivative is 1 everywhere."""
        return self.clip is None

    def derivative(self, x: Tensor) -> Tensor:
        """Return ``h(x)``, same shape and dtype as ``x``."""
        if self.clip is None:
            return torch.ones_like(x)
        inside = (x.abs() <= self.clip).to(x.dtype)
        return inside.clamp(min=self.leak) if self.leak else inside

    def window(self, x: Tensor) -> Tensor | None:
        """Return as bool where ``h(x)`` is 1, and not ``leak``.

        ``None`` for everywhere.
        """
        if self.clip is None:
            return None
        return (x >= -self.clip) & (x <= self.clip)

    def times_derivative(self, x: Tensor, grad: Tensor) -> Tensor:
        """Return ``h(x) * grad``, in the type of ``grad``."""
        if self.clip is None:
            return grad
        if (
            self.leak
            or x.dtype != grad.dtype
            or x.dtype not in _WIDE
            or self.clip > torch.finfo(x.dtype).max
        ):
            return super().times_derivative(x, grad)
        # One pass instead of four. That window is open and this one closed.
        # (Where x is NaN the gradient may pass.)
        end = _number_after(self.clip, x.dtype)
        return torch.ops.aten.hardtanh_backward(grad, x, -end, end)

    def surrogate(self, x: Tensor) -> Tensor:
        """Return ``x``, with slope ``leak`` beyond ``-clip`` and ``clip``."""
        if self.clip is None:
            return x
        inside = x.clamp(-self.clip, self.clip)
        return inside + self.leak * (x - inside) if self.leak else inside

    def __repr__(self) -> str:
        leak = f', leak={self.leak}' * bool(self.leak)
        return f'STE(clip={self.clip}{leak})'


@cache
def _number_after(number: float, dtype: torch.dtype) -> float:
    # Tracers and fake tensors would take the number for data.
    with _disable_current_modes():
        start, end = torch.tensor(
            [number, math.inf], dtype=dtype, device='cpu'
        )
        return start.nextafter(end).item()
