"""Whole detectors in OpenVINO: export, loading, detections."""

import contextlib
import copy
import importlib.util
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip('mmdet', reason='needs the toolbox')
if importlib.util.find_spec('openvino') is None:
    pytest.skip('needs the extra deploy', allow_module_level=True)

import surge_det  # noqa: F401

# isort: split
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.registry import init_default_scope
from small_detector import NARROW, small_one_stage
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.ops import box_iou

from surge_det.deploy import FORMATS, ExportError
from surge_det.deploy import networks as networks_module
from surge_det.deploy.comparison import (
    TRIALS,
    check_input,
    check_network,
    record,
)
from surge_det.deploy.config import config_text
from surge_det.deploy.extra import require
from surge_det.deploy.formats import openvino as format_module
from surge_det.deploy.networks import (
    Flattened,
    dense_network,
    detector_problem,
    roi_network,
)
from surge_det.deploy.openvino import Network
from surge_det.deploy.openvino import runtime as runtime_module
from surge_det.deploy.openvino.conversion import exact_arithmetic
from surge_det.deploy.openvino.lowering import stored_as_bits
from surge_det.deploy.openvino.runtime import shared_core
from surge_det.deploy.stored_config import stored_config
from surge_det.deploy.trained import build_detector
from surge_det.engine.apply_method import apply_method

pytestmark = pytest.mark.isa

OPENVINO = FORMATS['openvino']
CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
META = {'classes': ('a', 'b', 'c'), 'palette': [(1, 2, 3)] * 3}


def _two_stage():
    cfg = Config.fromfile(CONFIGS / 'surge_faster_rcnn_r18_bccd.py')
    head = dict(in_channels=16, feat_channels=16)
    cfg.merge_from_dict(
        dict(
            model=dict(
                **NARROW,
                rpn_head=head,
                roi_head=dict(
                    bbox_roi_extractor=dict(out_channels=16),
                    bbox_head=dict(
                        in_channels=16,
                        fc_out_channels=32,
                        num_classes=3,
                        linear_cfg=dict(type='SURGELinear'),
                    ),
                ),
                test_cfg=dict(rpn=dict(max_per_img=70)),
            )
        )
    )
    cfg.model.backbone.stem_channels = 16
    return cfg


def _detector(cfg):
    """Build one that detects something: norms and shifts at random."""
    torch.manual_seed(0)
    model = build_detector(cfg)
    model.dataset_meta = META
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
            nn.init.normal_(module.running_mean, std=0.3)
    for name, parameter in model.named_parameters():
        if name.endswith('shift') or (
            name.endswith('.bias') and 'conv' in name
        ):
            nn.init.normal_(parameter, std=0.1)
        if name.endswith(('retina_cls.weight', 'fc_cls.weight')):
            nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture(scope='module', params=[_two_stage, small_one_stage])
def exported(request, tmp_path_factory):
    init_default_scope('mmdet')
    cfg = request.param()
    model = _detector(cfg)
    folder = tmp_path_factory.mktemp('openvino')
    files = OPENVINO.save(model, folder / 'net.xml')
    return cfg, model, files


def _data(*sizes):
    generator = np.random.default_rng(0)
    return dict(
        inputs=[
            torch.from_numpy(
                generator.integers(0, 256, (3, *size), dtype=np.uint8)
            )
            for size in sizes
        ],
        data_samples=[
            DetDataSample(
                metainfo=dict(
                    img_shape=size, ori_shape=size, scale_factor=(1.0, 1.0)
                )
            )
            for size in sizes
        ],
    )


def _detections(model, *sizes):
    with torch.no_grad():
        results = model.test_step(_data(*sizes))
    return [result.pred_instances for result in results]


def _agree(found, expected):
    """Share of the expected boxes that are found, with class and score."""
    assert len(expected) > 5
    overlap = box_iou(expected.bboxes, found.bboxes)
    same = (
        (overlap > 0.95)
        & (expected.labels[:, None] == found.labels)
        & ((expected.scores[:, None] - found.scores).abs() < 0.01)
    )
    return same.any(1).float().mean().item()


def test_detections_are_those_of_torch(exported):
    cfg, model, files = exported
    loaded = OPENVINO.load(files[1])
    assert isinstance(loaded, type(model))
    assert loaded.dataset_meta == META
    assert loaded.cfg.model.type == cfg.model.type
    # Nothing of the network is left in torch.
    assert not list(loaded.parameters())
    loaded.to('cpu')
    # One image, then two of different sizes, which torch pads to one.
    for sizes in ([(96, 128)], [(64, 96), (96, 64)]):
        with exact_arithmetic(model):
            expected = _detections(model, *sizes)
        found = _detections(loaded, *sizes)
        for one, other in zip(found, expected, strict=True):
            # A sum that rounds otherwise may flip a sign somewhere.
            assert _agree(one, other) > 0.9
            assert _agree(other, one) > 0.9


