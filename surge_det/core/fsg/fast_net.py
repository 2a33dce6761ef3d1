"""The fast network: what a gradient is multiplied by, from the weight."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import checks

_NONLINEARITIES = {None: None, 'tanh': torch.tanh, 'relu': torch.relu}


class FastNet(nn.Module):
    r"""MLP 1 → h → h → 1 without bias, applied to each weight by itself.

    .. math:: m(w) = W_3\,\sigma(W_2\,\sigma(W_1 w))

    Without a nonlinearity :math:`\sigma`, as in the published runs, it is
    the number :math:`s = W_3 W_2 W_1` times its input; with ReLU it is a
    straight line on either side of zero, :math:`m(1)\,w` and
    :math:`-m(-1)\,w`. Both are evaluated as that: no tensor is larger than
    the input. With tanh an input of n elements takes n·h numbers, twice.

    Without bias, the first and tanh are odd: what they multiply a gradient
    by has another sign for negative weights than for positive ones. ReLU
    leaves both sides free.

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
        checks.integer('hidden', hidden, 1)
        checks.one_of('nonlinearity', nonlinearity, _NONLINEARITIES)
        self.nonlinearity = nonlinearity
        self.linear1 = nn.Linear(1, hidden, bias=False)
        self.linear2 = nn.Linear(hidden, hidden, bias=False)
        self.linear3 = nn.Linear(hidden, 1, bias=False)

    def slopes(self) -> tuple[Tensor, Tensor]:
        """Return :math:`m(w) / w` for positive and for negative weights.

        Two 0-dim numbers; not with tanh, which has no such.
        """
        assert self.nonlinearity != 'tanh'
        if self.nonlinearity is None:
            product = self.linear3.weight @ (
                self.linear2.weight @ self.linear1.weight
            )
            slope = product.view(())
            return slope, slope
        # Made on the device: to copy it there means to wait for it.
        one = self.linear1.weight.new_ones(1)
        above, below = self._layers(torch.stack([one, -one])).view(2)
        return above, -below

    def forward(self, weight: Tensor, gradient: Tensor) -> Tensor:
        r"""Return the fast gradient :math:`q \odot m(w)`.

        Args:
            weight: The weights w, of any shape.
            gradient: Their gradient q, of the same shape.
        """
        if self.nonlinearity == 'tanh':
            factor = self._layers(weight.reshape(-1, 1)).view(weight.shape)
            return gradient * factor
        above, below = self.slopes()
        # Constants for autograd first: its graph then holds nothing else.
        if self.nonlinearity is None:
            return (gradient * weight) * above
        return (gradient * weight.clamp(min=0)) * above + (
            gradient * weight.clamp(max=0)
        ) * below

    def _layers(self, column: Tensor) -> Tensor:
        act = _NONLINEARITIES[self.nonlinearity]
        hidden = act(self.linear1(column))
        return self.linear3(act(self.linear2(hidden)))

    def extra_repr(self) -> str:
        """Say what it is evaluated as."""
        return f'nonlinearity={self.nonlinearity}'
