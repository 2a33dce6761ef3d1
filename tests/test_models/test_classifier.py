"""The classifier for pretraining, its configs, and the way to a detector."""

from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.runner import Runner
from PIL import Image

from surge_det.core.layers import named_surge_layers
from surge_det.datasets import check_data
from surge_det.datasets.image_folder import _transform
from surge_det.models import SURGEImageClassifier

CONFIGS = Path(__file__).resolve().parents[2] / 'configs' / 'pretrain'
COLOURS = ((200, 30, 30), (30, 200, 30), (30, 30, 200))


def build(**kwargs):
    cfg = dict(
        type='SURGEImageClassifier',
        backbone=dict(
            type='SURGEResNet',
            depth=18,
            base_channels=8,
            stem_channels=8,
            out_indices=(3,),
        ),
        in_channels=64,
        num_classes=4,
    )
    return MODELS.build({**cfg, **kwargs})


def test_modes():
    torch.manual_seed(0)
    model = build(label_smooth=0.1).eval()
    x, labels = torch.randn(3, 3, 32, 32), torch.tensor([0, 3, 1])
    logits = model(x)
    assert logits.shape == (3, 4)
    features = model.backbone(x)[-1].mean((2, 3))
    torch.testing.assert_close(logits, model.fc(features))
    log_p = logits.log_softmax(1)
    want = -(0.9 * log_p[range(3), labels] + 0.1 * log_p.mean(1)).mean()
    torch.testing.assert_close(model(x, labels, mode='loss')['loss'], want)
    results = model(x, labels, mode='predict')
    assert [int(r['label']) for r in results] == [0, 3, 1]
    assert torch.equal(torch.stack([r['scores'] for r in results]), logits)
    assert 'label' not in model(x, mode='predict')[0]


def test_preprocessing_of_a_batch():
    model = build(
        data_preprocessor=dict(
            type='ImgDataPreprocessor', mean=[1, 2, 3], std=[2, 2, 2]
        )
    )
    data = dict(
        inputs=torch.full((2, 3, 4, 4), 5, dtype=torch.uint8),
        data_samples=torch.tensor([0, 1]),
    )
    out = model.data_preprocessor(data)
    assert out['inputs'][0, :, 0, 0].tolist() == [2.0, 1.5, 1.0]
    assert out['data_samples'].tolist() == [0, 1]


@pytest.mark.parametrize(
    ('kwargs', 'said'),
    [
        (dict(num_classes=1), 'num_classes=1'),
        (dict(in_channels=0), 'in_channels=0'),
        (dict(label_smooth=1.0), r'label_smooth=1\.0'),
    ],
)
def test_wrong_arguments(kwargs, said):
    with pytest.raises(ValueError, match=said):
        SURGEImageClassifier(
            **{
                **dict(backbone={}, num_classes=2, in_channels=1),
                **kwargs,
            }
        )


def test_wrong_calls():
    model = build()
    x = torch.randn(2, 3, 32, 32)
    with pytest.raises(ValueError, match="mode='train'"):
        model(x, mode='train')
    with pytest.raises(ValueError, match='needs labels'):
        model(x, mode='loss')


@pytest.mark.parametrize(
    ('name', 'classes'), [('imagenet', 1000), ('crops', 3)]
)
def test_config(name, classes, monkeypatch):
    monkeypatch.setenv('SURGE_DATA_ROOT', 'nowhere')
    cfg = Config.fromfile(CONFIGS / f'surge_resnet18_{name}.py')
    model = MODELS.build(cfg.model)
    assert model.fc.out_features == classes
    layers = [layer for _, layer in named_surge_layers(model)]
    assert len(layers) == 16
    assert all(layer.compensate for layer in layers)
    for split in ('train', 'val', 'test'):
        dataset = cfg[f'{split}_dataloader'].dataset
        assert dataset.num_classes == classes
        for transform in dataset.pipeline:
            _transform(transform)
    assert cfg.param_scheduler[0].end == cfg.train_cfg.max_epochs
    source = dict(imagenet='image-net.org', crops='surge-det make-crops')[name]
    with pytest.raises(FileNotFoundError, match=source):
        check_data(cfg)


