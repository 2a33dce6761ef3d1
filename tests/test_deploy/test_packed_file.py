import itertools
import json
import struct
import sys

import pytest
import torch

pytest.importorskip('mmdet', reason='needs the toolbox')
pytest.importorskip('safetensors', reason='needs the extra deploy')

import surge_det  # noqa: F401

# isort: split
from mmdet.registry import MODELS
from mmengine.config import Config
from safetensors import safe_open
from safetensors.torch import save_file
from small_detector import (
    CONFIGS,
    META,
    same_detections,
    small_config,
    train,
)

from surge_det.core.packed_layers import PackedConv2d, PackedLinear
from surge_det.deploy import FORMATS, ExportError, load_detector
from surge_det.deploy.formats.digest import digest
from surge_det.deploy.loading import as_model_cfg
from surge_det.deploy.trained import build_detector
from surge_det.engine.apply_method import apply_method

pytestmark = pytest.mark.isa

PACKED = FORMATS['packed']


def trained(cfg, meta=META):
    """A detector that can be exported."""
    model = train(build_detector(cfg))
    model.dataset_meta = meta
    return model


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
    """Config, model and packed file."""
    cfg = small_config()
    model = trained(cfg)
    path = tmp_path_factory.mktemp('packed') / 'detector.safetensors'
    PACKED.save(model, path)
    return cfg, model, path


def content(path):
    with safe_open(path, 'pt') as file:
        names = file.keys()
        metadata = json.loads(file.metadata()['surge_det.packed'])
        return metadata, {n: file.get_tensor(n) for n in names}


def test_same_outputs_bit_for_bit(exported):
    cfg, model, path = exported
    packed = PACKED.load(path)
    for size in ((64, 96), (80, 48)):
        assert same_detections(model, packed, size=size)
    assert same_detections(model, load_detector(path, cfg))
    assert packed.dataset_meta == META
    assert packed.cfg.model.type == 'FasterRCNN'
    assert not packed.training
    layers = [
        m for m in packed.modules() if type(m) in (PackedConv2d, PackedLinear)
    ]
    assert len(layers) == 16 + 8 + 1 + 2


def test_the_export_changes_nothing(exported):
    _, model, path = exported
    before = {k: v.clone() for k, v in model.state_dict().items()}
    PACKED.save(model, path.with_name('again.safetensors'))
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert path.with_name('again.safetensors').read_bytes() == (
        path.read_bytes()
    )


