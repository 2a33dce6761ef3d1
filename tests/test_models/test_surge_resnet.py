import logging

import pytest
import torch
from mmdet.registry import MODELS
from replicas import begin_training
from torch import nn

from surge_det.core import SURGEConv2d
from surge_det.models import SURGEResNet


def build(**kwargs):
    return MODELS.build(dict(type='SURGEResNet', **{'depth': 18, **kwargs}))


def torchvision_state_dict(depth=18):
    import torchvision

    torch.manual_seed(1)
    net = getattr(torchvision.models, f'resnet{depth}')(weights=None)
    return net.state_dict()


@pytest.mark.parametrize(('depth', 'binary'), [(18, 16), (34, 32)])
def test_structure_and_shapes(depth, binary):
    net = build(depth=depth)
    convs = {n: m for n, m in net.named_modules() if isinstance(m, nn.Conv2d)}
    surge = [n for n, m in convs.items() if isinstance(m, SURGEConv2d)]
    assert len(surge) == binary
    assert sorted(set(convs) - set(surge)) == [
        'conv1',
        'layer2.0.downsample.0',
        'layer3.0.downsample.0',
        'layer4.0.downsample.0',
    ]
    outs = net(torch.randn(1, 3, 70, 65))
    assert [tuple(o.shape) for o in outs] == [
        (1, 64, 18, 17),
        (1, 128, 9, 9),
        (1, 256, 5, 5),
        (1, 512, 3, 3),
    ]


def test_structure_and_shapes_of_bottlenecks():
    net = build(depth=50)
    convs = {n: m for n, m in net.named_modules() if isinstance(m, nn.Conv2d)}
    surge = [n for n, m in convs.items() if isinstance(m, SURGEConv2d)]
    assert len(surge) == 3 * 16
    assert sorted(set(convs) - set(surge)) == [
        'conv1',
        *(f'layer{i}.0.downsample.0' for i in (1, 2, 3, 4)),
    ]
    outs = net(torch.randn(2, 3, 70, 65))
    assert [tuple(o.shape) for o in outs] == [
        (2, 256, 18, 17),
        (2, 512, 9, 9),
        (2, 1024, 5, 5),
        (2, 2048, 3, 3),
    ]


@pytest.mark.parametrize('depth', [18, 50])
def test_no_relu_anywhere(depth):
    net = build(depth=depth)
    assert not any(isinstance(m, nn.ReLU) for m in net.modules())


def test_block_equals_the_formula_written_out():
    torch.manual_seed(0)
    net = build().train()
    block = net.layer2[0]
    for p in block.parameters():
        if p.dim() == 1:
            nn.init.normal_(p)
    x = torch.randn(2, 64, 9, 7)

    def rprelu(act, z):
        z = z + act[0].shift.view(-1, 1, 1)
        z = torch.where(z > 0, z, z * act[1].weight.view(-1, 1, 1))
        return z + act[2].shift.view(-1, 1, 1)

    def half(z, shift, conv, norm, shortcut, act):
        sign = torch.where(z + shift.view(-1, 1, 1) >= 0, 1.0, -1.0)
        alpha = conv.weight.abs().mean((1, 2, 3), keepdim=True)
        weight = torch.where(conv.weight >= 0, 1.0, -1.0) * alpha
        z = nn.functional.conv2d(sign, weight, None, conv.stride, 1)
        return rprelu(act, norm(z) + shortcut)

    pool = nn.functional.avg_pool2d(
        x, 2, 2, ceil_mode=True, count_include_pad=False
    )
    shortcut = block.downsample[2](
        nn.functional.conv2d(pool, block.downsample[1].weight)
    )
    want = half(
        x, block.shift1.shift, block.conv1, block.bn1, shortcut, block.act1
    )
    want = half(
        want, block.shift2.shift, block.conv2, block.bn2, want, block.act2
    )
    torch.testing.assert_close(block(x), want, rtol=1e-5, atol=1e-5)


