"""Standardised weights with a power of two as scale."""

from __future__ import annotations

from torch import Tensor

from .base import Binarizer, centred, register_binarizer

# Keeps constant channels finite; far below any variance of real weights.
_SMALLEST_VARIANCE = 1e-12


@register_binarizer
class IRNet(Binarizer):
    r"""IR-Net's balanced and standardised weights.

    .. math:: z = \frac{w - \mathrm{mean}(w)}{\mathrm{std}(w)}, \quad
        Q = 2^{\mathrm{round}(\log_2 \mathrm{mean}|z|)}\,\mathrm{sign}(z)

    with mean and standard deviation (unbiased) over each output channel.
    Gradients pass through the standardisation, none through the scale. It
    has no state. The paper's gradient estimator is
    :class:`~surge_det.core.estimators.EDE`.

    Source: IR-Net (Qin et al., CVPR 2020, arXiv 1909.10788), Libra
    Parameter Binarization.
    """

    def prepare(self, weight: Tensor) -> Tensor:
        """Return ``z``, shape of ``weight``."""
        difference, variance = centred(weight)
        return difference * variance.clamp(min=_SMALLEST_VARIANCE).rsqrt()

    def scale(self, z: Tensor) -> Tensor:
        """Return the power of two, (C_out, 1, ...), detached."""
        dims = tuple(range(1, z.dim()))
        size = z.detach().abs().mean(dims, keepdim=True)
        return size.log2_().round_().exp2_()
