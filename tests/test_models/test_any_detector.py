"""Stock detectors of mmdet, binarized by `binarize_cfg`, shipped or not."""

import copy
import math
import os
import os.path as osp
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from mmdet.apis import inference_detector, init_detector
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmengine.runner import Runner, load_checkpoint, save_checkpoint
from mmengine.structures import InstanceData
from replicas import begin_training
from stock_detectors import STOCK, stock_config
from torch import nn

from surge_det.core import SURGEConv2d, SURGELinear
from surge_det.core.layers import SURGELayer, named_surge_layers
from surge_det.models.preflight import preflight

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
SIZE = 96  # pixels, both ways


class Expected(NamedTuple):
    """What the conversion must make of a detector.

    `real` are patterns that share out all layers: what matches one of them
    is real, what matches none is 1-bit.
    """

    binary: int
    names: tuple[str, ...]
    real: tuple[str, ...]
    relus: tuple[str, ...] = ()


# A ResNet-50 has 48 layers in its bottlenecks, an FPN over three or four
# of its stages has 8.
RESNET = ('backbone.conv1', 'backbone.layer?.0.downsample.0')
DETECTORS = {
    'retinanet_r50': Expected(
        48 + 8 + 2 * 4,
        (
            'backbone.layer1.0.conv1',
            'neck.lateral_convs.0.conv',
            'neck.fpn_convs.4.conv',
            'bbox_head.reg_convs.3.conv',
        ),
        (*RESNET, 'bbox_head.retina_cls', 'bbox_head.retina_reg'),
        # mmdet makes it and uses it nowhere.
        ('bbox_head.relu',),
    ),
    'fcos_r50': Expected(
        48 + 8 + 2 * 4,
        ('backbone.layer4.2.conv3', 'bbox_head.cls_convs.0.conv'),
        (
            *RESNET,
            'bbox_head.conv_cls',
            'bbox_head.conv_reg',
            'bbox_head.conv_centerness',
        ),
    ),
    'yolox_tiny': Expected(
        83 - 1 - 3 * 3,
        (
            'backbone.stage1.0.conv',
            'neck.out_convs.2.conv',
            'bbox_head.multi_level_cls_convs.2.1.conv',
        ),
        (
            'backbone.stem.conv.conv',
            'bbox_head.multi_level_conv_cls.?',
            'bbox_head.multi_level_conv_reg.?',
            'bbox_head.multi_level_conv_obj.?',
        ),
    ),
    'rtmdet_tiny': Expected(
        78 - 1 - 2 * 3 - 8 - 4,
        (
            'backbone.stem.1.conv',
            'neck.top_down_blocks.0.blocks.0.conv2.pointwise_conv.conv',
            'bbox_head.cls_convs.0.1.conv',
        ),
        (
            'backbone.stem.0.conv',
            '*.depthwise_conv.conv',
            '*.attention.fc',
            'bbox_head.rtm_cls.?',
            'bbox_head.rtm_reg.?',
        ),
    ),
    'mask_rcnn_r50': Expected(
        48 + 8 + 1 + 2 + 4,
        (
            'rpn_head.rpn_conv',
            'roi_head.bbox_head.shared_fcs.0',
            'roi_head.mask_head.convs.0.conv',
        ),
        (
            *RESNET,
            'rpn_head.rpn_cls',
            'rpn_head.rpn_reg',
            'roi_head.bbox_head.fc_cls',
            'roi_head.bbox_head.fc_reg',
            'roi_head.mask_head.conv_logits',
        ),
        # Its output goes to the real `conv_logits` only.
        ('roi_head.mask_head.relu',),
    ),
    'detr_r50': Expected(
        6 * 2,
        ('encoder.layers.0.ffn.layers.0.0', 'encoder.layers.5.ffn.layers.1'),
        (
            'backbone.*',
            'neck.*',
            'encoder.*.self_attn.attn.out_proj',
            'decoder.*',
            'bbox_head.*',
        ),
        # Branches without a 1-bit layer keep their ReLUs.
        ('backbone.*', 'decoder.*', 'bbox_head.*'),
    ),
}


