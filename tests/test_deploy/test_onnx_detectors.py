"""Whole detectors as ONNX files, beside mmdet's in torch."""

import copy
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

pytest.importorskip('mmdet', reason='needs the toolbox')
if not all(
    map(importlib.util.find_spec, ('onnx', 'onnxruntime', 'surge_runtime'))
):
    pytest.skip('needs the extra deploy and runtime/', allow_module_level=True)

import surge_det  # noqa: F401

# isort: split
import onnx
import onnxruntime
import surge_runtime
from mmdet.apis import inference_detector
from mmengine.config import Config
from mmengine.registry import init_default_scope
from small_detector import META, small_config
from surge_runtime.library import library_path

from surge_det.deploy import (
    FORMATS,
    DetInferencer,
    ExportError,
    load_detector,
)
from surge_det.deploy.comparison import smallest_image
from surge_det.deploy.networks import (
    TO_FIRST,
    TO_LAST,
    dense_network,
    rebuild,
    roi_example,
    roi_network,
)
from surge_det.deploy.onnx.conversion import convert
from surge_det.deploy.onnx.detector import open_session, problem
from surge_det.deploy.openvino.detector import install_networks
from surge_det.deploy.trained import build_detector
from surge_det.engine.apply_method import apply_method

ONNX = FORMATS['onnx']
CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
STEPS = {'LoadImageFromFile', 'LoadAnnotations', 'PackDetInputs'}


def _narrow(name, **changes):
    cfg = Config.fromfile(CONFIGS / f'surge_{name}_coco.py')
    cfg.merge_from_dict({f'model.{key}': v for key, v in changes.items()})
    return cfg


def _pyramid(name):
    """A ResNet-18 with FPN, narrow, three classes."""
    return _narrow(
        name,
        **{
            'backbone.depth': 18,
            'backbone.stem_channels': 16,
            'backbone.base_channels': 16,
            'backbone.init_cfg': None,
            'neck.in_channels': [16, 32, 64, 128],
            'neck.out_channels': 32,
            'bbox_head.in_channels': 32,
            'bbox_head.feat_channels': 32,
            'bbox_head.stacked_convs': 1,
            'bbox_head.num_classes': 3,
        },
    )


def _fcos():
    cfg = _pyramid('fcos_r50')
    cfg.model.backbone.style = 'pytorch'
    return cfg


def _rtmdet():
    return _narrow(
        'rtmdet_tiny',
        **{'bbox_head.num_classes': 3, 'backbone.init_cfg': None},
    )


def _yolox():
    return _narrow('yolox_tiny', **{'bbox_head.num_classes': 3})


def _ssd():
    cfg = _narrow('ssd300_vgg16', **{'bbox_head.num_classes': 3})
    cfg.model.backbone.pop('init_cfg', None)
    return cfg


DETECTORS = {
    'faster_rcnn': small_config,
    'faster_rcnn_float': lambda: apply_method(small_config(), 'float'),
    'retinanet': lambda: _pyramid('retinanet_r50'),
    'fcos': _fcos,
    'rtmdet': _rtmdet,
    'yolox': _yolox,
    'ssd': _ssd,
}


def _small_scale(cfg):
    """Let the test pipeline resize to less, to save time."""
    for step in cfg.test_dataloader.dataset.pipeline:
        if step.type == 'Resize' and max(step.scale) > 300:
            step.scale = (160, 128)
        if step.type == 'Pad' and step.get('size'):
            step.size = (160, 160)


def _detector(cfg):
    """Build one that detects something, norms as a training leaves them."""
    init_default_scope('mmdet')
    torch.manual_seed(0)
    _small_scale(cfg)
    model = build_detector(cfg)
    model.dataset_meta = META
    network = dense_network(model)
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    with torch.no_grad():
        network(torch.randn(2, 3, 320, 320))
        for name, parameter in model.named_parameters():
            if name.endswith('shift'):
                parameter.normal_(std=0.1)
            if 'cls' in name and name.endswith('.weight'):
                # Scores that differ from one another.
                parameter.normal_(std=parameter[0].numel() ** -0.5)
    model.eval()
    return model


