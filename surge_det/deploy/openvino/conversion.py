"""Networks of torch as OpenVINO models, 1-bit layers as BinaryConvolution.

OpenVINO's own frontend traces and converts a network; :mod:`.lowering` says
what becomes of 1-bit layers and of norms, :mod:`.passes` what is rearranged
after that.
"""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from surge_det.deploy import networks
from surge_det.deploy.extra import require
from surge_det.deploy.networks import PART, unchanged
from surge_det.models.preflight import evaluating

from .lowering import Lowering, lowering_of, stored_as_bits
from .passes import fold_shifts, separate_constants

# Of the layers that become a ``BinaryConvolution``.
exact_arithmetic = partial(
    networks.exact_arithmetic, stored_as_bits=stored_as_bits
)


def convert(
    network: nn.Module,
    example: Tensor,
    sizes_vary: bool = True,
    fold_norms: bool = False,
) -> Any:
    """Convert a network to an ``openvino.Model``.

    Args:
        network: Takes one tensor; returns a tensor or a tuple of tensors.
            float32, on the CPU; what it does in eval mode is converted. It is
            left as it is. It may have 1-bit layers or none.
        example: An input (N, C, ...).
        sizes_vary: Whether other dimensions than N may differ from the
            example's; C may not.
        fold_norms: Whether OpenVINO may fold norms into real convolutions: a
            little faster, and farther from torch's values.

    Returns:
        The model; dimensions that vary are dynamic. Where it has a
        ``BinaryConvolution``, it must be given a static shape (``reshape``)
        before OpenVINO's CPU plugin compiles it.

    Raises:
        ImportError: If openvino is not installed.
        Exception: OpenVINO's own, or tracing's, if an operation cannot be
            converted.
    """
    ov = require('openvino')
    lowerings = []
    for name, module in network.named_modules():
        if isinstance(module, _BatchNorm) and (
            fold_norms or not module.track_running_stats
        ):
            continue
        # Names are those in the detector.
        lowering = lowering_of(module, name.removeprefix(PART))
        if lowering is not None:
            lowerings.append(lowering)
    extensions = []
    for number, lowering in enumerate(lowerings):
        extensions += _extensions(lowering, f'SURGE{number}')
    with (
        torch.no_grad(),
        warnings.catch_warnings(),
        evaluating(network),
        unchanged([lowering.module for lowering in lowerings]),
    ):
        # What the tracer says of Python numbers: the converted network is
        # compared at another size.
        warnings.simplefilter('ignore')
        model = ov.convert_model(
            network,
            example_input=example,
            extension=extensions or None,
            # Training that goes on would change the converted network.
            share_weights=False,
        )
    sizes = list(example.shape[2:])
    model.reshape(
        [-1, example.shape[1], *([-1] * len(sizes) if sizes_vary else sizes)]
    )
    fold_shifts(model)
    separate_constants(model)
    return model


def _extensions(lowering: Lowering, operation: str) -> list[Any]:
    """Let a module be traced as one operation, and that be lowered."""
    frontend = require('openvino.frontend.pytorch')
    return [
        frontend.ModuleExtension(
            lowering.module,
            operation,
            evaluate=lambda _, x: x.new_zeros(lowering.output_shape(x)),
            convert=lambda _, target, x: lowering.call(target, x),
        ),
        frontend.ConversionExtension(
            operation,
            lambda context: lowering.lower(context.get_input(0)).outputs(),
        ),
    ]