def load(name):
    """The shipped config, fit for a CPU without network."""
    cfg = Config.fromfile(CONFIGS / f'surge_{name}_coco.py')
    fit(cfg.model)
    cfg.model.data_preprocessor.batch_augments = None
    if name == 'mask_rcnn_r50':
        cfg.model.train_cfg.rpn_proposal.max_per_img = 50
        cfg.model.train_cfg.rcnn.sampler.num = 16
        cfg.model.test_cfg.rpn.max_per_img = 20
        cfg.model.test_cfg.rcnn.update(score_thr=0.0, max_per_img=10)
    elif name != 'detr_r50':
        cfg.model.test_cfg.update(score_thr=0.0, nms_pre=100)
    return cfg


def fit(node):
    """Make a model's config fit for a CPU without network."""
    if isinstance(node, (list, tuple)):
        for item in node:
            fit(item)
    elif isinstance(node, dict):
        if node.get('type') == 'SyncBN':
            node['type'] = 'BN'
        init = node.get('init_cfg')
        if isinstance(init, dict) and init['type'] == 'Pretrained':
            del node['init_cfg']
        for item in node.values():
            fit(item)


def build(cfg, seed=0):
    torch.manual_seed(seed)
    model = MODELS.build(copy.deepcopy(cfg))
    model.init_weights()
    return model


def stock(cfg):
    cfg = copy.deepcopy(cfg)
    del cfg['binarize_cfg']
    return cfg


def float_layers(model):
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear))
    }


def shared(model, cls):
    """Names of each module of a class, as sets, one for each module."""
    names = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, cls):
            names.setdefault(id(module), set()).add(name)
    return sorted(map(sorted, names.values()))


def photo_batch(masks=True):
    """One photograph that matplotlib ships, with boxes of several sizes."""
    matplotlib = pytest.importorskip('matplotlib')
    image = pytest.importorskip('PIL.Image')
    path = Path(matplotlib.get_data_path(), 'sample_data', 'grace_hopper.jpg')
    rgb = np.asarray(image.open(path).convert('RGB').resize((SIZE, SIZE)))
    photo = torch.from_numpy(np.ascontiguousarray(rgb[..., ::-1]))
    # The bust, the face, the cap's badge, a patch in every corner.
    boxes = torch.tensor(
        [
            [2, 20, 94, 95],
            [32, 12, 66, 56],
            [44, 10, 56, 20],
            [2, 2, 26, 26],
            [70, 2, 94, 26],
            [2, 66, 34, 94],
            [62, 66, 94, 94],
        ]
    )
    bitmaps = np.zeros((len(boxes), SIZE, SIZE), np.uint8)
    for bitmap, (left, top, right, bottom) in zip(bitmaps, boxes.tolist()):
        bitmap[top:bottom, left:right] = 1
    sample = DetDataSample(
        metainfo=dict(
            img_id=0,
            img_shape=(SIZE, SIZE),
            ori_shape=(SIZE, SIZE),
            scale_factor=(1.0, 1.0),
        )
    )
    sample.gt_instances = InstanceData(
        bboxes=boxes.float(), labels=torch.arange(len(boxes))
    )
    if masks:
        sample.gt_instances.masks = BitmapMasks(bitmaps, SIZE, SIZE)
    return dict(inputs=[photo.permute(2, 0, 1)], data_samples=[sample])


def coco_tiny():
    root = osp.join(os.environ.get('SURGE_DATA_ROOT', 'data'), 'coco_tiny')
    if not osp.isdir(root):
        pytest.skip(f'no {root}; set SURGE_DATA_ROOT')
    return root


class Case(NamedTuple):
    name: str
    cfg: Config
    model: nn.Module
    want: Expected

    @property
    def masks(self):
        # RTMDet takes masks for rotated boxes' where they are given.
        return self.name == 'mask_rcnn_r50'


@pytest.fixture(scope='module', params=DETECTORS)
def case(request):
    init_default_scope('mmdet')
    cfg = load(request.param)
    model = build(cfg.model)
    return Case(request.param, cfg, model, DETECTORS[request.param])


# ---------------------------------------------------------------- configs


