"""ReSTE's two indicators: how wrong an estimator is, how calm its gradients.

Source: ReSTE (Wu et al., ICCV 2023, arXiv 2308.06689), where an estimator
closer to sign has a smaller error and less stable gradients.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from .checks import refuse
from .estimators import Estimator
from .sign import binary_sign


def has_surrogate(estimator: Any) -> bool:
    """Whether an estimator says what function it takes sign for."""
    method = getattr(type(estimator), 'surrogate', None)
    return method is not None and method is not Estimator.surrogate


@torch.no_grad()
def estimating_error(estimator: Any, z: Tensor) -> Tensor:
    r"""Distance between sign and what the estimator takes it for.

    .. math:: \sqrt{\mathrm{mean}\,(\mathrm{sign}(z) - f(z))^2}

    with the estimator's ``surrogate`` as :math:`f`: the L2 distance per
    element, so that layers of different size compare.

    Args:
        estimator: One with a ``surrogate(x)``.
        z: What is binarized, any shape.

    Returns:
        0-dim tensor, float64 for float64 ``z`` and else float32.

    Raises:
        ValueError: If ``estimator`` has no ``surrogate``.
    """
    if not has_surrogate(estimator):
        refuse('estimator', estimator, 'it has no surrogate(x)')
    if z.dtype != torch.float64:
        z = z.float()
    difference = binary_sign(z) - estimator.surrogate(z)
    # Float32 has no squares of large numbers.
    return difference.double().square().mean().sqrt().to(z.dtype)


@torch.no_grad()
def gradient_variance(parameters: Iterable[Tensor]) -> Tensor:
    """Variance of the gradients of all parameters in an update.

    The paper's gradient stability; large is unstable.

    Args:
        parameters: Those without a gradient are left out.

    Returns:
        0-dim float64 tensor: over all elements of all gradients together.

    Raises:
        ValueError: If no parameter has a gradient.
    """
    grads = [p.grad for p in parameters if p.grad is not None]
    if not grads:
        raise ValueError('parameters: none of them has a gradient')
    device = grads[0].device
    moments = [
        # Float32 has no squares of large gradients.
        torch.stack(torch.var_mean(g.double(), correction=0))
        for g in grads
    ]
    variances, means = torch.stack(
        [m.to(device, torch.float64) for m in moments], 1
    )
    shares = means.new_tensor([g.numel() for g in grads])
    shares /= shares.sum()
    mean = (shares * means).sum()
    return (shares * (variances + (means - mean) ** 2)).sum()