def test_bottleneck_equals_the_formula_written_out():
    torch.manual_seed(0)
    block = build(depth=50).train().layer2[0]
    for p in block.parameters():
        if p.dim() == 1:
            nn.init.normal_(p)
    x = torch.randn(2, 256, 9, 7)

    def third(z, shift, conv, norm, shortcut, act):
        sign = torch.where(z + shift.view(-1, 1, 1) >= 0, 1.0, -1.0)
        alpha = conv.weight.abs().mean((1, 2, 3), keepdim=True)
        weight = torch.where(conv.weight >= 0, 1.0, -1.0) * alpha
        z = nn.functional.conv2d(sign, weight, None, conv.stride, conv.padding)
        z = norm(z) + shortcut + act[0].shift.view(-1, 1, 1)
        z = torch.where(z > 0, z, z * act[1].weight.view(-1, 1, 1))
        return z + act[2].shift.view(-1, 1, 1)

    def pool(z):
        return nn.functional.avg_pool2d(
            z, 2, 2, ceil_mode=True, count_include_pad=False
        )

    want = third(x, block.shift1.shift, block.conv1, block.bn1, 0, block.act1)
    want = third(
        want,
        block.shift2.shift,
        block.conv2,
        block.bn2,
        pool(want),
        block.act2,
    )
    shortcut = block.downsample[2](
        nn.functional.conv2d(pool(x), block.downsample[1].weight)
    )
    want = third(
        want, block.shift3.shift, block.conv3, block.bn3, shortcut, block.act3
    )
    torch.testing.assert_close(block(x), want, rtol=1e-5, atol=1e-5)


def test_bottlenecks_learn():
    torch.manual_seed(0)
    net = build(depth=50, with_cp=True).train()
    net.init_weights()
    before = {n: p.detach().clone() for n, p in net.named_parameters()}
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    sum(o.square().mean() for o in net(torch.randn(2, 3, 64, 64))).backward()
    optimizer.step()
    for name, layer in net.named_modules():
        if isinstance(layer, SURGEConv2d):
            for kind in ('weight', 'aux_weight'):
                now = getattr(layer, kind)
                assert not torch.equal(now, before[f'{name}.{kind}'])


@pytest.mark.parametrize(('depth', 'convs'), [(18, 20), (50, 53)])
def test_loads_every_convolution_of_torchvision(tmp_path, depth, convs):
    path = tmp_path / 'resnet.pth'
    state = torchvision_state_dict(depth)
    torch.save(state, path)
    net = build(
        depth=depth, init_cfg=dict(type='Pretrained', checkpoint=str(path))
    )
    net.init_weights()
    begin_training(net)
    count = 0
    for name, module in net.named_modules():
        if isinstance(module, nn.Conv2d):
            assert torch.equal(module.weight, state[f'{name}.weight']), name
            count += 1
        if isinstance(module, SURGEConv2d):
            assert torch.equal(module.aux_weight, module.weight)
        if isinstance(module, nn.BatchNorm2d):
            assert torch.equal(
                module.running_var, state[f'{name}.running_var']
            )
    assert count == convs


def test_torchvision_address_is_asked_for(monkeypatch):
    from mmengine.runner import checkpoint

    asked = []

    def load(filename, map_location=None, logger=None):
        asked.append(filename)
        return torchvision_state_dict()

    monkeypatch.setattr(
        checkpoint.CheckpointLoader, 'load_checkpoint', staticmethod(load)
    )
    net = build(
        init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet18')
    )
    net.init_weights()
    assert asked == ['torchvision://resnet18']
    assert torch.equal(
        net.conv1.weight, torchvision_state_dict()['conv1.weight']
    )


def test_checkpoint_without_a_convolution_is_an_error(tmp_path):
    path = tmp_path / 'other.pth'
    torch.save({'stem.weight': torch.zeros(3)}, path)
    net = build(init_cfg=dict(type='Pretrained', checkpoint=str(path)))
    with pytest.raises(ValueError, match='none of the 20 convolutions') as e:
        net.init_weights()
    assert str(path) in str(e.value)
    assert 'stem.weight' in str(e.value)


