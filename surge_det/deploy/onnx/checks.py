"""Values that a 1-bit layer's kernel must give, for its check at load."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from surge_det.core.bits import unpack_signs
from surge_det.deploy.extra import require

from .epilogue import is_binary
from .graph import Graph, attributes

# Knuth's multiplier, for bits that look random.
_MULTIPLIER = 2654435761


def add_checks(graph: Graph) -> None:
    """Give each 1-bit convolution the attribute ``check``, in place."""
    helper = require('onnx.helper')
    for node in graph.nodes:
        if is_binary(node):
            check = helper.make_attribute('check', checksum(graph, node))
            node.attribute.append(check)


def checksum(graph: Graph, node: Any) -> int:
    """Return the checksum of a node's output for a small made-up input.

    Half of the input's values lie on the threshold, the others below it. The
    residual map is given whether or not the node has one, the one that is
    enlarged never. Computed here by
    torch's convolution and NumPy, not by the kernels.
    """
    at = attributes(node)
    given = [graph.constants.get(name) for name in node.input]
    given = (given + [None] * 11)[:11]
    _, bits, start, scale, bias, factor, offset, _, pre, slope, post = given
    rows, columns = (
        dilation * (kernel - 1) + 1 + stride
        for dilation, kernel, stride in zip(
            at['dilations'], at['kernel_shape'], at['strides']
        )
    )
    places = np.arange(rows * columns * len(start), dtype=np.uint64)
    below = (places + 1) * _MULTIPLIER % (1 << 32) >> 16 & 1
    threshold = np.resize(start, len(places))
    x = np.where(
        below, threshold - (np.abs(threshold) + np.float32(1)), threshold
    ).reshape(rows, columns, -1)
    channels, taps, _ = bits.shape
    inputs = len(start) // at['groups']
    signs = unpack_signs(
        torch.from_numpy(bits.reshape(channels * taps, -1)),
        (channels * taps, inputs),
    ).view(channels, *at['kernel_shape'], inputs)
    top, left, bottom, right = at['pads']
    padded = F.pad(
        torch.from_numpy((x >= start).astype(np.float32) * 2 - 1).permute(
            2, 0, 1
        ),
        (left, right, top, bottom),
        value=at['pad_value'],
    )
    sums: Tensor = F.conv2d(
        padded[None],
        signs.permute(0, 3, 1, 2).contiguous(),
        None,
        tuple(at['strides']),
        0,
        tuple(at['dilations']),
        at['groups'],
    )
    y = sums[0].permute(1, 2, 0).numpy() * scale
    residual = np.arange(y.size) % 7 - np.float32(3)
    y = y if bias is None else y + bias
    y = y if factor is None else y * factor
    y = y if offset is None else y + offset
    y = y + residual.astype(np.float32).reshape(y.shape)
    y = y if pre is None else y + pre
    y = y if slope is None else np.where(y > 0, y, slope * y)
    y = y if post is None else y + post
    # No negative zero.
    found = (y.ravel() + np.float32(0)).view(np.uint32).astype(np.uint64) + 1
    weights = 2 * np.arange(y.size, dtype=np.uint64) + 1
    return int((found * weights).sum(dtype=np.uint64).astype(np.int64))
