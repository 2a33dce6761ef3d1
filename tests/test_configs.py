import copy
import functools
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip('mmdet', reason='needs the toolbox')

import surge_det  # noqa: F401

# isort: split
from mmdet.registry import DATASETS, MODELS, TRANSFORMS
from mmengine.config import Config
from mmengine.fileio import load as load_file

from surge_det.core.layers import named_surge_layers

CONFIGS = Path(__file__).resolve().parents[1] / 'configs'
NAMES = sorted(
    path.relative_to(CONFIGS).with_suffix('').as_posix()
    for folder in ('.', 'overfit')
    for path in CONFIGS.glob(f'{folder}/*.py')
)
# Detector: its binarized layers, and the data it has configs for.
DETECTORS = {
    'faster_rcnn_r18': (16 + 8 + 1, ('voc', 'coco', 'bccd', 'demo')),
    'faster_rcnn_r34': (32 + 8 + 1, ('coco',)),
    'ssd300_vgg16': (16 + 1 + 8, ('voc', 'coco')),
}
TINY = [f'surge_{detector}_coco_tiny' for detector in DETECTORS]
OVERFIT = [
    f'overfit/surge_{detector}_coco_4images'
    for detector in ('faster_rcnn_r18', 'ssd300_vgg16')
]
# Base channels by name; all others have 64.
WIDTHS = {
    f'surge_faster_rcnn_r18_w{width}_{data}': width
    for data, widths in (('bccd', (16, 32, 96, 128)), ('neu', (16,)))
    for width in widths
}
FSG = {'fsg_faster_rcnn_r18_bccd'}
TAUGHT = {
    'float_faster_rcnn_r18_w16_neu',
    'float_faster_rcnn_r18_w32_bccd',
    'kd_faster_rcnn_r18_w16_bccd',
    'kd_faster_rcnn_r18_w16_neu',
}
CONVERTED = {
    'overfit/surge_retinanet_r18_coco_4images',
    'surge_detr_r50_coco',
    'surge_faster_rcnn_r18_converted_bccd',
    'surge_fcos_r50_coco',
    'surge_mask_rcnn_r50_coco',
    'surge_retinanet_r50_coco',
    'surge_rtmdet_tiny_coco',
    'surge_yolox_tiny_coco',
}


pytestmark = pytest.mark.usefixtures('mmdet_scope')


@functools.cache
def _read(name):
    return Config.fromfile(CONFIGS / f'{name}.py')


def load(name):
    # Reading a config takes a second.
    return copy.deepcopy(_read(name))


def build(cfg):
    # Weights of ImageNet cannot be fetched by a test.
    cfg.model.backbone.pop('init_cfg', None)
    return MODELS.build(cfg.model)


def real_photo():
    """A photograph, (H, W, 3) uint8 BGR, that matplotlib ships."""
    matplotlib = pytest.importorskip('matplotlib')
    image = pytest.importorskip('PIL.Image')
    path = Path(matplotlib.get_data_path(), 'sample_data', 'grace_hopper.jpg')
    rgb = np.asarray(image.open(path).convert('RGB').resize((320, 240)))
    return np.ascontiguousarray(rgb[..., ::-1])


TWINS = {'surge': (True, True), 'ste': (False, True), 'float': (False, False)}
METHODS = {**TWINS, 'fsg': (False, True), 'kd': (False, True)}
PAIRS = [
    (d, data) for d, (_, all_data) in DETECTORS.items() for data in all_data
]


def test_every_promised_config_is_there():
    twins = {f'{m}_{detector}_{d}' for m in TWINS for detector, d in PAIRS}
    assert set(NAMES) == twins | {*TINY, *OVERFIT} | CONVERTED | FSG | {
        *TAUGHT,
        *WIDTHS,
        'surge_faster_rcnn_r18_neu',
    }