@pytest.mark.parametrize('name', DETECTORS)
def test_config_is_a_delta_over_the_stock_one(name, monkeypatch, tmp_path):
    monkeypatch.setenv('SURGE_DATA_ROOT', osp.join('some', 'where'))
    path = CONFIGS / f'surge_{name}_coco.py'
    text = path.read_text()
    assert 'not run here' in text.split('_base_')[0].lower()
    cfg = Config.fromfile(path)
    plain = tmp_path / 'plain.py'
    plain.write_text(
        next(line for line in text.splitlines() if line.startswith('_base_'))
    )
    plain = Config.fromfile(plain)
    # Everything the trainer needs is still there.
    assert cfg.optim_wrapper.type == 'AGSOptimWrapper'
    assert cfg.optim_wrapper.constructor == 'SURGEOptimWrapperConstructor'
    assert cfg.optim_wrapper.ags == dict(eta=0.1)
    for key in ('optimizer', 'paramwise_cfg', 'clip_grad'):
        assert cfg.optim_wrapper.get(key) == plain.optim_wrapper.get(key)
    hooks = plain.get('custom_hooks') or []
    added = ('AGSHook', 'SURGEProgressHook', 'BroadcastBuffersHook')
    added += ('SURGECheckHook', 'SURGEFiniteHook', 'SURGESeedHook')
    assert cfg.custom_hooks == [*hooks, *(dict(type=name) for name in added)]
    for key in ('param_scheduler', 'train_cfg', 'auto_scale_lr', 'tta_model'):
        assert cfg.get(key) == plain.get(key), key
    # One setting moves all data.
    want = osp.join('some', 'where', 'coco', '')
    for split in ('train', 'val', 'test'):
        dataset = cfg[f'{split}_dataloader'].dataset
        dataset = dataset.get('dataset', dataset)
        assert dataset.data_root == want
    for split in ('val', 'test'):
        assert cfg[f'{split}_evaluator'].ann_file.startswith(want)
        assert cfg[f'{split}_evaluator'].type == 'COCOFormatMetric'
    assert 'data/coco' not in str(cfg.to_dict())


# ------------------------------------------------------ what is binarized


def test_which_layers_are_binarized(case):
    layers = float_layers(case.model)
    binary = {n for n, m in layers.items() if isinstance(m, SURGELayer)}
    real = set(layers) - binary
    keeps = {
        name: [p for p in case.want.real if fnmatchcase(name, p)]
        for name in layers
    }
    assert {n for n, patterns in keeps.items() if patterns} == real
    assert {p for patterns in keeps.values() for p in patterns} == set(
        case.want.real
    )
    assert len(binary) == case.want.binary
    assert binary.issuperset(case.want.names)
    assert all(
        isinstance(layers[n], (SURGEConv2d, SURGELinear)) for n in binary
    )


def test_relus_in_front_of_one_bit_layers_are_replaced(case):
    left = [
        name
        for name, module in case.model.named_modules()
        if isinstance(module, (nn.ReLU, nn.ReLU6))
    ]
    matched = {
        name: [p for p in case.want.relus if fnmatchcase(name, p)]
        for name in left
    }
    assert [n for n, patterns in matched.items() if not patterns] == []
    assert {p for v in matched.values() for p in v} == set(case.want.relus)


def test_modules_keep_their_places_and_stay_shared(case):
    plain = build(stock(case.cfg.model))
    assert shared(plain, (nn.Conv2d, nn.Linear)) == shared(
        case.model, (nn.Conv2d, nn.Linear)
    )
    assert list(float_layers(plain)) == list(float_layers(case.model))
    # The activations too: a ReLU used in several places has one slope.
    replaced = [
        names
        for names in shared(plain, (nn.ReLU, nn.ReLU6))
        if not any(fnmatchcase(names[0], p) for p in case.want.relus)
    ]
    assert shared(case.model, nn.PReLU) == replaced
    if case.name == 'rtmdet_tiny':
        head = case.model.bbox_head
        for convs in (head.cls_convs, head.reg_convs):
            for index in range(2):
                first = convs[0][index]
                assert isinstance(first.conv, SURGEConv2d)
                for level in convs[1:]:
                    assert level[index].conv is first.conv
                    assert level[index].bn is not first.bn


