"""Convolution of signs with signs in 8 bits: exact, and faster than floats."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from ..sign import ZERO_POINT, sign_codes, signs_of

_OUTPUTS = (torch.float32, torch.bfloat16)

logger = logging.getLogger(__name__)
_in_floats = ContextVar('_in_floats', default=False)


@contextmanager
def signs_as_floats() -> Iterator[None]:
    """Let 1-bit layers convolve signs as floats, by ``F.conv2d``.

    For what looks at the operators of a forward pass, as counters do.
    """
    token = _in_floats.set(True)
    try:
        yield
    finally:
        _in_floats.reset(token)


def pad_codes(codes: Tensor, padding: Sequence[int], value: float) -> Tensor:
    """Pad codes by the sign ``value``: -1, +1, or 0, which has a code too."""
    return F.pad(codes, list(padding), value=int(value) + ZERO_POINT)


def is_supported(x: Tensor, scale: Tensor, dtype: torch.dtype) -> bool:
    """Whether :func:`sign_conv2d` can take these.

    Args:
        x: What the signs are of.
        scale: What the signs of the weights are multiplied by.
        dtype: Type of the output.
    """
    return (
        not _in_floats.get()
        and x.device.type == 'cpu'
        # A subclass, such as a fake tensor, has no memory to look at.
        and type(x) is Tensor
        and x.dtype != torch.float64
        and dtype in _OUTPUTS
        and scale.dim() == 4
        and scale.shape[1:] == (1, 1, 1)
        and _works()
    )


def sign_conv2d(
    codes: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    dtype: torch.dtype,
) -> Tensor:
    """Convolve signs with the scaled signs of ``weight``.

    Products and sums are integers; one rounding comes with the scale and one
    with the bias. (A float convolution with scaled signs rounds every sum.)
    torch's ``FlopCounterMode`` does not know the operator: to count, use
    :func:`signs_as_floats`.

    Args:
        codes: (N, C_in, H, W) of :func:`sign_codes`; channels_last is fastest.
        weight: (C_out, C_in / groups, kh, kw).
        scale: (C_out or 1, 1, 1, 1).
        bias: (C_out,) or ``None``.
        stride: Rows, columns, like ``padding`` (of zeros) and ``dilation``.
        padding: As ``stride``.
        dilation: As ``stride``.
        groups: Number of groups.
        dtype: Of the output, float32 or bfloat16.

    Returns:
        (N, C_out, H_out, W_out) in channels_last.
    """
    out_channels = weight.shape[0]
    scales = scale.detach().float().reshape(-1)
    scales = scales.expand(out_channels).contiguous()
    geometry = list(stride), list(padding), list(dilation), groups
    packed = torch.ops.onednn.qconv_prepack(
        sign_codes(weight).view(torch.int8).sub_(ZERO_POINT),
        scales,
        1.0,
        ZERO_POINT,
        *geometry,
        list(codes.shape),
    )
    return torch.ops.onednn.qconv2d_pointwise(
        codes,
        1.0,
        ZERO_POINT,
        packed,
        scales,
        torch.zeros(out_channels, dtype=torch.int64, device=codes.device),
        None if bias is None else bias.detach().float(),
        *geometry,
        1.0,
        0,
        dtype,
        'none',
        [],
        '',
    )


@cache
def _works() -> bool:
    """Whether this build of torch has the operator and computes it right.

    It belongs to torch's quantization and not to its documented functions,
    so its result is compared once in every process.
    """
    # Not the present defaults.
    kwargs = dict(
        generator=torch.Generator().manual_seed(0),
        dtype=torch.float32,
        device='cpu',
    )
    x = torch.randn(2, 19, 9, 7, **kwargs)
    x[0, :, 0, 0] = 0
    weight = torch.randn(35, 19, 3, 3, **kwargs)
    scale = torch.rand(35, 1, 1, 1, **kwargs) + 0.5
    geometry = (2, 1), (1, 1), (1, 1), 1
    with torch.no_grad():
        expected = scale.view(-1, 1, 1) * F.conv2d(
            signs_of(sign_codes(x), x.dtype),
            signs_of(sign_codes(weight), x.dtype),
            None,
            *geometry,
        )
        try:
            out = sign_conv2d(
                sign_codes(x), weight, scale, None, *geometry, torch.float32
            )
        except (AttributeError, RuntimeError, TypeError) as error:
            logger.info('Signs are convolved as floats: %s', error)
            return False
    if not torch.equal(out, expected):
        logger.warning(
            "Signs are convolved as floats: torch's 8-bit convolution gives "
            'other results here'
        )
        return False
    return True
