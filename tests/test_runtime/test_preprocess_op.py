"""Preprocess against cv2, mmdet's pipeline and its data preprocessor."""

import numpy as np
import pytest
import torch

pytest.importorskip('mmdet', reason='needs the toolbox')
pytest.importorskip('onnxruntime', reason='needs ONNX Runtime')
pytest.importorskip('surge_runtime', reason='surge_runtime is not installed')

import surge_det  # noqa: F401

# isort: split
import cv2
from mmcv.transforms import Compose
from mmdet.models.data_preprocessors import DetDataPreprocessor
from mmdet.registry import TRANSFORMS
from mmengine.registry import DefaultScope
from one_op import run_op, session
from onnx import TensorProto

NONE = dict(
    scale=[8, 8],
    keep_ratio=0,
    pad_size=[0, 0],
    pad_to_square=0,
    pad_divisor=1,
    pad_value=[0, 0, 0],
    mean=[0.0, 0.0, 0.0],
    std=[1.0, 1.0, 1.0],
    to_rgb=0,
    batch_divisor=1,
    batch_value=0.0,
)
OUTPUTS = (TensorProto.FLOAT, TensorProto.FLOAT)


def picture(height, width, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (height, width, 3), np.uint8)


def preprocess(image, **attrs):
    return run_op('Preprocess', [image], OUTPUTS, **(NONE | attrs))


SIZES = [  # height, width, new height, new width
    (480, 640, 240, 320),
    (481, 640, 240, 320),
    (480, 641, 240, 320),
    (480, 640, 480, 640),
    (480, 640, 160, 320),
    (96, 100, 24, 50),
    (64, 64, 16, 16),
    (333, 500, 300, 300),
    (375, 500, 600, 800),
    (375, 500, 799, 1065),
    (100, 133, 481, 640),
    (7, 5, 31, 29),
    (1, 1, 5, 9),
    (1, 17, 1, 5),
    (2, 2, 1, 1),
    (3, 2, 2, 1),
    (1080, 1920, 345, 613),
]


@pytest.mark.parametrize('sizes', SIZES)
def test_resize_has_opencvs_bits(sizes):
    height, width, new_height, new_width = sizes
    image = picture(height, width)
    data, _ = preprocess(image, scale=[new_width, new_height])
    expected = cv2.resize(image, (new_width, new_height))
    assert np.array_equal(data[0].transpose(1, 2, 0), expected)


def test_resize_of_random_sizes_has_opencvs_bits():
    rng = np.random.default_rng(1)
    for seed in range(60):
        height, width, new_height, new_width = rng.integers(1, 200, 4)
        image = picture(height, width, seed)
        data, _ = preprocess(image, scale=[new_width, new_height])
        expected = cv2.resize(image, (int(new_width), int(new_height)))
        assert np.array_equal(data[0].transpose(1, 2, 0), expected)


MEAN = [123.675, 116.28, 103.53]
STD = [58.395, 57.12, 57.375]
RESIZE = dict(type='mmdet.Resize', scale=(320, 240), keep_ratio=True)
PIPELINES = {
    'faster_rcnn': (
        [RESIZE],
        dict(mean=MEAN, std=STD, bgr_to_rgb=True, pad_size_divisor=32),
        dict(
            scale=[320, 240],
            keep_ratio=1,
            mean=MEAN,
            std=STD,
            to_rgb=1,
            batch_divisor=32,
        ),
    ),
    'ssd': (
        [dict(type='mmdet.Resize', scale=(300, 300), keep_ratio=False)],
        dict(
            mean=MEAN,
            std=[1, 1, 1],
            bgr_to_rgb=True,
            pad_size_divisor=7,
            pad_value=2.5,
        ),
        dict(
            scale=[300, 300],
            mean=MEAN,
            to_rgb=1,
            batch_divisor=7,
            batch_value=2.5,
        ),
    ),
    'rtmdet': (
        [
            RESIZE,
            dict(
                type='mmdet.Pad',
                size=(330, 250),
                pad_val=dict(img=(114, 115, 116)),
            ),
        ],
        dict(mean=MEAN[::-1], std=STD[::-1]),
        dict(
            scale=[320, 240],
            keep_ratio=1,
            mean=MEAN[::-1],
            std=STD[::-1],
            pad_size=[330, 250],
            pad_value=[114, 115, 116],
        ),
    ),
    'yolox': (
        [
            RESIZE,
            dict(
                type='mmdet.Pad',
                pad_to_square=True,
                pad_val=dict(img=(114.0, 114.0, 114.0)),
            ),
        ],
        dict(pad_size_divisor=32),
        dict(
            scale=[320, 240],
            keep_ratio=1,
            pad_to_square=1,
            pad_value=[114, 114, 114],
            batch_divisor=32,
        ),
    ),
    'pad_divisor': (
        [RESIZE, dict(type='mmdet.Pad', size_divisor=32)],
        dict(mean=MEAN, std=STD, bgr_to_rgb=True),
        dict(
            scale=[320, 240],
            keep_ratio=1,
            pad_divisor=32,
            mean=MEAN,
            std=STD,
            to_rgb=1,
        ),
    ),
}


@pytest.mark.parametrize('size', [(480, 640), (500, 333), (1, 2), (97, 1000)])
@pytest.mark.parametrize('name', PIPELINES)
def test_pipelines_give_the_same_bits(name, size):
    pipeline, preprocessor, attrs = PIPELINES[name]
    image = picture(*size)
    with DefaultScope.overwrite_default_scope('mmdet'):
        results = Compose([TRANSFORMS.build(step) for step in pipeline])(
            dict(img=image, img_shape=size, ori_shape=size)
        )
    tensor = torch.from_numpy(results['img'].transpose(2, 0, 1).copy())
    expected = DetDataPreprocessor(**preprocessor)(dict(inputs=[tensor]))
    expected = expected['inputs'].numpy()
    data, info = preprocess(image, **attrs)
    assert np.array_equal(data, expected)
    assert tuple(info[:2]) == results['img_shape']
    factors = (info[3] / info[5], info[2] / info[4])
    np.testing.assert_allclose(factors, results['scale_factor'], rtol=1e-6)
    assert tuple(info[4:6]) == size
    assert tuple(info[6:]) == expected.shape[2:]


def test_images_that_cannot_be():
    model = session('Preprocess', [picture(1, 1)], OUTPUTS, **NONE)
    for shape, message in (
        ((0, 4, 3), 'the image is empty'),
        ((4, 4, 1), 'has shape'),
    ):
        with pytest.raises(Exception, match=message):
            model.run(None, {'x0': np.zeros(shape, np.uint8)})
    with pytest.raises(Exception, match='1000 x 1 pixels has no pixel left'):
        preprocess(picture(1, 1000), scale=[320, 240], keep_ratio=1)
    for name, value, message in (
        ('pad_value', [0, 0, 256], 'pad_value must be from 0 to 255'),
        ('pad_size', [0, -1], 'pad_size must be from 0 to 65536'),
        ('scale', [0, 8], 'must be from 1 to 65536'),
    ):
        with pytest.raises(Exception, match=message):
            preprocess(picture(4, 4), **{name: value})
