"""The one sign of the project."""

import torch
from torch import Tensor

# A sign in a byte: 0 for -1 and 2 for +1, so that zero has a code too.
ZERO_POINT = 1


def sign_codes(x: Tensor) -> Tensor:
    """Return uint8 0 where the binary sign is -1 and 2 where it is +1."""
    return (x.detach() >= 0).view(torch.uint8).mul_(2)


def signs_of(codes: Tensor, dtype: torch.dtype) -> Tensor:
    """Turn codes into -1 and +1."""
    return codes.to(dtype).sub_(ZERO_POINT)


def is_plain(x: Tensor) -> bool:
    """Whether ``x`` can be seen as bytes: neither traced nor batched.

    Under ``torch.jit.trace`` and ``torch.vmap`` a tensor stands for something
    else than its memory.
    """
    functorch = torch._C._functorch
    return not (
        torch.jit.is_tracing()
        or functorch.is_functorch_wrapped_tensor(x)
        or functorch.is_legacy_batchedtensor(x)
    )


def binary_sign(x: Tensor) -> Tensor:
    """Binarize to -1 and +1, with ``sign(0) = +1``.

    ``torch.sign`` maps 0 to 0 and so yields ternary values; nothing in this
    project uses it to binarize.

    Args:
        x: Floating-point tensor of any shape. ``-0.0`` counts as 0; NaN
            becomes -1.

    Returns:
        Tensor of the same shape, dtype and memory format with values -1, +1.
        It carries no gradient: gradients come from an estimator.
    """
    if is_plain(x):
        # By way of bytes, which are a quarter of the memory.
        return signs_of(sign_codes(x), x.dtype)
    return (x.detach() >= 0).to(x.dtype).mul_(2).sub_(1)
