"""The front: what is measured of files, and what is written of it."""

import csv

import cv2
import numpy as np
import pytest
from command_line import ROOT

pytest.importorskip('mmdet', reason='needs the toolbox')
pytest.importorskip('matplotlib', reason='the benchmark draws')
pytest.importorskip('surge_runtime', reason='needs runtime/ installed')
pytest.importorskip('onnx', reason='needs onnx')

import onnx.parser
from runtime_files import sealed

from surge_det.cli.benchmark.int8 import quantized
from surge_det.cli.main import main
from surge_det.deploy.onnx.detector import open_session

CONFIG = """
_base_ = [{base!r}]
metainfo = dict(classes=('cat', 'dog'), palette=[(9, 9, 9), (0, 0, 0)])
data = dict(data_root={root!r}, ann_file='all.txt', metainfo=metainfo)
train_dataloader = dict(dataset=data)
val_dataloader = dict(dataset=data)
test_dataloader = dict(dataset=data)
"""
OBJECT = """
<annotation><size><width>30</width><height>20</height></size>
<object><name>dog</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>30</xmax>
<ymax>20</ymax></bndbox></object></annotation>
"""


@pytest.fixture
def config(tmp_path):
    """Of three images of 30x20 that a dog fills."""
    for folder in ('Annotations', 'JPEGImages'):
        (tmp_path / folder).mkdir()
    for name in 'abc':
        (tmp_path / 'Annotations' / f'{name}.xml').write_text(OBJECT)
        image = np.full((20, 30, 3), 90, np.uint8)
        cv2.imwrite(str(tmp_path / 'JPEGImages' / f'{name}.jpg'), image)
    (tmp_path / 'all.txt').write_text('a\nb\nc')
    base = str(ROOT / 'configs' / '_base_' / 'datasets' / 'voc_bccd.py')
    path = tmp_path / 'config.py'
    path.write_text(CONFIG.format(base=base, root=f'{tmp_path}/'))
    return path


# Finds one object, of class LABEL, that fills the image; its score, 0.9 for
# grey images, is what a layer computes.
DETECTOR = """
<ir_version: 8, opset_import: ["": 17, "surge": 1]>
detector (uint8[h, w, 3] image)
    => (float[n, 4] boxes, float[n] scores, int64[n] labels)
<float[2] zeros = {{0, 0}}, int64[2] width_height = {{1, 0}},
 int64[1] first = {{0}}, int64[1] label = {{{label}}},
 float[1, 3, 1, 1] weight = {{0.005, 0.003, 0.002}}, float[1] bias = {{0}},
 uint8[1, 1, 1] signs = {{7}}, float[3] start = {{0, 0, 0}},
 float[1] scale = {{0.3}}>
{{
    shape = Shape (image)
    size = Gather (shape, width_height)
    corner = Cast <to = 1> (size)
    box = Concat <axis = 0> (zeros, corner)
    boxes = Unsqueeze (box, first)
    labels = Identity (label)
    real = Cast <to = 1> (image)
    map = Unsqueeze (real, first)
    {layer}
    score = ReduceMax <keepdims = 0> (out)
    scores = Unsqueeze (score, first)
}}
"""
REAL = """
    planes = Transpose <perm = [0, 3, 1, 2]> (map)
    out = Conv (planes, weight, bias)
"""
ONE_BIT = """
    out = surge.BinaryConv <kernel_shape = [1, 1], strides = [1, 1],
        pads = [0, 0, 0, 0], dilations = [1, 1], groups = 1, pad_value = 0.0>
        (map, signs, start, scale)
"""


def detector(layer, label=1):
    """The bytes of a detector's file."""
    text = DETECTOR.format(layer=layer, label=label)
    return sealed(onnx.parser.parse_model(text))


def test_int8_twin_computes_with_whole_numbers():
    image = np.full((20, 30, 3), 90, np.uint8)
    data = detector(REAL)
    twin = quantized(data, open_session, [image, image // 2])
    operators = {n.op_type for n in onnx.load_from_string(twin).graph.node}
    assert 'QLinearConv' in operators
    assert 'Conv' not in operators
    found, expected = (
        open_session(model).run(None, {'image': image})
        for model in (twin, data)
    )
    assert expected[1] == pytest.approx([0.9])
    assert found[1] == pytest.approx(expected[1], abs=0.02)
    weights = next(
        onnx.numpy_helper.to_array(value)
        for value in onnx.load_from_string(twin).graph.initializer
        if value.name == 'weight_quantized'
    )
    assert weights.dtype == np.int8
    assert np.abs(weights).max() <= 64


def test_front(config, tmp_path):
    files = {
        'float.onnx': detector(REAL),
        'seed0.onnx': detector(ONE_BIT),
        'seed1.onnx': detector(ONE_BIT, label=0),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    out = tmp_path / 'out'
    named = [f'float small={tmp_path / "float.onnx"}']
    named += [f'1-bit small={tmp_path / name}' for name in files][1:]
    options = ['--rounds', '2', '--warmup', '0', '--out', str(out)]
    main(['benchmark', 'front', str(config), *named, *options])
    with open(out / 'front.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    # A front with a detector that takes dogs for cats in its second seed.
    assert [(row['detector'], row['file'], row['mAP']) for row in rows] == [
        ('float small', '0', '1.0000'),
        ('int8 small', '0', '1.0000'),
        ('1-bit small', '0', '1.0000'),
        ('1-bit small', '1', '0.0000'),
    ]
    sizes = {row['detector']: int(row['bytes']) for row in rows}
    assert sizes['float small'] == len(files['float.onnx'])
    assert sizes['1-bit small'] == len(files['seed0.onnx'])
    assert all(float(row['ms']) > 0 for row in rows)
    table = (out / 'front.md').read_text()
    assert '| 1-bit small | 0.500 ± 0.707 |' in table
    assert '| float small | 1.000 |' in table
    assert (out / 'front.png').stat().st_size > 0


def test_a_file_of_other_classes(config, tmp_path, capsys):
    path = tmp_path / 'detector.onnx'
    about = '{"version": 1, "classes": ["dog"]}'
    text = DETECTOR.format(layer=REAL, label=0)
    path.write_bytes(sealed(onnx.parser.parse_model(text), about))
    with pytest.raises(SystemExit):
        main(['benchmark', 'front', str(config), f'float w1={path}'])
    assert "['dog'], those of the data ['cat', 'dog']" in (
        capsys.readouterr().err
    )


def test_a_float_detector_of_another_name(config, tmp_path, capsys):
    path = tmp_path / 'detector.onnx'
    path.write_bytes(detector(REAL))
    with pytest.raises(SystemExit):
        main(['benchmark', 'front', str(config), f'1-bit w1={path}'])
    assert "begin with 'float'" in capsys.readouterr().err


def test_a_detector_without_a_name(config, capsys):
    with pytest.raises(SystemExit):
        main(['benchmark', 'front', str(config), 'detector.onnx'])
    assert "'detector.onnx' is not NAME=FILE" in capsys.readouterr().err
