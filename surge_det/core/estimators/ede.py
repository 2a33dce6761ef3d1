"""Error decay estimator."""

from __future__ import annotations

from torch import Tensor

from ..progress import Scheduled
from .base import Estimator, register_estimator


@register_estimator
class EDE(Scheduled, Estimator):
    r"""EDE: a hyperbolic tangent that goes from the identity to sign.

    Forward: :math:`\mathrm{sign}(x)`, with :math:`\mathrm{sign}(0) = +1`.
    Derivative:

    .. math:: h(x) = k\,t\,(1 - \tanh^2(t x)), \quad
        t = 10^{-3 + 4p}, \quad k = \max(1/t, 1)

    at progress :math:`p`. A new one begins at :math:`p = 0`, where it is 1
    up to values in the hundreds.

    Source: IR-Net (Qin et al., CVPR 2020, arXiv 1909.10788), Error Decay
    Estimator; the range of :math:`t` is the published code's.

    Examples:
        >>> EDE().derivative(torch.tensor([0.0, 0.5])).round(decimals=4)
        tensor([1., 1.])
    """

    @property
    def t(self) -> float:
        """Slope at the present progress, from 0.001 to 10."""
        return 10 ** (-3 + 4 * self.progress)

    @property
    def k(self) -> float:
        """Height at the present progress, from 1000 to 1."""
        return max(1 / self.t, 1.0)

    def derivative(self, x: Tensor) -> Tensor:
        """Return ``h(x)``, same shape and dtype as ``x``."""
        # k alone is too large for float16 times small numbers; k * t is not.
        square = (self.t * x).tanh_().square_()
        return square.neg_().add_(1).mul_(self.k * self.t)

    def surrogate(self, x: Tensor) -> Tensor:
        """Return ``k tanh(t x)``."""
        return self.k * (self.t * x).tanh()

    def scheduled(self) -> dict[str, float]:
        """Return ``t`` and ``k``."""
        return {'t': self.t, 'k': self.k}

    def __repr__(self) -> str:
        return 'EDE()'
