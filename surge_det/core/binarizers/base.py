"""What every weight binarizer has, and how one is found by name."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .. import checks
from ..registry import Registry

BINARIZERS = Registry(
    'a binarizer', ['setup', 'prepare', 'scale'], "dict(type='IRNet')"
)
register_binarizer = BINARIZERS.register


def build_binarizer(spec: Any, argument: str = 'weight_binarizer') -> Any:
    """Turn a binarizer or its config into a binarizer.

    Args:
        spec: As :meth:`Registry.build` takes it; an ``nn.Module``.
        argument: Name to use in error messages.

    Raises:
        ValueError: If ``spec`` is not allowed.
    """
    built = BINARIZERS.build(spec, argument)
    if not isinstance(built, nn.Module):
        checks.refuse(argument, built, 'a binarizer is an nn.Module')
    return built


class Binarizer(nn.Module):
    """How latent weights become ``Q = scale * sign(z)``.

    A layer owns one as ``weight_binarizer``. It takes ``z`` from
    :meth:`prepare` and the scale from :meth:`scale`; in the backward pass

    - ``dL/dz = scale * h_w(z) * dL/dQ``, with the layer's weight estimator
      ``h_w``, and from there by autograd to the latent weights;
    - ``dL/dscale`` = sum of ``dL/dQ * sign(z)`` over what the scale is
      shared by, where the scale takes a gradient.

    The output of a layer must not depend on training progress or mode. To
    add one, subclass this in a file beside ``scaled_sign.py`` and decorate
    the class with :func:`register_binarizer`; one that changes over a run is
    a :class:`~surge_det.core.progress.Scheduled` too.
    """

    def setup(self, weight: Tensor) -> None:
        """Make parameters for a layer; called once it has its weights.

        Args:
            weight: The layer's, (C_out, ...); gives shape, type and device.
        """

    def prepare(self, weight: Tensor) -> Tensor:
        """Return the pre-quantized weights ``z``, differentiable.

        Args:
            weight: Latent weights (C_out, ...).

        Returns:
            The same shape.
        """
        return weight

    def scale(self, z: Tensor) -> Tensor:
        """Return the scale of each output channel.

        Args:
            z: What :meth:`prepare` returned.

        Returns:
            (C_out, 1, ...), with as many dimensions as ``z``; detached from
            ``z``, or a function of learned parameters.
        """
        raise NotImplementedError


def centred(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``weight`` minus its mean, and its variance, per channel.

    Args:
        weight: (C_out, ...).

    Returns:
        The centred weights, and (C_out, 1, ...) their variance (unbiased, as
        the published codes have it); both float32 for narrower weights.
    """
    if weight.dtype in (torch.float16, torch.bfloat16):
        weight = weight.float()
    dims = tuple(range(1, weight.dim()))
    # A channel of one weight has no unbiased variance.
    correction = min(1, weight[0].numel() - 1)
    variance, mean = torch.var_mean(
        weight, dims, correction=correction, keepdim=True
    )
    return weight - mean, variance
