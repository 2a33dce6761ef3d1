import logging
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmdet.models.dense_heads import SSDHead
from mmdet.models.necks.ssd_neck import L2Norm
from mmdet.registry import DATASETS, MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmengine.runner import checkpoint
from mmengine.structures import InstanceData
from replicas import begin_training
from torch import nn

from surge_det.core import SURGEConv2d
from surge_det.core.layers import named_surge_layers
from surge_det.models import SURGESSDVGG, SURGESSDNeck

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
NECK = dict(
    in_channels=(512, 1024),
    out_channels=(512, 1024, 512, 256, 256, 256),
    level_strides=(2, 2, 1, 1),
    level_paddings=(1, 1, 0, 0),
)
EXTRAS = [f'extra_layers.{i}.{j}.conv' for i in range(4) for j in range(2)]
REAL = dict(
    type='SURGEConv2d',
    compensate=False,
    binarize_weight=False,
    binarize_activation=False,
)
MEAN = torch.tensor([123.675, 116.28, 103.53]).view(3, 1, 1)
STD = torch.tensor([58.395, 57.12, 57.375]).view(3, 1, 1)


def backbone(**kwargs):
    return MODELS.build(dict(type='SURGESSDVGG', **{'depth': 11, **kwargs}))


def neck(**kwargs):
    return MODELS.build(dict(type='SURGESSDNeck', **{**NECK, **kwargs}))


def load(name):
    return Config.fromfile(CONFIGS / f'{name}.py')


def photo(size):
    """A photograph, mirrored and on its side, (3, 3, size, size) uint8 BGR."""
    matplotlib = pytest.importorskip('matplotlib')
    image = pytest.importorskip('PIL.Image')
    path = Path(matplotlib.get_data_path(), 'sample_data', 'grace_hopper.jpg')
    rgb = np.asarray(image.open(path).convert('RGB').resize((size, size)))
    bgr = torch.from_numpy(np.ascontiguousarray(rgb[..., ::-1]))
    bgr = bgr.permute(2, 0, 1)
    return torch.stack([bgr, bgr.flip(2), bgr.transpose(1, 2)])


def watch_signs(model):
    """Shares of negative values before each sign, by layer, as they come."""
    shares = {}

    def watch(name):
        def hook(module, args):
            negative = (args[0] < 0).float().mean().item()
            shares.setdefault(name, []).append(negative)

        return hook

    for name, layer in named_surge_layers(model):
        layer.register_forward_pre_hook(watch(name))
    return shares


def constant_signs(shares):
    return {
        n: s for n, s in shares.items() if not all(0.05 < v < 0.95 for v in s)
    }


def test_structure_and_sizes_at_300():
    net = backbone(depth=16).eval()
    convs = {n: m for n, m in net.named_modules() if isinstance(m, nn.Conv2d)}
    binary = [n for n, m in convs.items() if isinstance(m, SURGEConv2d)]
    blocks = [('1', 1), ('2', 3), ('3', 4), ('4', 4), ('5', 4)]
    assert binary == [
        f'stage{s}.{i}.conv' for s, n in blocks for i in range(n)
    ] + ['conv6']
    assert [n for n in convs if n not in binary] == [
        'conv1',
        *(f'stage{s}.0.downsample.0' for s in range(2, 6)),
        'conv7',
    ]
    assert [
        (n.split('.')[0], convs[n].in_channels, convs[n].out_channels)
        for n in binary
        if convs[n].stride == (2, 2)
    ] == [
        ('stage2', 64, 128),
        ('stage3', 128, 256),
        ('stage4', 256, 512),
        ('stage5', 512, 512),
    ]
    assert all(m.bias is None for m in convs.values())
    assert convs['conv6'].dilation == (6, 6)
    assert convs['conv7'].kernel_size == (1, 1)
    pools = [m for m in net.modules() if isinstance(m, nn.MaxPool2d)]
    assert [(p.kernel_size, p.stride) for p in pools] == [(3, 1)]

    extra = neck().eval()
    for n, m in extra.named_modules():
        assert isinstance(m, nn.Conv2d) is (n in EXTRAS), n
        assert isinstance(m, SURGEConv2d) is (n in EXTRAS), n
    assert isinstance(extra.l2_norm, L2Norm)
    for part in (net, extra):
        assert not any(isinstance(m, nn.ReLU) for m in part.modules())

    with torch.no_grad():
        sources = net(torch.randn(1, 3, 300, 300))
        levels = extra(sources)
    assert [tuple(o.shape[1:]) for o in sources] == [
        (512, 38, 38),
        (1024, 19, 19),
    ]
    assert [tuple(o.shape[1:]) for o in levels] == [
        (512, 38, 38),
        (1024, 19, 19),
        (512, 10, 10),
        (256, 5, 5),
        (256, 3, 3),
        (256, 1, 1),
    ]
    assert torch.equal(levels[1], sources[1])