def test_stock_checkpoint_loads_strictly(case):
    plain = build(stock(case.cfg.model), seed=1)
    # The next test trains what is loaded here: no last norm of a block is 0
    # in a trained checkpoint.
    for module in plain.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
    state = plain.state_dict()
    starts = {
        n: p.clone()
        for n, p in case.model.named_parameters(remove_duplicate=False)
        if n not in state and not n.endswith('aux_weight')
    }
    case.model.load_state_dict(state, strict=True)
    loaded = case.model.state_dict()
    for key, value in state.items():
        assert torch.equal(loaded[key], value), key
    names = [name for name, _ in named_surge_layers(case.model)]
    begin_training(case.model)
    for name in names:
        assert torch.equal(
            case.model.state_dict()[f'{name}.aux_weight'],
            state[f'{name}.weight'],
        )
    extra = set(loaded) - set(state)
    assert {k for k in extra if not k.endswith('.aux_weight')} == set(starts)
    for key, value in starts.items():
        assert torch.equal(loaded[key], value), key
    # Strict where a checkpoint lacks what it must have.
    del state[f'{names[0]}.weight']
    with pytest.raises(RuntimeError, match=names[0].replace('.', r'\.')):
        case.model.load_state_dict(state, strict=True)


# --------------------------------------------------- training, evaluation


def test_one_step_moves_latent_and_auxiliary_weights(case):
    cfg = copy.deepcopy(case.cfg.optim_wrapper)
    # So that what moves had a gradient.
    cfg.optimizer.weight_decay = 0.0
    model = case.model
    # At focal loss's usual prior, levels without an object have gradients
    # of 1e-12, which move no float32.
    for name, module in model.named_modules():
        if name.endswith(('.retina_cls', '.conv_cls')):
            nn.init.zeros_(module.bias)
    optim_wrapper = build_optim_wrapper(model, cfg)
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups = [
        p for g in optim_wrapper.optimizer.param_groups for p in g['params']
    ]
    # Each once, shared ones too.
    assert len(groups) == len(set(groups))
    assert set(groups) >= set(trainable)
    layers = dict(named_surge_layers(model))
    assert all(
        p.requires_grad for m in layers.values() for p in m.parameters()
    )
    before = {
        name: (m.weight.detach().clone(), m.aux_weight.detach().clone())
        for name, m in layers.items()
    }
    model.train()
    torch.manual_seed(0)
    losses = model.train_step(photo_batch(case.masks), optim_wrapper)
    total = float(losses['loss'])
    assert 0 < total < math.inf
    still = [
        f'{name}.{key}'
        for name, m in layers.items()
        for key, old in zip(('weight', 'aux_weight'), before[name])
        if torch.equal(getattr(m, key), old)
    ]
    assert not still
    for name, m in layers.items():
        assert m.weight.isfinite().all()
        assert m.aux_weight.isfinite().all()
        assert not torch.equal(m.weight, m.aux_weight), name
        scale = float(m.ags.last_scale)
        assert 0 < scale < math.inf, name
        # The wrapper's eta, not the layer's own.
        assert m.ags.eta == 0.1


def test_evaluation_save_and_strict_reload(case, tmp_path):
    model = case.model.eval()
    with torch.no_grad():
        # Weights and replicas of their own, as after training.
        for _, layer in named_surge_layers(model):
            layer.aux_weight.add_(1.0)
            if layer.shift is not None:
                layer.shift.add_(0.125)
    want = _predict(model)
    assert isinstance(want, DetDataSample)
    found = want.pred_instances
    assert len(found) > 0
    assert found.scores.isfinite().all()
    assert found.bboxes.shape == (len(found), 4)
    if case.masks:
        assert found.masks.shape == (len(found), SIZE, SIZE)

    path = tmp_path / 'model.pth'
    save_checkpoint(dict(state_dict=model.state_dict()), str(path))
    other = build(case.cfg.model, seed=2).eval()
    differ = _predict(other).pred_instances
    load_checkpoint(other, str(path), map_location='cpu', strict=True)
    path.unlink()  # hundreds of MB
    got = _predict(other).pred_instances
    assert set(got.keys()) == set(found.keys())
    for key, value in found.items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(got[key]))
    assert not (
        len(differ) == len(found) and torch.equal(differ.scores, found.scores)
    )
    state = other.state_dict()
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key]), key


