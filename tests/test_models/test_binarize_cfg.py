import copy
import logging
from importlib import import_module

import pytest
import torch
from mmcv.cnn.bricks.wrappers import Conv2d, Linear
from mmdet.registry import MODELS as MMDET_MODELS
from mmdet.testing import demo_mm_inputs
from mmengine.config import ConfigDict
from mmengine.hooks import EMAHook, Hook
from mmengine.logging import MMLogger
from mmengine.model import BaseModel, BaseModule
from mmengine.registry import MODELS, Registry
from mmengine.runner import Runner
from replicas import begin_training
from torch import nn
from torch.utils.data import Dataset

from surge_det.compat import registration
from surge_det.core import SURGEConv2d, SURGELinear
from surge_det.core.layers import named_surge_layers
from surge_det.models import binarize_cfg


def retinanet(**kwargs):
    return dict(
        type='RetinaNet',
        data_preprocessor=dict(type='DetDataPreprocessor'),
        backbone=dict(type='ResNet', depth=18, base_channels=8),
        neck=dict(
            type='FPN', in_channels=[8, 16, 32, 64], out_channels=8, num_outs=5
        ),
        bbox_head=dict(
            type='RetinaHead',
            num_classes=2,
            in_channels=8,
            feat_channels=8,
            stacked_convs=1,
            anchor_generator=dict(
                type='AnchorGenerator',
                scales=[4],
                ratios=[1.0],
                strides=[8, 16, 32, 64, 128],
            ),
            bbox_coder=dict(type='DeltaXYWHBBoxCoder'),
        ),
        train_cfg=dict(
            assigner=dict(
                type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.4
            ),
            allowed_border=-1,
            pos_weight=-1,
        ),
        test_cfg=dict(nms_pre=100, nms=dict(type='nms'), max_per_img=10),
        **kwargs,
    )


def backbone(**kwargs):
    return dict(type='ResNet', depth=18, base_channels=8, **kwargs)


@pytest.fixture
def log(caplog):
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    with caplog.at_level(logging.INFO):
        yield caplog
    logger.removeHandler(caplog.handler)


# --- where the key may stand ----------------------------------------------


@pytest.mark.parametrize('kind', [dict, ConfigDict])
def test_whole_model(kind, log):
    cfg = kind(retinanet(binarize_cfg=dict(exclude=['neck.*'])))
    model = MMDET_MODELS.build(cfg)
    # A config is built from more than once.
    assert cfg['binarize_cfg'] == dict(exclude=['neck.*'])
    names = [name for name, _ in named_surge_layers(model)]
    assert 'backbone.layer1.0.conv1' in names
    assert 'bbox_head.cls_convs.0.conv' in names
    assert not any(name.startswith('neck') for name in names)
    assert type(model.bbox_head.retina_cls) is nn.Conv2d
    assert f'{len(names)} 1-bit layers' in log.text
    assert 'first convolution: backbone.conv1' in log.text
    assert 'excluded: neck.lateral_convs.0.conv' in log.text
    assert 'frozen' not in log.text


def test_a_part_of_a_model():
    cfg = retinanet()
    cfg['backbone']['binarize_cfg'] = {}
    model = MMDET_MODELS.build(cfg)
    names = [name for name, _ in named_surge_layers(model)]
    assert names[0] == 'backbone.layer1.0.conv1'
    assert all(name.startswith('backbone') for name in names)
    assert isinstance(model.backbone.relu, nn.PReLU)
    assert isinstance(model.bbox_head.cls_convs[0].activate, nn.ReLU)


def test_what_a_part_says_of_itself_holds_beside_the_models_key():
    cfg = retinanet(binarize_cfg={})
    cfg['backbone']['binarize_cfg'] = None
    cfg['neck']['binarize_cfg'] = dict(
        exclude=['lateral_convs.*'], layer_cfg=dict(eta=0.3)
    )
    model = MMDET_MODELS.build(cfg)
    layers = dict(named_surge_layers(model))
    assert {name.split('.')[0] for name in layers} == {'neck', 'bbox_head'}
    assert not any('lateral' in name for name in layers)
    for name, layer in layers.items():
        assert layer.ags.eta == (0.3 if name.startswith('neck') else 0.1)
    # The real backbone keeps its ReLUs.
    assert isinstance(model.backbone.relu, nn.ReLU)


