import os
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip('mmdet', reason='needs the toolbox')

import surge_det  # noqa: F401

# isort: split
from mmdet.registry import DATASETS, MODELS, TRANSFORMS
from mmengine.config import Config
from mmengine.registry import init_default_scope

from surge_det.core.layers import named_surge_layers

CONFIGS = Path(__file__).resolve().parents[1] / 'configs'
NAMES = sorted(path.stem for path in CONFIGS.glob('*.py'))
DATA = ('voc', 'bccd', 'demo')


@pytest.fixture(autouse=True)
def _mmdet_scope():
    init_default_scope('mmdet')


def load(name):
    return Config.fromfile(CONFIGS / f'{name}.py')


def build(cfg):
    # Weights of ImageNet cannot be fetched by a test.
    cfg.model.backbone.pop('init_cfg', None)
    model = MODELS.build(cfg.model)
    model.init_weights()
    return model


def real_photo():
    """A photograph, (H, W, 3) uint8 BGR, that matplotlib ships."""
    matplotlib = pytest.importorskip('matplotlib')
    image = pytest.importorskip('PIL.Image')
    path = Path(matplotlib.get_data_path(), 'sample_data', 'grace_hopper.jpg')
    rgb = np.asarray(image.open(path).convert('RGB').resize((320, 240)))
    return np.ascontiguousarray(rgb[..., ::-1])


def test_every_promised_config_is_there():
    want = {f'{m}_faster_rcnn_r18_{d}' for m in TWINS for d in DATA}
    assert want <= set(NAMES)


TWINS = {'surge': (True, True), 'ste': (False, True), 'float': (False, False)}


@pytest.mark.parametrize('name', NAMES)
def test_config_builds(name, monkeypatch):
    cfg = load(name)
    model = build(cfg)
    compensate, binary = TWINS[name.split('_')[0]]
    layers = dict(named_surge_layers(model))
    assert len(layers) == 16 + 8 + 1
    for layer in layers.values():
        assert layer.compensate is compensate
        assert layer.binarize_weight is binary
        assert layer.binarize_activation is binary
    classes = cfg.model.roi_head.bbox_head.num_classes
    metainfo = cfg.get('metainfo')
    assert classes == (len(metainfo['classes']) if metainfo else 20)
    for split in ('train', 'val', 'test'):
        dataset = cfg[f'{split}_dataloader'].dataset
        while 'dataset' in dataset or 'datasets' in dataset:
            dataset = dataset.get('dataset') or dataset.datasets[0]
        assert DATASETS.get(dataset.type) is not None
        for transform in dataset.pipeline:
            TRANSFORMS.build(transform)


@pytest.mark.parametrize('data', DATA)
def test_twins_differ_in_the_layers_only(data):
    surge = load(f'surge_faster_rcnn_r18_{data}').to_dict()
    for method in ('ste', 'float'):
        twin = load(f'{method}_faster_rcnn_r18_{data}').to_dict()
        for part in ('backbone', 'neck', 'rpn_head'):
            assert twin['model'][part].pop('conv_cfg') != surge['model'][
                part
            ].get('conv_cfg')
        for key in surge:
            left = dict(surge[key]) if key == 'model' else surge[key]
            if key == 'model':
                for part in ('backbone', 'neck', 'rpn_head'):
                    left[part] = {
                        k: v for k, v in left[part].items() if k != 'conv_cfg'
                    }
            assert twin[key] == left, key


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
    assert cfg.train_dataloader.batch_size == 4
    assert cfg.train_dataloader.dataset.type == 'RepeatDataset'
    assert cfg.train_dataloader.dataset.times == 3
    assert cfg.val_evaluator.eval_mode == '11points'
    assert cfg.model.backbone.init_cfg.checkpoint == 'torchvision://resnet18'
    files = [d.ann_file for d in cfg.train_dataloader.dataset.dataset.datasets]
    assert files == [
        'VOC2007/ImageSets/Main/trainval.txt',
        'VOC2012/ImageSets/Main/trainval.txt',
    ]
    assert cfg.val_dataloader.dataset.ann_file.startswith('VOC2007')
    resize = next(
        t for t in cfg.test_dataloader.dataset.pipeline if t.type == 'Resize'
    )
    assert tuple(resize.scale) == (1000, 600)


@pytest.mark.parametrize('name', ['surge_faster_rcnn_r18_bccd'])
@pytest.mark.parametrize('linear', [None, dict(type='SURGELinear')])
def test_every_sign_sees_both_signs_on_a_photograph(name, linear):
    torch.manual_seed(0)
    cfg = load(name)
    cfg.model.roi_head.bbox_head.linear_cfg = linear
    model = build(cfg).train()
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
    for data, folder in zip(DATA, ('VOCdevkit', 'bccd', 'shapes')):
        cfg = load(f'surge_faster_rcnn_r18_{data}')
        want = os.path.join('some', 'where', folder)
        assert os.path.normpath(cfg.val_dataloader.dataset.data_root) == want
        assert 'data/' not in cfg.pretty_text.replace(want, '')
