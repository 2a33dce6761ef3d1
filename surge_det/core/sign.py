"""The one sign of the project."""

from torch import Tensor


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
    return (x.detach() >= 0).to(x.dtype).mul_(2).sub_(1)