def test_a_head_alone_keeps_its_outputs_real():
    cfg = retinanet()
    cfg['bbox_head']['binarize_cfg'] = {}
    head = MMDET_MODELS.build(cfg).bbox_head
    assert type(head.retina_cls) is type(head.retina_reg) is nn.Conv2d
    assert type(head.reg_convs[0].conv) is SURGEConv2d


def test_none_leaves_the_model_as_it_is():
    model = MMDET_MODELS.build(backbone(binarize_cfg=None))
    assert not list(named_surge_layers(model))
    assert isinstance(model.relu, nn.ReLU)


def test_a_list_of_modules_is_built_as_before():
    norms = [
        dict(type='ChannelMapper', in_channels=[8], out_channels=8),
        dict(type='ChannelMapper', in_channels=[8], out_channels=8),
    ]
    assert len(MMDET_MODELS.build(norms)) == 2


@pytest.mark.parametrize(
    ('value', 'match'),
    [
        (True, 'ResNet: binarize_cfg=True: None or a dict'),
        (dict(includes=['*']), "ResNet: binarize_cfg=.*'includes'"),
        (dict(include=['layer9.*']), "ResNet: .*'layer9"),
    ],
)
def test_errors_name_module_and_setting(value, match):
    with pytest.raises(ValueError, match=match):
        MMDET_MODELS.build(backbone(binarize_cfg=value))


def test_installation_is_idempotent_and_inherited():
    builds = MODELS.build_func, MMDET_MODELS.build_func
    registration.install(import_module('mmengine.registry.root'))
    assert (MODELS.build_func, MMDET_MODELS.build_func) == builds
    child = Registry('later', parent=MODELS, scope='surge_later')
    try:

        class Later(nn.Sequential):
            def __init__(self):
                super().__init__(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3))

        model = child.build(dict(type=Later, binarize_cfg={}))
    finally:
        MODELS._children.pop('surge_later')
    assert type(model[1]) is SURGEConv2d


def test_frozen_layers_are_warned_of_by_name(log):
    MMDET_MODELS.build(backbone(frozen_stages=1, binarize_cfg={}))
    (record,) = [r for r in log.records if r.levelno == logging.WARNING]
    assert 'layer1.1.conv2' in record.getMessage()
    assert 'layer2' not in record.getMessage()


# --- what is built --------------------------------------------------------


def test_layers_are_those_of_the_conv_cfg_route():
    keywords = dict(eta=0.3, shift=0.0, pad_value=-1)
    settings = dict(
        type='FPN', in_channels=[8, 16], out_channels=8, num_outs=2
    )
    by_policy = MMDET_MODELS.build(
        dict(
            **settings,
            binarize_cfg=dict(defaults=False, layer_cfg=keywords),
        )
    )
    by_cfg = MMDET_MODELS.build(
        dict(**settings, conv_cfg=dict(type='SURGEConv2d', **keywords))
    )
    assert repr(by_policy) == repr(by_cfg)
    shapes = [
        {k: v.shape for k, v in m.state_dict().items()}
        for m in (by_policy, by_cfg)
    ]
    assert shapes[0] == shapes[1]
    by_cfg.load_state_dict(by_policy.state_dict())
    x = [torch.randn(1, 8, 8, 8), torch.randn(1, 16, 4, 4)]
    for a, b in zip(by_policy(x), by_cfg(x)):
        assert torch.equal(a, b)


def test_wrappers_of_mmcv_are_covered():
    model = nn.Sequential(Linear(4, 4), Conv2d(4, 4, 1), Conv2d(4, 4, 1))
    done = binarize_cfg.binarize_detector(model, include=['[02]'])
    assert done.binarized == ['0', '2']
    assert [type(m) for m in model] == [SURGELinear, Conv2d, SURGEConv2d]


def test_init_weights_runs_over_the_converted_layers():
    cfg = backbone(
        init_cfg=dict(type='Constant', layer='Conv2d', val=0.5),
        binarize_cfg={},
    )
    model = MMDET_MODELS.build(cfg)
    model.init_weights()
    layer = model.layer3[0].conv2
    assert type(layer) is SURGEConv2d
    begin_training(layer)
    for weight in (layer.weight, layer.aux_weight):
        assert torch.equal(weight, torch.full_like(weight, 0.5))


