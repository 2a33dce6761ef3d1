"""Rectified clamp unit."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..progress import Scheduled
from .base import Binarizer, centred, register_binarizer

_TAU_START, _TAU_END = 0.85, 0.99


@register_binarizer
class ReCU(Scheduled, Binarizer):
    r"""ReCU: standardised weights, clamped so that none stays out of reach.

    .. math:: w_1 = 2\sqrt 2\,\frac{w - \mathrm{mean}(w)}
        {\sqrt{\mathrm{var}(w) + 10^{-5}}}, \quad
        z = \mathrm{clamp}(w_1, -q, q), \quad
        q = -\mathrm{mean}|w_1|\,\ln(2 - 2\tau), \quad
        Q = \alpha\,\mathrm{sign}(z)

    with mean and variance (unbiased) of :math:`w` over each output channel,
    the mean of :math:`|w_1|` over the whole layer, detached, and
    :math:`\alpha` learned per output channel, uniform in (0, 1) at first.
    The clamp passes gradients inside :math:`\pm q` and none outside.
    :math:`\tau = A e^p + B` rises from 0.85 to 0.99 with progress :math:`p`;
    a new one begins at :math:`p = 0`. In the state dict: ``alpha``.

    The paper's activations are divided by the standard deviation of each
    sample (``normalize_input`` of the layers) and have
    :class:`~surge_det.core.estimators.ApproxSign` as gradient estimator.

    Source: ReCU (Xu et al., ICCV 2021, arXiv 2103.12369), and its
    published code for the schedule of :math:`\tau`.
    """

    alpha: nn.Parameter | None

    def __init__(self) -> None:
        super().__init__()
        self.register_parameter('alpha', None)

    @property
    def tau(self) -> float:
        """Quantile of the weights' size at which they are clamped."""
        rise = (_TAU_END - _TAU_START) / (math.e - 1)
        return _TAU_START + rise * math.expm1(self.progress)

    def setup(self, weight: Tensor) -> None:
        """Make ``alpha``, (C_out,), of the weight's type and device.

        Raises:
            ValueError: If it belongs to a layer already.
        """
        if self.alpha is not None and not self.alpha.is_meta:
            raise ValueError(
                'weight_binarizer: this ReCU belongs to another layer; '
                "one for each, such as dict(type='ReCU'), is allowed"
            )
        alpha = weight.detach().new_empty(weight.shape[0])
        self.alpha = nn.Parameter(alpha, weight.requires_grad)
        if weight.is_meta:
            return
        # A generator of its own, so that later layers start from the
        # weights that they have with any other binarizer.
        generator = torch.Generator().manual_seed(
            hash(weight.detach().double().sum().item())
        )
        values = torch.rand(len(alpha), generator=generator)
        with torch.no_grad():
            self.alpha.copy_(values)

    def reset_parameters(self) -> None:
        """Draw ``alpha`` anew."""
        if self.alpha is not None:
            nn.init.uniform_(self.alpha)

    def prepare(self, weight: Tensor) -> Tensor:
        """Return ``z``, shape of ``weight``."""
        difference, variance = centred(weight)
        w1 = difference * (2 * math.sqrt(2)) * (variance + 1e-5).rsqrt()
        size = w1.detach().abs().mean()
        bound = -math.log(2 - 2 * self.tau) * size
        return w1.clamp(-bound, bound)

    def scale(self, z: Tensor) -> Tensor:
        """Return ``alpha`` as (C_out, 1, ...).

        Raises:
            RuntimeError: If the layer was made with real weights.
        """
        if self.alpha is None:
            raise RuntimeError(
                'ReCU has no alpha: its layer was made with '
                'binarize_weight=False'
            )
        return self.alpha.view(-1, *[1] * (z.dim() - 1))

    def scheduled(self) -> dict[str, float]:
        """Return ``tau``."""
        return {'tau': self.tau}
