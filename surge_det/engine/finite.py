"""Whether numbers are finite."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


def is_finite(value: Any) -> bool:
    """Whether a number, or all of a tensor, is neither NaN nor infinite.

    So is what is neither.
    """
    if isinstance(value, Tensor):
        return not value.is_floating_point() or bool(value.isfinite().all())
    return not isinstance(value, float) or math.isfinite(value)


def all_finite(values: Iterable[Any]) -> bool:
    """Whether all numbers and tensors are finite.

    One number is waited for. Sparse tensors, and what is no number, are
    passed over.
    """
    values = list(values)
    dense = [
        value
        for value in values
        if isinstance(value, Tensor)
        and value.is_floating_point()
        and not value.is_sparse
    ]
    if not all(is_finite(v) for v in values if isinstance(v, float)):
        return False
    if not dense:
        return True
    norms = torch.stack(torch._foreach_norm(dense))
    # The squares of large finite numbers are infinite.
    return bool(norms.isfinite().all()) or all(map(is_finite, dense))
