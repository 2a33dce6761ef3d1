"""The autograd Function: the only place with SURGE's backward arithmetic.

Symbols as in the paper (arXiv 2605.10989): ``f_b`` is the binarized
operator, ``f_a`` its full-precision replica, ``g`` the gradient at the
output, ``g_b`` and ``g_a`` the gradients at the input through each.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from .ags import AGS
from .bits import pack_codes, unpack_codes
from .operators import ConvOperator, LinearOperator
from .operators.memory_format import MemoryFormats, is_channels_last
from .sign import binary_sign, is_plain, sign_codes, signs_of


@dataclass(frozen=True)
class Settings:
    """What one application of a binarized operator needs besides tensors.

    Args:
        operator: The linear operator, shared by ``f_b`` and ``f_a``.
        activation_estimator: ``h_x``; ``None`` leaves activations real.
        binarize: Makes pre-quantized weights and their scale of the latent
            weights; ``None`` leaves weights real.
        weight_estimator: ``h_w``; only read where weights are binarized.
        ags: Scaler; only read where there is a replica.
        pad_value: What the binarized input is padded with; the replica's is
            padded with 0.
        aux_dtype: Type of the replica's products, and of the copy of the
            input that is kept for them; ``None`` for that of the others.
        on_weight_grad: Called in the backward pass with the gradient at the
            quantized weights, ``dL/dQ``, in the weights' type.
        on_clipped: Called in the backward pass with the share of the input
            where ``h_x`` is 0, a 0-dim tensor.
    """

    operator: ConvOperator | LinearOperator
    activation_estimator: Any
    binarize: Callable[[Tensor], tuple[Tensor, Tensor]] | None
    weight_estimator: Any
    ags: AGS | None
    pad_value: float = 0.0
    aux_dtype: torch.dtype | None = None
    on_weight_grad: Callable[[Tensor], None] | None = None
    on_clipped: Callable[[Tensor], None] | None = None


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
        if settings.binarize is not None:
            z, scale = settings.binarize(weight)
        if (
            scale is None
            and aux_weight is None
            and settings.activation_estimator is None
        ):
            # Nothing is 1-bit: what the float layer does, to the last bit.
            return settings.operator.forward(
                x.to(dtype),
                z.to(dtype),
                None if bias is None else bias.to(dtype),
                0.0,
            )
        # Without a gradient to come there is nothing to keep; tracers that
        # count operations or export see an ordinary convolution.
        if torch.jit.is_tracing() or not torch.is_grad_enabled():
            codes = _codes(x, settings) if is_plain(x) else None
            return _forward(x, codes, z, scale, bias, settings, dtype)
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
    if hasattr(estimator, 'times_derivative'):
        return estimator.times_derivative(z, grad)
    # Anything with `derivative` is an estimator.
    return grad * estimator.derivative(z).to(grad.dtype)


@dataclass
class _Kept:
    """What of an input is kept for the backward pass.

    Args:
        x: The input, in its own type or a narrower one; ``None`` if bits are
            enough.
        bits: Two bits of each element: its sign, and whether it is in the
            estimator's window; ``None`` if ``x`` has it all.
        shape: The input's.
        channels_last: Whether the input is in that format.
    """

    x: Tensor | None
    bits: Tensor | None
    shape: torch.Size
    channels_last: bool

    @classmethod
    def of(
        cls,
        x: Tensor,
        codes: Tensor | None,
        has_replica: bool,
        settings: Settings,
    ) -> _Kept:
        """Keep as little as the backward pass can do with."""
        last = x.dim() == 4 and is_channels_last(x)
        narrow = settings.aux_dtype
        if narrow == x.dtype:
            narrow = None
        window = getattr(settings.activation_estimator, 'window', None)
        if codes is None or window is None or (has_replica and not narrow):
            return cls(x, None, x.shape, last)
        inside = window(x)
        codes = codes | (1 if inside is None else inside.view(torch.uint8))
        kept = x.to(narrow) if has_replica else None
        return cls(kept, pack_codes(codes, last), x.shape, last)

    def signs(self, settings: Settings, dtype: torch.dtype) -> Tensor:
        """Return what the binarized operator was applied to."""
        if settings.activation_estimator is None:
            return self.x.to(dtype)
        if self.bits is None:
            return binary_sign(self.x).to(dtype)
        return signs_of(self.codes.bitwise_and(2), dtype)

    def estimated(self, settings: Settings, grad: Tensor) -> Tensor:
        """Multiply a gradient at the signs by the estimator's derivative."""
        estimator = settings.activation_estimator
        if self.bits is None:
            return _times_derivative(estimator, self.x, grad)
        if getattr(estimator, 'is_identity', False):
            return grad
        inside = self.codes.bitwise_and(1).to(grad.dtype)
        if leak := getattr(estimator, 'leak', 0):
            inside.clamp_(min=leak)
        return grad.mul_(inside)

    @cached_property
    def codes(self) -> Tensor:
        """The bits, of each element in a byte."""
        return unpack_codes(self.bits, self.shape, self.channels_last)


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
        # Signs and masks are cheap to make again, from little.
        codes = _codes(x, settings)
        kept = _Kept.of(x, codes, aux_weight is not None, settings)
        ctx.save_for_backward(kept.x, kept.bits, z, scale, aux_weight)
        ctx.kept = replace(kept, x=None, bits=None)
        ctx.x_dtype = x.dtype
        ctx.settings = settings
        ctx.dtype = dtype
        ctx.bias_dtype = None if bias is None else bias.dtype
        return _forward(x, codes, z, scale, bias, settings, dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple:
        x, bits, z, scale, aux_weight = ctx.saved_tensors
        kept = replace(ctx.kept, x=x, bits=bits)
        need_x, need_z, need_scale, need_aux, need_bias = ctx.needs_input_grad[
            :5
        ]
        settings, dtype = ctx.settings, ctx.dtype
        operator, ags = settings.operator, settings.ags
        grad = MemoryFormats(grad.to(dtype))
        compensate = aux_weight is not None and ags.is_on

        with _no_autocast(z):
            if settings.on_clipped is not None and kept.shape.numel():
                ones = torch.ones(kept.shape, dtype=dtype, device=z.device)
                passed = kept.estimated(settings, ones)
                settings.on_clipped((passed == 0).float().mean())
            # lambda needs g_b even where x itself takes no gradient.
            need_g_b = need_x or (compensate and need_aux)
            g_b, grad_q, grad_bias = operator.adjoint(
                grad,
                kept.signs(settings, dtype),
                _quantized_weight(z, scale, dtype),
                settings.pad_value,
                (need_g_b, need_z or need_scale, need_bias),
            )
            dropped = None
            if g_b is not None:
                if compensate and ags.needs_dropped:
                    dropped = g_b.clone()
                g_b = kept.estimated(settings, g_b)
                if dropped is not None:
                    dropped -= g_b
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
                narrow = settings.aux_dtype or dtype
                if narrow != dtype:
                    grad = MemoryFormats(grad.given.to(narrow))
                g_a, grad_aux, _ = operator.adjoint(
                    grad,
                    x.to(narrow),
                    aux_weight.to(narrow),
                    0.0,
                    (True, need_aux, False),
                )
                factor = ags.scale(g_b, g_a, dropped)
                if need_x:
                    # In the norms' precision: a float16 lambda could
                    # overflow where lambda * g_a does not.
                    grad_x = g_b.to(factor.dtype).addcmul_(
                        g_a.to(factor.dtype), factor
                    )
                if grad_aux is not None:
                    grad_aux = grad_aux.to(factor.dtype) * factor
            elif aux_weight is not None and not compensate:
                ags.skip(grad.given)
                if need_aux:
                    # Zeros, not None: DDP waits for every parameter.
                    grad_aux = torch.zeros_like(aux_weight)

            return (
                grad_x.to(ctx.x_dtype) if need_x else None,
                grad_z.to(z.dtype) if need_z else None,
                grad_scale.to(scale.dtype) if need_scale else None,
                None if grad_aux is None else grad_aux.to(aux_weight.dtype),
                None if grad_bias is None else grad_bias.to(ctx.bias_dtype),
                None,
                None,
            )


def _codes(x: Tensor, settings: Settings) -> Tensor | None:
    if settings.activation_estimator is None:
        return None
    return sign_codes(x)


def _forward(
    x: Tensor,
    codes: Tensor | None,
    z: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    settings: Settings,
    dtype: torch.dtype,
) -> Tensor:
    operator = settings.operator
    if codes is None:
        signs = x.to(dtype)
        if settings.activation_estimator is not None:
            signs = binary_sign(signs)
    elif (
        scale is not None
        and isinstance(operator, ConvOperator)
        and operator.can_convolve_signs(x, z, scale, dtype)
    ):
        return operator.forward_signs(
            codes, z, scale, bias, settings.pad_value, dtype
        )
    else:
        signs = signs_of(codes, dtype)
    return operator.forward(
        signs,
        _quantized_weight(z, scale, dtype),
        None if bias is None else bias.to(dtype),
        settings.pad_value,
    )


def _quantized_weight(
    z: Tensor, scale: Tensor | None, dtype: torch.dtype
) -> Tensor:
    if scale is None:
        return z.to(dtype)
    return (scale.detach() * binary_sign(z)).to(dtype)