def test_what_is_in_the_file(exported):
    _, model, path = exported
    metadata, tensors = content(path)
    name = 'backbone.layer4.1.conv2'
    assert tensors[f'{name}.bits'].shape == (128, 128 * 9 // 8)
    assert f'{name}.weight' not in tensors
    # What a first group of eight holds, in numbers written here.
    weight = model.get_submodule(name).weight
    first = sum((weight[0].flatten()[:8] >= 0).int() << torch.arange(8))
    assert tensors[f'{name}.bits'][0, 0] == first
    scale = weight.abs().mean((1, 2, 3))
    assert torch.equal(tensors[f'{name}.scale'], scale)
    assert len(metadata['folded']) == 1 + 16 + 3
    assert not any('running' in key or 'num_b' in key for key in tensors)
    assert not any('aux' in key for key in tensors)
    planned = sum(row.bytes for row in PACKED.plan(model))
    written = sum(t.numel() * t.element_size() for t in tensors.values())
    assert written == planned
    assert path.stat().st_size < planned + 40_000
    assert path.stat().st_mode & 0o044


def test_the_files_config_settings_yield_to_a_given_one(exported):
    cfg, _, path = exported
    other = Config(cfg.to_dict())
    other.model.test_cfg.rcnn.score_thr = 0.9
    model = PACKED.load(path, other)
    assert model.roi_head.test_cfg.score_thr == 0.9
    assert model.cfg is other


def test_norms_that_do_not_fold_keep_their_vectors(exported, tmp_path):
    cfg = small_config()
    cfg.model.backbone.norm_cfg = dict(type='BN', affine=False)
    model = train_without_affine(build_detector(cfg))
    model.dataset_meta = META
    path = tmp_path / 'x.safetensors'
    PACKED.save(model, path)
    metadata, tensors = content(path)
    assert metadata['folded'] == []
    assert 'backbone.bn1.running_var' in tensors
    assert same_detections(model, PACKED.load(path))


def train_without_affine(model):
    for name, value in model.named_buffers():
        if name.endswith('running_var'):
            value.fill_(3)
    return model


def test_shared_layers_stay_shared(tmp_path):
    # RTMDet's head has the same convolutions under several names.
    cfg = Config.fromfile(CONFIGS / 'surge_rtmdet_tiny_coco.py')
    cfg.model.backbone.widen_factor = 0.125
    cfg.model.neck.update(in_channels=[32, 64, 128], out_channels=32)
    cfg.model.bbox_head.update(in_channels=32, feat_channels=32, num_classes=1)
    model = trained(cfg, {'classes': ('a',)})
    path = tmp_path / 'x.safetensors'
    PACKED.save(model, path)
    metadata, tensors = content(path)
    name = 'bbox_head.cls_convs.2.0.conv'
    shared = metadata['shared']
    assert shared[f'{name}.bits'] == 'bbox_head.cls_convs.0.0.conv.bits'
    assert f'{name}.bits' not in tensors
    planned = sum(row.bytes for row in PACKED.plan(model))
    assert planned == sum(
        t.numel() * t.element_size() for t in tensors.values()
    )
    packed = PACKED.load(path)
    convs = packed.bbox_head.cls_convs
    assert convs[2][0].conv is convs[0][0].conv
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected, found = model(x), packed(x)
    for a, b in zip(
        itertools.chain(*expected), itertools.chain(*found), strict=True
    ):
        assert torch.equal(a, b)


def change(path, tmp_path, metadata=(), tensors=(), drop=()):
    """Copy a file with other metadata and tensors, and the right digest."""
    old_metadata, old_tensors = content(path)
    tensors = {**old_tensors, **dict(tensors)}
    for name in drop:
        del tensors[name]
    new = tmp_path / 'changed.safetensors'
    metadata = {**old_metadata, **dict(metadata)}
    del metadata['digest']
    metadata['digest'] = digest(tensors, metadata)
    save_file(tensors, new, {'surge_det.packed': json.dumps(metadata)})
    return new


@pytest.mark.parametrize(
    ('change_of', 'said'),
    [
        (dict(metadata={'version': 2}), 'version 2 .* is not 3'),
        (dict(metadata={'config': 'import os'}), 'not allowed'),
        (dict(metadata={'dataset_meta': '3'}), 'dataset_meta'),
        (dict(metadata={'folded': ['neck']}), 'does not fit'),
        (dict(metadata={'folded': [['a']]}), r"folded has \['a'\], no text"),
        (dict(metadata={'folded': [{}]}), 'folded has {}, no text'),
        (dict(metadata={'shared': {'a': ['x']}}), 'shared has .*, no text'),
        (dict(metadata={'shared': {'a': {}}}), 'shared has {}, no text'),
        (dict(metadata={'arithmetic': {'a': [1]}}), 'arithmetic has .* no'),
        (
            dict(metadata={'dataset_meta': '{"classes": ["a", "b"]}'}),
            'num_classes=3, and there are names of 2 classes',
        ),
        (
            dict(metadata={'dataset_meta': '{"classes": []}'}),
            'num_classes=3, and there are names of 0 classes',
        ),
        (dict(drop=['backbone.layer1.0.conv1.bits']), r'layer1\.0\.conv1'),
        (dict(tensors={'more': torch.zeros(1)}), 'more'),
        (
            dict(tensors={'backbone.layer1.0.conv1.scale': torch.ones(3)}),
            r'layer1\.0\.conv1\.scale',
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_files_that_are_wrong(change_of, said, exported, tmp_path):
    path = change(exported[2], tmp_path, **change_of)
    with pytest.raises(ValueError, match=said) as error:
        PACKED.load(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    'metadata',
    [
        dict(version=2, surge_det='\x1b[2J\nerror: 2'),
        dict(version='\x1b[2J\n' * 999),
        dict(arithmetic={'backbone.layer1.0.conv1': '\x1b[2J\n' * 99}),
        dict(arithmetic={'\x1b[2J\n' * 99: '1-bit'}),
    ],
    ids=lambda value: ', '.join(value),
)
def test_what_a_file_says_stays_on_one_line(metadata, exported, tmp_path):
    if 'arithmetic' in metadata:
        whole, _ = content(exported[2])
        metadata['arithmetic'] = whole['arithmetic'] | metadata['arithmetic']
    path = change(exported[2], tmp_path, metadata=metadata)
    with pytest.raises(ValueError, match=r'\\x1b\[2J\\n') as error:
        PACKED.load(path)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 1000


def test_files_that_are_damaged(exported, tmp_path):
    whole = exported[2].read_bytes()
    path = tmp_path / 'x.safetensors'
    header = struct.pack('<Q', 2) + b'{}'
    other = whole.replace(b'surge_det.packed', b'surge_det.pocked', 1)
    bit = bytearray(whole)
    bit[-100] ^= 4
    place = whole.index(b'iou_threshold')
    threshold = whole[place:].replace(b'0.7', b'0.6', 1)
    threshold = whole[:place] + threshold
    for damaged in (
        b'',
        whole[:7],
        whole[:99],
        whole[:-1],
        header,
        other,
        bit,
        threshold,
        whole.replace(b'RBC', b'RBD', 1),
        whole.replace(b'1-bit', b'2-bit', 1),
    ):
        assert damaged != whole
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match='damaged|no packed') as error:
            PACKED.load(path)
        assert str(path) in str(error.value)
    with pytest.raises(FileNotFoundError, match='nowhere'):
        PACKED.load(tmp_path / 'nowhere.safetensors')


def test_another_config_is_told(exported):
    cfg, _, path = exported
    for method, layers in (('float', 'real here'), ('irnet', 'IRNet')):
        with pytest.raises(ValueError, match=layers):
            PACKED.load(path, apply_method(cfg, method))
    other = Config(cfg.to_dict())
    other.model.roi_head.bbox_head.num_classes = 7
    with pytest.raises(
        ValueError, match=r'this config: (?s:.*)fc_cls'
    ) as error:
        PACKED.load(path, other)
    assert str(path) in str(error.value)


def test_nothing_is_written_where_something_cannot_be(tmp_path, exported):
    cfg, _, _ = exported
    model = build_detector(cfg)
    with torch.no_grad():
        model.neck.fpn_convs[1].conv.weight[0, 0, 0, 0] = float('nan')
    with pytest.raises(ExportError, match=r'neck\.fpn_convs\.1\.conv'):
        PACKED.save(model, tmp_path / 'x.safetensors')
    model = trained(cfg, {'classes': object()})
    with pytest.raises(ValueError, match='dataset_meta'):
        PACKED.save(model, tmp_path / 'x')
    assert not list(tmp_path.iterdir())


def test_without_safetensors(exported, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'safetensors', None)
    monkeypatch.setitem(sys.modules, 'safetensors.torch', None)
    said = r'safetensors.*pip install "surge_det\[deploy\]"'
    with pytest.raises(ImportError, match=said):
        PACKED.load(exported[2])
    with pytest.raises(ImportError, match=said):
        PACKED.save(exported[1], tmp_path / 'x.safetensors')
    with pytest.raises(FileNotFoundError, match='nowhere'):
        PACKED.load(tmp_path / 'nowhere.safetensors')


def test_a_runner_takes_the_model_from_the_file(exported):
    cfg, model, path = exported
    built = MODELS.build(as_model_cfg(path, cfg))
    assert same_detections(model, built)
