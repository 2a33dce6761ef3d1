"""A traced network with maps as NHWC, our operators, and few transpositions.

Each value of the traced network is there as it was traced, or with the
channels last, or both; an operation takes what it can, and what is not there
is transposed.

A network without 1-bit layers stays as it was traced, since the engine has a
layout of its own for real convolutions; only outputs are transposed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import nn

from surge_det.deploy.extra import require
from surge_det.deploy.networks import TO_FIRST, TO_LAST
from surge_det.deploy.norms import factor_and_offset

from . import layers
from .graph import Graph, attributes
from .trace import MODULE

# Where each of the traced axes stands.
_AXIS = TO_FIRST
# ONNX's number of the type float32.
_FLOAT = 1
# Operations that are the same for each value, or broadcast.
ELEMENTWISE = ('Abs', 'Add', 'Clip', 'Div', 'Elu', 'Erf', 'Exp', 'HardSigmoid')
ELEMENTWISE += ('HardSwish', 'LeakyRelu', 'Log', 'Max', 'Min', 'Mul', 'Neg')
ELEMENTWISE += ('PRelu', 'Pow', 'Reciprocal', 'Relu', 'Sigmoid', 'Softplus')
ELEMENTWISE += ('Sqrt', 'Sub', 'Tanh')


class Rewriter:
    """Writes a traced network into a graph.

    Args:
        traced: The ``onnx.ModelProto``.
        modules: Those that its nodes stand for, by name.
        graph: Gets the nodes.
        data: Name of the network's input in the graph.
        channels_last: Whether that is (N, H, W, C).
    """

    def __init__(
        self,
        traced: Any,
        modules: dict[str, nn.Module],
        graph: Graph,
        data: str,
        channels_last: bool = False,
    ) -> None:
        to_array = require('onnx.numpy_helper').to_array
        self.traced, self.modules, self.graph = traced.graph, modules, graph
        self.values = {t.name: to_array(t) for t in traced.graph.initializer}
        # Traced name -> name in the graph: as traced, and as NHWC.
        self.first: dict[str, str] = {}
        self.last: dict[str, str] = {}
        # Rows (R, O) that are there as (1, 1, R, O), a linear layer's.
        self.rows: dict[str, str] = {}
        # Rows of C * H * W values that stand in the order H, W, C: name in
        # the graph, and for each place the traced column.
        self.flat: dict[str, tuple[str, np.ndarray]] = {}
        self.shapes = {
            info.name: [d.dim_value for d in info.type.tensor_type.shape.dim]
            for info in [*traced.graph.input, *traced.graph.value_info]
        }
        # The nodes that read a value, and what is written already.
        self.readers: dict[str, list[Any]] = defaultdict(list)
        for node in traced.graph.node:
            for name in node.input:
                self.readers[name].append(node)
        self.makers = {
            name: node for node in traced.graph.node for name in node.output
        }
        self.written: set[str] = set()
        (given,) = (i.name for i in traced.graph.input)
        (self.last if channels_last else self.first)[given] = data

    def run(self) -> list[str]:
        """Write all nodes.

        Returns:
            The outputs' names in the graph; maps are NHWC.
        """
        for node in self.traced.node:
            if node.op_type == 'Constant':
                self._constant(node)
            elif node.op_type == 'Identity' and node.input[0] in self.values:
                self._identity(node)
        for node in self.traced.node:
            if not self.written.union(self.values).intersection(node.output):
                rule = RULES.get(node.op_type, Rewriter._as_traced)
                rule(self, node)
        return [
            self.as_last(output.name)
            if self._is_map(output.name)
            else self.as_first(output.name)
            for output in self.traced.output
        ]

    # Values

    def is_last(self, name: str) -> bool:
        """Whether a value came out as NHWC."""
        return name in self.last and name not in self.values

    def _is_map(self, name: str) -> bool:
        if name in self.last:
            return True
        for info in self.traced.output:
            if info.name == name:
                return len(info.type.tensor_type.shape.dim) == 4
        return len(self.shapes.get(name, ())) == 4

    def as_first(self, name: str) -> str:
        """Return the name of a value as it was traced."""
        if not name:
            return name
        if name not in self.first:
            if name in self.values:
                self.first[name] = self.graph.constant(self.values[name], name)
            elif name in self.last:
                self.first[name] = self.graph.transpose(
                    self.last[name], TO_FIRST, f'{name}/nchw'
                )
            elif name in self.rows:
                shape = self.graph.ints(-1, self.shapes[name][-1])
                self.first[name] = self.graph.add(
                    'Reshape', [self.rows[name], shape], f'{name}/rows'
                )
            else:
                rows, order = self.flat[name]
                back = self.graph.constant(np.argsort(order), f'{name}/order')
                self.first[name] = self.graph.add(
                    'Gather', [rows, back], f'{name}/rows', axis=1
                )
        return self.first[name]

    def as_last(self, name: str) -> str:
        """Return the name of a map, or a constant for one, as NHWC."""
        if name in self.values:
            value = self.values[name]
            value = value.reshape((1,) * (4 - value.ndim) + value.shape)
            value = value.transpose(TO_LAST)
            while value.ndim > 1 and value.shape[0] == 1:
                value = value[0]
            return self.graph.constant(value, f'{name}/nhwc')
        if name not in self.last:
            self.last[name] = self.graph.transpose(
                self.as_first(name), TO_LAST, f'{name}/nhwc'
            )
        return self.last[name]

    # Rules

    def _as_traced(self, node: Any) -> None:
        """Take everything in as it was traced."""
        copied = type(node)()
        copied.CopyFrom(node)
        copied.name = ''
        del copied.input[:], copied.output[:]
        copied.input.extend(self.as_first(name) for name in node.input)
        for name in node.output:
            self.first[name] = self.graph.unique(name)
            copied.output.append(self.first[name])
        self.graph.nodes.append(copied)

    def _constant(self, node: Any) -> None:
        (value,) = node.attribute
        to_array = require('onnx.numpy_helper').to_array
        self.values[node.output[0]] = to_array(value.t)

    def _identity(self, node: Any) -> None:
        source, target = node.input[0], node.output[0]
        known = self.values, self.first, self.last, self.rows, self.flat
        for found in known:
            if source in found:
                found[target] = found[source]
        if source in self.shapes:
            self.shapes[target] = self.shapes[source]

    def _cast(self, node: Any) -> None:
        # Maps are float32 anyway, where one is called that once more.
        if self._is_map(node.input[0]) and attributes(node)['to'] == _FLOAT:
            self._identity(node)
        else:
            self._as_traced(node)

    def _elementwise(self, node: Any) -> None:
        """Keep the layout of the inputs, if they can have the same."""
        computed = [n for n in node.input if n and n not in self.values]
        if len(computed) == 1 and computed[0] in self.flat:
            self._elementwise_flat(node)
        elif len(computed) == 1 and computed[0] in self.rows:
            self._elementwise_rows(node)
        elif any(map(self.is_last, computed)) and all(
            map(self._is_map, computed)
        ):
            self._add(node, [n and self.as_last(n) for n in node.input])
        else:
            self._as_traced(node)

    def _add(self, node: Any, inputs: list[str], **changed: Any) -> None:
        """Add a traced node with NHWC inputs, attributes changed."""
        name, at = node.output[0], attributes(node) | changed
        self.last[name] = self.graph.add(node.op_type, inputs, name, **at)

    def _elementwise_rows(self, node: Any) -> None:
        inputs = [
            self.rows[name] if name in self.rows else self.as_first(name)
            for name in node.input
        ]
        self._add(node, inputs)
        name = node.output[0]
        self.rows[name] = self.last.pop(name)
        self.shapes[name] = next(
            self.shapes[n] for n in node.input if n in self.rows
        )

    def _elementwise_flat(self, node: Any) -> None:
        columns = next(self.flat[n][1] for n in node.input if n in self.flat)
        inputs = []
        for name in node.input:
            if name in self.flat:
                inputs.append(self.flat[name][0])
                continue
            value = self.values[name]
            if value.size > 1:
                value = value[..., columns]
            inputs.append(self.graph.constant(value, f'{name}/hwc'))
        name = node.output[0]
        self._add(node, inputs)
        self.flat[name] = self.last.pop(name), columns

    def _module(self, node: Any) -> None:
        name = attributes(node)['name'].decode()
        module = self.modules[name]
        if isinstance(module, nn.Linear):
            self._linear(node, module, name)
        elif not isinstance(module, nn.Conv2d):
            self._norm(node, module, name)
        elif layers.stored_as_bits(module):
            x = self.as_last(node.input[0])
            self.last[node.output[0]] = layers.binary(
                self.graph, module, name, x
            )
        else:
            self._signs(node, module, name)

    def _norm(self, node: Any, norm: Any, name: str) -> None:
        factor, offset = (v.numpy() for v in factor_and_offset(norm))
        source, target = node.input[0], node.output[0]
        pool = self._pool_after(node)
        if pool is not None:
            # The maximum first, in the engine's layout and of the same bits:
            # what has a positive factor keeps its order.
            signs = np.where(factor < 0, np.float32(-1), np.float32(1))
            self._multiply_conv(source, signs)
            factor = factor * signs
            self.first[pool.input[0]] = self.first[source]
            self._as_traced(pool)
            source = target = pool.output[0]
            self.written.add(target)
        y = self.as_last(source)
        for operator, value in (('Mul', factor), ('Add', offset)):
            value = self.graph.constant(value, f'{name}/{operator}')
            y = self.graph.add(operator, [y, value], f'{name}/{operator}')
        self.last[target] = y
        self.first.pop(target, None)

    def _pool_after(self, norm: Any) -> Any:
        """Return a max pool between which and a convolution a norm is."""
        source, target = norm.input[0], norm.output[0]
        readers = self.readers[target]
        outputs = {output.name for output in self.traced.output}
        if (
            source in self.last
            or source not in self.makers
            or self.makers[source].op_type != 'Conv'
            or len(self.readers[source]) != 1
            or len(readers) != 1
            or readers[0].op_type != 'MaxPool'
            or outputs.intersection((source, target))
        ):
            return None
        return readers[0]

    def _multiply_conv(self, target: str, signs: np.ndarray) -> None:
        """Multiply the output channels of a convolution by -1 or 1."""
        (node,) = (
            n for n in self.graph.nodes if n.output[0] == self.first[target]
        )
        for place, name in enumerate(node.input[1:], 1):
            value = self.graph.constants[name]
            shape = (-1,) + (1,) * (value.ndim - 1)
            node.input[place] = self.graph.constant(
                value * signs.reshape(shape), f'{name}/signed'
            )

    def _linear(self, node: Any, layer: Any, name: str) -> None:
        (source,), (target,) = node.input, node.output
        if not layers.stored_as_bits(layer):
            self.first[target] = layers.real_linear(
                self.graph, layer, name, self.as_first(source)
            )
            return
        columns = None
        if source in self.rows:
            x = self.rows[source]
        else:
            x = self.as_first(source) if source not in self.flat else ''
            if not x:
                x, columns = self.flat[source]
            x = self.graph.add(
                'Reshape',
                [x, self.graph.ints(1, 1, -1, layer.in_features)],
                f'{name}/rows',
            )
        y = layers.binary(self.graph, layer, name, x, columns)
        if attributes(node)['rank'] == 2:
            self.rows[target] = y
            self.shapes[target] = [0, layer.out_features]
            return
        # Back to (..., O).
        shape = self.graph.add('Shape', [self.as_first(source)], f'{name}/in')
        zero, last = self.graph.ints(0), self.graph.ints(-1)
        shape = self.graph.add('Slice', [shape, zero, last], f'{name}/outer')
        size = self.graph.ints(layer.out_features)
        shape = self.graph.add(
            'Concat', [shape, size], f'{name}/shape', axis=0
        )
        self.first[target] = self.graph.add('Reshape', [y, shape], f'{name}/y')

    def _signs(self, node: Any, layer: Any, name: str) -> None:
        """A layer with either weights or activations of 1 bit."""
        self.first[node.output[0]] = layers.real_conv(
            self.graph, layer, name, self.as_first(node.input[0])
        )

    def _conv(self, node: Any) -> None:
        """A 1x1 convolution of an NHWC map is a matrix product."""
        x, name = node.input[0], node.output[0]
        if not self.is_last(x) or not self._is_matrix(node):
            self._as_traced(node)
            return
        # All that read the same map at once.
        nodes = [
            reader
            for reader in self.readers[x]
            if reader.op_type == 'Conv'
            and reader.input[0] == x
            and self._is_matrix(reader)
            and len(reader.input) == len(node.input)
            and _steps(reader) == _steps(node)
        ]
        data = self.as_last(x)
        if _steps(node) != [1, 1]:
            # The places that the convolution sees.
            data = self.graph.ours(
                'Pool',
                [data],
                f'{name}/places',
                mode='max',
                kernel_shape=[1, 1],
                strides=_steps(node),
                pads=[0] * 4,
                ceil_mode=0,
                count_include_pad=0,
            )
        weights = [self.values[n.input[1]][:, :, 0, 0].T for n in nodes]
        weight = self.graph.constant(
            np.concatenate(weights, 1), f'{node.input[1]}/matrix'
        )
        y = self.graph.add('MatMul', [data, weight], name)
        if len(node.input) > 2:
            bias = np.concatenate([self.values[n.input[2]] for n in nodes])
            bias = self.graph.constant(bias, f'{node.input[2]}/vector')
            y = self.graph.add('Add', [y, bias], name)
        targets = [n.output[0] for n in nodes]
        self.written.update(targets)
        names = [y]
        if len(nodes) > 1:
            names = [self.graph.unique(target) for target in targets]
            sizes = self.graph.ints(*(w.shape[1] for w in weights))
            self.graph.add('Split', [y, sizes], '', outputs=names, axis=-1)
        self.last.update(zip(targets, names))

    def _is_matrix(self, conv: Any) -> bool:
        """Whether a convolution is a product with a constant matrix."""
        at = attributes(conv)
        return (
            all(name in self.values for name in conv.input[1:])
            and self.values[conv.input[1]].shape[2:] == (1, 1)
            and at.get('group', 1) == 1
            and not any(at.get('pads', []))
        )

    def _pool(self, node: Any) -> None:
        at = attributes(node)
        if (
            not self.is_last(node.input[0])
            or len(node.output) > 1
            or set(at.get('dilations', [1])) != {1}
        ):
            self._as_traced(node)
            return
        size = at['kernel_shape']
        self.last[node.output[0]] = self.graph.ours(
            'Pool',
            [self.as_last(node.input[0])],
            node.output[0],
            mode='max' if node.op_type == 'MaxPool' else 'average',
            kernel_shape=size,
            strides=at.get('strides', [1] * len(size)),
            pads=at.get('pads', [0] * 4),
            ceil_mode=at.get('ceil_mode', 0),
            count_include_pad=at.get('count_include_pad', 0),
        )

    def _global_pool(self, node: Any) -> None:
        if not self.is_last(node.input[0]):
            self._as_traced(node)
            return
        self.last[node.output[0]] = self.graph.add(
            'ReduceMean',
            [self.as_last(node.input[0])],
            node.output[0],
            axes=[1, 2],
            keepdims=1,
        )

    def _concat(self, node: Any) -> None:
        axis = attributes(node)['axis']
        if any(map(self.is_last, node.input)) and not any(
            name in self.values for name in node.input
        ):
            inputs = [self.as_last(name) for name in node.input]
            self._add(node, inputs, axis=_AXIS[axis])
        else:
            self._as_traced(node)

    def _slice(self, node: Any) -> None:
        x, starts, ends, axes, *steps = node.input
        if not self.is_last(x) or axes not in self.values:
            self._as_traced(node)
            return
        moved = [_AXIS[axis] for axis in self.values[axes]]
        rest = [self.as_first(name) for name in (starts, ends)]
        rest.append(self.graph.ints(*moved))
        rest += [self.as_first(name) for name in steps]
        self._add(node, [self.as_last(x), *rest])

    def _resize(self, node: Any) -> None:
        x, _, scales, sizes = [*node.input, '', '', ''][:4]
        # Others than the nearest may not be there for this layout.
        if not self.is_last(x) or attributes(node)['mode'] != b'nearest':
            self._as_traced(node)
            return
        order = self.graph.ints(*TO_LAST)
        inputs = [self.as_last(x), '']
        for name in (scales, sizes):
            if name in self.values:
                moved = self.values[name]
                moved = moved[list(TO_LAST)] if moved.size else moved
                inputs.append(self.graph.constant(moved, f'{name}/nhwc'))
            elif name:
                inputs.append(
                    self.graph.add(
                        'Gather', [self.as_first(name), order], f'{name}/nhwc'
                    )
                )
            else:
                inputs.append('')
        self._add(node, inputs)

    def _shape(self, node: Any) -> None:
        x, target = node.input[0], node.output[0]
        if not self.is_last(x) or attributes(node):
            self._as_traced(node)
            return
        whole = self.graph.add('Shape', [self.as_last(x)], f'{target}/nhwc')
        self.first[target] = self.graph.add(
            'Gather', [whole, self.graph.ints(*TO_FIRST)], target
        )

    def _flatten(self, node: Any) -> None:
        x, target = node.input[0], node.output[0]
        sizes = self.shapes.get(x, [])[1:]
        if (
            not self.is_last(x)
            or not sizes
            or not all(sizes)
            or attributes(node).get('axis', 1) != 1
        ):
            self._as_traced(node)
            return
        rows = self.graph.add(
            'Reshape',
            [self.as_last(x), self.graph.ints(-1, int(np.prod(sizes)))],
            target,
        )
        columns = np.arange(np.prod(sizes)).reshape(sizes)
        self.flat[target] = rows, columns.transpose(1, 2, 0).ravel()

    def _gemm(self, node: Any) -> None:
        """Move the columns of weights to where those of the input stand."""
        x, weight, *bias = node.input
        if x not in self.flat or weight not in self.values:
            self._as_traced(node)
            return
        rows, columns = self.flat[x]
        matrix = self.values[weight]
        if attributes(node).get('transB'):
            matrix = matrix[:, columns]
        else:
            matrix = matrix[columns]
        copied = f'{weight}/hwc'
        self.values[copied] = matrix
        self.first[x] = rows
        del node.input[:]
        node.input.extend([x, copied, *bias])
        self._as_traced(node)
        del self.first[x]


def _steps(conv: Any) -> list[int]:
    return attributes(conv).get('strides', [1, 1])


RULES: dict[str, Callable[[Rewriter, Any], None]] = {
    MODULE: Rewriter._module,
    'Identity': Rewriter._identity,
    'Cast': Rewriter._cast,
    'Conv': Rewriter._conv,
    'MaxPool': Rewriter._pool,
    'AveragePool': Rewriter._pool,
    'GlobalAveragePool': Rewriter._global_pool,
    'Concat': Rewriter._concat,
    'Slice': Rewriter._slice,
    'Resize': Rewriter._resize,
    'Shape': Rewriter._shape,
    'Flatten': Rewriter._flatten,
    'Gemm': Rewriter._gemm,
    'MatMul': Rewriter._gemm,
    **dict.fromkeys(ELEMENTWISE, Rewriter._elementwise),
}