def leaf(dataset):
    """The dataset inside wrappers, and all pipelines on the way."""
    pipelines = [dataset.get('pipeline', [])]
    while 'dataset' in dataset or 'datasets' in dataset:
        dataset = dataset.get('dataset') or dataset.datasets[0]
        pipelines.append(dataset.get('pipeline', []))
    return dataset, pipelines


def classes(cfg):
    head = cfg.model.get('roi_head', cfg.model)['bbox_head']
    return head.num_classes


@pytest.mark.parametrize('name', NAMES)
def test_config_builds(name):
    cfg = load(name)
    layers = dict(named_surge_layers(build(cfg)))
    method, detector = name.removeprefix('overfit/').split('_', 1)
    compensate, binary = METHODS[method]
    if name in CONVERTED:
        assert layers
    else:
        (count,) = (n for d, (n, _) in DETECTORS.items() if d in detector)
        # One with three stages instead of four.
        if detector.endswith('demo'):
            count = 12 + 6 + 1
        # At its smaller input the last level of SSD is left out.
        small = name == 'overfit/surge_ssd300_vgg16_coco_4images'
        assert len(layers) == count - (2 if small else 0)
    for layer in layers.values():
        assert layer.compensate is compensate
        assert layer.binarize_weight is binary
        assert layer.binarize_activation is binary
    # AGS is logged, what has a schedule follows it, validation is of what is
    # saved, classes are compared, and what is not finite is the end.
    hooks = {h.type for h in cfg.custom_hooks}
    assert hooks >= {'AGSHook', 'SURGEProgressHook', 'BroadcastBuffersHook'}
    assert hooks >= {'SURGECheckHook', 'SURGEFiniteHook'}
    kind = 'FSGOptimWrapper' if method == 'fsg' else 'AGSOptimWrapper'
    assert cfg.optim_wrapper.type == kind
    assert cfg.optim_wrapper.constructor == 'SURGEOptimWrapperConstructor'
    for split in ('train', 'val', 'test'):
        dataset, pipelines = leaf(cfg[f'{split}_dataloader'].dataset)
        metainfo = (
            dataset.get('metainfo') or DATASETS.get(dataset.type).METAINFO
        )
        assert classes(cfg) == len(metainfo['classes'])
        for pipeline in pipelines:
            for transform in pipeline:
                TRANSFORMS.build(transform)


def test_all_that_trains_is_watched():
    paths = [p for p in CONFIGS.rglob('*.py') if '_base_' not in p.parts]
    assert len(paths) > len(NAMES)
    for path in paths:
        cfg = _read(path.relative_to(CONFIGS).with_suffix(''))
        hooks = [h.type for h in cfg.custom_hooks]
        for name in ('SURGEFiniteHook', 'SURGESeedHook'):
            assert hooks.count(name) == 1, path


@pytest.mark.parametrize(('detector', 'data'), PAIRS)
def test_twins_differ_in_the_layers_only(detector, data):
    surge = load(f'surge_{detector}_{data}').to_dict()
    for method in ('ste', 'float'):
        twin = load(f'{method}_{detector}_{data}').to_dict()
        parts = [p for p in twin['model'] if p in ('backbone', 'neck')]
        parts += ['rpn_head'] if 'rpn_head' in twin['model'] else []
        for part in parts:
            assert twin['model'][part].pop('conv_cfg') != surge['model'][
                part
            ].get('conv_cfg')
        for key in surge:
            left = dict(surge[key]) if key == 'model' else surge[key]
            if key == 'model':
                for part in parts:
                    left[part] = {
                        k: v for k, v in left[part].items() if k != 'conv_cfg'
                    }
            assert twin[key] == left, key