def _predict(model):
    with torch.no_grad():
        (sample,) = model.test_step(photo_batch(False))
    return sample


# -------------------------------------------------------------- preflight


def test_preflight_finds_no_constant_sign(case):
    model = case.model
    model.train()
    data = model.data_preprocessor(photo_batch(case.masks), True)
    reports = preflight(model, photo_batch(case.masks))
    names = [name for name, _ in named_surge_layers(model)]
    assert [r.name for r in reports] == names
    assert [r.name for r in reports if not r.ran] == []
    assert [r.name for r in reports if r.constant] == []
    # The photograph has an object for every level.
    assert [r.name for r in reports if r.stuck] == []
    # Seen without it, too.
    shares = _negative_shares(model, data)
    assert set(shares) == set(names)
    assert [n for n, share in shares.items() if share in (0.0, 1.0)] == []


def _negative_shares(model, data):
    counts = {}
    handles = []
    for name, layer in named_surge_layers(model):

        def hook(module, args, name=name):
            x = args[0]
            if module.shift is not None:
                places = x.dim() - 2 if isinstance(module, nn.Conv2d) else 0
                x = x + module.shift.view(-1, *[1] * places)
            negative, total = counts.get(name, (0, 0))
            counts[name] = (negative + int((x < 0).sum()), total + x.numel())

        handles.append(layer.register_forward_pre_hook(hook))
    with torch.no_grad():
        model(**data, mode='loss')
    for handle in handles:
        handle.remove()
    return {name: n / total for name, (n, total) in counts.items()}


def small(name, **changes):
    """A shipped config's model with a ResNet-18 and a narrow rest."""
    cfg = load(name).model
    cfg.backbone.update(depth=18, style='pytorch')
    if name == 'detr_r50':
        cfg.neck.in_channels = [512]
        cfg.encoder.num_layers = 1
        cfg.decoder.num_layers = 1
    else:
        cfg.neck.update(in_channels=[64, 128, 256, 512], out_channels=64)
        cfg.bbox_head.update(in_channels=64, feat_channels=64, stacked_convs=2)
    for key, value in changes.items():
        node = cfg
        *path, last = key.split('.')
        for part in path:
            node = node[part]
        node[last] = value
    return cfg


def test_without_another_activation_every_sign_is_constant():
    cfg = small('retinanet_r50')
    cfg.binarize_cfg = dict(layer_cfg=dict(shift=None))
    assert not any(_constant(cfg).values())
    cfg.binarize_cfg.activation_cfg = None
    constant = _constant(cfg)
    assert constant['backbone.layer1.0.conv1']
    assert constant['backbone.layer1.0.conv2']
    assert constant['neck.lateral_convs.0.conv']
    assert constant['bbox_head.cls_convs.1.conv']


def _constant(cfg):
    model = build(cfg).train()
    data = model.data_preprocessor(photo_batch(False), True)
    return {r.name: r.constant for r in preflight(model, data)}


# -------------------------------------------------------- small detectors


def test_attention_projection_is_refused_by_name():
    cfg = small('detr_r50')
    cfg.binarize_cfg = dict(include=['encoder.*'])
    with pytest.raises(
        ValueError, match=r'encoder\.layers\.0\.self_attn\.attn\.out_proj'
    ) as info:
        build(cfg)
    assert 'exclude' in str(info.value)
    cfg.binarize_cfg.exclude = ['*.out_proj']
    names = [name for name, _ in named_surge_layers(build(cfg))]
    assert names == [
        'encoder.layers.0.ffn.layers.0.0',
        'encoder.layers.0.ffn.layers.1',
    ]


def test_default_policy_binarizes_detr_around_its_attention():
    cfg = small('detr_r50', binarize_cfg={})
    model = build(cfg)
    names = {name for name, _ in named_surge_layers(model)}
    assert 'decoder.layers.0.ffn.layers.1' in names
    assert 'backbone.layer1.0.conv1' in names
    assert not [n for n in names if 'out_proj' in n]
    assert not names & {'bbox_head.fc_cls', 'bbox_head.fc_reg'}
    model.train()
    data = model.data_preprocessor(photo_batch(False), True)
    bad = [r.name for r in preflight(model, data) if not r.ran or r.constant]
    assert bad == []