@pytest.mark.parametrize(
    ('depth', 'binary'), [(11, 7 + 4 + 1), (13, 9 + 4 + 1), (19, 15 + 4 + 1)]
)
def test_other_depths(depth, binary):
    with torch.device('meta'):
        net = backbone(depth=depth)
    assert len(list(named_surge_layers(net))) == binary


def test_first_source_is_the_end_of_stage_4_and_sizes_round_up():
    net = backbone().train()
    seen = []
    net.stage4.register_forward_hook(lambda m, args, out: seen.append(out))
    first, second = net(torch.randn(2, 3, 70, 33))
    assert torch.equal(first, seen[0])
    assert first.shape == (2, 512, 9, 5)
    assert second.shape == (2, 1024, 5, 3)


@pytest.mark.parametrize('index', [0, 1])
def test_block_equals_the_formula_written_out(index):
    torch.manual_seed(0)
    block = backbone().stage3[index].train()
    for p in block.parameters():
        if p.dim() == 1:
            nn.init.normal_(p)
    x = torch.randn(2, (128, 256)[index], 9, 7)

    sign = torch.where(x + block.shift.shift.view(-1, 1, 1) >= 0, 1.0, -1.0)
    weight = block.conv.weight
    alpha = weight.abs().mean((1, 2, 3), keepdim=True)
    weight = torch.where(weight >= 0, 1.0, -1.0) * alpha
    z = F.conv2d(sign, weight, None, 2 - index, 1)
    shortcut = x
    if index == 0:
        pool = F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False)
        shortcut = block.downsample[2](
            F.conv2d(pool, block.downsample[1].weight)
        )
    z = block.norm(z) + shortcut + block.act[0].shift.view(-1, 1, 1)
    z = torch.where(z > 0, z, z * block.act[1].weight.view(-1, 1, 1))
    want = z + block.act[2].shift.view(-1, 1, 1)
    torch.testing.assert_close(block(x), want, rtol=1e-5, atol=1e-5)


def test_every_sign_of_the_shipped_model_sees_both_signs():
    torch.manual_seed(0)
    cfg = load('surge_ssd300_vgg16_voc').model
    net = MODELS.build({**cfg.backbone, 'init_cfg': None})
    # At 128x128 there is room for the first two extra levels only.
    fewer = dict(
        out_channels=cfg.neck.out_channels[:4],
        level_strides=cfg.neck.level_strides[:2],
        level_paddings=cfg.neck.level_paddings[:2],
    )
    model = nn.Sequential(net, MODELS.build({**cfg.neck, **fewer}))
    for part in model:
        part.init_weights()
    shares = watch_signs(model.train())
    with torch.no_grad():
        model((photo(128).flip(1).float() - MEAN) / STD)
    assert len(shares) == 12 + 4 + 1 + 4
    assert not constant_signs(shares)


@pytest.fixture(scope='module')
def stepped():
    """The VOC config with depth 11, before and after one step of training.

    Three images: of two, the last level's BN passes no gradient.
    """
    init_default_scope('mmdet')
    torch.manual_seed(0)
    cfg = load('surge_ssd300_vgg16_voc')
    cfg.model.backbone.update(depth=11, init_cfg=None)
    model = MODELS.build(cfg.model)
    model.init_weights()
    model.train()
    shares = watch_signs(model)
    before = {
        n: p.detach().clone() for n, p in model.named_parameters() if p.dim()
    }
    samples = [
        DetDataSample(
            metainfo=dict(
                img_shape=(300, 300),
                ori_shape=(300, 300),
                scale_factor=(1.0, 1.0),
            ),
            gt_instances=InstanceData(
                bboxes=torch.tensor([[80.0, 20.0, 220.0, 280.0]]),
                labels=torch.tensor([label]),
            ),
        )
        for label in (0, 14, 19)
    ]
    data = dict(inputs=list(photo(300)), data_samples=samples)
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    losses = model.train_step(data, wrapper)
    return model, before, losses, shares, data


