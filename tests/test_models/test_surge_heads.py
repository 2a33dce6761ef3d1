import pytest
import torch
from mmcv.cnn import ConvModule, build_conv_layer
from mmdet.registry import MODELS
from torch import nn

from surge_det.core import SURGEConv2d, SURGELinear
from surge_det.core.layers import named_surge_layers


def head_cfg(**kwargs):
    return dict(
        type='SURGEShared2FCBBoxHead',
        in_channels=8,
        fc_out_channels=16,
        roi_feat_size=7,
        num_classes=3,
        bbox_coder=dict(type='DeltaXYWHBBoxCoder'),
        loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=False),
        loss_bbox=dict(type='L1Loss'),
        **kwargs,
    )


def test_conv_cfg_binarizes_any_conv_module():
    module = ConvModule(
        4,
        6,
        3,
        padding=1,
        conv_cfg=dict(type='SURGEConv2d', eta=0.3),
        norm_cfg=dict(type='BN'),
    )
    assert type(module.conv) is SURGEConv2d
    assert module.conv.ags.eta == 0.3
    assert module(torch.randn(2, 4, 5, 5)).shape == (2, 6, 5, 5)
    assert torch.equal(module.conv.weight, module.conv.aux_weight)


@pytest.mark.parametrize('scope', ['mmdet', 'mmengine'])
def test_layers_are_found_in_every_scope(scope):
    from mmengine.registry import init_default_scope

    init_default_scope(scope)
    conv = build_conv_layer(dict(type='SURGEConv2d'), 2, 3, 1)
    assert type(conv) is SURGEConv2d


def test_fpn_has_one_bit_3x3_convolutions_with_bias_and_prelu():
    neck = MODELS.build(
        dict(type='SURGEFPN', in_channels=[4, 6], out_channels=8, num_outs=3)
    )
    neck.init_weights()
    layers = dict(named_surge_layers(neck))
    assert sorted(layers) == [
        'fpn_convs.0.conv',
        'fpn_convs.1.conv',
        'lateral_convs.0.conv',
        'lateral_convs.1.conv',
    ]
    for layer in layers.values():
        assert layer.kernel_size == (3, 3)
        assert layer.bias is not None
    assert not any(
        isinstance(m, nn.ReLU | nn.BatchNorm2d) for m in neck.modules()
    )
    outs = neck((torch.randn(1, 4, 8, 12), torch.randn(1, 6, 4, 6)))
    assert [tuple(o.shape[1:]) for o in outs] == [
        (8, 8, 12),
        (8, 4, 6),
        (8, 2, 3),
    ]


def test_fpn_start_level_takes_the_right_channels():
    neck = MODELS.build(
        dict(
            type='SURGEFPN',
            in_channels=[4, 6, 10],
            out_channels=8,
            num_outs=2,
            start_level=1,
        )
    )
    assert [m.conv.in_channels for m in neck.lateral_convs] == [6, 10]


@pytest.mark.parametrize(
    ('kwargs', 'name'),
    [
        (dict(relu_before_extra_convs=True), 'relu_before_extra_convs'),
    ],
)
def test_fpn_refuses_relu(kwargs, name):
    with pytest.raises(ValueError, match=name):
        MODELS.build(
            dict(
                type='SURGEFPN',
                in_channels=[4],
                out_channels=8,
                num_outs=1,
                **kwargs,
            )
        )


@pytest.mark.parametrize('num_convs', [1, 2])
def test_rpn_head_hidden_is_binary_and_outputs_real(num_convs):
    head = MODELS.build(
        dict(
            type='SURGERPNHead',
            in_channels=8,
            feat_channels=8,
            num_convs=num_convs,
            anchor_generator=dict(
                type='AnchorGenerator',
                scales=[8],
                ratios=[0.5, 1.0, 2.0],
                strides=[4, 8],
            ),
        )
    )
    head.init_weights()
    assert len(dict(named_surge_layers(head))) == num_convs
    assert type(head.rpn_cls) is nn.Conv2d
    assert type(head.rpn_reg) is nn.Conv2d
    assert not any(isinstance(m, nn.ReLU) for m in head.modules())
    scores, deltas = head([torch.randn(2, 8, 6, 5), torch.randn(2, 8, 3, 3)])
    assert [tuple(s.shape) for s in scores] == [(2, 3, 6, 5), (2, 3, 3, 3)]
    assert tuple(deltas[0].shape) == (2, 12, 6, 5)
    (sum(s.sum() for s in scores) + deltas[0].sum()).backward()
    assert head.rpn_conv[0].conv.aux_weight.grad.abs().sum() > 0


def test_bbox_head_is_real_by_default_and_equals_mmdets():
    ours = MODELS.build(head_cfg())
    stock = MODELS.build({**head_cfg(), 'type': 'Shared2FCBBoxHead'})
    stock.load_state_dict(ours.state_dict())
    x = torch.randn(5, 8, 7, 7)
    for a, b in zip(ours(x), stock(x)):
        assert torch.equal(a, b)


def test_bbox_head_binarizes_hidden_layers():
    torch.manual_seed(0)
    head = MODELS.build(head_cfg(linear_cfg=dict(type='SURGELinear')))
    head.init_weights()
    layers = dict(named_surge_layers(head))
    assert list(layers) == ['shared_fcs.0.1', 'shared_fcs.1.1']
    assert all(type(m) is SURGELinear for m in layers.values())
    assert type(head.fc_cls) is nn.Linear
    assert head.fc_cls.weight.std().item() == pytest.approx(0.01, rel=0.3)
    assert head.fc_reg.weight.std().item() == pytest.approx(0.001, rel=0.3)
    # Xavier: uniform with variance 2 / (fan_in + fan_out).
    want = (2 / (8 * 49 + 16)) ** 0.5
    assert layers['shared_fcs.0.1'].weight.std().item() == pytest.approx(
        want, rel=0.1
    )
    seen = []
    for layer in layers.values():
        layer.register_forward_pre_hook(lambda m, x: seen.append(x[0]))
    cls_score, bbox_pred = head(torch.randn(6, 8, 7, 7))
    assert cls_score.shape == (6, 4)
    assert bbox_pred.shape == (6, 12)
    assert all(0.05 < (x < 0).float().mean() < 0.95 for x in seen)
    (cls_score.sum() + bbox_pred.sum()).backward()
    assert all(p.grad is not None for p in head.parameters())


def test_fpn_gives_its_norm_to_lateral_convolutions():
    def kinds(**kwargs):
        neck = MODELS.build(
            dict(
                type='SURGEFPN',
                in_channels=[4],
                out_channels=8,
                num_outs=1,
                norm_cfg=dict(type='BN'),
                **kwargs,
            )
        )
        convs = (neck.lateral_convs[0], neck.fpn_convs[0])
        return [m.with_norm for m in convs]

    assert kinds() == [True, True]
    assert kinds(no_norm_on_lateral=True) == [False, True]


def test_binary_bbox_head_without_regression_initializes():
    head = MODELS.build(
        head_cfg(linear_cfg=dict(type='SURGELinear'), with_reg=False)
    )
    head.init_weights()
    assert head.fc_cls.weight.std().item() == pytest.approx(0.01, rel=0.3)