def test_building_leaves_the_config_alone():
    # It goes into checkpoints, and may be built from again.
    whole, part = dict(layer_cfg=dict(eta=0.1)), dict(include=['*_convs.*'])
    cfg = small('retinanet_r50', binarize_cfg=copy.deepcopy(whole))
    cfg.neck.binarize_cfg = copy.deepcopy(part)
    MODELS.build(cfg)
    assert cfg.binarize_cfg == whole
    assert cfg.neck.binarize_cfg == part


# ------------------------------------------------- Runner, init_detector


def runner_cfg(work_dir, **changes):
    """RTMDet's shipped config, small, on four images of coco_tiny."""
    root = coco_tiny()
    cfg = load('rtmdet_tiny')
    cfg.work_dir = str(work_dir)
    resize = dict(type='Resize', scale=(SIZE, SIZE), keep_ratio=False)
    for split in ('train', 'val', 'test'):
        loader = cfg[f'{split}_dataloader']
        loader.update(batch_size=2, num_workers=0, persistent_workers=False)
        loader.pop('pin_memory', None)
        loader.dataset.update(data_root=root, indices=4)
        loader.dataset.pipeline = [
            dict(type='LoadImageFromFile'),
            *([resize] if split != 'train' else []),
            dict(type='LoadAnnotations', with_bbox=True),
            *([resize] if split == 'train' else []),
            dict(
                type='PackDetInputs',
                meta_keys=(
                    'img_id',
                    'img_path',
                    'ori_shape',
                    'img_shape',
                    'scale_factor',
                ),
            ),
        ]
    for split in ('val', 'test'):
        cfg[f'{split}_evaluator'].ann_file = osp.join(
            root, 'annotations', 'instances_val2017.json'
        )
    cfg.train_cfg.update(max_epochs=2, val_interval=2)
    cfg.train_cfg.pop('dynamic_intervals')
    cfg.param_scheduler = []
    cfg.default_hooks.checkpoint = dict(type='CheckpointHook', interval=1)
    del cfg.default_hooks['visualization']
    cfg.vis_backends = []
    cfg.visualizer.vis_backends = []
    cfg.randomness = dict(seed=0)
    # Not used, and slow to write into every log and checkpoint.
    for key in [k for k in cfg if k.startswith('tta_') or 'pipeline' in k]:
        cfg.pop(key)
    cfg.merge_from_dict(changes)
    return cfg


def run(cfg):
    cfg.experiment_name = f'{Path(cfg.work_dir).name}_{id(cfg)}'
    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner


def test_runner_trains_averages_and_resumes_the_converted_model(tmp_path):
    runner = run(runner_cfg(tmp_path / 'straight'))
    assert runner.iter == 4
    types = {type(h).__name__ for h in runner.hooks}
    assert {'EMAHook', 'AGSHook', 'PipelineSwitchHook'} <= types
    names = [name for name, _ in named_surge_layers(runner.model)]
    assert len(names) == DETECTORS['rtmdet_tiny'].binary
    straight = _checkpoint(tmp_path / 'straight' / 'epoch_2.pth')
    first = tmp_path / 'straight' / 'epoch_1.pth'
    averaged = _checkpoint(first)['ema_state_dict']
    for name in names:
        assert f'module.{name}.weight' in averaged
        assert f'module.{name}.aux_weight' in averaged
    resumed_cfg = runner_cfg(
        tmp_path / 'resumed', resume=True, load_from=str(first)
    )
    runner = run(resumed_cfg)
    assert runner.iter == 4
    resumed = _checkpoint(tmp_path / 'resumed' / 'epoch_2.pth')
    for part in ('state_dict', 'ema_state_dict'):
        assert set(resumed[part]) == set(straight[part])
        for key, value in straight[part].items():
            assert torch.equal(resumed[part][key], value), key