def test_one_step_moves_latent_and_aux_weights(stepped):
    model, before, losses, _, _ = stepped
    assert type(model.bbox_head) is SSDHead
    assert all(torch.isfinite(v).all() for v in losses.values())
    params = dict(model.named_parameters())
    layers = dict(named_surge_layers(model))
    assert len(layers) == 7 + 4 + 1 + 8
    for name in layers:
        for kind in ('weight', 'aux_weight'):
            key = f'{name}.{kind}'
            assert not torch.equal(params[key], before[key]), key
    # Of the head, levels without a positive anchor have no box gradient.
    assert not [
        n
        for n in before
        if not n.startswith('bbox_head') and torch.equal(params[n], before[n])
    ]


def test_no_sign_of_the_whole_detector_is_constant(stepped):
    *_, shares, _ = stepped
    assert len(shares) == 7 + 4 + 1 + 8
    assert not constant_signs({n: s[:1] for n, s in shares.items()})


def test_stock_head_predicts(stepped):
    model, *_, data = stepped
    model.eval()
    with torch.no_grad():
        results = model.test_step(data)
    for result in results:
        found = result.pred_instances
        assert found.bboxes.shape == (len(found), 4)
        assert 0 < len(found) <= 200


def test_strict_round_trip():
    torch.manual_seed(0)
    small = dict(
        out_channels=(512, 1024, 64), level_strides=(2,), level_paddings=(1,)
    )
    one, two = (nn.Sequential(backbone(), neck(**small)) for _ in range(2))
    x = torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        one.train()(x)
    two.load_state_dict(one.state_dict(), strict=True)
    with torch.no_grad():
        for a, b in zip(one.eval()(x), two.eval()(x)):
            assert torch.equal(a, b)


def layout(build):
    """A checkpoint of random convolutions with the keys that a class has."""
    with torch.device('meta'):
        module = build()
    generator = torch.Generator().manual_seed(1)
    return {
        key: torch.randn(value.shape, generator=generator)
        if key.startswith('features')
        # What the backbone has no place for need not be large.
        else torch.zeros(1)
        for key, value in module.state_dict().items()
    }


def layouts(depth):
    torchvision = pytest.importorskip('torchvision')
    mmdet_cfg = dict(type='SSDVGG', depth=depth, init_cfg=[])
    return {
        'torchvision': getattr(torchvision.models, f'vgg{depth}'),
        'torchvision with BN': getattr(torchvision.models, f'vgg{depth}_bn'),
        'mmdet': lambda: MODELS.build(mmdet_cfg),
    }


def initialized(state, monkeypatch, depth=16, **kwargs):
    """A backbone that loaded a checkpoint, and what it logged."""
    asked, messages = [], []

    def load_checkpoint(filename, map_location=None, logger=None):
        asked.append(filename)
        return state

    monkeypatch.setattr(
        checkpoint.CheckpointLoader,
        'load_checkpoint',
        staticmethod(load_checkpoint),
    )
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logger = MMLogger.get_instance('test_surge_ssd')
    logger.addHandler(handler)
    init_cfg = dict(
        type='Pretrained', checkpoint='torchvision://vgg', **kwargs
    )
    net = backbone(depth=depth, init_cfg=init_cfg)
    try:
        net.init_weights()
    finally:
        logger.removeHandler(handler)
    assert asked == ['torchvision://vgg']
    return net, messages


@pytest.mark.parametrize('kind', ['torchvision', 'torchvision with BN'])
def test_every_convolution_of_torchvisions_vgg16_loads(kind, monkeypatch):
    state = layout(layouts(16)[kind])
    wanted = [v.clone() for v in state.values() if v.dim() == 4]
    net, messages = initialized(state, monkeypatch)
    names = ['conv1', 'stage1.0.conv']
    for stage, rest in ((2, (2,)), (3, (2, 3)), (4, (2, 3)), (5, (2, 3))):
        names += [f'stage{stage}.{i}.conv' for i in (0, *rest)]
    assert len(names) == len(wanted) == 13
    modules = dict(net.named_modules())
    begin_training(net)
    for name, weight in zip(names, wanted):
        assert torch.equal(modules[name].weight, weight), name
        if name != 'conv1':
            assert torch.equal(modules[name].aux_weight, weight), name
    told = [m for m in messages if 'left 10 of 23 convolutions' in m]
    assert len(told) == 1
    left = {f'stage{s}.1.conv.weight' for s in range(2, 6)}
    left |= {f'stage{s}.0.downsample.0.weight' for s in range(2, 6)}
    left |= {'conv6.weight', 'conv7.weight'}
    assert set(told[0].split(': ')[-1].split(', ')) == left


