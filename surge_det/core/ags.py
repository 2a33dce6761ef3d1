"""Adaptive Gradient Scaler."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import checks

# The paper's epsilon.
EPS = 1e-8
# What eta='auto' is estimated with: how much of the estimate a pass keeps,
# and eta over the estimate, which is set by hand.
_KEPT = 0.95
_GAIN = 0.25


class AGS:
    r"""Adaptive Gradient Scaler: weighs the replica's gradient by norms.

    .. math::

        \lambda = \eta \cdot \|g_b\|_2 / (\|g_a\|_2 + \varepsilon m), \quad
        m = \min(1, \max(\|g_a\|_2, \|g_b\|_2))

    ``g_b`` is the gradient at a layer's input through the binarized
    operator, ``g_a`` the one through its full-precision replica; the norms
    run over the whole tensor. One :math:`\lambda` per application of the
    layer and backward pass. Norms and :math:`\lambda` are float64 for
    float64 gradients and float32 otherwise; they are exact also where the
    squares would vanish or overflow. A norm :math:`\|g_a\|_2` below the
    smallest normal number counts as that number in :math:`\lambda`; where
    both gradients are 0, :math:`\lambda` is 0.

    :math:`\varepsilon` is 1e-8. The paper's has no :math:`m`. A norm of 1 or
    more makes no difference; a smaller one, beside :math:`\varepsilon` itself,
    would give way to it.

    ``eta='auto'`` (this project's, not the paper's) follows what the
    estimator drops: with ``G`` the gradient at ``sign(x)``, before the
    estimator's factor,

    .. math::

        r = \langle G - g_b, g_a \rangle / (\|g_a\| \|g_b\|), \quad
        \eta = \min(1, \max(0, \bar r / 4))

    where :math:`\bar r` is the mean of ``r`` over the passes so far, each
    with 0.95 of the weight of the next, and ``r``, beyond -4 and 4, is -4
    or 4. ``r`` stands for the product of relative bias and alignment that
    the paper's best factor has. It is 0 where nothing is dropped. A pass with
    a gradient that is 0 or not finite has none, and is left out;
    :math:`\eta` is 0 before the first that has one.

    Source: SURGE (arXiv 2605.10989), AGS.

    Args:
        eta: Factor :math:`\eta \ge 0`, or ``'auto'``. 0 switches
            compensation off. May be changed between backward passes.

    Attributes:
        estimate: Of ``'auto'``: the weighted sum of ``r`` and the sum of the
            weights, (2,); ``None`` before the first pass.
        last_eta: :math:`\eta` of the last backward pass, a number or a 0-dim
            tensor.
        watches: Whether a backward pass leaves the two that follow, too,
            which take passes over the gradients.
        last_cosine: Cosine of the angle between ``g_b`` and ``g_a``; it and
            the next are NaN where one of them is 0.
        last_missed: ``r`` of that pass.
        last_scale: :math:`\lambda` of the last backward pass, 0-dim tensor on
            the gradient's device (reading it as a number is what
            synchronises), or ``None`` before the first.
        last_norm_b: :math:`\|g_b\|_2` of that pass; ``None`` if it was off.
        last_norm_a: :math:`\|g_a\|_2` of that pass; ``None`` if it was off.

    Raises:
        ValueError: If ``eta`` is out of range.
    """

    def __init__(self, eta: float | str = 0.1) -> None:
        self.eta = eta
        self.estimate: Tensor | None = None
        self.last_eta: float | Tensor | None = None
        self.watches = False
        self.last_cosine: Tensor | None = None
        self.last_missed: Tensor | None = None
        self.last_scale: Tensor | None = None
        self.last_norm_b: Tensor | None = None
        self.last_norm_a: Tensor | None = None

    @property
    def eta(self) -> float | str:
        """Base factor, or ``'auto'``."""
        return self._eta

    @eta.setter
    def eta(self, value: float | str) -> None:
        self._eta = check_eta('eta', value)

    @property
    def follows(self) -> bool:
        """Whether ``eta`` is ``'auto'``."""
        return self.eta == 'auto'

    @property
    def needs_dropped(self) -> bool:
        """Whether :meth:`scale` is to be given what the estimator dropped."""
        return self.follows or self.watches

    @property
    def is_on(self) -> bool:
        """Whether there is anything to add to ``g_b``."""
        return self.eta != 0

    def scale(
        self, grad_b: Tensor, grad_a: Tensor, dropped: Tensor | None = None
    ) -> Tensor:
        """Compute and remember ``lambda``.

        Args:
            grad_b: Gradient at the input through the binarized operator.
            grad_a: Gradient at the input through the replica, same shape.
            dropped: ``G - grad_b``, what the estimator dropped, where it
                is needed.

        Returns:
            0-dim tensor, float64 for float64 gradients and else float32.
        """
        norm_b, norm_a = _norm(grad_b), _norm(grad_a)
        limits = torch.finfo(norm_a.dtype)
        if self.needs_dropped:
            missed = _product(dropped, grad_a, norm_b, norm_a)
        if self.watches:
            self.last_missed = missed
            self.last_cosine = _product(grad_b, grad_a, norm_b, norm_a)
        self.last_eta = self._follow(missed) if self.follows else self.eta
        eps = EPS * torch.maximum(norm_a, norm_b).clamp(max=1)
        ratio = norm_b / (norm_a + eps).clamp(min=limits.tiny)
        # An infinite one would make NaN of a factor of 0.
        scale = self.last_eta * ratio.clamp(max=limits.max)
        self.last_norm_b, self.last_norm_a = norm_b, norm_a
        # And of a gradient of 0.
        self.last_scale = scale.clamp(max=limits.max)
        return self.last_scale

    def _follow(self, r: Tensor) -> Tensor:
        """Take a pass into the estimate and return ``eta``."""
        known = self.estimate
        known = r.new_zeros(2) if known is None else known.to(r)
        # Beyond these ends eta has its own.
        bounded = r.clamp(-1 / _GAIN, 1 / _GAIN)
        new = torch.stack([bounded, torch.ones_like(r)])
        new = torch.lerp(new, known, _KEPT)
        self.estimate = torch.where(r.isfinite(), new, known)
        return eta_of(self.estimate)

    def skip(self, grad: Tensor) -> None:
        """Remember a backward pass without compensation."""
        self.last_eta = 0.0
        self.last_norm_b = self.last_norm_a = None
        self.last_cosine = self.last_missed = None
        self.last_scale = torch.zeros(
            (), dtype=_norm_dtype(grad), device=grad.device
        )

    def __repr__(self) -> str:
        return f'AGS(eta={self.eta!r})'


def eta_of(estimate: Tensor) -> Tensor:
    """Return the ``eta`` that ``'auto'`` makes of :attr:`AGS.estimate`."""
    total, weight = estimate
    mean = total / weight.clamp(min=torch.finfo(weight.dtype).tiny)
    return (_GAIN * mean).clamp(0, 1)


def check_eta(
    name: str, value: Any, or_none: bool = False
) -> float | str | None:
    """Return a base factor of AGS: a number >= 0 or ``'auto'``.

    Args:
        name: The argument.
        value: What was given.
        or_none: Whether ``None`` is allowed too.

    Raises:
        ValueError: If it is something else.
    """
    if isinstance(value, str):
        checks.one_of(name, value, ('auto',))
        return value
    return checks.number(name, value, low=0, or_none=or_none)


def _product(
    x: Tensor, grad_a: Tensor, norm_b: Tensor, norm_a: Tensor
) -> Tensor:
    """Return ``<x, grad_a> / (norm_b * norm_a)``; NaN where a norm is 0."""
    tiny = torch.finfo(norm_a.dtype).tiny
    # Divided before they are multiplied: products of small gradients vanish.
    a = grad_a.to(norm_a.dtype) / norm_a.clamp(min=tiny)
    x = x.to(norm_b.dtype) / norm_b.clamp(min=tiny)
    return torch.where((norm_a == 0) | (norm_b == 0), torch.nan, (a * x).sum())


def _norm_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _norm(x: Tensor) -> Tensor:
    dtype = _norm_dtype(x)
    # Float32 holds the squares of all float16; nothing has no largest value.
    if x.dtype == torch.float16 or not x.numel():
        return torch.linalg.vector_norm(x, dtype=dtype)
    limits = torch.finfo(dtype)
    low, high = torch.aminmax(x)
    largest = torch.maximum(-low, high).to(dtype).clamp(min=limits.tiny)
    norm = torch.linalg.vector_norm(x.to(dtype) / largest)
    return (largest * norm).clamp(max=limits.max)
