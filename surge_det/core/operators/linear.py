"""Matrix product as a linear operator."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .memory_format import MemoryFormats


class LinearOperator:
    """``x @ weight.T`` as a linear operator with its two adjoints.

    The same interface as :class:`ConvOperator`; there is nothing to pad.
    """

    def forward(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, value: float
    ) -> Tensor:
        """Apply to ``x`` (..., C_in)."""
        return F.linear(x, weight, bias)

    def adjoint(
        self,
        grad: MemoryFormats,
        x: Tensor,
        weight: Tensor,
        value: float,
        need: tuple[bool, bool, bool],
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Return gradients as :meth:`ConvOperator.adjoint` does."""
        rows = grad.given.reshape(-1, grad.given.shape[-1])
        return (
            (rows @ weight).view(x.shape) if need[0] else None,
            rows.t() @ x.reshape(-1, x.shape[-1]) if need[1] else None,
            rows.sum(0) if need[2] else None,
        )