def _checkpoint(path):
    return torch.load(path, map_location='cpu', weights_only=False)


def test_init_detector_gives_the_converted_model(tmp_path):
    cfg = load('rtmdet_tiny')
    resize, pad = cfg.test_dataloader.dataset.pipeline[1:3]
    assert (resize.type, pad.type) == ('Resize', 'Pad')
    resize.scale = pad.size = (SIZE, SIZE)
    model = build(cfg.model, seed=3)
    checkpoint = tmp_path / 'model.pth'
    classes = tuple(map(str, range(80)))
    save_checkpoint(
        dict(
            state_dict=model.state_dict(),
            meta=dict(dataset_meta=dict(classes=classes)),
        ),
        str(checkpoint),
    )
    # From a file, as the Runner writes it beside its checkpoints.
    config = tmp_path / 'config.py'
    cfg.dump(config)
    loaded = init_detector(
        str(config), str(checkpoint), palette='random', device='cpu'
    )
    names = [name for name, _ in named_surge_layers(loaded)]
    assert len(names) == DETECTORS['rtmdet_tiny'].binary
    state = loaded.state_dict()
    for key, value in model.state_dict().items():
        assert torch.equal(state[key], value), key
    photo = photo_batch(False)['inputs'][0].permute(1, 2, 0).numpy()
    result = inference_detector(loaded, photo)
    want = _predict(model.eval()).pred_instances
    assert len(want) == len(result.pred_instances) > 0
    assert torch.equal(result.pred_instances.scores, want.scores)


# --------------------------------------------- stock configs and one key


# A layer that mmdet makes and whose output nothing uses.
UNUSED = {
    'yolo/yolov3_mobilenetv2_8xb24-320-300e_coco': ['backbone.conv2.conv']
}


@pytest.mark.parametrize(
    # The tests above do it with the shipped YOLOX and RTMDet.
    'name',
    [n for n in STOCK if not n.startswith(('yolox/', 'rtmdet/'))],
)
def test_one_step_reaches_every_layer_and_reloads(name, tmp_path):
    cfg = stock_config(name).model
    fit(cfg)
    cfg.data_preprocessor.batch_augments = None
    cfg.binarize_cfg = {}
    torch.manual_seed(0)
    model = MODELS.build(copy.deepcopy(cfg))
    model.init_weights()
    masks = 'mask-rcnn' in name
    unused = UNUSED.get(name, [])
    reports = preflight(model, photo_batch(masks))
    assert [r.name for r in reports if not r.ran] == []
    assert [r.name for r in reports if r.stuck] == unused
    # Stock ResNets freeze their first stage.
    frozen = [r.name for r in reports if r.gradient is None]
    assert all(n.startswith('backbone.layer1.') for n in frozen)

    model.train()
    data = model.data_preprocessor(photo_batch(masks), True)
    loss, _ = model.parse_losses(model(**data, mode='loss'))
    loss.backward()
    layers = dict(named_surge_layers(model))
    if 'swin' not in name:  # one image's branch may be dropped
        for layer_name in layers.keys() - {*frozen, *unused}:
            scale = layers[layer_name].ags.last_scale
            assert 0 < scale < math.inf, layer_name
    trained = [p for p in model.parameters() if p.grad is not None]
    torch.optim.SGD(trained, lr=1e-4).step()

    path = tmp_path / 'model.pth'
    torch.save(model.state_dict(), path)
    again = MODELS.build(copy.deepcopy(cfg))
    again.load_state_dict(torch.load(path))
    path.unlink()
    model.eval(), again.eval()
    with torch.no_grad():
        wanted, got = (
            m(data['inputs'], data['data_samples'], mode='tensor')
            for m in (model, again)
        )
    pairs = list(zip(tensors(wanted), tensors(got), strict=True))
    assert pairs
    for one, other in pairs:
        assert one.isfinite().all()
        assert torch.equal(one, other)


def tensors(nested):
    """All tensors in lists, tuples and dicts."""
    if isinstance(nested, torch.Tensor):
        yield nested
    elif isinstance(nested, (dict, list, tuple)):
        values = nested.values() if isinstance(nested, dict) else nested
        for value in values:
            yield from tensors(value)
