"""What a layer of ours becomes: nodes, weights and thresholds."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from surge_det.core.bits import pack_signs
from surge_det.core.layers import SURGELayer

from .graph import Graph


def stored_as_bits(layer: nn.Module) -> bool:
    """Whether a layer is computed as a 1-bit one; others as real ones."""
    return (
        isinstance(layer, SURGELayer)
        and layer.weight_bits == layer.activation_bits == 1
    )


def operation(layer: nn.Module) -> str:
    """Return what computes a layer."""
    if stored_as_bits(layer):
        return 'BinaryConv'
    if isinstance(layer, nn.Linear):
        name = 'MatMul'
    elif isinstance(layer, nn.Conv2d):
        name = 'Conv'
    else:
        return type(layer).__name__
    signs = isinstance(layer, SURGELayer) and layer.activation_bits == 1
    return name + ' on signs' * signs


def binary(
    graph: Graph,
    layer: Any,
    name: str,
    x: str,
    columns: np.ndarray | None = None,
) -> str:
    """Add a 1-bit layer; a linear one as a convolution of one place.

    Args:
        graph: Gets the nodes.
        layer: :func:`stored_as_bits`.
        name: Of the layer.
        x: (N, H, W, C).
        columns: Which input channels stand where; ``None``: all in order.

    Returns:
        The output's name, (N, H_out, W_out, O).
    """
    _, scale, signs = layer.binarized_weight()
    signs = signs.reshape(*signs.shape[:2], *(signs.shape[2:] or (1, 1)))
    start = torch.zeros(layer.weight.shape[1] * _groups(layer))
    if layer.shift is not None:
        start = -layer.shift.detach()
    if columns is not None:
        order = torch.from_numpy(columns)
        signs, start = signs[:, order], start[order]
    channels, _, rows, width = signs.shape
    # A byte holds channels of one place.
    bits = pack_signs(signs.permute(0, 2, 3, 1).flatten(0, 2))
    values = {
        'bits': bits.view(channels, rows * width, -1),
        'start': start,
        'scale': scale.flatten(),
    }
    if layer.bias is not None:
        values['bias'] = layer.bias.detach()
    left, right, top, bottom = getattr(layer, 'pads', (0, 0, 0, 0))
    return graph.ours(
        'BinaryConv',
        [x]
        + [
            graph.constant(v.numpy(), f'{name}/{k}') for k, v in values.items()
        ],
        name,
        kernel_shape=[rows, width],
        strides=list(getattr(layer, 'stride', (1, 1))),
        pads=[top, left, bottom, right],
        dilations=list(getattr(layer, 'dilation', (1, 1))),
        groups=_groups(layer),
        pad_value=float(getattr(layer, 'pad_value', 0)),
    )


def _groups(layer: nn.Module) -> int:
    return getattr(layer, 'groups', 1)


def real_linear(graph: Graph, layer: Any, name: str, x: str) -> str:
    """Add a linear layer with weights or activations that are real.

    Args:
        graph: Gets the nodes.
        layer: Binarizes the other ones.
        name: Of the layer.
        x: (..., C).

    Returns:
        The output's name, (..., O).
    """
    x = _real_input(graph, layer, name, x, -1)
    weight = graph.constant(_real_weight(layer).T, f'{name}/weight')
    y = graph.add('MatMul', [x, weight], name)
    if layer.bias is None:
        return y
    bias = graph.constant(layer.bias.detach().numpy(), f'{name}/bias')
    return graph.add('Add', [y, bias], f'{name}/biased')


def real_conv(graph: Graph, layer: Any, name: str, x: str) -> str:
    """Add a convolution, as :func:`real_linear`.

    Args:
        graph: Gets the nodes.
        layer: Binarizes weights or activations.
        name: Of the layer.
        x: (N, C, H, W).

    Returns:
        The output's name, (N, O, H_out, W_out).
    """
    x = _real_input(graph, layer, name, x, -1, 1, 1)
    left, right, top, bottom = layer.pads
    if layer.pad_value:
        pads = graph.ints(0, 0, top, left, 0, 0, bottom, right)
        x = graph.add(
            'Pad', [x, pads, _number(graph, layer.pad_value)], f'{name}/padded'
        )
        left = right = top = bottom = 0
    inputs = [x, graph.constant(_real_weight(layer), f'{name}/weight')]
    if layer.bias is not None:
        bias = layer.bias.detach().numpy()
        inputs.append(graph.constant(bias, f'{name}/bias'))
    return graph.add(
        'Conv',
        inputs,
        name,
        kernel_shape=list(layer.kernel_size),
        strides=list(layer.stride),
        pads=[top, left, bottom, right],
        dilations=list(layer.dilation),
        group=layer.groups,
    )


def _real_weight(layer: Any) -> np.ndarray:
    """Return a layer's weights as torch multiplies them."""
    if layer.weight_bits == 32:
        return layer.weight.detach().numpy()
    _, scale, signs = layer.binarized_weight()
    return (signs * scale).numpy()


def _real_input(
    graph: Graph, layer: Any, name: str, x: str, *shape: int
) -> str:
    """Add the shift, in a shape, and take the sign as a real number."""
    if layer.shift is not None:
        shift = layer.shift.detach().numpy().reshape(shape)
        shift = graph.constant(shift, f'{name}/shift')
        x = graph.add('Add', [x, shift], f'{name}/shifted')
    if layer.activation_bits == 32:
        return x
    zero, one, minus = (_number(graph, value) for value in (0, 1, -1))
    positive = graph.add('GreaterOrEqual', [x, zero], f'{name}/positive')
    return graph.add('Where', [positive, one, minus], f'{name}/sign')


def _number(graph: Graph, value: float) -> str:
    return graph.constant(np.float32(value), f'number_{value:g}')