def zero_norms(module):
    return [
        name
        for name, norm in module.named_modules()
        if isinstance(norm, nn.BatchNorm2d) and not norm.weight.any()
    ]


@pytest.mark.parametrize(
    ('kind', 'blocks', 'told'),
    [
        ({}, 8, 'layer4.1.norm2'),
        (dict(depth=50), 16, 'layer4.2.norm3'),
        (dict(type='RegNet', arch='regnetx_400mf'), 22, 'layer4.0.norm3'),
        # It initializes itself.
        (
            dict(type='DetectoRS_ResNet', depth=50, output_img=False),
            16,
            'last norms of all blocks',
        ),
    ],
)
def test_last_norms_of_one_bit_blocks_start_at_one(kind, blocks, told, log):
    cfg = backbone()
    cfg.update(kind)
    if cfg['type'] == 'RegNet':
        del cfg['depth'], cfg['base_channels']
    stock = MMDET_MODELS.build(dict(cfg))
    stock.init_weights()
    assert len(zero_norms(stock)) == blocks
    log.clear()
    model = MMDET_MODELS.build(dict(cfg, binarize_cfg={}))
    (line,) = [r.getMessage() for r in log.records if 'start at 0' in r.msg]
    assert told in line
    model.init_weights()
    assert zero_norms(model) == []
    assert all(
        (m.weight == 1).all() and not m.bias.any()
        for m in model.modules()
        if isinstance(m, nn.BatchNorm2d)
    )


def test_another_start_of_last_norms(log):
    start = dict(last_norm=0.1)
    cfg = backbone(binarize_cfg=start)
    model = MMDET_MODELS.build(cfg)
    model.init_weights()
    assert start == dict(last_norm=0.1)
    assert 'start at 0.1 where' in log.text
    for name, norm in model.named_modules():
        if isinstance(norm, nn.BatchNorm2d):
            wanted = 0.1 if name.endswith('bn2') else 1.0
            assert torch.equal(
                norm.weight, torch.full_like(norm.weight, wanted)
            )
    # The stock start.
    log.clear()
    model = MMDET_MODELS.build(backbone(binarize_cfg=dict(last_norm=0)))
    model.init_weights()
    assert len(zero_norms(model)) == 8
    assert 'start at' not in log.text
    for bad in (-1, float('nan'), 'one'):
        with pytest.raises(ValueError, match='ResNet: .*last_norm='):
            MMDET_MODELS.build(backbone(binarize_cfg=dict(last_norm=bad)))
    cfg = dict(type='DetectoRS_ResNet', depth=50, output_img=False)
    with pytest.raises(ValueError, match='last_norm=0.1 .*0 or 1'):
        MMDET_MODELS.build(dict(cfg, binarize_cfg=start))


def test_a_real_block_keeps_its_start(log):
    real = dict(exclude=['layer1.1.*'])
    model = MMDET_MODELS.build(backbone(binarize_cfg=real))
    model.init_weights()
    assert zero_norms(model) == ['layer1.1.bn2']
    log.clear()
    cfg = retinanet(binarize_cfg={})
    cfg['backbone']['binarize_cfg'] = None
    model = MMDET_MODELS.build(cfg)
    model.init_weights()
    assert len(zero_norms(model.backbone)) == 8
    assert 'start at 0' not in log.text


@pytest.mark.parametrize('where', ['backbone', 'model', 'afterwards'])
def test_a_loaded_zero_stays(where, tmp_path):
    trained = MMDET_MODELS.build(retinanet())
    nn.init.zeros_(trained.backbone.layer2[1].bn2.weight)
    path = tmp_path / 'trained.pth'
    torch.save(trained.state_dict(), path)
    init_cfg = dict(type='Pretrained', checkpoint=str(path))
    cfg = retinanet(binarize_cfg={})
    if where == 'backbone':
        cfg['backbone']['init_cfg'] = dict(init_cfg, prefix='backbone.')
    elif where == 'model':
        cfg['init_cfg'] = init_cfg
    model = MMDET_MODELS.build(cfg)
    model.init_weights()
    if where == 'afterwards':
        assert zero_norms(model) == []
        model.load_state_dict(torch.load(path))
    assert zero_norms(model) == ['backbone.layer2.1.bn2']


