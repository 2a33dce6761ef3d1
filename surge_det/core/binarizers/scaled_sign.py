"""Sign, scaled by the mean size of the weights."""

from __future__ import annotations

from torch import Tensor

from .base import Binarizer, register_binarizer


@register_binarizer
class ScaledSign(Binarizer):
    r"""Plain scaled sign, the layers' default.

    .. math:: Q = \alpha\,\mathrm{sign}(w), \quad
        \alpha = \mathrm{mean}|w| \text{ over each output channel}

    No gradient passes through :math:`\alpha`. It has no state.

    Source: XNOR-Net (Rastegari et al. 2016, arXiv 1603.05279), sec. 3.1.
    """

    def scale(self, z: Tensor) -> Tensor:
        """Return ``alpha``, (C_out, 1, ...), detached."""
        dims = tuple(range(1, z.dim()))
        return z.detach().abs().mean(dims, keepdim=True)
