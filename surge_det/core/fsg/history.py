"""Historical Gradient Storage."""

from __future__ import annotations

import torch
from torch import Tensor

DTYPES = {
    'float64': torch.float64,
    'float32': torch.float32,
    'bfloat16': torch.bfloat16,
    'float16': torch.float16,
}


class GradientHistory:
    """The last gradients of one layer, oldest first.

    Takes ``length * n`` numbers of type ``dtype`` for a layer of n weights.

    Source: FSG (AAAI 2025), Historical Gradient Storage.

    Args:
        length: How many gradients are kept, L.
        dtype: Type they are kept in.
    """

    def __init__(self, length: int, dtype: torch.dtype) -> None:
        self.length = length
        self.dtype = dtype
        self.gradients: list[Tensor] = []

    def push(self, gradient: Tensor) -> None:
        """Add the newest; drops the oldest of more than ``length``.

        Args:
            gradient: Any shape; a flat copy is kept.
        """
        flat = gradient.detach().flatten().to(self.dtype, copy=True)
        self.gradients = [*self.gradients, flat][-self.length :]

    def __len__(self) -> int:
        return len(self.gradients)
