"""A graph that is being written."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from surge_det.deploy.extra import require

# Of our operators.
DOMAIN = 'surge'
VERSION = 1
# Of ONNX's, and of the file.
OPSET = 17
IR_VERSION = 8


def attributes(node: Any) -> dict[str, Any]:
    """Return a node's attributes as Python values; texts as bytes."""
    value = require('onnx.helper').get_attribute_value
    return {attribute.name: value(attribute) for attribute in node.attribute}


class Graph:
    """Nodes in the order of their execution, and constants.

    Attributes:
        nodes: ``onnx.NodeProto``, each with the outputs that ``add`` named.
        constants: Values by name; equal ones are there once.
        shapes: Of float32 values, where the engine cannot infer them: what
            an operator of ours computes. A text is a size that is not known.
    """

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: dict[str, np.ndarray] = {}
        self.shapes: dict[str, list[int | str]] = {}
        self._names: set[str] = set()
        self._known: dict[tuple, str] = {}

    def unique(self, name: str) -> str:
        """Return a name that no value has yet."""
        name = name or 'value'
        found, number = name, 1
        while found in self._names:
            number += 1
            found = f'{name}_{number}'
        self._names.add(found)
        return found

    def constant(self, value: np.ndarray, name: str) -> str:
        """Return the name of a constant; ``name`` is a proposal."""
        value = np.asarray(value, order='C')
        key = (value.dtype.str, value.shape, value.tobytes())
        if key not in self._known:
            self._known[key] = self.unique(name)
            self.constants[self._known[key]] = value
        return self._known[key]

    def ints(self, *values: int) -> str:
        """Return the name of a constant of whole numbers, (n,)."""
        text = '_'.join(map(str, values))
        return self.constant(np.array(values, np.int64), f'ints_{text}')

    def add(
        self,
        operator: str,
        inputs: Sequence[str],
        name: str,
        domain: str = '',
        outputs: Sequence[str] = (),
        **attributes: Any,
    ) -> str:
        """Add a node.

        Args:
            operator: Its type.
            inputs: Names; an empty one for an optional input that is not
                there.
            name: A proposal for the name of its output.
            domain: Of the operator.
            outputs: Names of its outputs, where it has several.
            attributes: Those that are ``None`` are left out.

        Returns:
            The name of its (first) output.
        """
        inputs = list(inputs)
        while inputs and not inputs[-1]:
            inputs.pop()
        outputs = list(outputs) or [self.unique(name)]
        node = require('onnx.helper').make_node(
            operator,
            inputs,
            outputs,
            domain=domain,
            **{k: v for k, v in attributes.items() if v is not None},
        )
        self.nodes.append(node)
        return outputs[0]

    def ours(self, operator: str, inputs: Sequence[str], name: str, **kwargs):
        """Add a node with an operator of ours; as :meth:`add`."""
        return self.add(operator, inputs, name, DOMAIN, **kwargs)

    def transpose(self, x: str, order: Sequence[int], name: str) -> str:
        """Add a transposition of (N, ., ., .)."""
        return self.add('Transpose', [x], name, perm=list(order))

    def readers(self) -> dict[str, list[Any]]:
        """Return the nodes that read each value, each as often as it does."""
        found: dict[str, list[Any]] = defaultdict(list)
        for node in self.nodes:
            for name in node.input:
                found[name].append(node)
        return found

    def model(
        self,
        inputs: dict[str, tuple[int, Sequence[Any]]],
        outputs: dict[str, int],
    ) -> Any:
        """Return what computes some values from others.

        Args:
            inputs: Type (a ``TensorProto``'s) and shape of each.
            outputs: Type of each.

        Returns:
            The ``onnx.ModelProto``, without what no output needs.
        """
        helper = require('onnx.helper')
        from_array = require('onnx.numpy_helper').from_array
        info = helper.make_tensor_value_info
        needed, nodes = set(outputs), []
        for node in reversed(self.nodes):
            if needed.difference(inputs).intersection(node.output):
                needed.update(node.input)
                nodes.append(node)
        graph = helper.make_graph(
            nodes[::-1],
            'detector',
            [info(name, *given) for name, given in inputs.items()],
            [info(name, kind, None) for name, kind in outputs.items()],
            [
                from_array(value, name)
                for name, value in self.constants.items()
                if name in needed
            ],
            value_info=[
                info(name, require('onnx').TensorProto.FLOAT, shape)
                for name, shape in self.shapes.items()
                if name in needed.difference(inputs)
            ],
        )
        return helper.make_model(
            graph,
            producer_name='surge_det',
            ir_version=IR_VERSION,
            opset_imports=[
                helper.make_opsetid('', OPSET),
                helper.make_opsetid(DOMAIN, VERSION),
            ],
        )
