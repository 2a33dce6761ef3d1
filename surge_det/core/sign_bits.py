"""Two bits for each element of a tensor, four elements to a byte."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

# Four bytes are handled as one word: byte i's two bits go to places 2i of the
# lowest byte, by a shift of 8i - 2i.
_SHIFTS = (6, 12, 18)


def pack(codes: Tensor, channels_last: bool = False) -> Tensor:
    """Pack values from 0 to 3.

    Args:
        codes: uint8, any shape.
        channels_last: Whether it lies in that format.

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


def unpack(
    packed: Tensor, shape: torch.Size, channels_last: bool = False
) -> Tensor:
    """Undo :func:`pack`.

    Args:
        packed: What it returned.
        shape: Of the codes.
        channels_last: As given there.
    """
    packed = packed.to(torch.int32)
    words = packed & 0b11
    for i, shift in enumerate(_SHIFTS, 1):
        words |= (packed & (0b11 << 2 * i)) << shift
    flat = words.view(torch.uint8)[: math.prod(shape)]
    if not channels_last:
        return flat.view(shape)
    n, c, h, w = shape
    return flat.view(n, h, w, c).permute(0, 3, 1, 2)