def test_a_head_that_decodes_its_own_way_gets_the_usual_layout(tmp_path):
    # CenterNet's views its maps, as channels_last does not allow.
    init_default_scope('mmdet')
    cfg = Config.fromfile(CONFIGS / 'surge_fcos_r50_coco.py')
    name = 'centernet_r18_8xb16-crop512-140e_coco'
    cfg.model = get_config(f'mmdet::centernet/{name}.py').model
    cfg.model.binarize_cfg = {}
    cfg.model.backbone.init_cfg = None
    cfg.model.neck.use_dcn = False
    cfg.model.bbox_head.num_classes = 3
    model = _detector(cfg)
    # Boxes of some width and height.
    nn.init.constant_(model.bbox_head.wh_head[-1].bias, 8)
    files = OPENVINO.save(model, tmp_path / 'net.xml')
    data = _data((96, 128))
    border = np.array([0, 96, 0, 128])
    for sample in data['data_samples']:
        sample.set_metainfo(dict(border=border, batch_input_shape=(96, 128)))

    with torch.no_grad(), exact_arithmetic(model):
        expected = model.test_step(data)[0].pred_instances
        found = OPENVINO.load(files[1]).test_step(data)[0].pred_instances

    assert _agree(found, expected) > 0.8


def test_the_networks_outputs_are_those_of_torch(exported):
    _, model, files = exported
    parts = [(files[1], dense_network(model), (3, 3, 96, 64))]
    if len(files) == 4:
        roi = roi_network(model)
        parts += [(files[3], roi, (n, 16, 7, 7)) for n in (0, 5, 70)]
    for path, network, shape in parts:
        torch.manual_seed(1)
        x = torch.randn(shape)
        runner = Network(shared_core().read_model(path), threads=1)
        with torch.no_grad(), exact_arithmetic(network):
            expected = network(x)
        assert runner.of_regions == ('roi' in path.name)
        for got, wanted in zip(runner.tensors(x), expected, strict=True):
            assert got.shape == wanted.shape
            if wanted.numel():
                difference = (got - wanted).abs().mean()
                assert difference <= 0.02 * wanted.std() + 1e-5


def test_a_size_is_compiled_once(exported, monkeypatch):
    _, _, files = exported
    monkeypatch.setattr(runtime_module, 'SIZES', 2)
    network = Network(shared_core().read_model(files[1]), threads=1)
    for width in (64, 96, 64, 128):
        network(torch.zeros(2, 3, 64, width))
    kept = network.compiled((1, 3, 64, 128))
    # Images came in the standard layout, maps went out in channels_last.
    assert list(network._requests) == [
        (1, 3, 64, 64, False, True),
        (1, 3, 64, 128, False, True),
    ]
    kinds = [
        node.get_rt_info()['layerType'].astype(str)
        for node in kept.get_runtime_model().get_ordered_ops()
    ]
    binary = [
        node
        for node in network.model.get_ordered_ops()
        if node.get_type_name() == 'BinaryConvolution'
    ]
    assert kinds.count('BinaryConvolution') == len(binary) > 15


def test_the_weights_are_bits(exported):
    _, model, files = exported
    bits = {
        node.get_friendly_name(): node.get_byte_size()
        for node in shared_core().read_model(files[1]).get_ordered_ops()
        if node.get_type_name() == 'Constant'
        and node.get_element_type() == require('openvino').Type.u1
    }
    binary = {
        name: module.weight.numel() // 8
        for name, module in model.named_modules()
        if stored_as_bits(module) and 'roi_head' not in name
    }
    assert bits == {f'{name}/bits': size for name, size in binary.items()}
    real = sum(
        p.numel() * 4
        for name, p in model.named_parameters()
        if 'roi_head' not in name
    )
    assert files[0].stat().st_size < real / 5


def reseal(path, text):
    """Write a network's first file with a digest that is right."""
    digest = re.search('<digest value="(.*?)" />', text)[1]
    path.write_text(text.replace(digest, '0' * 64))
    format_module._seal(path)


def test_the_config_in_the_file_is_read_alone(exported):
    cfg, _, files = exported
    loaded = OPENVINO.load(files[1])
    wanted = stored_config(config_text(cfg), 'it')
    assert loaded.cfg.pretty_text == wanted.pretty_text


