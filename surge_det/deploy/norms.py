"""BatchNorm in eval mode as one product and one sum."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

_SAMPLES = 64


@torch.no_grad()
def folded(norm: _BatchNorm) -> tuple[Tensor, Tensor] | None:
    """Return scale and offset that compute the same as a norm in eval mode.

    torch's CPU kernel computes ``x * alpha + beta``; a norm with mean 0,
    variance 1, eps 0, weight ``alpha`` and bias ``beta`` gives the same
    bits there. That is checked here on random numbers.

    Args:
        norm: On the CPU; not changed.

    Returns:
        ``alpha`` and ``beta``, (C,); ``None`` where the norm has no
        parameters or statistics of its own, or where the result would not be
        the same.
    """
    mean, variance = norm.running_mean, norm.running_var
    weight, bias = norm.weight, norm.bias
    if any(value is None for value in (mean, variance, weight, bias)):
        return None
    zeros, ones = torch.zeros_like(mean), torch.ones_like(mean)
    # The kernel itself says what it makes of the five: one multiplication
    # with 1, one sum with 0.
    x = zeros.view(1, -1, 1, 1)
    beta = F.batch_norm(x, mean, variance, weight, bias, eps=norm.eps)
    alpha = F.batch_norm(x + 1, zeros, variance, weight, zeros, eps=norm.eps)
    alpha, beta = alpha.flatten(), beta.flatten()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, len(mean), _SAMPLES, 1, generator=generator)
    # Where the norm's inputs are, and well beyond.
    x = mean.view(-1, 1, 1) + variance.view(-1, 1, 1).sqrt() * x.to(mean) * 8
    for layout in (torch.contiguous_format, torch.channels_last):
        x = x.contiguous(memory_format=layout)
        expected = F.batch_norm(x, mean, variance, weight, bias, eps=norm.eps)
        found = F.batch_norm(x, zeros, ones, alpha, beta, eps=0.0)
        if not torch.equal(found, expected):
            return None
    return alpha, beta


@torch.no_grad()
def factor_and_offset(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Return what a norm in eval mode multiplies by, and what it adds.

    In the order of torch's kernel; that may fuse multiplications with
    additions, as the processor has it.

    Args:
        norm: With statistics; not changed.

    Returns:
        Two tensors (C,).
    """
    factor = 1 / (norm.running_var + norm.eps).sqrt()
    if norm.weight is not None:
        factor = factor * norm.weight
    offset = -norm.running_mean * factor
    if norm.bias is not None:
        offset = norm.bias + offset
    return factor, offset


@torch.no_grad()
def fold(model: nn.Module) -> list[str]:
    """Fold the norms of a model, in place, where that is exact.

    Returns:
        Their names. They have mean 0, variance 1 and eps 0 now.
    """
    names = []
    for name, norm in model.named_modules():
        if not isinstance(norm, _BatchNorm):
            continue
        values = folded(norm)
        if values is None:
            continue
        norm.weight.copy_(values[0])
        norm.bias.copy_(values[1])
        set_identity(norm)
        names.append(name)
    return names


@torch.no_grad()
def set_identity(norm: _BatchNorm) -> None:
    """Let a norm's statistics do nothing: mean 0, variance 1, eps 0."""
    norm.running_mean.zero_()
    norm.running_var.fill_(1)
    norm.eps = 0.0
