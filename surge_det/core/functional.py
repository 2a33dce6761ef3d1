"""The autograd Function: the only place with SURGE's backward arithmetic.

Symbols as in the paper (arXiv 2605.10989): ``f_b`` is the binarized
operator, ``f_a`` its full-precision replica, ``g`` the gradient at the
output, ``g_b`` and ``g_a`` the gradients at the input through each.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from .ags import AGS
from .sign import binary_sign


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

    def adjoint(
        self,
        grad: Tensor,
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
        grad_x, grad_w, grad_b = torch.ops.aten.convolution_backward(
            grad,
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
        if grad_x is not None and grad_x.shape != shape:
            left, _, top, _ = self.padding
            grad_x = grad_x[
                ..., top : top + shape[-2], left : left + shape[-1]
            ]
        return grad_x, grad_w, grad_b


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
        grad: Tensor,
        x: Tensor,
        weight: Tensor,
        value: float,
        need: tuple[bool, bool, bool],
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Gradients of input, weight and bias; see :class:`ConvOperator`."""
        rows = grad.reshape(-1, grad.shape[-1])
        return (
            (rows @ weight).view(x.shape) if need[0] else None,
            rows.t() @ x.reshape(-1, x.shape[-1]) if need[1] else None,
            rows.sum(0) if need[2] else None,
        )


@dataclass(frozen=True)
class Settings:
    """What one application of a binarized operator needs besides tensors.

    Args:
        operator: The linear operator, shared by ``f_b`` and ``f_a``.
        activation_estimator: ``h_x``; ``None`` leaves activations real.
        weight_estimator: ``h_w``; ``None`` leaves weights real.
        weight_binarizer: Makes pre-quantized weights and scale; only read
            where weights are binarized.
        ags: Scaler; only read where there is a replica.
        pad_value: What the binarized input is padded with; the replica's is
            padded with 0.
        on_weight_grad: Called in the backward pass with the gradient at the
            quantized weights, ``dL/dQ``, in the weights' type.
    """

    operator: ConvOperator | LinearOperator
    activation_estimator: Any
    weight_estimator: Any
    weight_binarizer: Any
    ags: AGS | None
    pad_value: float = 0.0
    on_weight_grad: Callable[[Tensor], None] | None = None


# The backward pass reads eta and leaves lambda in a Python object: under
# torch.compile that belongs outside the graph.
@torch.compiler.disable
def surge(
    x: Tensor,
    weight: Tensor,
    aux_weight: Tensor | None,
    bias: Tensor | None,
    settings: Settings,
) -> Tensor:
    """Apply a binarized linear operator with a compensated backward pass.

    Forward: ``Q = scale * sign(z)`` applied to ``sign(x)``, plus ``bias``;
    ``z`` and ``scale`` are the binarizer's. With plain scaled sign ``z`` is
    ``weight`` and ``scale`` the mean of ``|weight|`` over each output
    channel, which takes no gradient.

    Backward (arXiv 2605.10989, DPGC), with ``lambda`` from :class:`AGS`:

    - ``dL/dx = g_b + lambda * g_a``
    - ``dL/dz = scale * h_w(z) * dL/dQ``, to ``weight`` by autograd
    - ``dL/dscale`` = sum of ``dL/dQ * sign(z)`` over what shares a scale
    - ``dL/daux_weight = lambda *`` (weight gradient of ``f_a``)
    - ``dL/dbias`` = sum of ``g`` over all but the channel dimension

    The replica ``f_a`` is never evaluated forward. Under autocast both
    operators compute in the autocast dtype; norms and ``lambda`` do not.

    Args:
        x: Input.
        weight: Latent weights (C_out, ...).
        aux_weight: The replica's weights, same shape; ``None`` for the plain
            estimator's gradients.
        bias: (C_out,) or ``None``.
        settings: Everything that is no tensor.

    Raises:
        RuntimeError: If ``x`` and ``weight`` differ in type outside
            autocast, as torch's own operators do.
    """
    dtype = _compute_dtype(x, weight)
    with _no_autocast(x):
        z, scale = weight, None
        if settings.weight_estimator is not None:
            z = settings.weight_binarizer.prepare(weight)
            scale = settings.weight_binarizer.scale(z)
        # Without a gradient to come, and for tracers that count operations
        # or export, this is an ordinary convolution.
        if torch.jit.is_tracing() or not torch.is_grad_enabled():
            return _forward(x, z, scale, bias, settings, dtype)
        return _Surge.apply(x, z, scale, aux_weight, bias, settings, dtype)


