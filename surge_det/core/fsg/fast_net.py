"""The fast network: what a gradient is multiplied by, from the weight."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_NONLINEARITIES = {None: None, 'tanh': torch.tanh, 'relu': torch.relu}


class FastNet(nn.Module):
    r"""MLP 1 → h → h → 1 without bias, applied to each weight by itself.

    .. math:: m(w) = W_3\,\sigma(W_2\,\sigma(W_1 w))

    Without a nonlinearity :math:`\sigma`, as in the published runs, it is
    the number :math:`s = W_3 W_2 W_1` times its input, and is evaluated as
    that: no tensor is larger than the input. With one, an input of n
    elements takes n·h numbers, twice.

    Source: FSG (AAAI 2025), fast net; the network is MetaQuant's (NeurIPS
    2019).

    Args:
        hidden: Width h, > 0.
        nonlinearity: ``None``, ``'tanh'`` or ``'relu'``.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self, hidden: int = 100, nonlinearity: str | None = None
    ) -> None:
        super().__init__()
        if (
            not isinstance(hidden, int)
            or isinstance(hidden, bool)
            or hidden < 1
        ):
            raise ValueError(
                f'hidden={hidden!r} is not allowed: an integer >= 1'
            )
        if nonlinearity not in _NONLINEARITIES:
            raise ValueError(
                f'nonlinearity={nonlinearity!r} is not allowed: one of '
                f'{list(_NONLINEARITIES)}'
            )
        self.nonlinearity = nonlinearity
        self.linear1 = nn.Linear(1, hidden, bias=False)
        self.linear2 = nn.Linear(hidden, hidden, bias=False)
        self.linear3 = nn.Linear(hidden, 1, bias=False)

    def slope(self) -> Tensor:
        """Return the 0-dim number ``s``; only without a nonlinearity."""
        assert self.nonlinearity is None
        product = self.linear3.weight @ (
            self.linear2.weight @ self.linear1.weight
        )
        return product.view(())

    def forward(self, weight: Tensor) -> Tensor:
        """Apply to each element of a tensor of any shape; keeps the shape."""
        if self.nonlinearity is None:
            return self.slope() * weight
        act = _NONLINEARITIES[self.nonlinearity]
        hidden = act(self.linear1(weight.reshape(-1, 1)))
        return self.linear3(act(self.linear2(hidden))).view(weight.shape)

    def extra_repr(self) -> str:
        """Say what it is evaluated as."""
        return f'nonlinearity={self.nonlinearity}'
