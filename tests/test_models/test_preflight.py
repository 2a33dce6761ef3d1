import copy
import json
import math
import os
import random
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from command_line import ROOT, tool
from mmdet.registry import MODELS
from mmdet.testing import demo_mm_inputs
from mmengine.logging import MessageHub
from mmengine.model import BaseModel
from torch import nn

from surge_det.cli.main import main
from surge_det.cli.preflight import look
from surge_det.core import SURGEConv2d, SURGELinear
from surge_det.models.detector_policy import binarize_detector
from surge_det.models.preflight import preflight


class Model(BaseModel):
    """Calls `run(self, inputs)`; what that returns is summed for the loss."""

    def __init__(self, run, **layers):
        super().__init__()
        self.run = run
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        assert mode == 'loss'
        assert self.training
        found = self.run(self, inputs)
        if isinstance(found, torch.Tensor):
            found = [found]
        return {'loss': sum(x.sum() for x in found)}


def reports(model, x):
    batch = dict(inputs=x, data_samples=[])
    return {report.name: report for report in preflight(model, batch)}


def conv(channels=2, **kwargs):
    return SURGEConv2d(channels, 3, 1, **kwargs)


# Channel 0 is -1 in three of four places, channel 1 in none.
X = torch.tensor([[[[-1.0, -2.0], [-0.1, 0.0]], [[0.0, 1.0], [2.0, 3.0]]]])


def test_shares_of_a_convolution_and_a_linear_layer():
    model = Model(
        lambda m, x: (m.conv(x), m.fc(x.permute(0, 2, 3, 1))),
        conv=conv(),
        fc=SURGELinear(2, 3),
    )
    for report in reports(model, X).values():
        assert report.ran
        assert report.negative == 3 / 8
        assert report.constant_channels == 0.5
        assert not report.constant
        assert not report.blind


def test_image_without_a_batch_dimension():
    model = Model(lambda m, x: m.conv(x[0]), conv=conv())
    assert reports(model, X)['conv'].negative == 3 / 8


@pytest.mark.parametrize('x', [X.abs(), -X - 1e-3 - X.abs()])
def test_input_of_one_sign_is_constant(x):
    report = reports(Model(lambda m, x: m.conv(x), conv=conv()), x)['conv']
    assert report.constant
    assert report.blind
    assert report.constant_channels == 1
    assert report.negative == (0 if x.min() >= 0 else 1)


def test_channels_of_fixed_but_different_signs_are_constant():
    x = torch.stack([-torch.ones(2, 2), torch.ones(2, 2)])[None]
    model = Model(lambda m, x: m.conv(x), conv=conv())
    assert reports(model, x)['conv'].constant
    # One value a channel has nothing to change from.
    assert not reports(model, x[..., :1, :1])['conv'].constant


def test_shift_counts():
    model = Model(lambda m, x: m.conv(x), conv=conv(shift=-0.5))
    report = reports(model, X.abs())['conv']
    # |x| - 0.5 < 0 at 0.1 and 0 in channel 0 and at 0 in channel 1.
    assert report.negative == 3 / 8
    assert report.constant_channels == 0


def test_calls_add_up():
    model = Model(
        lambda m, x: m.conv(m.conv2(x) * 0 - 1) + m.conv(x),
        conv=conv(),
        conv2=SURGEConv2d(2, 2, 1),
    )
    report = reports(model, X)['conv']
    assert report.negative == (3 + 8) / 16
    assert report.constant_channels == 0


def test_layer_that_is_not_called_is_named():
    model = Model(
        lambda m, x: nn.functional.conv2d(x, m.used.weight) + m.conv(x[:0]),
        used=conv(),
        conv=conv(),
    )
    for report in reports(model, X).values():
        assert not report.ran
        assert not report.constant
        assert report.blind


def test_layers_with_a_real_input_have_no_sign():
    model = Model(
        lambda m, x: m.conv(x) + m.real(x),
        conv=conv(),
        real=conv(binarize_activation=False),
    )
    assert list(reports(model, X)) == ['conv']
    del model.conv
    with pytest.raises(ValueError, match='no layer that binarizes'):
        reports(model, X)


