"""Small files for surge_runtime, made without surge_det."""

import hashlib
import json

import numpy as np
import onnx
from onnx import TensorProto, helper
from PIL import Image

CLASSES = ['cat', 'dog']
OUTPUTS = {
    'boxes': TensorProto.FLOAT,
    'scores': TensorProto.FLOAT,
    'labels': TensorProto.INT64,
}


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


def layered_detector():
    """A model with every kind of layer: real, 1-bit, and the two ends."""
    rng = np.random.default_rng(0)
    constants = []

    def constant(name, array):
        constants.append(onnx.numpy_helper.from_array(array, name))
        return name

    def binary(name, x, y, c, o, kernel, stride):
        size, pad = (o, kernel * kernel, -(-c // 8)), kernel // 2
        return node(
            'BinaryConv',
            [
                x,
                constant(f'{name}_w', rng.integers(0, 256, size, np.uint8)),
                constant(f'{name}_start', np.zeros(c, np.float32)),
                constant(f'{name}_scale', np.full(o, 0.1, np.float32)),
            ],
            [y],
            'surge',
            kernel_shape=[kernel] * 2,
            strides=[stride] * 2,
            pads=[pad] * 4,
            dilations=[1, 1],
            pad_value=0.0,
        )

    weight = rng.standard_normal((16, 3, 3, 3)).astype(np.float32)
    graph = helper.make_graph(
        [
            node(
                'Preprocess',
                ['image'],
                ['data', 'info'],
                'surge',
                scale=[96, 64],
                keep_ratio=1,
                pad_size=[0, 0],
                pad_to_square=0,
                pad_divisor=1,
                pad_value=[0, 0, 0],
                mean=[120.0, 115.0, 100.0],
                std=[58.0, 57.0, 57.0],
                to_rgb=1,
                batch_divisor=32,
                batch_value=0.0,
            ),
            node(
                'Conv',
                ['data', constant('weight', weight)],
                ['stem'],
                strides=[2, 2],
                pads=[1, 1, 1, 1],
            ),
            node('Transpose', ['stem'], ['maps'], perm=[0, 2, 3, 1]),
            binary('body', 'maps', 'features', 16, 64, 3, 2),
            binary('cls', 'features', 'logits', 64, 2, 1, 1),
            binary('reg', 'features', 'margins', 64, 4, 1, 1),
            node('Exp', ['margins'], ['distances']),
            node(
                'DenseBoxes',
                ['info', 'logits', 'distances'],
                list(OUTPUTS),
                'surge',
                coder='distance',
                strides=[4.0],
                num_classes=2,
                softmax=0,
                has_factor=0,
                score_thr=0.6,
                iou_thr=0.5,
                max_per_img=20,
                nms_pre=100,
                min_bbox_size=-1.0,
                offset=0.5,
                clip_border=1,
            ),
        ],
        'detector',
        [value('image', TensorProto.UINT8, ['h', 'w', 3])],
        [value(name, kind, None) for name, kind in OUTPUTS.items()],
        constants,
    )
    return helper.make_model(
        graph,
        opset_imports=[
            helper.make_opsetid('', 17),
            helper.make_opsetid('surge', 1),
        ],
        ir_version=8,
    )


def noise(height, width):
    """A picture of coarse noise."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    return Image.fromarray(small).resize((width, height))


def value(name, kind, dims):
    return helper.make_tensor_value_info(name, kind, dims)


def about(version=1, classes=CLASSES):
    return json.dumps({'version': version, 'classes': classes})


def sealed(model, metadata=None):
    """Return a model's bytes with its metadata and digest."""
    entry = model.metadata_props.add()
    entry.key = 'surge_runtime'
    entry.value = about() if metadata is None else metadata
    return with_digest(model.SerializeToString())


def with_digest(body):
    """Return a model's bytes and, after them, their digest."""
    tail = onnx.ModelProto()
    entry = tail.metadata_props.add()
    entry.key, entry.value = 'sha256', hashlib.sha256(body).hexdigest()
    return body + tail.SerializeToString()
