import re
import time

import pytest

pytest.importorskip('surge_runtime', reason='needs runtime/ installed')
pytest.importorskip('onnx', reason='needs onnx')

import onnx
from onnx import TensorProto, helper
from runtime_files import CLASSES, about, node, sealed, whole_image_detector
from surge_runtime.model_file import read_model_file


@pytest.fixture
def refusal(tmp_path):
    def refused(data):
        path = tmp_path / 'file.onnx'
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r'^model .*file\.onnx.: ') as e:
            read_model_file(path)
        assert '\n' not in str(e.value)
        return str(e.value).split("': ", 1)[1]

    return refused


def test_a_detector_is_read(tmp_path):
    data = sealed(whole_image_detector())
    path = tmp_path / 'detector.onnx'
    path.write_bytes(data)
    assert read_model_file(path) == (data, tuple(CLASSES))
    onnx.checker.check_model(str(path))


def test_absent(tmp_path):
    with pytest.raises(FileNotFoundError, match='does not exist'):
        read_model_file(tmp_path / 'x.onnx')
    with pytest.raises(FileNotFoundError, match='does not exist'):
        read_model_file(tmp_path)


@pytest.mark.parametrize(
    'data',
    [
        pytest.param(b'no model at all', id='text'),
        pytest.param(bytes(100), id='zeros'),
        pytest.param(b'\x80' * 100, id='endless number'),
        pytest.param(b'PK\x03\x04' + bytes(50), id='zip'),
        pytest.param(sealed(whole_image_detector())[:-100], id='cut off'),
    ],
)
def test_no_model(refusal, data):
    assert refusal(data) == 'not an ONNX file, or cut off'


@pytest.mark.parametrize('data', [b'', whole_image_detector()])
def test_an_other_model(refusal, data):
    if not isinstance(data, bytes):
        data = data.SerializeToString()
    assert 'no detector of ours' in refusal(data)


@pytest.mark.parametrize(
    ('metadata', 'why'),
    [
        ('no JSON', 'metadata surge_runtime is no JSON'),
        ('[' * 100_000, 'metadata surge_runtime is no JSON'),
        ('{"version": 1}', 'metadata surge_runtime is no JSON'),
        (about(version='2\x1b[2J'), 'metadata surge_runtime is no JSON'),
        (about(version=2), 'written for version 2; this .* reads version 1'),
        (about(classes='cat'), 'classes are no list of names'),
        (about(classes=['cat', 1]), 'classes are no list of names'),
        (about(classes=['cat\x1b[2J']), 'classes are no list of names'),
    ],
)
def test_metadata(refusal, metadata, why):
    data = sealed(whole_image_detector(), metadata)
    assert re.search(why, refusal(data))


def test_every_changed_byte_is_seen(refusal):
    data = sealed(whole_image_detector())
    for at in range(0, len(data), 7):
        changed = bytearray(data)
        changed[at] ^= 1
        assert refusal(bytes(changed))
    changed = data.replace(b'"cat"', b'"cow"')
    assert 'digest (sha256) differs' in refusal(changed)
    assert 'digest (sha256) differs' in refusal(data[:-76])
    assert 'digest (sha256) differs' in refusal(data + b'\x08\x08')


def test_number_of_classes(refusal):
    model = whole_image_detector()
    model.graph.node.append(
        node('DenseBoxes', [], ['x'], 'surge', num_classes=3)
    )
    assert refusal(sealed(model)) == 'it names 2 classes, and detects 3'


def subgraph():
    return helper.make_graph([], 'inner', [], [])


def external():
    tensor = helper.make_tensor('t', TensorProto.FLOAT, [1], [1.0])
    entry = tensor.external_data.add()
    entry.key, entry.value = 'location', '/etc/passwd'
    return tensor


def located():
    tensor = helper.make_tensor('t', TensorProto.FLOAT, [1], [1.0])
    tensor.data_location = TensorProto.EXTERNAL
    return tensor


def initializer(model, tensor):
    model.graph.initializer.append(tensor)


def constant(model, tensor):
    model.graph.node.append(node('Constant', [], ['c'], value=tensor))


@pytest.mark.parametrize('where', [initializer, constant])
@pytest.mark.parametrize('tensor', [external, located])
def test_values_in_another_file(refusal, where, tensor):
    model = whole_image_detector()
    where(model, tensor())
    assert 'values in another file' in refusal(sealed(model))


def test_a_second_part_of_the_graph_is_looked_at(refusal):
    # Protobuf merges what is there twice.
    more = onnx.ModelProto()
    more.graph.initializer.append(external())
    data = more.SerializeToString() + sealed(whole_image_detector())
    assert 'values in another file' in refusal(data)


def test_control_flow(refusal):
    model = whole_image_detector()
    model.graph.node.append(node('Loop', [], ['x'], body=subgraph()))
    assert 'a graph within the graph' in refusal(sealed(model))


def test_functions(refusal):
    model = whole_image_detector()
    model.functions.add().name = 'f'
    assert 'functions' in refusal(sealed(model))


def test_negative_pads(refusal):
    for pads in ([0, 0, 0, -1], [-1] * 4):
        model = whole_image_detector()
        model.graph.node.append(node('Conv', [], ['x'], pads=pads))
        assert refusal(sealed(model)) == 'it has negative pads'
    model = whole_image_detector()
    attribute = model.graph.node.add().attribute.add()
    attribute.name, attribute.i = 'pads', -1
    assert refusal(sealed(model)) == 'it has negative pads'


@pytest.mark.parametrize('where', [initializer, constant])
def test_constants_without_values(refusal, where):
    model = whole_image_detector()
    where(model, helper.make_tensor('t', TensorProto.FLOAT, [16, 3, 0], []))
    assert refusal(sealed(model)) == 'it has constants without values'


def test_a_long_attribute_takes_no_long_time(refusal):
    model = whole_image_detector()
    model.graph.node.append(node('Op', [], ['x'], axes=[1] * 30_000))
    model.graph.node.append(node('Op', [], ['x'], 'com.other'))
    start = time.perf_counter()
    assert 'com.other' in refusal(sealed(model))
    assert time.perf_counter() - start < 5


def test_other_domains(refusal):
    for change in ('import', 'node'):
        model = whole_image_detector()
        if change == 'import':
            model.opset_import.append(helper.make_opsetid('com.other', 1))
        else:
            model.graph.node.append(node('Op', [], ['x'], 'com.other'))
        assert refusal(sealed(model)) == (
            "it needs operators that this build lacks, of domain 'com.other'"
        )
