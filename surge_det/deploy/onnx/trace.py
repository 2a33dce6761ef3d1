"""Networks of torch as ONNX, with one node for each layer of ours."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from surge_det.core.layers import SURGEConv2d, SURGELayer
from surge_det.deploy.extra import require
from surge_det.deploy.networks import PART, unchanged
from surge_det.models.preflight import evaluating

from .graph import DOMAIN, OPSET

# The operator that stands for a module in a traced network.
MODULE = 'Module'


def is_real(layer: nn.Module) -> bool:
    """Whether a layer that could binarize computes what its twin does."""
    bits = layer.weight_bits, layer.activation_bits
    return bits == (32, 32) and not getattr(layer, 'pad_value', 0)


def trace(
    network: nn.Module, example: Tensor, sizes_vary: bool = True
) -> tuple[Any, dict[str, nn.Module]]:
    """Trace a network.

    A layer that binarizes becomes one node of type ``Module``, with its name
    and the number of dimensions of its input as attributes. So do norms of a
    network that has such layers: its real convolutions must not take them
    up, since other rounding flips signs. In a network that has none they do.

    Args:
        network: Takes one tensor; returns a tensor or a tuple of them.
            float32, on the CPU; what it does in eval mode is traced. It is
            left as it is.
        example: An input (N, C, ...).
        sizes_vary: Whether H and W may differ from the example's; otherwise
            N may.

    Returns:
        An ``onnx.ModelProto``, and the modules by the names in it.
    """
    layers = {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, SURGELayer)
    }
    modules = {k: v for k, v in layers.items() if not is_real(v)}
    real = [layer for layer in layers.values() if is_real(layer)]
    if modules:
        modules |= {
            name: module
            for name, module in network.named_modules()
            if isinstance(module, _BatchNorm) and module.track_running_stats
        }
    axes = {2: 'rows', 3: 'columns'} if sizes_vary else {0: 'regions'}
    file = io.BytesIO()
    with (
        torch.no_grad(),
        warnings.catch_warnings(),
        evaluating(network),
        unchanged([*modules.values(), *real]),
    ):
        # What the tracer says of Python numbers: the network is compared at
        # another size.
        warnings.simplefilter('ignore')
        for name, module in modules.items():
            run = partial(type(module).forward, module)
            module.forward = partial(_as_one_node, module, name, run)
        for layer in real:
            layer.forward = partial(_as_float, layer)
        torch.onnx.export(
            network,
            (example,),
            file,
            dynamo=False,
            input_names=['data'],
            dynamic_axes={'data': axes},
            opset_version=OPSET,
            # Otherwise it would trace the layer too.
            autograd_inlining=False,
        )
    traced = require('onnx').load_from_string(file.getvalue())
    return traced, {k.removeprefix(PART): v for k, v in modules.items()}


def _as_one_node(
    module: nn.Module, name: str, run: Callable[[Tensor], Tensor], x: Tensor
) -> Tensor:
    if isinstance(module, _BatchNorm) and x.dim() != 4:
        return run(x)
    if isinstance(module, SURGEConv2d) and x.dim() == 3:
        return _Node.apply(x.unsqueeze(0), run, name).squeeze(0)
    return _Node.apply(x, run, name)


def _as_float(layer: Any, x: Tensor) -> Tensor:
    return layer.float_class.forward(layer, layer.shifted(x))


class _Node(torch.autograd.Function):
    """Runs a module, and is one node where it is traced."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, run: Callable[[Tensor], Tensor], name: str
    ) -> Tensor:
        return run(x)

    @staticmethod
    def symbolic(
        g: Any, x: Any, run: Callable[[Tensor], Tensor], name: str
    ) -> Any:
        y = g.op(
            f'{DOMAIN}::{MODULE}',
            x,
            name_s=name.removeprefix(PART),
            rank_i=x.type().dim(),
        )
        module = run.args[0]
        sizes = x.type().sizes() or [None] * x.type().dim()
        channels = getattr(module, 'out_channels', None) or getattr(
            module, 'out_features', None
        )
        if channels:
            axis = 1 if isinstance(module, nn.Conv2d) else -1
            sizes = [None] * len(sizes)
            sizes[axis] = channels
        y.setType(x.type().with_sizes(sizes))
        return y