def test_gradient_is_that_of_the_latent_weights():
    model = Model(
        lambda m, x: (m.conv(x), m.late(m.conv(x) * 0.5) ** 2),
        conv=conv(),
        late=SURGEConv2d(3, 1, 1),
    )
    found = reports(model, X)
    assert all(p.grad is None for p in model.parameters())
    loss = model(X, mode='loss')['loss']
    loss.backward()
    for name, report in found.items():
        wanted = getattr(model, name).weight.grad.norm().item()
        assert report.gradient == pytest.approx(wanted, rel=1e-5)
        assert wanted > 0
        assert not report.stuck
    # The caller's switch does not matter.
    with torch.no_grad():
        assert reports(model, X) == found


def test_layers_without_gradient_are_stuck():
    def run(m, x):
        bad = m.bad(x).sum() * math.inf
        return m.zero(x) * 0, m.cut(x).detach(), m.tiny(x) * 1e-30, bad

    model = Model(
        run, **{n: conv() for n in ('zero', 'cut', 'tiny', 'bad', 'frozen')}
    )
    model.frozen.requires_grad_(False)
    found = reports(model, X)
    assert {n: r.stuck for n, r in found.items()} == dict(
        zero=True, cut=True, tiny=False, bad=True, frozen=False
    )
    assert found['zero'].gradient == found['cut'].gradient == 0
    assert 0 < found['tiny'].gradient < 1e-27
    assert not math.isfinite(found['bad'].gradient)
    assert found['frozen'].gradient is None
    # A loss that nothing can learn from.
    model = Model(lambda m, x: m.conv(x).detach(), conv=conv())
    assert reports(model, X)['conv'].stuck


@pytest.mark.parametrize('batch', [None, X, dict(data_samples=[])])
def test_batch_is_checked(batch):
    with pytest.raises(ValueError, match="batch=.*'inputs'"):
        preflight(Model(None, conv=conv()), batch)


def test_model_and_random_generators_stay_as_they_were():
    def run(m, x):
        m.calls += 1
        np.random.rand(), random.random(), torch.rand(1)
        return m.conv(m.bn(x))

    model = Model(run, bn=nn.BatchNorm2d(2), conv=conv()).eval()
    model.calls = 0
    state = copy.deepcopy(model.state_dict())

    def draw():
        return np.random.rand(), random.random(), torch.rand(1).item()

    np.random.seed(0), random.seed(0), torch.manual_seed(0)
    expected = draw()
    np.random.seed(0), random.seed(0), torch.manual_seed(0)
    reports(model, X)
    assert draw() == expected
    assert model.calls == 0
    assert not any(m.training for m in model.modules())
    assert not model.conv._forward_pre_hooks
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key])


# --- a stock detector -----------------------------------------------------


def fcos(**kwargs):
    return dict(
        type='FCOS',
        data_preprocessor=dict(
            type='DetDataPreprocessor',
            batch_augments=[
                dict(
                    type='BatchSyncRandomResize',
                    random_size_range=(64, 96),
                    interval=10,
                )
            ],
        ),
        backbone=dict(
            type='ResNet',
            depth=18,
            base_channels=8,
            norm_cfg=dict(type='SyncBN'),
            norm_eval=False,
        ),
        neck=dict(
            type='FPN',
            in_channels=[8, 16, 32, 64],
            start_level=1,
            out_channels=8,
            add_extra_convs='on_output',
            num_outs=5,
            **kwargs,
        ),
        bbox_head=dict(
            type='FCOSHead',
            num_classes=2,
            in_channels=8,
            feat_channels=8,
            stacked_convs=1,
            norm_cfg=dict(type='GN', num_groups=2),
        ),
    )


def stock(binarize_cfg, **kwargs):
    torch.manual_seed(0)
    model = MODELS.build(dict(fcos(**kwargs), binarize_cfg=binarize_cfg))
    model.init_weights()
    return model


def test_function_call_of_relu_is_found_in_a_stock_detector():
    # A current hub in which no runner has counted.
    MessageHub.get_instance('no runner')
    model = stock({}, relu_before_extra_convs=True)
    batch = demo_mm_inputs(1, [[3, 128, 128]], num_classes=2)
    inputs = copy.deepcopy(batch['inputs'])
    found = preflight(model, batch)
    assert [r.name for r in found if r.blind] == ['neck.fpn_convs.4.conv']
    assert all(r.ran for r in found)
    assert torch.equal(batch['inputs'][0], inputs[0])
    assert MessageHub.get_current_instance().get_info('iter') is None
    # The other way to give a batch.
    preprocess = MODELS.build(dict(type='DetDataPreprocessor'))
    batch = preprocess(batch, training=True)
    assert [r.name for r in preflight(model, batch) if r.blind] == [
        'neck.fpn_convs.4.conv'
    ]


