"""Signs packed into bytes, one or two bits for each element."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

# Four bytes are handled as one word: byte i's two bits go to places 2i of the
# lowest byte, by a shift of 8i - 2i.
_SHIFTS = (6, 12, 18)


def pack_codes(codes: Tensor, channels_last: bool = False) -> Tensor:
    """Pack values from 0 to 3.

    Args:
        codes: uint8, any shape.
        channels_last: Whether it is in that format.

    Returns:
        (ceil(numel / 4),) uint8, elements in the order of memory.
    """
    if channels_last:
        codes = codes.permute(0, 2, 3, 1)
    flat = codes.reshape(-1)
    if flat.numel() % 4:
        flat = F.pad(flat, (0, -flat.numel() % 4))
    words = flat.view(torch.int32)
    packed = words.clone()
    for shift in _SHIFTS:
        packed |= words >> shift
    return packed.to(torch.uint8)


def unpack_codes(
    packed: Tensor, shape: torch.Size, channels_last: bool = False
) -> Tensor:
    """Undo :func:`pack_codes`; ``shape`` is that of the codes."""
    packed = packed.to(torch.int32)
    words = packed & 0b11
    for i, shift in enumerate(_SHIFTS, 1):
        words |= (packed & (0b11 << 2 * i)) << shift
    flat = words.view(torch.uint8)[: math.prod(shape)]
    if not channels_last:
        return flat.view(shape)
    n, c, h, w = shape
    return flat.view(n, h, w, c).permute(0, 3, 1, 2)


def pack_signs(weight: Tensor) -> Tensor:
    """Pack the signs of a tensor, eight to a byte.

    The first value is the lowest bit (little-endian order), 1 for +1
    and 0 for -1, with ``sign(0) = +1``. Each output channel starts on a byte
    of its own; the bits that fill up its last byte are 0.

    Args:
        weight: (C_out, ...), any floating-point type; NaN counts as -1.

    Returns:
        uint8 (C_out, ceil(n / 8)), with n values per channel.

    Raises:
        ValueError: If ``weight`` has no dimension.
    """
    if not weight.dim():
        raise ValueError(
            'weight has no dimension: (C_out, ...) is allowed, got a number'
        )
    positive = (weight.detach() >= 0).reshape(len(weight), -1)
    positive = F.pad(positive, (0, -positive.shape[1] % 8))
    groups = positive.view(len(positive), positive.shape[1] // 8, 8)
    places = torch.arange(8, dtype=torch.uint8, device=weight.device)
    return (groups.to(torch.uint8) << places).sum(-1, dtype=torch.uint8)


def unpack_signs(
    bits: Tensor,
    shape: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Undo :func:`pack_signs`.

    Args:
        bits: uint8 (C_out, ceil(n / 8)).
        shape: (C_out, ...) of the result, n values per channel.
        dtype: Of the result.

    Returns:
        -1 and +1 in the given shape.

    Raises:
        ValueError: If ``bits`` do not fit ``shape``.
    """
    channels, values = shape[0], torch.Size(shape[1:]).numel()
    expected = (channels, -(-values // 8))
    if bits.dtype != torch.uint8 or tuple(bits.shape) != expected:
        raise ValueError(
            f'bits={bits.dtype} {tuple(bits.shape)} is not allowed: '
            f'torch.uint8 {expected} for shape {tuple(shape)}'
        )
    # Eight values at a time from a table: several times faster than shifts.
    places = torch.arange(8, device=bits.device)
    table = torch.arange(256, device=bits.device).view(-1, 1) >> places & 1
    table = table.to(dtype) * 2 - 1
    signs = F.embedding(bits.int(), table).flatten(1)
    return signs[:, :values].reshape(shape)
