import os
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip('surge_runtime', reason='needs runtime/ installed')
pytest.importorskip('onnx', reason='needs onnx')

import onnx
from PIL import Image
from runtime_files import (
    about,
    layered_detector,
    node,
    noise,
    sealed,
    value,
    whole_image_detector,
    with_digest,
)
from surge_runtime import Detector
from surge_runtime.library import kernel_path


@pytest.fixture(scope='module')
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp('runtime') / 'detector.onnx'
    path.write_bytes(sealed(whole_image_detector()))
    return path


def test_boxes(path, tmp_path):
    image = tmp_path / 'image.png'
    Image.new('RGB', (30, 20)).save(image)
    detector = Detector(path)
    for given in (
        image,
        str(image),
        Image.open(image),
        np.zeros((20, 30, 3), np.uint8),
    ):
        found = detector(given)
        assert len(found) == 2
        np.testing.assert_array_equal(found.boxes, [[0, 0, 30, 20]] * 2)
        np.testing.assert_array_equal(found.scores, np.float32([0.9, 0.2]))
        np.testing.assert_array_equal(found.labels, [1, 0])
        assert found.names == ['dog', 'cat']


def test_it_tells_what_it_is(path):
    detector = Detector(path, threads=1)
    assert detector.classes == ('cat', 'dog')
    assert detector.threads == 1
    assert detector.engine.startswith('ONNX Runtime 1.')
    assert detector.kernels == kernel_path()
    assert detector.kernels in {'avx512', 'avx2', 'neon', 'generic'}
    assert repr(detector) == (
        f'Detector({str(path)!r}: 2 classes, {detector.engine}, kernels '
        f'{detector.kernels}, threads 1)'
    )
    assert Detector(path).threads >= 1


@pytest.mark.parametrize('threads', [0, -1, 1.5, '2'])
def test_threads(path, threads):
    with pytest.raises(ValueError, match='threads=.* must be a whole number'):
        Detector(path, threads)


def test_wrong_images(path):
    detector = Detector(path)
    with pytest.raises(FileNotFoundError):
        detector('no.jpg')
    with pytest.raises(ValueError, match='uint8'):
        detector(np.zeros((20, 30, 3)))


def refused(model, tmp_path, metadata=None):
    path = tmp_path / 'file.onnx'
    path.write_bytes(sealed(model, metadata))
    with pytest.raises(ValueError, match=r'^model .*file\.onnx.: ') as error:
        Detector(path)
    assert '\n' not in str(error.value)
    return str(error.value)


def test_unknown_operators(tmp_path):
    model = whole_image_detector()
    model.opset_import.append(onnx.helper.make_opsetid('surge', 1))
    model.graph.node.append(node('NewLayer', ['scores'], ['new'], 'surge'))
    assert 'NewLayer' in refused(model, tmp_path)


def test_models_that_are_no_detectors(tmp_path):
    model = whole_image_detector()
    model.graph.output.pop()
    assert 'no detector' in refused(model, tmp_path)
    model = whole_image_detector()
    model.graph.input.append(value('more', onnx.TensorProto.FLOAT, [1]))
    assert 'no detector' in refused(model, tmp_path)


def test_a_class_without_a_name(tmp_path):
    path = tmp_path / 'file.onnx'
    path.write_bytes(sealed(whole_image_detector(), about(classes=['cat'])))
    detector = Detector(path)
    with pytest.raises(ValueError, match='gave class 1, its list has 1'):
        detector(np.zeros((20, 30, 3), np.uint8))


def test_outputs_of_other_shapes(tmp_path):
    model = whole_image_detector()
    for row in model.graph.initializer:
        if row.name == 'some_labels':
            row.CopyFrom(onnx.numpy_helper.from_array(np.array([1]), row.name))
    path = tmp_path / 'file.onnx'
    path.write_bytes(sealed(model))
    detector = Detector(path)
    with pytest.raises(ValueError, match=r'gave arrays .*not \(N, 4\)'):
        detector(np.zeros((20, 30, 3), np.uint8))


def test_a_file_that_begins_as_the_engines_own_format(tmp_path):
    """The engine loads the model that was checked, not one of its format."""
    # To protobuf a number and an unknown field; to the engine's own format
    # its root's place and its name.
    start = b'\x08\x08\x09\x00ORTM\0\0\0'
    path = tmp_path / 'file.onnx'
    path.write_bytes(with_digest(start + sealed(whole_image_detector())[:-76]))
    assert len(Detector(path)(np.zeros((20, 30, 3), np.uint8))) == 2


def in_a_process(code, **environment):
    return subprocess.run(
        [sys.executable, '-c', code],
        env=dict(os.environ, **environment),
        capture_output=True,
        text=True,
    )


def test_kernels_are_chosen_by_a_variable(tmp_path):
    path = tmp_path / 'file.onnx'
    path.write_bytes(sealed(layered_detector()))
    image = tmp_path / 'image.png'
    noise(50, 70).save(image)
    found = Detector(path)(image)
    assert len(found) > 5
    assert set(found.names) == {'cat', 'dog'}
    code = f"""
from surge_runtime import Detector
detector = Detector({str(path)!r})
found = detector({str(image)!r})
print(detector.kernels)
print([found.boxes.tolist(), found.scores.tolist(), found.labels.tolist()])
"""
    ran = in_a_process(code, SURGE_ISA='generic')
    assert ran.stdout.splitlines() == [
        'generic',
        str(
            [found.boxes.tolist(), found.scores.tolist()]
            + [found.labels.tolist()]
        ),
    ]
    ran = in_a_process(code, SURGE_ISA='mmx')
    assert "ValueError: SURGE_ISA='mmx': " in ran.stderr


def test_kernels_that_compute_otherwise_are_refused(tmp_path):
    model = layered_detector()
    for layer in model.graph.node:
        if layer.op_type == 'BinaryConv':
            layer.attribute.append(onnx.helper.make_attribute('check', 1))
    assert 'compute other values than those stored' in refused(model, tmp_path)


def test_it_imports_no_training_stack():
    code = (
        'import sys, surge_runtime; print({"torch", "mmdet", "surge_det", '
        '"cv2", "onnx", "matplotlib"} & set(sys.modules))'
    )
    out = subprocess.check_output([sys.executable, '-c', code], text=True)
    assert out == 'set()\n'