def test_first_step_of_two_has_real_weights():
    cfg = Config.fromfile(CONFIGS / 'surge_resnet18_imagenet.py')
    cfg.merge_from_dict({'model.backbone.conv_cfg.binarize_weight': False})
    step1, step2 = MODELS.build(cfg.model), build()
    assert not step1.backbone.layer1[0].conv1.binarize_weight
    assert set(step1.state_dict()) == set(step2.state_dict())


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """Train the config of crops on coloured squares; runner and folder."""
    root = tmp_path_factory.mktemp('pretrain')
    rng = np.random.default_rng(0)
    for split, count in (('train', 8), ('val', 4)):
        for i, colour in enumerate(COLOURS):
            folder = root / 'data' / split / str(i)
            folder.mkdir(parents=True)
            for j in range(count):
                noise = rng.integers(-30, 30, (40, 40, 3))
                Image.fromarray((noise + colour).astype(np.uint8)).save(
                    folder / f'{j}.png'
                )
    cfg = Config.fromfile(CONFIGS / 'surge_resnet18_crops.py')
    cfg.work_dir = str(root / 'work')
    loaders = (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader)
    for loader, split in zip(loaders, ('train', 'val', 'val')):
        loader.dataset.data_root = str(root / 'data' / split)
        loader.num_workers = 0
        loader.persistent_workers = False
    cfg.train_dataloader.batch_size = 8
    cfg.train_cfg.max_epochs = cfg.param_scheduler[0].end = 3
    cfg.train_dataloader.dataset.pipeline[0].size = 32
    cfg.val_dataloader.dataset.pipeline[0].size = (32, 32)
    cfg.default_hooks.logger.interval = 1
    cfg.log_level = 'ERROR'
    cfg.experiment_name = 'pretrain_test'
    runner = Runner.from_cfg(cfg)
    start = {
        k: v.clone() for k, v in runner.model.backbone.state_dict().items()
    }
    runner.train()
    return runner, root / 'work', start


def test_training_moves_latent_and_auxiliary_weights(run):
    runner, _, start = run
    end = runner.model.backbone.state_dict()
    for end_of_name in ('.weight', '.aux_weight'):
        key = f'layer4.1.conv2{end_of_name}'
        assert not torch.equal(start[key], end[key])
    assert not torch.equal(
        end['layer4.1.conv2.weight'], end['layer4.1.conv2.aux_weight']
    )


def test_training_ends_above_chance(run):
    runner, _, _ = run
    hub = runner.message_hub
    score = hub.get_scalar('val/accuracy/mean_class').current()
    assert score > 60
    assert {f'val/accuracy/{c}' for c in '012'} <= set(hub.log_scalars)


def test_a_detector_takes_the_backbone(run):
    runner, folder, _ = run
    checkpoint = folder / 'epoch_3.pth'
    cfg = Config.fromfile(
        CONFIGS.parent / 'surge_faster_rcnn_r18_bccd.py'
    ).model
    cfg.backbone.init_cfg = dict(
        type='Pretrained', checkpoint=str(checkpoint), prefix='backbone.'
    )
    detector = MODELS.build(cfg)
    detector.init_weights()
    got = detector.backbone.state_dict()
    for key, value in runner.model.backbone.state_dict().items():
        assert torch.equal(got[key], value), key
    layer = detector.backbone.layer1[0].conv1
    assert not torch.equal(layer.aux_weight, layer.weight)


def test_without_the_prefix_nothing_loads_and_it_is_told(run):
    _, folder, _ = run
    backbone = MODELS.build(
        dict(
            type='SURGEResNet',
            depth=18,
            init_cfg=dict(
                type='Pretrained', checkpoint=str(folder / 'epoch_3.pth')
            ),
        )
    )
    with pytest.raises(ValueError, match="prefix='backbone.'"):
        backbone.init_weights()