def test_the_config_in_the_file_runs_nothing(exported, tmp_path):
    cfg, _, files = exported
    cfg = copy.deepcopy(cfg)
    # Its classes are others.
    cfg.pop('test_dataloader', None)
    for file in files:
        shutil.copy(file, tmp_path)
    path, mark = tmp_path / 'net.xml', tmp_path / 'ran'
    text = path.read_text()
    hostile = f"""dict(type=&apos;CameraMotionCompensation&apos;,
        warp_mode='open("{mark}", "w")')"""
    hostile = ' '.join(hostile.replace('"', '&quot;').split())
    for place, said in (
        ('assigner=', None),
        ('norm_cfg=', 'norm_cfg.*CameraMotionCompensation.*your own config'),
    ):
        changed = text.replace(place, f'{place}{hostile}, x=', 1)
        assert changed != text
        reseal(path, changed)
        with (
            contextlib.nullcontext()
            if said is None
            else pytest.raises(ValueError, match=said)
        ):
            OPENVINO.load(path)
        OPENVINO.load(path, cfg)
        assert not mark.exists()


# An input that does not fit into memory.
LARGE = '[{"input": [10000000, 10000000], "trial": 0}]'.replace('"', '&quot;')


def test_damage_is_an_error_that_names_the_file(exported, tmp_path):
    cfg, _, files = exported
    for file in files:
        shutil.copy(file, tmp_path)
    path = tmp_path / 'net.xml'
    with pytest.raises(FileNotFoundError, match='other.xml'):
        OPENVINO.load(tmp_path / 'other.xml')
    text = path.read_text()
    reseal(path, text.replace('surge_det.openvino', 'something'))
    with pytest.raises(ValueError, match='net.xml: format'):
        OPENVINO.load(path)
    for key, entry in (
        *(('outputs', ' value="{" />'), ('check', ' value="3" />')),
        *(('check', ' value="[3]" />'), ('check', ' value="[{}]" />')),
        ('check', f' value="{LARGE}" />'),
        ('outputs', '><b value="1" /></outputs>'),
        ('dataset_meta', '><b value="1" /></dataset_meta>'),
    ):
        other = f'<{key}{entry}'
        reseal(path, re.sub(f'<{key} value=".*?" />', other, text))
        with pytest.raises(ValueError, match='net.xml: (damaged|no dataset)'):
            OPENVINO.load(path)
    path.write_text(text[: len(text) // 2])
    with pytest.raises(ValueError, match='net.xml: damaged, or not written'):
        OPENVINO.load(path)
    for old, new in (('&quot;a&quot;', '&quot;b&quot;'), ('=0.5', '=0.6')):
        assert old in text
        path.write_text(text.replace(old, new, 1))
        with pytest.raises(ValueError, match='net.xml.* damaged or changed'):
            OPENVINO.load(path)
    path.write_text(text)
    if len(files) == 4:
        roi = tmp_path / 'net.roi.xml'
        other_day = roi.read_text().replace(_export_id(text), 'another-day')
        reseal(roi, other_day)
        with pytest.raises(ValueError, match='different exports'):
            OPENVINO.load(path)
        with pytest.raises(ValueError, match='the first one, net.xml'):
            OPENVINO.load(roi)
        other = small_one_stage()
    else:
        other = _two_stage()
    more = copy.deepcopy(cfg)
    head = more.model.get('bbox_head') or more.model.roi_head.bbox_head
    head.num_classes = 4
    for config in (other, more):
        # Its classes are others too, and would be refused first.
        config.pop('test_dataloader', None)
        with pytest.raises(ValueError, match='net.xml.*other layers'):
            OPENVINO.load(path, config)


def _export_id(text):
    return text.split('<export value="')[1].split('"')[0]


def test_a_kernel_that_differs_is_refused_at_load(exported, tmp_path):
    _, _, files = exported
    for file in files:
        shutil.copy(file, tmp_path)
    # All real weights and thresholds are as they were, and the bits too: it
    # is the graph that says something else than torch has computed.
    path = tmp_path / 'net.xml'
    text = path.read_text()
    reseal(path, text.replace('type="PReLU"', 'type="Broken"', 1))
    with pytest.raises(ValueError, match='cannot read'):
        OPENVINO.load(path)
    reseal(path, text.replace('pad_value="0"', 'pad_value="1"'))
    with pytest.raises(RuntimeError, match='off what torch computes'):
        OPENVINO.load(path)


def test_the_networks_check_tells_shapes_and_values():
    outputs = [torch.linspace(-1, 1, 300).view(1, 3, 10, 10)]
    recorded = json.loads(json.dumps([record((1, 3, 8, 8), outputs)]))
    check_network(lambda x: outputs, recorded, 'net')
    check_network(lambda x: [outputs[0] + 0.01], recorded, 'net')
    for wrong, message in (
        ([outputs[0] + 0.5], 'wrong'),
        ([outputs[0] * float('nan')], 'wrong'),
        ([outputs[0][..., :5]], 'shape'),
        ([], '0 outputs'),
    ):
        with pytest.raises(RuntimeError, match=message):
            check_network(lambda x, wrong=wrong: wrong, recorded, 'net')


def test_the_networks_check_forgives_what_one_input_shows_only():
    shape = (1, 3, 8, 8)
    inputs = [check_input(shape, trial) for trial in range(TRIALS)]
    recorded = [record(shape, [x], trial) for trial, x in enumerate(inputs)]
    seen = []

    def run(x, right):
        (trial,) = (i for i, one in enumerate(inputs) if x.equal(one))
        seen.append(trial)
        return [x if trial in right else x + 1]

    check_network(lambda x: run(x, {0, 1, 2}), recorded, 'net')
    assert seen == [0]
    check_network(lambda x: run(x, {2}), recorded, 'net')
    assert seen == [0, 0, 1, 2]
    with pytest.raises(RuntimeError, match='net: output 0 .* is wrong'):
        check_network(lambda x: run(x, set()), recorded, 'net')


def test_weights_of_another_export_or_damaged_are_refused(exported, tmp_path):
    _, _, files = exported
    for file in files:
        shutil.copy(file, tmp_path)
    for name in ('net.bin', 'net.roi.bin'):
        path = tmp_path / name
        if not path.exists():
            continue
        whole = path.read_bytes()
        damaged = bytearray(whole)
        damaged[len(damaged) // 2] ^= 255
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=f'{name}: damaged or changed'):
            OPENVINO.load(tmp_path / 'net.xml')
        path.write_bytes(whole)
    OPENVINO.load(tmp_path / 'net.xml')


def test_layers_that_compute_otherwise_are_refused(exported):
    cfg, _, files = exported
    other = apply_method(cfg, 'float')
    # Classes are compared first.
    other.pop('test_dataloader')
    path = next(f for f in files if f.name == 'net.xml')
    with pytest.raises(ValueError, match='computes them otherwise'):
        OPENVINO.load(path, other)


def test_export_refuses_before_it_writes(tmp_path):
    init_default_scope('mmdet')
    model = build_detector(small_one_stage())
    with pytest.raises(ValueError, match='NAME.xml'):
        OPENVINO.save(model, tmp_path / 'net.bin')
    with pytest.raises(FileNotFoundError, match='nowhere'):
        OPENVINO.save(model, tmp_path / 'nowhere' / 'net.xml')
    (tmp_path / 'net.roi.bin').mkdir()
    with pytest.raises(IsADirectoryError, match='net.roi.bin: is a folder'):
        OPENVINO.save(model, tmp_path / 'net.xml')
    (tmp_path / 'net.roi.bin').rmdir()
    wrong = copy.deepcopy(model)
    wrong.neck.fpn_convs[0].conv.double()
    with pytest.raises(ExportError, match=r'neck.fpn_convs.0.conv.*float64'):
        OPENVINO.save(wrong, tmp_path / 'net.xml')
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('dim', [2, 3])
def test_a_network_that_fits_one_size_is_refused(dim, monkeypatch):
    network = Flattened(nn.Identity(), lambda x: [x * int(x.shape[dim])])
    monkeypatch.setattr(networks_module, 'dense_network', lambda _: network)
    with pytest.raises(ExportError, match='output 0.* is wrong'):
        format_module._dense(nn.Identity())


@pytest.mark.parametrize(
    ('name', 'reason'),
    [
        ('mask_rcnn_r50', 'mask'),
        ('detr_r50', 'neither a one-stage'),
        ('fcos_r50', None),
        ('yolox_tiny', None),
        ('rtmdet_tiny', None),
        ('ssd300_vgg16', None),
    ],
)
def test_which_detectors_can_be_exported(name, reason):
    init_default_scope('mmdet')
    cfg = Config.fromfile(CONFIGS / f'surge_{name}_coco.py')
    cfg.model.backbone.init_cfg = None
    with torch.device('meta'):
        model = MODELS.build(cfg.model)
    problem = detector_problem(model)
    assert (problem is None) == (reason is None)
    assert reason is None or reason in problem


def test_an_operation_that_openvino_lacks_is_named():
    class Odd(nn.Module):
        def forward(self, x):
            return torch.linalg.svdvals(x)

    with pytest.raises(ExportError, match=r'(?s)svdvals.*--format packed'):
        format_module._converted(
            Odd().eval(), torch.rand(1, 1, 4, 4), (1, 1, 4, 4)
        )