def test_stock_resnet_freezes_and_unfreezes_converted_layers():
    model = MMDET_MODELS.build(
        backbone(frozen_stages=1, norm_eval=True, binarize_cfg={})
    )
    model.eval()
    model.train()
    assert not model.conv1.weight.requires_grad
    assert not model.bn1.training
    for name, layer in named_surge_layers(model):
        frozen = name.startswith('layer1')
        assert layer.training is not frozen
        assert all(p.requires_grad is not frozen for p in layer.parameters())
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert not any(m.training for m in norms)


def test_float_checkpoint_of_the_stock_model_loads_strictly():
    stock = MMDET_MODELS.build(retinanet())
    stock.init_weights()
    model = MMDET_MODELS.build(retinanet(binarize_cfg={}))
    model.load_state_dict(stock.state_dict())
    layer = model.neck.fpn_convs[0].conv
    assert torch.equal(layer.weight, stock.neck.fpn_convs[0].conv.weight)
    begin_training(layer)
    assert torch.equal(layer.weight, layer.aux_weight)
    assert model.backbone.relu.weight.item() == 0.25


# --- with mmengine's runner -----------------------------------------------


class Images(Dataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        batch = demo_mm_inputs(1, [[3, 64, 64]], num_classes=2)
        return {key: value[0] for key, value in batch.items()}


class Keep(Hook):
    """Keeps what training went on from."""

    def before_train_epoch(self, runner):
        self.iter = runner.iter
        self.state = copy.deepcopy(runner.model.state_dict())


def runner(work_dir, epochs, **kwargs):
    return Runner(
        model=retinanet(binarize_cfg={}),
        work_dir=str(work_dir),
        train_dataloader=dict(
            dataset=Images(),
            batch_size=1,
            sampler=dict(type='DefaultSampler', shuffle=False),
            collate_fn=dict(type='pseudo_collate'),
        ),
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        optim_wrapper=dict(
            type='AGSOptimWrapper',
            optimizer=dict(type='SGD', lr=0.01),
            constructor='SURGEOptimWrapperConstructor',
        ),
        custom_hooks=[dict(type='EMAHook', momentum=0.5)],
        default_scope='mmdet',
        log_level='ERROR',
        randomness=dict(seed=0),
        experiment_name=f'convert_{work_dir.name}_{epochs}',
        **kwargs,
    )


def test_runner_ema_resume_and_strict_reload(tmp_path):
    first = runner(tmp_path, 1)
    model = first.model
    ids = {id(p) for p in model.parameters()}
    first.train()
    optimized = {
        id(p)
        for group in first.optim_wrapper.param_groups
        for p in group['params']
    }
    assert optimized == ids
    (ema,) = [h for h in first.hooks if isinstance(h, EMAHook)]
    averaged = ema.ema_model.module
    name = 'neck.fpn_convs.0.conv.aux_weight'
    mean, last = averaged.state_dict()[name], model.state_dict()[name]
    assert not torch.equal(mean, last)

    checkpoint = torch.load(tmp_path / 'epoch_1.pth', weights_only=False)
    # EMAHook stores its average as the model, and the model beside it.
    fresh = MMDET_MODELS.build(retinanet(binarize_cfg={}))
    fresh.load_state_dict(checkpoint['state_dict'])
    assert torch.equal(fresh.state_dict()[name], mean)

    second = runner(tmp_path, 2, resume=True)
    keep = Keep()
    second.register_hook(keep)
    second.train()
    assert (keep.iter, second.iter) == (2, 4)
    for key, value in model.state_dict().items():
        assert torch.equal(keep.state[key], value), key
    assert not torch.equal(second.model.state_dict()[name], last)


def test_ema_and_copies_are_converted_models_too():
    class Wrapped(BaseModel):
        def __init__(self):
            super().__init__()
            self.part = MODELS.build(
                dict(type=Part, binarize_cfg=dict(defaults=False))
            )

        def forward(self, inputs, data_samples=None, mode='tensor'):
            return self.part.conv(inputs)

    class Part(BaseModule):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

    model = Wrapped()
    twin = copy.deepcopy(model)
    assert type(twin.part.conv) is SURGEConv2d
    x = torch.randn(1, 3, 5, 5)
    assert torch.equal(twin(x), model(x))
