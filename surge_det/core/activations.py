"""What stands before a sign and after a 1-bit convolution."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LearnedShift(nn.Module):
    """Learned shift per channel: ``x + shift``, zero at first.

    In front of a binarized layer it moves the threshold of the sign
    (ReActNet's RSign, arXiv 2003.03488, eq. 1).

    Args:
        channels: C.

    Shape:
        (N, C, ...) to the same; ``shift`` is (C,).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Add the shift."""
        # In the input's type, so that autocast's narrow one stays.
        return x + self.shift.to(x.dtype).view(-1, *[1] * (x.dim() - 2))


class RPReLU(nn.Sequential):
    """Shift, PReLU with one slope per channel, shift.

    Keeps negative values, so that a sign behind it sees both. Source:
    ReActNet (arXiv 2003.03488), eq. 3.

    Args:
        channels: C.

    Shape:
        (N, C, ...) to the same.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(
            LearnedShift(channels), nn.PReLU(channels), LearnedShift(channels)
        )