def test_partial_checkpoint_warns_with_names(tmp_path, caplog):
    path = tmp_path / 'part.pth'
    state = torchvision_state_dict()
    del state['layer3.1.conv2.weight']
    state['layer4.0.downsample.0.weight'] = torch.zeros(2, 2, 1, 1)
    torch.save(state, path)
    net = build(init_cfg=dict(type='Pretrained', checkpoint=str(path)))
    messages = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    from mmengine.logging import MMLogger

    logger = MMLogger.get_instance('test_partial')
    logger.addHandler(handler)
    try:
        net.init_weights()
    finally:
        logger.removeHandler(handler)
    told = [m for m in messages if 'left 2 of 20 convolutions' in m]
    assert len(told) == 1
    assert 'layer3.1.conv2.weight' in told[0]
    assert 'layer4.0.downsample.0.weight' in told[0]


def test_out_indices_frozen_stages_norm_eval():
    net = build(out_indices=(1, 3), frozen_stages=2, norm_eval=True).train()
    outs = net(torch.randn(1, 3, 64, 64))
    assert [o.shape[1] for o in outs] == [128, 512]
    frozen = {n for n, p in net.named_parameters() if not p.requires_grad}
    assert {n.split('.')[0] for n in frozen} == {
        'conv1',
        'bn1',
        'layer1',
        'layer2',
    }
    assert not any(
        m.training for m in net.modules() if isinstance(m, nn.BatchNorm2d)
    )
    sum(o.sum() for o in outs).backward()
    assert net.layer3[0].conv1.aux_weight.grad.abs().sum() > 0
    assert net.layer2[0].conv1.aux_weight.grad is None


def test_default_trains_its_norm_layers():
    net = build().train()
    assert all(
        m.training for m in net.modules() if isinstance(m, nn.BatchNorm2d)
    )


def test_with_cp_gives_the_same_gradients():
    torch.manual_seed(0)
    plain = build(num_stages=1, strides=(1,), dilations=(1,), out_indices=(0,))
    saving = build(
        num_stages=1,
        strides=(1,),
        dilations=(1,),
        out_indices=(0,),
        with_cp=True,
    )
    saving.load_state_dict(plain.state_dict())
    x = torch.randn(1, 3, 32, 32)
    for net in (plain, saving):
        net(x)[0].square().mean().backward()
    for (name, p), q in zip(plain.named_parameters(), saving.parameters()):
        torch.testing.assert_close(p.grad, q.grad, msg=name)


def test_conv_cfg_reaches_every_binary_layer():
    net = build(conv_cfg=dict(type='SURGEConv2d', eta=0.7, pad_value=-1))
    layers = [m for m in net.modules() if isinstance(m, SURGEConv2d)]
    assert {m.ags.eta for m in layers} == {0.7}
    assert {m.pad_value for m in layers} == {-1.0}


@pytest.mark.parametrize(
    ('kwargs', 'name'),
    [
        (dict(depth=20), 'depth'),
        (dict(depth=18, deep_stem=True), 'deep_stem'),
        (dict(depth=18, plugins=[{}]), 'plugins'),
    ],
)
def test_wrong_arguments(kwargs, name):
    with pytest.raises(ValueError, match=name):
        SURGEResNet(**kwargs)


def test_initializer_given_as_a_class_is_watched_too(tmp_path):
    from mmengine.model import PretrainedInit

    path = tmp_path / 'other.pth'
    torch.save({'stem.weight': torch.zeros(3)}, path)
    net = build(init_cfg=dict(type=PretrainedInit, checkpoint=str(path)))
    with pytest.raises(ValueError, match='none of the 20 convolutions'):
        net.init_weights()


def test_second_initialization_is_mmengines_no_op(tmp_path):
    path = tmp_path / 'resnet18.pth'
    torch.save(torchvision_state_dict(), path)
    net = build(init_cfg=dict(type='Pretrained', checkpoint=str(path)))
    net.init_weights()
    before = net.conv1.weight.detach().clone()
    net.init_weights()
    assert torch.equal(net.conv1.weight, before)