def test_mmdets_ssd_brings_conv6_and_conv7_as_well(monkeypatch):
    state = layout(layouts(11)['mmdet'])
    wanted = [v.clone() for v in state.values() if v.dim() == 4]
    state = {f'backbone.{k}': v for k, v in state.items()}
    net, _ = initialized(state, monkeypatch, 11, prefix='backbone.')
    assert len(wanted) == 10
    assert torch.equal(net.conv1.weight, wanted[0])
    assert torch.equal(net.stage5[2].conv.weight, wanted[7])
    assert torch.equal(net.conv6.weight, wanted[8])
    assert torch.equal(net.conv7.weight, wanted[9])


def test_float_keys_load_inside_a_detector_too():
    state = layout(layouts(11)['torchvision'])
    features = {k: v for k, v in state.items() if k.startswith('features')}
    model = nn.ModuleDict(dict(backbone=backbone()))
    keys = model.load_state_dict(
        {f'backbone.{k}': v for k, v in features.items()}, strict=False
    )
    assert torch.equal(
        model.backbone.conv1.weight, features['features.0.weight']
    )
    assert 'backbone.stage2.0.conv.weight' not in keys.missing_keys


@pytest.mark.parametrize('other', [13, 16])
def test_checkpoint_of_another_depth_is_an_error(other, monkeypatch):
    state = layout(layouts(other)['torchvision'])
    with pytest.raises(ValueError, match='none of the 18 convolutions') as e:
        initialized(state, monkeypatch, depth=11)
    assert 'torchvision://vgg' in str(e.value)


@pytest.mark.parametrize('name', ['backbone', 'neck'])
def test_float_twin_equals_plain_convolutions(name):
    torch.manual_seed(0)
    if name == 'backbone':
        real, plain = (
            backbone(conv_cfg=cfg) for cfg in (REAL, dict(type='Conv2d'))
        )
        x = torch.randn(2, 3, 48, 48)
    else:
        real, plain = (
            neck(conv_cfg=cfg) for cfg in (REAL, dict(type='Conv2d'))
        )
        x = (torch.randn(2, 512, 34, 34), torch.randn(2, 1024, 17, 17))
    assert not any(isinstance(m, SURGEConv2d) for m in plain.modules())
    plain.load_state_dict(real.state_dict(), strict=True)
    for a, b in zip(real(x), plain(x)):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_conv_cfg_reaches_every_binary_layer():
    cfg = dict(type='SURGEConv2d', eta=0.7, pad_value=-1)
    with torch.device('meta'):
        for net in (backbone(conv_cfg=cfg), neck(conv_cfg=cfg)):
            layers = [m for m in net.modules() if isinstance(m, SURGEConv2d)]
            assert {m.ags.eta for m in layers} == {0.7}
            assert {m.pad_value for m in layers} == {-1.0}


def test_norm_layers_train_unless_norm_eval():
    norms = (nn.BatchNorm2d,)
    for norm_eval in (False, True):
        net = backbone(norm_eval=norm_eval)
        assert net.train() is net
        states = {m.training for m in net.modules() if isinstance(m, norms)}
        assert states == {not norm_eval}
        assert net.stage2[0].conv.training


def test_with_cp_gives_the_same_gradients():
    torch.manual_seed(0)
    plain, saving = backbone(), backbone(with_cp=True)
    saving.load_state_dict(plain.state_dict())
    x = torch.randn(2, 3, 32, 32)
    for net in (plain, saving):
        sum(o.square().mean() for o in net(x)).backward()
    for (name, p), q in zip(plain.named_parameters(), saving.parameters()):
        torch.testing.assert_close(p.grad, q.grad, msg=name)


