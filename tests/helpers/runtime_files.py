"""Small files for surge_runtime, made without surge_det."""

import hashlib
import json

import onnx
from onnx import TensorProto, helper

CLASSES = ['cat', 'dog']


def node(op_type, inputs, outputs, domain='', **attributes):
    return helper.make_node(
        op_type, inputs, outputs, domain=domain, **attributes
    )


def whole_image_detector():
    """A model that finds a dog (0.9) and a cat (0.2) that fill the image."""
    constants = {
        'hw': ([2], [1, 0], TensorProto.INT64),
        'zeros': ([2], [0.0, 0.0], TensorProto.FLOAT),
        'rows': ([2, 1], [1.0, 1.0], TensorProto.FLOAT),
        'some_scores': ([2], [0.9, 0.2], TensorProto.FLOAT),
        'some_labels': ([2], [1, 0], TensorProto.INT64),
    }
    graph = helper.make_graph(
        [
            node('Shape', ['image'], ['shape']),
            node('Gather', ['shape', 'hw'], ['size']),
            node('Cast', ['size'], ['corner'], to=TensorProto.FLOAT),
            node('Concat', ['zeros', 'corner'], ['box'], axis=0),
            node('Mul', ['rows', 'box'], ['boxes']),
            node('Identity', ['some_scores'], ['scores']),
            node('Identity', ['some_labels'], ['labels']),
        ],
        'detector',
        [value('image', TensorProto.UINT8, ['h', 'w', 3])],
        [
            value('boxes', TensorProto.FLOAT, ['n', 4]),
            value('scores', TensorProto.FLOAT, ['n']),
            value('labels', TensorProto.INT64, ['n']),
        ],
        [
            helper.make_tensor(name, kind, dims, values)
            for name, (dims, values, kind) in constants.items()
        ],
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid('', 17)], ir_version=8
    )


def value(name, kind, dims):
    return helper.make_tensor_value_info(name, kind, dims)


def about(version=1, classes=CLASSES):
    return json.dumps({'version': version, 'classes': classes})


def sealed(model, metadata=None):
    """Return a model's bytes with its metadata and digest."""
    entry = model.metadata_props.add()
    entry.key = 'surge_runtime'
    entry.value = about() if metadata is None else metadata
    body = model.SerializeToString()
    tail = onnx.ModelProto()
    entry = tail.metadata_props.add()
    entry.key, entry.value = 'sha256', hashlib.sha256(body).hexdigest()
    return body + tail.SerializeToString()
