"""Adaptive Gradient Scaler."""

from __future__ import annotations

import torch
from torch import Tensor

from . import checks


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

    The paper's :math:`\varepsilon` has no :math:`m`. A norm of 1 or more
    makes no difference; a smaller one, beside :math:`\varepsilon` itself,
    would give way to it.

    Source: SURGE (arXiv 2605.10989), AGS.

    Args:
        eta: Factor :math:`\eta \ge 0`. 0 switches compensation off.
        eps: :math:`\varepsilon > 0`.

    Attributes:
        last_scale: :math:`\lambda` of the last backward pass, 0-dim tensor on
            the gradient's device (reading it as a number is what
            synchronises), or ``None`` before the first.
        last_norm_b: :math:`\|g_b\|_2` of that pass; ``None`` if ``eta`` was 0.
        last_norm_a: :math:`\|g_a\|_2` of that pass; ``None`` if ``eta`` was 0.

    Raises:
        ValueError: If ``eta`` or ``eps`` is out of range.
    """

    def __init__(self, eta: float = 0.2, eps: float = 1e-8) -> None:
        self.base_eta = eta
        self.eps = checks.number('eps', eps, above=0)
        self.last_scale: Tensor | None = None
        self.last_norm_b: Tensor | None = None
        self.last_norm_a: Tensor | None = None

    @property
    def base_eta(self) -> float:
        """Factor that schedules multiply; setting it sets ``eta`` as well."""
        return self._base_eta

    @base_eta.setter
    def base_eta(self, value: float) -> None:
        self.eta = value
        self._base_eta = self.eta

    @property
    def eta(self) -> float:
        """Factor in use; may be changed between backward passes.

        SURGE's optimizer wrappers overwrite it with ``base_eta`` times their
        schedule's factor: with them, set ``base_eta`` before training.
        """
        return self._eta

    @eta.setter
    def eta(self, value: float) -> None:
        self._eta = checks.number('eta', value, low=0)

    def scale(self, grad_b: Tensor, grad_a: Tensor) -> Tensor:
        """Compute and remember ``lambda``.

        Args:
            grad_b: Gradient at the input through the binarized operator.
            grad_a: Gradient at the input through the replica, same shape.

        Returns:
            0-dim tensor, float64 for float64 gradients and else float32.
        """
        norm_b, norm_a = _norm(grad_b), _norm(grad_a)
        limits = torch.finfo(norm_a.dtype)
        eps = self.eps * torch.maximum(norm_a, norm_b).clamp(max=1)
        scale = self.eta * (norm_b / (norm_a + eps).clamp(min=limits.tiny))
        self.last_norm_b, self.last_norm_a = norm_b, norm_a
        # An infinite one would make NaN of a gradient of 0.
        self.last_scale = scale.clamp(max=limits.max)
        return self.last_scale

    def skip(self, grad: Tensor) -> None:
        """Remember a backward pass with ``eta`` = 0: ``lambda`` = 0."""
        self.last_norm_b = self.last_norm_a = None
        self.last_scale = torch.zeros(
            (), dtype=_norm_dtype(grad), device=grad.device
        )

    def __repr__(self) -> str:
        return f'AGS(eta={self.eta}, eps={self.eps})'


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