def test_neck_takes_fewer_levels_and_l2_norm_is_optional():
    torch.manual_seed(0)
    small = dict(
        in_channels=[32, 64],
        out_channels=[32, 64, 48],
        level_strides=[2],
        level_paddings=[1],
    )
    x = (torch.randn(2, 32, 8, 8), torch.randn(2, 64, 4, 4))
    net = neck(**small, l2_norm_scale=3)
    for _ in range(2):
        outs = net(x)
        assert [tuple(o.shape) for o in outs] == [
            (2, 32, 8, 8),
            (2, 64, 4, 4),
            (2, 48, 2, 2),
        ]
        length = outs[0].square().sum(1).sqrt()
        torch.testing.assert_close(length, torch.full_like(length, 3.0))
        net.init_weights()
    outs = neck(**small, l2_norm_scale=None)(x)
    assert torch.equal(outs[0], x[0])


@pytest.mark.parametrize(
    ('kwargs', 'name'),
    [
        (dict(out_channels=(512, 1024)), 'out_channels'),
        (dict(out_channels=(512, 512, 512, 256, 256, 256)), 'out_channels'),
        (dict(level_strides=(2, 2, 1)), 'level_strides'),
        (dict(level_paddings=(1, 1)), 'level_paddings'),
        (dict(l2_norm_scale=0), 'l2_norm_scale'),
        (dict(use_depthwise=True), 'use_depthwise'),
    ],
)
def test_wrong_arguments_of_the_neck(kwargs, name):
    with pytest.raises(ValueError, match=name):
        SURGESSDNeck(**{**NECK, **kwargs})


def test_wrong_depth():
    with pytest.raises(ValueError, match=r'depth=18.*\[11, 13, 16, 19\]'):
        SURGESSDVGG(18)


@pytest.mark.parametrize('data', ['voc', 'coco'])
def test_recipe(data):
    cfg = load(f'surge_ssd300_vgg16_{data}')
    assert cfg.optim_wrapper.type == 'AGSOptimWrapper'
    assert cfg.optim_wrapper.optimizer == dict(
        type='Adam', lr=1e-3, weight_decay=0.0
    )
    assert cfg.auto_scale_lr == dict(enable=False, base_batch_size=32)
    assert cfg.train_dataloader.batch_size == 8
    assert cfg.model.backbone.init_cfg.checkpoint == 'torchvision://vgg16'
    preprocess = cfg.model.data_preprocessor
    assert preprocess.bgr_to_rgb
    assert torch.allclose(torch.tensor(preprocess.mean), MEAN.flatten())
    assert torch.allclose(torch.tensor(preprocess.std), STD.flatten())
    if data == 'voc':
        assert cfg.val_evaluator.eval_mode == '11points'
    # Iterations of BiDet's schedule, at batch 32.
    images, iterations, steps = {
        'voc': (16551 * 10, 300_000, (30_000, 80_000, 200_000)),
        'coco': (117_266 * 5, 400_000, (40_000, 80_000, 200_000)),
    }[data]
    epoch = images / 32
    assert cfg.train_cfg.max_epochs * epoch == pytest.approx(
        iterations, rel=0.02
    )
    milestones = cfg.param_scheduler[1].milestones
    assert [m * epoch for m in milestones] == pytest.approx(steps, rel=0.11)


def test_coco_tiny_trains_and_evaluates_on_its_own_folder(monkeypatch):
    monkeypatch.setenv('SURGE_DATA_ROOT', os.path.join('some', 'where'))
    cfg = load('surge_ssd300_vgg16_coco_tiny')
    assert 'coco/' not in cfg.pretty_text
    assert cfg.model.backbone.init_cfg is None
    for split in ('val', 'test'):
        assert os.path.normpath(cfg[f'{split}_evaluator'].ann_file) == (
            os.path.join(
                *('some', 'where', 'coco_tiny', 'annotations'),
                'instances_val2017.json',
            )
        )
    monkeypatch.undo()
    root = os.environ.get('SURGE_DATA_ROOT', 'data')
    if not Path(root, 'coco_tiny').is_dir():
        pytest.skip('no coco_tiny in SURGE_DATA_ROOT')
    cfg = load('surge_ssd300_vgg16_coco_tiny')
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    assert len(dataset) > cfg.train_dataloader.batch_size
    item = dataset[0]
    assert item['inputs'].shape == (3, 300, 300)
    assert len(item['data_samples'].gt_instances) > 0
