"""Binarized convolutions as they are usually written, to measure against.

Written for clarity, the way published training codes write them; nothing of
``surge_det.core`` is in them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import FLOAT, REF_STE, REF_SURGE


class _Sign(torch.autograd.Function):
    """Sign with the clipped straight-through estimator; keeps its input."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.where(x >= 0, 1.0, -1.0).to(x.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad * (x.abs() <= 1).to(grad.dtype)


def binary_weight(weight: Tensor) -> Tensor:
    """Scaled sign with the identity as its derivative."""
    scale = weight.abs().mean((1, 2, 3), keepdim=True).detach()
    sign = torch.where(weight >= 0, 1.0, -1.0).to(weight.dtype)
    return scale * (sign.detach() + weight - weight.detach())


class ReferenceSTEConv2d(nn.Conv2d):
    """1-bit convolution with the straight-through estimator."""

    def forward(self, x: Tensor) -> Tensor:
        """Convolve; shapes as ``nn.Conv2d``'s."""
        return self._conv_forward(
            _Sign.apply(x), binary_weight(self.weight), self.bias
        )


class ReferenceSURGEConv2d(ReferenceSTEConv2d):
    """SURGE as its formula reads: two convolutions and ``detach``.

    Args:
        args: As ``nn.Conv2d``'s.
        factor: lambda, a constant.
        kwargs: As ``nn.Conv2d``'s.
    """

    def __init__(self, *args, factor: float = 0.2, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.aux_weight = nn.Parameter(self.weight.detach().clone())
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """Convolve; shapes as ``nn.Conv2d``'s."""
        replica = self.factor * F.conv2d(
            x,
            self.aux_weight,
            None,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
        )
        return super().forward(x) + replica - replica.detach()


REFERENCES: dict[str, type[nn.Conv2d]] = {
    FLOAT: nn.Conv2d,
    REF_STE: ReferenceSTEConv2d,
    REF_SURGE: ReferenceSURGEConv2d,
}


def copy_as(layer: nn.Conv2d, cls: type[nn.Conv2d], **kwargs) -> nn.Conv2d:
    """Make a layer of another class with a convolution's shape and weights.

    Args:
        layer: What to copy.
        cls: ``nn.Conv2d``, ``SURGEConv2d`` or one of this file's.
        kwargs: More of its arguments.
    """
    copy = cls(
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size,
        layer.stride,
        layer.padding,
        layer.dilation,
        layer.groups,
        layer.bias is not None,
        device=layer.weight.device,
        dtype=layer.weight.dtype,
        **kwargs,
    )
    # A replica starts from the weights.
    state = {**layer.state_dict(), 'aux_weight': layer.weight}
    copy.load_state_dict(state, strict=False)
    return copy.train(layer.training)