@pytest.mark.parametrize(
    ('name', 'width'),
    [*WIDTHS.items(), ('surge_faster_rcnn_r18_neu', 64)],
)
def test_every_layer_follows_the_width(name, width):
    usual = f'surge_faster_rcnn_r18_{name.rpartition("_")[2]}'
    wide, model = (
        {n: tuple(p.shape) for n, p in build(load(x)).named_parameters()}
        for x in (name, usual)
    )
    assert wide.keys() == model.keys()
    for key, (*shape,) in model.items():
        # Output channels, but of the heads' last layers and the box head;
        # input channels, but of the image and inside of the box head.
        if key.startswith(('backbone', 'neck', 'rpn_head.rpn_conv')):
            shape[0] = shape[0] * width // 64
        if len(shape) > 1 and not re.search(
            r'backbone.conv1|fc_cls|fc_reg|shared_fcs.1', key
        ):
            shape[1] = shape[1] * width // 64
        assert list(wide[key]) == shape, key


@pytest.mark.parametrize('depth', [18, 34])
def test_coco_recipe(depth):
    cfg = load(f'surge_faster_rcnn_r{depth}_coco')
    assert cfg.model.backbone.depth == depth
    assert cfg.model.backbone.init_cfg.checkpoint.endswith(f'resnet{depth}')
    assert cfg.optim_wrapper.optimizer == dict(
        type='SGD', lr=0.02, momentum=0.9, weight_decay=1e-4
    )
    assert cfg.train_cfg.max_epochs == 12
    assert cfg.param_scheduler[1].milestones == [8, 11]
    assert cfg.auto_scale_lr.base_batch_size == 16
    for split in ('train', 'test'):
        dataset, ((*_, resize, _), *_) = leaf(
            cfg[f'{split}_dataloader'].dataset
        )
        assert dataset.type == 'COCOFormatDataset'
        resize = next(t for t in dataset.pipeline if t.type == 'Resize')
        assert tuple(resize.scale) == (1333, 800)
    assert cfg.val_evaluator.type == 'COCOFormatMetric'
    assert cfg.val_evaluator.metric == 'bbox'


@pytest.mark.parametrize('name', TINY)
def test_tiny_twin_is_small_and_downloads_nothing(name):
    cfg = load(name)
    assert 'torchvision://' not in cfg.pretty_text
    assert cfg.train_cfg.max_epochs <= 5


def test_voc_recipe():
    cfg = load('surge_faster_rcnn_r18_voc')
    assert cfg.optim_wrapper.type == 'AGSOptimWrapper'
    assert cfg.optim_wrapper.optimizer == dict(
        type='SGD', lr=0.004, momentum=0.9, weight_decay=1e-4
    )
    assert cfg.optim_wrapper.clip_grad.max_norm == 35
    assert cfg.param_scheduler[0].end == 200
    assert cfg.param_scheduler[1].milestones == [8, 11]
    assert cfg.train_cfg.max_epochs == 12
    assert cfg.model.backbone.init_cfg.checkpoint == 'torchvision://resnet18'
    # test_datasets/test_voc_format.py looks at these.
    data = load('_base_/datasets/voc0712_1000x600')
    for key in ('train_dataloader', 'test_dataloader', 'test_evaluator'):
        assert cfg[key] == data[key]


@pytest.mark.parametrize('name', ['surge_faster_rcnn_r18_bccd'])
@pytest.mark.parametrize('linear', [None, dict(type='SURGELinear')])
def test_every_sign_sees_both_signs_on_a_photograph(name, linear):
    torch.manual_seed(0)
    cfg = load(name)
    cfg.model.roi_head.bbox_head.linear_cfg = linear
    model = build(cfg).train()
    model.init_weights()
    shares = {}

    def watch(layer_name):
        def hook(module, args):
            negative = (args[0] < 0).float().mean().item()
            shares.setdefault(layer_name, []).append(negative)

        return hook

    for layer_name, layer in named_surge_layers(model):
        layer.register_forward_pre_hook(watch(layer_name))
    photo = torch.from_numpy(real_photo()).permute(2, 0, 1)
    batch = model.data_preprocessor(
        dict(inputs=[photo], data_samples=[_one_object(photo)]), True
    )
    model(**batch, mode='loss')
    assert len(shares) == 25 + (2 if linear else 0)
    bad = {
        n: s for n, s in shares.items() if not all(0.05 < v < 0.95 for v in s)
    }
    assert not bad


