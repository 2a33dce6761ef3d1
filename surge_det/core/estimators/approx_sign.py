"""Derivative of a piecewise quadratic approximation of sign."""

from __future__ import annotations

from torch import Tensor

from .base import Estimator, register_estimator


@register_estimator
class ApproxSign(Estimator):
    r"""ApproxSign: a triangle around 0.

    Forward: :math:`\mathrm{sign}(x)`, with :math:`\mathrm{sign}(0) = +1`.
    Derivative:

    .. math:: h(x) = \max(0, 2 - 2|x|)

    Source: Bi-Real Net (Liu et al. 2018, arXiv 1808.00278), sec. 3.3.

    Examples:
        >>> ApproxSign().derivative(torch.tensor([-2.0, -0.5, 0.0]))
        tensor([0., 1., 2.])
    """

    def derivative(self, x: Tensor) -> Tensor:
        """Return ``h(x)``, same shape and dtype as ``x``."""
        return (2 - 2 * x.abs()).clamp_(min=0)

    def surrogate(self, x: Tensor) -> Tensor:
        """Return ``x * (2 - |x|)`` inside [-1, 1], -1 or 1 outside."""
        x = x.clamp(-1, 1)
        return x * (2 - x.abs())

    def __repr__(self) -> str:
        return 'ApproxSign()'