@pytest.mark.parametrize(
    ('settings', 'kwargs'),
    [
        ({}, {}),
        (
            dict(overrides={'neck.fpn_convs.4.conv': dict(shift=-0.1)}),
            dict(relu_before_extra_convs=True),
        ),
    ],
)
def test_remedies(settings, kwargs):
    batch = demo_mm_inputs(1, [[3, 128, 128]], num_classes=2)
    assert not any(
        r.blind or r.stuck for r in preflight(stock(settings, **kwargs), batch)
    )


def test_kept_relus_are_found():
    model = stock(dict(activation_cfg=None))
    batch = demo_mm_inputs(1, [[3, 128, 128]], num_classes=2)
    blind = {r.name for r in preflight(model, batch) if r.blind}
    assert 'backbone.layer1.0.conv1' in blind
    assert 'neck.lateral_convs.0.conv' in blind


def test_norms_of_zero_are_found_by_the_layers_before_them():
    model = stock({})
    for block in model.backbone.layer2:
        nn.init.zeros_(block.norm2.weight)
    batch = demo_mm_inputs(1, [[3, 128, 128]], num_classes=2)
    assert [r.name for r in preflight(model, batch) if r.stuck] == [
        f'backbone.layer2.{block}.conv{i}' for block in (0, 1) for i in (1, 2)
    ]


# --- the tool -------------------------------------------------------------


CONFIG = """
_base_ = []
custom_imports = dict(imports=['surge_det'])
default_scope = 'mmdet'
model = {model}
train_dataloader = dict(
    dataset=dict(
        type='CocoDataset',
        data_root=r'{root}/',
        ann_file='train.json',
        data_prefix=dict(img='images/'),
        metainfo=dict(classes=('one', 'two')),
        pipeline=[
            dict(type='LoadImageFromFile', backend_args=None),
            dict(type='LoadAnnotations', with_bbox=True),
            dict(type='PackDetInputs'),
        ]))
"""


@pytest.fixture
def config(tmp_path):
    (tmp_path / 'images').mkdir()
    image = np.random.default_rng(0).integers(0, 256, (128, 128, 3))
    cv2.imwrite(str(tmp_path / 'images/1.png'), image.astype(np.uint8))
    annotation = dict(id=1, image_id=1, category_id=1, iscrowd=0, area=900)
    annotation['bbox'] = [10, 20, 30, 30]
    data = dict(
        images=[dict(id=1, file_name='1.png', width=128, height=128)],
        annotations=[annotation],
        categories=[dict(id=1, name='one'), dict(id=2, name='two')],
    )
    (tmp_path / 'train.json').write_text(json.dumps(data))
    path = tmp_path / 'config.py'
    model = dict(fcos(relu_before_extra_convs=True), binarize_cfg={})
    path.write_text(CONFIG.format(root=tmp_path, model=model))
    return path


def test_tool_names_blind_layers_and_fails(config, tmp_path):
    output = tool('preflight.py', config, root=tmp_path, ok=False)
    assert '1 of 26 binarized layers' in output
    assert 'neck.fpn_convs.4.conv: input never changes sign' in output
    (line,) = [x for x in output.splitlines() if 'layer1.0.conv1 ' in x]
    assert '%' in line
    assert 'never' not in line


def test_layers_without_an_object_get_their_gradient_of_later_images():
    def run(m, x):
        return m.always(x), m.large(x) * (x.abs().max() > 5)

    model = Model(run, always=conv(), large=conv())
    seen = []

    def batches():
        for factor in (1.0, 1.0, 10.0, 1.0):
            seen.append(factor)
            yield dict(inputs=X * factor, data_samples=[])

    first, large = look(model, batches())
    assert seen == [1.0, 1.0, 10.0]
    assert large.gradient > 0
    # What is seen is the first image's.
    assert (first, large.negative) == (reports(model, X)['always'], 3 / 8)
    model.run = lambda m, x: (m.always(x), m.large(x) * 0)
    assert [r.stuck for r in look(model, batches())] == [False, True]


