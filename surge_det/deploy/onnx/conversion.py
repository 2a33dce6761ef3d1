"""A network of torch as nodes of a graph."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from surge_det.deploy.extra import require
from surge_det.deploy.networks import TO_LAST

from .epilogue import fuse
from .graph import Graph
from .layout import Rewriter
from .trace import trace


def add_network(
    graph: Graph,
    network: nn.Module,
    example: Tensor,
    data: str,
    channels_last: bool = False,
    sizes_vary: bool = True,
) -> list[str]:
    """Add what computes a network.

    Args:
        graph: Gets the nodes.
        network: As :func:`.trace`'s.
        example: An input (N, C, ...).
        data: Name of the input in the graph.
        channels_last: Whether that is (N, H, W, C).
        sizes_vary: As :func:`.trace`'s.

    Returns:
        Names of the outputs; maps are (N, H, W, C).
    """
    traced, modules = trace(network, example, sizes_vary)
    outputs = Rewriter(traced, modules, graph, data, channels_last).run()
    fuse(graph, outputs)
    return outputs


def convert(
    network: nn.Module,
    example: Tensor,
    channels_last: bool = False,
    sizes_vary: bool = True,
) -> Any:
    """Convert a network to a model of its own.

    Args:
        network: As :func:`.trace`'s.
        example: An input (N, C, H, W).
        channels_last: Whether the model takes (N, H, W, C).
        sizes_vary: As :func:`.trace`'s.

    Returns:
        An ``onnx.ModelProto`` with the input ``data``; its outputs, maps as
        (N, H, W, C), are in the network's order.
    """
    float32 = require('onnx').TensorProto.FLOAT
    graph = Graph()
    names = add_network(
        graph,
        network,
        example,
        graph.unique('data'),
        channels_last,
        sizes_vary,
    )
    # What is put out twice, or is the input itself, needs another name.
    found = [
        graph.add('Identity', [name], f'{name}/again')
        if name in ('data', *names[:i])
        else name
        for i, name in enumerate(names)
    ]
    size: list[Any] = list(example.shape)
    for axis in (2, 3) if sizes_vary else (0,):
        size[axis] = f'size{axis}'
    if channels_last:
        size = [size[axis] for axis in TO_LAST]
    return graph.model(
        {'data': (float32, size)}, dict.fromkeys(found, float32)
    )
