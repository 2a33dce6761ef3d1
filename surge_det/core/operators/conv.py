"""2-d convolution as a linear operator."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..sign import is_plain
from .memory_format import (
    MemoryFormats,
    is_channels_last,
    to_channels_last,
    to_contiguous,
)
from .sign_conv import is_supported, pad_codes, sign_conv2d

# oneDNN's gradients on CPUs, by measurement: the input's is faster in
# channels_last, by enough to change the format if there are few channels or
# strides; the weights' is two to three times slower there with strides,
# in float32.
_FEW_CHANNELS = 64
# Bringing weights into the 8-bit convolution's format takes as long as about
# 500 output places save; a call has a cost of its own, too.
_MIN_PLACES = 512
_MIN_PRODUCTS = 3e7


@dataclass(frozen=True)
class ConvOperator:
    """A 2-d convolution as a linear operator with its two adjoints.

    Args:
        stride: Rows, columns.
        padding: Left, right, top, bottom, as ``torch.nn.functional.pad``
            takes them.
        dilation: Rows, columns.
        groups: Number of groups.
    """

    stride: tuple[int, int]
    padding: tuple[int, int, int, int]
    dilation: tuple[int, int]
    groups: int

    @property
    def _symmetric(self) -> bool:
        left, right, top, bottom = self.padding
        return left == right and top == bottom

    def pad(self, x: Tensor, value: float) -> tuple[Tensor, tuple[int, int]]:
        """Pad ``x`` where the convolution itself cannot.

        Returns:
            The tensor, and the padding left to the convolution.
        """
        left, _, top, _ = self.padding
        if self._symmetric and value == 0:
            return x, (top, left)
        return F.pad(x, self.padding, value=value), (0, 0)

    def forward(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, value: float
    ) -> Tensor:
        """Convolve ``x`` padded with ``value``."""
        x, padding = self.pad(x, value)
        return F.conv2d(
            x, weight, bias, self.stride, padding, self.dilation, self.groups
        )

    def forward_signs(
        self,
        codes: Tensor,
        z: Tensor,
        scale: Tensor,
        bias: Tensor | None,
        value: float,
        dtype: torch.dtype,
    ) -> Tensor:
        """Convolve signs, padded with ``value``, with scaled signs of ``z``.

        Args:
            codes: The input's signs, of ``sign_codes``.
            z: What the weights' signs are of.
            scale: (C_out or 1, 1, 1, 1).
            bias: (C_out,) or ``None``.
            value: -1, 0 or +1.
            dtype: Of the output.

        Returns:
            The output, in the memory format of ``codes``.
        """
        left, _, top, _ = self.padding
        padding = (top, left)
        like = codes
        if not self._symmetric or value != 0:
            codes, padding = pad_codes(codes, self.padding, value), (0, 0)
        out = sign_conv2d(
            to_channels_last(codes),
            z,
            scale,
            bias,
            self.stride,
            padding,
            self.dilation,
            self.groups,
            dtype,
        )
        return out if is_channels_last(like) else to_contiguous(out)

    def can_convolve_signs(
        self, x: Tensor, weight: Tensor, scale: Tensor, dtype: torch.dtype
    ) -> bool:
        """Whether :meth:`forward_signs` is possible, and faster."""
        rows, columns = self.stride
        places = x.shape[0] * x.shape[2] * x.shape[3] // (rows * columns)
        return (
            places >= _MIN_PLACES
            and places * weight.numel() >= _MIN_PRODUCTS
            and is_supported(x, scale, dtype)
        )

    def adjoint(
        self,
        grad: MemoryFormats,
        x: Tensor,
        weight: Tensor,
        value: float,
        need: tuple[bool, bool, bool],
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Gradients of input, weight and bias for output gradient ``grad``.

        Args:
            grad: (N, C_out, H_out, W_out).
            x: What the operator was applied to, before padding.
            weight: What it was applied with.
            value: What ``x`` is padded with.
            need: Which of the three to compute; the others are ``None``.
        """
        shape = x.shape
        x, padding = self.pad(x, value)

        def backward(
            g: Tensor, x: Tensor, weight: Tensor, need: tuple
        ) -> tuple:
            return torch.ops.aten.convolution_backward(
                g,
                x,
                weight,
                [weight.shape[0]],
                self.stride,
                padding,
                self.dilation,
                False,
                (0, 0),
                self.groups,
                need,
            )

        need_x, need_w, need_b = need
        if (
            x.device.type != 'cpu'
            or x.numel() == 0
            or not is_plain(grad.given)
        ):
            grad_x, grad_w, grad_b = backward(grad.given, x, weight, need)
        else:
            grad_x = grad_w = grad_b = None
            last = is_channels_last(x)
            strided = max(self.stride) > 1
            if need_x and (last or strided or x.shape[1] <= _FEW_CHANNELS):
                # Only shape and format of the input are read for this.
                blank = torch.empty_like(x, memory_format=torch.channels_last)
                grad_x = backward(
                    grad.channels_last,
                    blank,
                    to_channels_last(weight),
                    (True, False, False),
                )[0]
                grad_x = grad_x if last else to_contiguous(grad_x)
            elif need_x:
                grad_x = backward(
                    grad.contiguous, x, weight, (True, False, False)
                )[0]
            slow = strided and x.dtype == torch.float32
            if (need_w or need_b) and last and not slow:
                _, grad_w, grad_b = backward(
                    grad.channels_last, x, weight, (False, need_w, need_b)
                )
            elif need_w or need_b:
                _, grad_w, grad_b = backward(
                    grad.contiguous,
                    to_contiguous(x),
                    weight,
                    (False, need_w, need_b),
                )
        if grad_x is not None and grad_x.shape != shape:
            left, _, top, _ = self.padding
            grad_x = grad_x[
                ..., top : top + shape[-2], left : left + shape[-1]
            ]
        return grad_x, grad_w, grad_b
