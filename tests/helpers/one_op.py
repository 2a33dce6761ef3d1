"""A model of one operator of surge_runtime's, in ONNX Runtime."""

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper
from surge_runtime.library import library_path


def session(op, inputs, outputs=(TensorProto.FLOAT,), constants=(), **attrs):
    """A session; ``None`` in ``inputs`` stands for an absent one.

    Args:
        op: Name of the operator in domain ``surge``.
        inputs: Arrays, named ``x0``, ``x1``, …; they give types and ranks.
        outputs: Element types.
        constants: Indices of the inputs that are stored in the model.
        attrs: Attributes of the operator.
    """
    names = ['' if x is None else f'x{i}' for i, x in enumerate(inputs)]
    there = [(i, x) for i, x in enumerate(inputs) if x is not None]
    node = helper.make_node(
        op,
        names,
        [f'y{i}' for i in range(len(outputs))],
        domain='surge',
        **attrs,
    )
    graph = helper.make_graph(
        [node],
        op,
        [
            helper.make_tensor_value_info(
                f'x{i}',
                helper.np_dtype_to_tensor_dtype(x.dtype),
                [None] * x.ndim,
            )
            for i, x in there
            if i not in constants
        ],
        [
            helper.make_tensor_value_info(f'y{i}', dtype, None)
            for i, dtype in enumerate(outputs)
        ],
        [
            onnx.numpy_helper.from_array(x, f'x{i}')
            for i, x in there
            if i in constants
        ],
    )
    model = helper.make_model(
        graph,
        opset_imports=[
            helper.make_opsetid('', 17),
            helper.make_opsetid('surge', 1),
        ],
        ir_version=8,
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    options.register_custom_ops_library(library_path())
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, ['CPUExecutionProvider']
    )


def run_op(op, inputs, outputs=(TensorProto.FLOAT,), constants=(), **attrs):
    """Outputs of one operator."""
    model = session(op, inputs, outputs, constants, **attrs)
    feed = {
        f'x{i}': np.ascontiguousarray(x)
        for i, x in enumerate(inputs)
        if x is not None and i not in constants
    }
    return model.run(None, feed)
