"""Which layers of a detector stay real, and which ReLUs give way."""

import pytest
from float_models import BoxHead, Detector, block, plain, surge_names
from torch import nn

from surge_det.core.activations import SlopePReLU
from surge_det.models.detector_policy import binarize_detector as binarize

# --- the safe default -----------------------------------------------------


def test_default_keeps_the_first_convolution_and_what_a_head_emits():
    model = Detector()
    done = binarize(model)
    assert done.binarized == surge_names(model)
    assert done.binarized == [
        'backbone.1.conv',
        'neck.0',
        'neck.1',
        'bbox_head.convs.0.conv',
        'bbox_head.convs.1.conv',
        'bbox_head.reg.0',
    ]
    assert done.kept['backbone.0.conv'] == 'first convolution'
    for name in ('cls', 'reg.2'):
        assert 'emits' in done.kept[f'bbox_head.{name}']
    assert len(done.kept) == 3


def test_each_detector_in_a_model_keeps_its_first_convolution():
    pair = nn.ModuleDict({'student': Detector(), 'teacher': Detector()})
    done = binarize(pair)
    for name in pair:
        assert done.kept[f'{name}.backbone.0.conv'] == 'first convolution'
        assert f'{name}.backbone.1.conv' in done.binarized


def test_the_first_convolution_of_a_neck_sees_no_image():
    neck = nn.Sequential(nn.Conv2d(64, 8, 1), nn.Conv2d(8, 8, 3))
    assert binarize(neck).binarized == ['0', '1']
    # An image that was sliced into twelve channels still is one.
    sliced = nn.Sequential(nn.Conv2d(12, 8, 1), nn.Conv2d(8, 8, 3))
    assert binarize(sliced).kept == {'0': 'first convolution'}


def test_a_head_converted_alone_keeps_what_it_emits():
    head = BoxHead()
    done = binarize(head, include=['cls', '*'], exclude=['cls'])
    assert 'emits' in done.kept['reg.2']
    assert done.kept['cls'] == 'excluded'


@pytest.mark.parametrize(
    ('name', 'module', 'kept'),
    [
        ('layer1.downsample.0', nn.Conv2d(8, 8, 1), True),
        ('layer1.downsample.0', nn.Conv2d(8, 8, 3), False),
        ('downsamples.0', nn.Conv2d(8, 8, 1), False),
        ('blocks.depthwise', nn.Conv2d(8, 8, 3, groups=8), True),
        ('blocks.grouped', nn.Conv2d(8, 8, 3, groups=4), False),
        ('blocks.one', nn.Conv2d(1, 8, 3), False),
        ('stage.attention.fc', nn.Conv2d(8, 8, 1), True),
        ('mlp.fc', nn.Linear(8, 8), False),
        ('attn.sampling_offsets', nn.Linear(8, 8), True),
        ('attn.attention_weights', nn.Linear(8, 8), True),
        ('attn.value_proj', nn.Linear(8, 8), False),
        ('conv2.conv_offset', nn.Conv2d(8, 8, 3), True),
        ('reference_points_fc', nn.Linear(8, 2), True),
        ('rpn_head.rpn_conv', nn.Conv2d(8, 8, 3), False),
        ('rpn_head.rpn_cls', nn.Conv2d(8, 8, 1), True),
        ('roi_head.bbox_head.0.shared_fcs.1', nn.Linear(8, 8), False),
        ('roi_head.bbox_head.0.fc_cls', nn.Linear(8, 8), True),
    ],
)
def test_default_by_name_and_kind(name, module, kept):
    root = nn.Module()
    root.stem = nn.Conv2d(3, 8, 3)
    root.hidden = nn.Linear(8, 8)
    *parents, leaf = name.split('.')
    holder = root
    for part in parents:
        holder.add_module(part, nn.Module())
        holder = holder.get_submodule(part)
    holder.add_module(leaf, module)
    done = binarize(root)
    assert (name in done.kept) is kept
    assert (name in done.binarized) is not kept


def test_channel_attention_stays_real():
    class SELayer(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1 = block(8, 2, 1)

    done = binarize(nn.Sequential(block(3, 8), block(8, 8), SELayer()))
    assert done.binarized == ['1.conv']
    assert done.kept['2.conv1.conv'] == 'channel attention'


def test_last_convolution_of_a_sequence_emits_even_with_an_activation():
    model = nn.Module()
    model.stem = nn.Conv2d(3, 8, 3)
    model.mask_head = nn.Sequential(
        nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU()
    )
    assert binarize(model).binarized == ['mask_head.0']


def test_include_by_exact_name_overrules_the_default():
    model = Detector()
    done = binarize(model, include=['bbox_head.cls', 'neck.*'])
    assert done.binarized == ['neck.0', 'neck.1', 'bbox_head.cls']
    assert done.kept['backbone.1.conv'] == 'not included'


def test_relus_give_way_in_branches_with_binarized_layers_only():
    model = Detector()
    done = binarize(model, include=['backbone.1.conv'])
    assert done.activations == ['backbone.0.activate', 'backbone.1.activate']
    assert isinstance(model.backbone[0].activate, SlopePReLU)
    assert type(model.bbox_head.convs[0].activate) is nn.ReLU


def test_a_model_without_backbone_is_one_branch():
    model = plain()
    done = binarize(model, include=['5'])
    assert done.activations == ['1', '3']
    assert [type(model[i]) for i in (1, 3)] == [SlopePReLU] * 2


def test_relu_of_a_head_stays_beside_real_layers():
    # A head may rectify its boxes with it.
    model = Detector()
    done = binarize(model)
    assert type(model.bbox_head.relu) is nn.ReLU
    assert 'bbox_head.convs.0.activate' in done.activations
    assert 'bbox_head.reg.1' in done.activations

    model = Detector()
    done = binarize(model, include=['bbox_head.cls'])
    assert 'bbox_head.relu' in done.activations


def test_other_activations_keep_negatives_and_stay():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.SiLU(),
        nn.Conv2d(4, 4, 3),
        nn.GELU(),
        nn.LeakyReLU(),
        nn.Hardswish(),
    )
    kept = [model[i] for i in (1, 3, 4, 5)]
    assert binarize(model).activations == []
    assert [model[i] for i in (1, 3, 4, 5)] == kept


def test_defaults_is_a_bool():
    with pytest.raises(ValueError, match="defaults='no'"):
        binarize(plain(), defaults='no')
