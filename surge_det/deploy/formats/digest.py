"""The digest of what a file holds: its weights and all that is said of them.

It tells damage, and changes by hand, of a file that was whole. Whoever writes
a file for somebody else can write its digest too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

DAMAGED = (
    'damaged or changed, it does not hold what was written: copy it, or '
    'export it, again'
)

# A list that holds another one twice, and so on, is longer than its file.
_CHARACTERS = 2_000_000


def digest(tensors: Mapping[str, Tensor], entries: Mapping[str, Any]) -> str:
    """Return the SHA-256 of tensors, in the order of their names, and more.

    Args:
        tensors: Names, types, shapes and values count.
        entries: What JSON can hold.

    Raises:
        TypeError: If JSON cannot hold the entries.
        ValueError: If they are too long, or if tensors share values, which
            may be many more than a file holds.
    """
    found, left = hashlib.sha256(), _CHARACTERS
    for text in json.JSONEncoder(sort_keys=True).iterencode(entries):
        left -= len(text)
        if left < 0:
            raise ValueError(f'more than {_CHARACTERS:,} characters')
        found.update(text.encode())
    values = {name: each.detach().cpu() for name, each in tensors.items()}
    storages = [each.untyped_storage() for each in values.values()]
    held = sum({each.data_ptr(): each.nbytes() for each in storages}.values())
    if sum(each.nbytes for each in values.values()) > held:
        raise ValueError('tensors that share their values')
    for name in sorted(values):
        value = values[name].contiguous()
        found.update(f'{name} {value.dtype} {tuple(value.shape)}'.encode())
        found.update(value.reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()
