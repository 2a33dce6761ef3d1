"""`aux_dtype` by name, as a config has it."""

import pytest
import torch
from mmcv.cnn import build_conv_layer
from mmdet.registry import MODELS
from mmengine.config import Config

from surge_det.core import SURGEConv2d, SURGELinear
from surge_det.core.layers import named_surge_layers

FPN = dict(type='FPN', in_channels=[8, 16], out_channels=8, num_outs=2)


def test_conv_cfg():
    cfg = dict(type='SURGEConv2d', aux_dtype='bfloat16')
    layer = build_conv_layer(cfg, 4, 6, 3)
    assert type(layer) is SURGEConv2d
    assert layer.aux_dtype == torch.bfloat16


def test_linear_cfg():
    cfg = dict(type='SURGELinear', aux_dtype='bfloat16')
    layer = MODELS.build(dict(cfg, in_features=4, out_features=6))
    assert type(layer) is SURGELinear
    assert layer.aux_dtype == torch.bfloat16


@pytest.mark.parametrize(
    'settings',
    [
        dict(binarize_cfg=dict(layer_cfg=dict(aux_dtype='bfloat16'))),
        dict(conv_cfg=dict(type='SURGEConv2d', aux_dtype='bfloat16')),
    ],
    ids=['binarize_cfg', 'conv_cfg'],
)
def test_a_part_of_a_model(settings):
    cfg = Config(dict(model=dict(**FPN, **settings)))
    # The way to a file and back.
    cfg = Config.fromstring(cfg.pretty_text, '.py')
    layers = [
        layer for _, layer in named_surge_layers(MODELS.build(cfg.model))
    ]
    assert len(layers) >= 3
    assert {layer.aux_dtype for layer in layers} == {torch.bfloat16}


def test_a_bad_name_is_refused():
    cfg = dict(type='SURGEConv2d', aux_dtype='bf16')
    with pytest.raises(ValueError, match="aux_dtype='bf16' is not allowed"):
        build_conv_layer(cfg, 4, 6, 3)
