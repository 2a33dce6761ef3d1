"""Rectified straight-through estimator."""

from __future__ import annotations

import math

from torch import Tensor

from .. import checks
from ..progress import Scheduled
from .base import Estimator, register_estimator


@register_estimator
class ReSTE(Scheduled, Estimator):
    r"""ReSTE: a power function that steepens over the training run.

    Forward: :math:`\mathrm{sign}(x)`, with :math:`\mathrm{sign}(0) = +1`.
    Derivative:

    .. math::

        h(x) = \begin{cases}
            m^{1/o} / m & |x| \le m \\
            \frac{1}{o} |x|^{(1 - o) / o} & m < |x| \le t \\
            0 & |x| > t
        \end{cases}

    with :math:`o = 1 + (o_{end} - 1)(1 - \cos(\pi p / 2))` at progress
    :math:`p`. At :math:`o = 1`, where a new one begins, it is STE with
    ``clip=t``.

    Source: ReSTE (Wu et al., ICCV 2023, arXiv 2308.06689), the section
    on the rectified straight-through estimator.

    Args:
        o_end: :math:`o` at the end of training, >= 1.
        m: Half-width of the window in which the derivative is the secant's;
            above 0 and below ``t``.
        t: Half-width of the window that passes gradients.

    Raises:
        ValueError: If an argument is out of range.

    Examples:
        >>> ReSTE().derivative(torch.tensor([-2.0, -1.0, 0.0]))
        tensor([0., 1., 1.])
    """

    def __init__(
        self, o_end: float = 3.0, m: float = 0.1, t: float = 1.5
    ) -> None:
        self.o_end = checks.number('o_end', o_end, low=1)
        self.m = checks.number('m', m, above=0)
        self.t = checks.number('t', t, above=0)
        if m >= t:
            checks.refuse('m', m, f'a number below t={t}')

    @property
    def o(self) -> float:
        """Exponent's inverse at the present progress, from 1 to o_end."""
        return 1 + (self.o_end - 1) * (
            1 - math.cos(math.pi * self.progress / 2)
        )

    def derivative(self, x: Tensor) -> Tensor:
        """Return ``h(x)``, same shape and dtype as ``x``."""
        o, size = self.o, x.abs()
        # Without the clamp the power is infinite at 0.
        h = size.clamp(min=self.m).pow_((1 - o) / o).mul_(1 / o)
        h.masked_fill_(size <= self.m, self.m ** (1 / o - 1))
        return h.masked_fill_(size > self.t, 0)

    def surrogate(self, x: Tensor) -> Tensor:
        """Return ``sign(x) |x|^(1/o)``, linear up to m, constant from t."""
        size = x.abs().clamp_(max=self.t)
        power = size.pow(1 / self.o)
        linear = size * self.m ** (1 / self.o - 1)
        return power.where(size > self.m, linear).copysign_(x)

    def scheduled(self) -> dict[str, float]:
        """Return ``o``."""
        return {'o': self.o}

    def __repr__(self) -> str:
        return f'ReSTE(o_end={self.o_end}, m={self.m}, t={self.t})'