def _compute_dtype(x: Tensor, weight: Tensor) -> torch.dtype:
    device = x.device.type
    # Autocast leaves float64 alone, and knows no meta tensors.
    if (
        x.dtype != torch.float64
        and not x.is_meta
        and torch.is_autocast_enabled(device)
    ):
        return torch.get_autocast_dtype(device)
    if x.dtype != weight.dtype:
        raise RuntimeError(
            f'input type {x.dtype} and weight type {weight.dtype} should be '
            'the same'
        )
    return x.dtype


def _no_autocast(x: Tensor) -> AbstractContextManager:
    # Casting is explicit here: an autocast that reached the convolutions
    # would cache casts of tensors that live for one call only.
    if x.is_meta:
        return nullcontext()
    return torch.autocast(x.device.type, enabled=False)


def _times_derivative(estimator: Any, z: Tensor, grad: Tensor) -> Tensor:
    if estimator is None or getattr(estimator, 'is_identity', False):
        return grad
    return grad * estimator.derivative(z).to(grad.dtype)


class _Surge(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx,
        x: Tensor,
        z: Tensor,
        scale: Tensor | None,
        aux_weight: Tensor | None,
        bias: Tensor | None,
        settings: Settings,
        dtype: torch.dtype,
    ) -> Tensor:
        # Only the real input, the weights and a number per channel are kept:
        # signs and masks are cheap to make again.
        ctx.save_for_backward(x, z, scale, aux_weight)
        ctx.settings = settings
        ctx.dtype = dtype
        ctx.bias_dtype = None if bias is None else bias.dtype
        return _forward(x, z, scale, bias, settings, dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple:
        x, z, scale, aux_weight = ctx.saved_tensors
        need_x, need_z, need_scale, need_aux, need_bias = ctx.needs_input_grad[
            :5
        ]
        settings, dtype = ctx.settings, ctx.dtype
        operator, ags = settings.operator, settings.ags
        grad = grad.to(dtype)
        compensate = aux_weight is not None and ags.eta > 0

        with _no_autocast(x):
            # lambda needs g_b even where x itself takes no gradient.
            need_g_b = need_x or (compensate and need_aux)
            g_b, grad_q, grad_bias = operator.adjoint(
                grad,
                _binarized_input(x, settings, dtype),
                _quantized_weight(z, scale, dtype),
                settings.pad_value,
                (need_g_b, need_z or need_scale, need_bias),
            )
            if g_b is not None:
                g_b = _times_derivative(settings.activation_estimator, x, g_b)
            grad_z = grad_scale = None
            if grad_q is not None:
                grad_z = grad_q = grad_q.to(z.dtype)
                if settings.on_weight_grad is not None:
                    settings.on_weight_grad(grad_q)
                if scale is not None:
                    grad_z = _times_derivative(
                        settings.weight_estimator, z, grad_q * scale
                    )
                if need_scale:
                    grad_scale = grad_q * binary_sign(z)
                    grad_scale = grad_scale.sum_to_size(scale.shape)

            grad_x, grad_aux = g_b, None
            if compensate and need_g_b:
                g_a, grad_aux, _ = operator.adjoint(
                    grad,
                    x.to(dtype),
                    aux_weight.to(dtype),
                    0.0,
                    (True, need_aux, False),
                )
                factor = ags.scale(g_b, g_a)
                if need_x:
                    # In the norms' precision: a float16 lambda could
                    # overflow where lambda * g_a does not.
                    grad_x = torch.addcmul(
                        g_b.to(factor.dtype), g_a.to(factor.dtype), factor
                    )
                if grad_aux is not None:
                    grad_aux = grad_aux.to(factor.dtype) * factor
            elif aux_weight is not None and not compensate:
                ags.skip(grad)
                if need_aux:
                    # Zeros, not None: DDP waits for every parameter.
                    grad_aux = torch.zeros_like(aux_weight)

            return (
                grad_x.to(x.dtype) if need_x else None,
                grad_z.to(z.dtype) if need_z else None,
                grad_scale.to(scale.dtype) if need_scale else None,
                None if grad_aux is None else grad_aux.to(aux_weight.dtype),
                None if grad_bias is None else grad_bias.to(ctx.bias_dtype),
                None,
                None,
            )


def _forward(
    x: Tensor,
    z: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    settings: Settings,
    dtype: torch.dtype,
) -> Tensor:
    return settings.operator.forward(
        _binarized_input(x, settings, dtype),
        _quantized_weight(z, scale, dtype),
        None if bias is None else bias.to(dtype),
        settings.pad_value,
    )


def _binarized_input(
    x: Tensor, settings: Settings, dtype: torch.dtype
) -> Tensor:
    if settings.activation_estimator is None:
        return x.to(dtype)
    return binary_sign(x).to(dtype)


def _quantized_weight(
    z: Tensor, scale: Tensor | None, dtype: torch.dtype
) -> Tensor:
    if scale is None:
        return z.to(dtype)
    return (scale.detach() * binary_sign(z)).to(dtype)
