"""Layers before a sign and after a 1-bit convolution."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from . import checks


def add_per_channel(x: Tensor, values: Tensor, places: int) -> Tensor:
    """Add a value to each channel, in the type of ``x``.

    Args:
        x: (..., C, *places).
        values: (C,).
        places: Number of dimensions after that of the channels.
    """
    # In the input's type, so that autocast's narrow one stays.
    return x + values.to(x.dtype).view(-1, *[1] * places)


class LearnedShift(nn.Module):
    """Learned shift per channel: ``x + shift``, zero at first.

    Before a binarized layer it moves the threshold of the sign:
    ``sign(x + shift)`` is ReActNet's RSign with the threshold ``-shift``
    (arXiv 2003.03488, eq. 1). The derivative is 1 by ``x``, and by ``shift``
    the sum over all positions of a channel.

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
        return add_per_channel(x, self.shift, x.dim() - 2)


class RPReLU(nn.Sequential):
    r"""Shift, PReLU with one slope per channel, shift.

    .. math:: f(x) = \max(x - \gamma, 0) + \beta \min(x - \gamma, 0) + \zeta

    with :math:`f'(x) = 1` above :math:`\gamma` and :math:`\beta` below. The
    first shift is :math:`-\gamma`, the second :math:`\zeta`, both zero at
    first; :math:`\beta` starts at 0.25. It keeps negative values, so that
    the next sign sees both.

    Source: ReActNet (arXiv 2003.03488), eq. 3.

    Args:
        channels: C.

    Shape:
        (N, C, ...) to the same.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(
            LearnedShift(channels), nn.PReLU(channels), LearnedShift(channels)
        )


class SlopePReLU(nn.PReLU):
    """A PReLU that replaces a ReLU of a checkpoint's model.

    One slope, because a ReLU is often shared between layers of different
    width. A checkpoint without the slope leaves it as it is.

    Args:
        init: Where the slope starts, a finite number.

    Raises:
        ValueError: If ``init`` is no finite number.
    """

    def __init__(self, init: float = 0.25) -> None:
        super().__init__(1, checks.number('init', init))

    def _load_from_state_dict(
        self, state_dict: dict, prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        key = prefix + 'weight'
        if key not in state_dict:
            state_dict = {**state_dict, key: self.weight.detach().clone()}
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