def _one_object(photo):
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData

    size = tuple(photo.shape[1:])
    sample = DetDataSample(
        metainfo=dict(
            img_shape=size,
            ori_shape=size,
            pad_shape=size,
            scale_factor=(1.0, 1.0),
        )
    )
    sample.gt_instances = InstanceData(
        bboxes=torch.tensor([[90.0, 20.0, 230.0, 220.0]]),
        labels=torch.tensor([0]),
    )
    return sample


def test_data_root_is_one_setting(monkeypatch):
    monkeypatch.setenv('SURGE_DATA_ROOT', os.path.join('some', 'where'))
    folders = dict(
        voc='VOCdevkit',
        bccd='bccd',
        neu='neu_det',
        demo='shapes',
        coco='coco',
        tiny='coco_tiny',
        # Of coco_tiny.
        **{'4images': 'coco_tiny'},
    )
    for name in (n for n in NAMES if not n.startswith(('ste_', 'float_'))):
        cfg = Config.fromfile(CONFIGS / f'{name}.py')
        folder = folders[name.rpartition('_')[2]]
        want = os.path.join('some', 'where', folder)
        for split in ('train', 'val', 'test'):
            dataset, _ = leaf(cfg[f'{split}_dataloader'].dataset)
            assert os.path.normpath(dataset.data_root) == want, name
        used = {
            key: cfg[key]
            for key in cfg
            if key.endswith(('_dataloader', '_evaluator'))
        }
        assert "'data/" not in str(used), name


def test_metafile_and_table_have_every_config():
    root = CONFIGS.parent
    table = (root / 'docs' / 'configs.md').read_text(encoding='utf-8')
    meta = load_file(CONFIGS / 'metafile.yml')
    models = {model['Name']: model for model in meta['Models']}
    top = {name for name in NAMES if '/' not in name}
    assert set(models) == top
    collections = {c['Name'] for c in meta['Collections']}
    for name, model in models.items():
        cfg = load(name)
        assert model['Config'] == f'configs/{name}.py'
        assert (root / model['Config']).is_file()
        assert model['In Collection'] in collections
        assert model['Metadata']['Epochs'] == cfg.train_cfg.max_epochs
        bits = 32 if name.startswith('float_') else 1
        assert model['Metadata']['Bits of weights'] == bits
        for method in ('ste', 'float'):
            # Twins have no row of their own.
            if name.startswith(f'{method}_') and name not in TAUGHT:
                name = f'surge_{name.removeprefix(method + "_")}'
                assert f'| `{name}` † |' in table
        assert f'| `{name}`' in table
    for name in set(NAMES) - top:
        assert f'| `{name}`' in table
    # What is about to be written is marked by capitals.
    assert not re.search(r'[A-Z]{6,}', re.sub(r'`[^`]*`', '', table))


def test_operations_and_sizes_of_the_table_are_the_models():
    from surge_det.models.complexity import detector_cost, total_cost

    root = CONFIGS.parent
    table = (root / 'docs' / 'configs.md').read_text(encoding='utf-8')
    meta = load_file(CONFIGS / 'metafile.yml')
    name = 'surge_yolox_tiny_coco'
    total = total_cost(detector_cost(load(name)).layers)
    row = next(r for r in table.splitlines() if f'`{name}`' in r)
    assert f'{total["ops"] / 1e6:.0f} M' in row
    assert f'{total["float_ops"] / 1e9:.2f} G' in row
    assert f'{total["bytes"] / 1e3:.0f} KB' in row
    (model,) = (m for m in meta['Models'] if m['Name'] == name)
    assert model['Metadata']['OPs (G)'] == pytest.approx(
        total['ops'] / 1e9, rel=0.01
    )
    assert model['Metadata']['Bytes (M)'] == pytest.approx(
        total['bytes'] / 1e6, rel=0.01
    )