def _image(height, width):
    """A picture with something in it, blue first."""
    generator = np.random.default_rng(height)
    coarse = generator.integers(0, 256, (5, 6, 3), dtype=np.uint8)
    image = np.kron(coarse, np.ones((height // 5 + 1, width // 6 + 1, 1)))
    noise = generator.integers(-20, 20, (height, width, 3))
    return np.clip(image[:height, :width] + noise, 0, 255).astype(np.uint8)


@pytest.fixture(scope='module', params=DETECTORS)
def exported(request, tmp_path_factory):
    model = _detector(DETECTORS[request.param]())
    path = tmp_path_factory.mktemp('onnx') / 'detector.onnx'
    assert ONNX.save(model, path) == [path]
    return model, path


small = pytest.mark.parametrize('exported', ['faster_rcnn'], indirect=True)


class _Engine:
    """A network in ONNX Runtime, as `install_networks` wants it."""

    def __init__(self, network, example, regions):
        model = convert(network, example, regions, not regions)
        self.session = open_session(model.SerializeToString())
        self.structure, self.regions = network.structure, regions

    def __call__(self, x):
        x = x.permute(TO_LAST).contiguous() if self.regions else x
        found = self.session.run(None, {'data': x.numpy()})
        found = map(torch.from_numpy, found)
        maps = [y.permute(TO_FIRST) if y.dim() == 4 else y for y in found]
        return rebuild(self.structure, maps)


def _around(model):
    """Mmdet's detector, its networks alone in ONNX Runtime."""
    dense = dense_network(model)
    networks = [_Engine(dense, smallest_image(dense), False)]
    if hasattr(model, 'roi_head'):
        networks.append(_Engine(roi_network(model), roi_example(model), True))
    model = copy.deepcopy(model)
    install_networks(model, networks)
    return model


def test_boxes_are_those_of_mmdet(exported):
    model, path = exported
    detector = surge_runtime.Detector(path)
    assert detector.classes == META['classes']
    around = _around(model)
    for size in ((96, 128), (240, 200), (61, 333)):
        image = _image(*size)
        found = detector(image)
        expected = inference_detector(around, image).pred_instances
        assert len(expected) > 5
        # The engine optimizes one graph and several in other ways.
        assert found.labels.tolist() == expected.labels.tolist()
        np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)
        np.testing.assert_allclose(found.boxes, expected.bboxes, atol=0.02)


def test_a_float_twin_finds_what_torch_does(tmp_path):
    # Without signs, nothing flips.
    model = _detector(DETECTORS['faster_rcnn_float']())
    path = tmp_path / 'detector.onnx'
    ONNX.save(model, path)
    image = _image(240, 200)
    found = surge_runtime.Detector(path)(image)
    expected = inference_detector(model, image).pred_instances
    assert found.labels.tolist() == expected.labels.tolist()
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)
    np.testing.assert_allclose(found.boxes, expected.bboxes, atol=0.05)


def test_loaded_as_a_detector_of_mmdet(exported, tmp_path):
    model, path = exported
    loaded = load_detector(path)
    assert not list(loaded.parameters())
    assert loaded.dataset_meta == META
    assert loaded.cfg.model.type == model.cfg.model.type
    assert {s.type for s in loaded.cfg.test_dataloader.dataset.pipeline} <= (
        STEPS
    )
    image = _image(96, 128)
    found = inference_detector(loaded, image).pred_instances
    direct = surge_runtime.Detector(path)(image)
    assert np.array_equal(found.bboxes.numpy(), direct.boxes)
    assert np.array_equal(found.labels.numpy(), direct.labels)
    result = DetInferencer(weights=path)(image)['predictions'][0]
    assert len(result['labels']) == len(direct.labels)


@small
def test_the_same_bytes_again(exported, tmp_path):
    again = tmp_path / 'again.onnx'
    ONNX.save(_detector(small_config()), again)
    assert again.read_bytes() == exported[1].read_bytes()


def test_the_file_says_what_it_is(exported):
    _, path = exported
    proto = onnx.load(path)
    entries = {entry.key: entry.value for entry in proto.metadata_props}
    assert set(entries) == {'surge_runtime', 'sha256'}
    about = json.loads(entries['surge_runtime'])
    assert about['version'] == 1
    assert about['classes'] == list(META['classes'])
    assert [i.name for i in proto.graph.input] == ['image']
    assert [o.name for o in proto.graph.output] == [
        'boxes',
        'scores',
        'labels',
    ]
    checks = [
        [a.i for a in node.attribute if a.name == 'check']
        for node in proto.graph.node
        if node.op_type == 'BinaryConv'
    ]
    assert all(len(check) == 1 and check[0] for check in checks)


@small
def test_the_engine_keeps_the_first_layers_in_its_layout(exported, tmp_path):
    written = tmp_path / 'optimized.onnx'
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(library_path())
    options.optimized_model_filepath = str(written)
    options.log_severity_level = 3
    onnxruntime.InferenceSession(exported[1], options)
    kinds = [(n.domain, n.op_type) for n in onnx.load(written).graph.node]
    theirs = 'com.microsoft.nchwc'
    assert kinds[:2] == [('surge', 'Preprocess'), (theirs, 'Conv')]
    assert (theirs, 'MaxPool') in kinds
    assert ('', 'MaxPool') not in kinds


@small
def test_another_kernel_is_found_at_load(exported):
    proto = onnx.load(exported[1])
    node = next(n for n in proto.graph.node if n.op_type == 'BinaryConv')
    next(a for a in node.attribute if a.name == 'check').i += 1
    with pytest.raises(RuntimeError, match='compute other values'):
        open_session(proto.SerializeToString())


@small
def test_a_damaged_file_is_refused(exported, tmp_path):
    path = tmp_path / 'detector.onnx'
    data = bytearray(exported[1].read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match='damaged or changed'):
        load_detector(path)
    path.write_bytes(b'nonsense')
    with pytest.raises(ValueError, match='not an ONNX file'):
        load_detector(path)


@small
def test_another_config_is_refused(exported):
    cfg = small_config()
    cfg.model.roi_head.bbox_head.num_classes = 7
    with pytest.raises(ValueError, match='3 classes, not 7'):
        load_detector(exported[1], cfg)


def test_classes_have_to_be_known(tmp_path):
    model = _detector(small_config())
    model.dataset_meta = {'classes': ('one',)}
    with pytest.raises(ExportError, match='1 classes, the head 3'):
        ONNX.save(model, tmp_path / 'detector.onnx')
    assert not list(tmp_path.iterdir())


def _changed(**changes):
    cfg = small_config()
    cfg.merge_from_dict(changes)
    return cfg


PIPELINE = 'test_dataloader.dataset.pipeline'


@pytest.mark.parametrize(
    ('changes', 'reason'),
    [
        (
            {'model.test_cfg.rcnn.nms': dict(type='soft_nms')},
            'nms=.*type nms with an iou_threshold is allowed',
        ),
        (
            {'model.rpn_head.bbox_coder.add_ctr_clamp': True},
            'add_ctr_clamp',
        ),
        (
            {'model.roi_head.bbox_roi_extractor.type': 'GenericRoIExtractor'},
            'RoI extractor is a GenericRoIExtractor',
        ),
        ({f'{PIPELINE}.1': dict(type='YOLOXHSVRandomAug')}, 'YOLOXHSVRandom'),
        (
            {f'{PIPELINE}.1': dict(type='LoadAnnotations')},
            'no Resize',
        ),
        (
            {f'{PIPELINE}.1.interpolation': 'nearest'},
            'Resize with interpolation',
        ),
    ],
)
def test_what_cannot_be_exported_is_refused(changes, reason, tmp_path):
    init_default_scope('mmdet')
    model = build_detector(_changed(**changes))
    model.dataset_meta = META
    with pytest.raises(ExportError, match=reason) as caught:
        ONNX.save(model, tmp_path / 'detector.onnx')
    assert 'use --format packed' in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ('name', 'reason'),
    [('mask_rcnn_r50', 'mask'), ('detr_r50', 'neither a one-stage')],
)
def test_detectors_of_other_kinds_are_refused(name, reason):
    init_default_scope('mmdet')
    cfg = Config.fromfile(CONFIGS / f'surge_{name}_coco.py')
    cfg.model.backbone.init_cfg = None
    with torch.device('meta'):
        model = build_detector(cfg)
    assert reason in problem(model)


@small
def test_a_packed_detector_becomes_the_same_file(exported, tmp_path):
    model, path = exported
    packed = FORMATS['packed']
    packed.save(model, tmp_path / 'detector.safetensors')
    loaded = packed.load(tmp_path / 'detector.safetensors')
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    ONNX.save(loaded, tmp_path / 'b.onnx')
    found = [
        surge_runtime.Detector(each)(image)
        for each in (path, tmp_path / 'b.onnx')
    ]
    assert len(found[0].scores) > 0
    for name in ('boxes', 'scores', 'labels'):
        first, second = (getattr(each, name) for each in found)
        np.testing.assert_allclose(first, second, rtol=1e-5, atol=1e-4)
    for format in ('packed', 'pth'):
        with pytest.raises(ExportError, match='packed already'):
            FORMATS[format].save(loaded, tmp_path / 'again')


def test_other_types_are_refused(tmp_path):
    wrong = _detector(small_config())
    nn.Module.double(wrong.neck)
    with pytest.raises(ExportError, match='float64'):
        ONNX.save(wrong, tmp_path / 'detector.onnx')
