"""What follows a 1-bit convolution becomes its end.

A ``BinaryConv`` computes, after its sum of signs and each step rounded::

    y = sum * scale
    y = y + bias
    y = y * factor
    y = y + offset
    y = y + residual
    y = y + pre
    y = y if y > 0 else slope * y
    y = y + post
    y = y + added, enlarged to the size of y

Every step but the first is an optional input. An operation is taken in if
its place is after those that are taken, and nobody else reads what it reads.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .graph import DOMAIN, Graph, attributes

BINARY = 'BinaryConv'
_START, _SCALE, _BIAS, _FACTOR, _OFFSET, _RESIDUAL = 2, 3, 4, 5, 6, 7
_PRE, _SLOPE, _POST, _ADDED = 8, 9, 10, 11
# Operations on the sizes of maps.
_OF_SIZES = ('Shape', 'Gather', 'Slice', 'Unsqueeze', 'Concat', 'Cast')
_NAMES = {
    _BIAS: 'bias',
    _FACTOR: 'factor',
    _OFFSET: 'offset',
    _PRE: 'pre',
    _SLOPE: 'slope',
    _POST: 'post',
}
# The nodes that read a value, by its name.
Readers = dict[str, list[Any]]


def fuse(graph: Graph, outputs: list[str]) -> None:
    """Rewrite a graph in place.

    Args:
        graph: With maps as NHWC.
        outputs: Names that have to stay.
    """
    _fold_shifts(graph, outputs)
    readers = graph.readers()
    for node in [node for node in graph.nodes if is_binary(node)]:
        while _take(graph, node, readers, outputs):
            pass


def is_binary(node: Any) -> bool:
    """Whether a node is a 1-bit convolution."""
    return node.domain == DOMAIN and node.op_type == BINARY


def _fold_shifts(graph: Graph, outputs: list[str]) -> None:
    """Move shifts that only signs see into the signs' thresholds.

    ``x + shift >= 0`` is ``x >= -shift`` in floating point too. A threshold
    that has a shift in it already would be rounded.
    """
    readers = graph.readers()
    for node in list(graph.nodes):
        x, shift = _with_constant(graph, node)
        (name, *_) = node.output
        if node.op_type != 'Add' or x is None or name in outputs:
            continue
        signs = [_sign_of(name, reader, readers) for reader in readers[name]]
        if not all(
            sign and not graph.constants[sign.input[_START]].any()
            for sign in signs
        ):
            continue
        for reader, sign in zip(readers[name], signs):
            reader.input[0] = x
            start = sign.input[_START]
            value = np.broadcast_to(-shift, graph.constants[start].shape)
            sign.input[_START] = graph.constant(value, start)
        graph.nodes.remove(node)


def _sign_of(name: str, reader: Any, readers: Readers) -> Any:
    """Return the 1-bit convolution that sees nothing of a value but signs.

    ``None`` if there is none. The rows of a linear layer are reshaped first.
    """
    if reader.op_type == 'Reshape' and reader.input[0] == name:
        name = reader.output[0]
        if len(readers[name]) == 1:
            return _sign_of(name, readers[name][0], readers)
    if is_binary(reader) and name not in reader.input[1:]:
        return reader
    return None


def _with_constant(
    graph: Graph, node: Any
) -> tuple[str | None, np.ndarray | None]:
    """Return what a node computes with, and its constant per channel."""
    if len(node.input) == 2:
        for x, other in (node.input, node.input[::-1]):
            value = graph.constants.get(other)
            if value is not None and value.ndim <= 1:
                return x, value
    return None, None


def _take(
    graph: Graph, node: Any, readers: Readers, outputs: list[str]
) -> bool:
    """Take in what reads a 1-bit convolution, if it can be."""
    name = node.output[0]
    if name in outputs:
        return False
    found = _enlarged(graph, name, readers, outputs)
    if found is not None:
        reader, given = found
        places: tuple[int, ...] = (_ADDED,)
    elif len(readers[name]) == 1:
        (reader,) = readers[name]
        places, given = _step(graph, node, reader)
    else:
        return False
    taken = max(i for i, value in enumerate(node.input) if value)
    place = next((place for place in places if place > taken), None)
    if place is None:
        return False
    if isinstance(given, np.ndarray):
        channels = graph.constants[node.input[_SCALE]].shape
        proposal = f'{node.input[_SCALE].rpartition("/")[0]}/{_NAMES[place]}'
        given = graph.constant(
            np.broadcast_to(given, channels).astype(np.float32), proposal
        )
    node.input.extend([''] * (place - len(node.input)) + [given])
    # To where all inputs are computed.
    graph.nodes.remove(node)
    graph.nodes[graph.nodes.index(reader)] = node
    readers[given] = [node if r is reader else r for r in readers[given]]
    node.output[0] = reader.output[0]
    return True


def _enlarged(
    graph: Graph, name: str, readers: Readers, outputs: list[str]
) -> tuple[Any, str] | None:
    """Find the sum of a map and another one that is enlarged to its size.

    As in a feature pyramid. Nobody else may read the map itself.

    Returns:
        The node of the sum, and the name of the smaller map.
    """
    sums = [node for node in readers[name] if node.op_type == 'Add']
    if len(sums) != 1:
        return None
    others = [other for other in sums[0].input if other != name]
    other = others[0] if others else name
    makers = [node for node in graph.nodes if other in node.output]
    if (
        not makers
        or makers[0].op_type != 'Resize'
        or len(readers[other]) != 1
        or other in outputs
        or not _is_nearest(makers[0])
    ):
        return None
    # What computes the size from the map's goes with the Resize.
    waiting = [node for node in readers[name] if node is not sums[0]]
    while waiting:
        node = waiting.pop()
        if node is makers[0]:
            continue
        if node.op_type not in _OF_SIZES or (set(node.output) & set(outputs)):
            return None
        for target in node.output:
            waiting += readers[target]
    return sums[0], makers[0].input[0]


def _is_nearest(resize: Any) -> bool:
    """Whether it takes the values that torch takes."""
    at = attributes(resize)
    return (
        at.get('mode') == b'nearest'
        and at.get('coordinate_transformation_mode') == b'asymmetric'
        and at.get('nearest_mode') == b'floor'
    )


def _step(
    graph: Graph, node: Any, reader: Any
) -> tuple[tuple[int, ...], str | np.ndarray]:
    """Return the places that an operation may have, and its operand there."""
    name, kind = node.output[0], reader.op_type
    if kind == 'Relu':
        return (_SLOPE,), np.float32([0])
    if kind == 'LeakyRelu':
        return (_SLOPE,), np.float32([attributes(reader).get('alpha', 0.01)])
    x, value = _with_constant(graph, reader)
    if x == name:
        if kind == 'Mul':
            return (_FACTOR,), value
        if kind == 'Add':
            return (_BIAS, _OFFSET, _PRE, _POST), value
        if kind == 'PRelu' and reader.input[0] == name:
            return (_SLOPE,), value
    if kind == 'Add' and x is None:
        others = [other for other in reader.input if other != name]
        # A sum with itself is none with another map.
        if len(others) == 1:
            return (_RESIDUAL,), others[0]
    return (), ''