def test_tool_names_layers_without_gradient(
    config, tmp_path, monkeypatch, capsys
):
    model = MODELS.build(fcos(relu_before_extra_convs=False))
    binarize_detector(model)
    nn.init.zeros_(model.backbone.layer3[1].norm2.weight)
    checkpoint = tmp_path / 'last.pth'
    torch.save(dict(state_dict=model.state_dict()), checkpoint)
    options = ['model.neck.relu_before_extra_convs=False']
    options.append('model.backbone.frozen_stages=1')
    monkeypatch.setenv('SURGE_DATA_ROOT', str(tmp_path))
    arguments = ['--checkpoint', checkpoint, '--cfg-options', *options]
    assert main(['preflight', config, *arguments]) == 1
    lines = capsys.readouterr().out.splitlines()
    (frozen,) = [x for x in lines if x.startswith('backbone.layer1.0.conv1 ')]
    assert 'frozen' in frozen
    start = lines.index('2 of 26 binarized layers cannot work:')
    assert lines[start + 1 : start + 3] == [
        '  backbone.layer3.1.conv1: no gradient',
        '  backbone.layer3.1.conv2: no gradient',
    ]
    assert 'zero_init_residual' in lines[start + 3]
    assert len(lines) == start + 4


def test_tool_succeeds_with_a_checkpoint(
    config, tmp_path, monkeypatch, capsys
):
    model = MODELS.build(fcos(relu_before_extra_convs=False))
    binarize_detector(model)
    checkpoint = tmp_path / 'last.pth'
    torch.save(dict(state_dict=model.state_dict()), checkpoint)
    fixed = ['--cfg-options', 'model.neck.relu_before_extra_convs=False']
    monkeypatch.setenv('SURGE_DATA_ROOT', str(tmp_path))
    status = main(['preflight', config, '--checkpoint', checkpoint, *fixed])
    assert status == 0
    output = capsys.readouterr().out
    assert '26 binarized layers, all of them see both signs' in output


NOWHERE = 'http://127.0.0.1:9/resnet.pth'
PRETRAINED = ['--cfg-options', 'model.backbone.init_cfg.type=Pretrained']


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--image-index', '1'], '--image-index=1 is not allowed'),
        (
            ['--checkpoint', 'none.pth'],
            "--checkpoint 'none.pth': [Errno 2] No such file",
        ),
        (
            ['--checkpoint', __file__],
            f'--checkpoint {__file__!r}: {__file__}: no checkpoint, or a part',
        ),
        # A port where nobody listens, as without network.
        (
            [*PRETRAINED, 'model.backbone.init_cfg.checkpoint=' + NOWHERE],
            'cannot load the pretrained weights of the config '
            f'(model.backbone.init_cfg.checkpoint={NOWHERE!r}): <urlopen err',
        ),
    ],
)
def test_tool_says_what_is_wrong(
    config, monkeypatch, tmp_path, capsys, arguments, message
):
    monkeypatch.setenv('SURGE_DATA_ROOT', str(tmp_path))
    with pytest.raises(SystemExit) as stop:
        main(['preflight', config, *arguments])
    assert stop.value.code == 2
    assert f'error: {message}' in capsys.readouterr().err


def test_one_value_a_channel_needs_no_statistics():
    # As in SSD's last level, where BN cannot train on one image.
    model = Model(
        lambda m, x: m.conv(m.bn(x.mean((2, 3), keepdim=True))),
        conv=conv(),
        bn=nn.BatchNorm2d(2),
    )
    assert reports(model, X)['conv'].ran


@pytest.mark.parametrize('name', ['surge_ssd300_vgg16_coco_tiny'])
def test_tool_on_ssd_says_what_matters(name):
    root = os.environ.get('SURGE_DATA_ROOT', 'data')
    if not Path(root, 'coco_tiny').is_dir():
        pytest.skip(f'no coco_tiny in {root}; set SURGE_DATA_ROOT')
    out = tool(
        'preflight.py',
        ROOT / 'configs' / f'{name}.py',
        # Its first image has no object that is large enough for two levels.
        '--image-index',
        '4',
        root=Path(root).resolve(),
    )
    assert '25 binarized layers, all of them see both signs' in out
    assert len(out.splitlines()) < 60
