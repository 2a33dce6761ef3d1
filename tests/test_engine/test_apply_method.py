import inspect
from pathlib import Path

import pytest

pytest.importorskip('mmdet', reason='needs the toolbox')

import surge_det  # noqa: F401

# isort: split
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import set_random_seed

from surge_det.core.layers import named_surge_layers
from surge_det.core.methods import METHODS, method_cfg
from surge_det.engine.apply_method import apply_method

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
ALL = [
    *METHODS,
    *(
        f'surge+{n}'
        for n in METHODS
        if n not in ('float', 'surge', 'surge_auto')
    ),
]


def read(name):
    return Config.fromfile(CONFIGS / f'{name}.py')


def small():
    """The small Faster R-CNN R18 with an eighth of the channels."""
    cfg = read('surge_faster_rcnn_r18_bccd')
    cfg.merge_from_dict(
        {
            'model.backbone.base_channels': 8,
            'model.neck.in_channels': [8, 16, 32, 64],
            'model.roi_head.bbox_head.fc_out_channels': 16,
            'model.roi_head.bbox_head.linear_cfg': {'type': 'SURGELinear'},
        }
    )
    return cfg


def build(cfg):
    init_default_scope('mmdet')
    set_random_seed(3)
    model = MODELS.build(cfg.model)
    model.init_weights()
    return model


def plain(keywords):
    """Keywords of a method as a built layer shows them."""
    kind = {'type': 'STE'} | keywords.get('activation_estimator', {})
    return (
        keywords.get('binarize_weight', True),
        keywords.get('binarize_activation', True),
        kind['type'],
        keywords.get('weight_estimator', {'type': 'STE'})['type'],
        keywords.get('weight_binarizer', {'type': 'ScaledSign'})['type'],
        keywords.get('normalize_input', False),
        keywords['compensate'],
    )


def shown(layer):
    return (
        layer.binarize_weight,
        layer.binarize_activation,
        type(layer.activation_estimator).__name__,
        type(layer.weight_estimator).__name__,
        type(layer.weight_binarizer).__name__,
        layer.normalize_input,
        layer.compensate,
    )


def test_all_layers_get_every_method_and_the_same_start():
    cfg = small()
    before = cfg.to_dict()
    start = build(apply_method(cfg, 'ste')).state_dict()
    for name in ALL:
        model = build(apply_method(cfg, name))
        layers = dict(named_surge_layers(model))
        # Backbone 16, neck 8, RPN head 1, box head 2.
        assert len(layers) == 27, name
        for layer_name, layer in layers.items():
            assert shown(layer) == plain(method_cfg(name)), layer_name
        state = model.state_dict()
        assert set(start) <= set(state), name
        for key, value in start.items():
            assert value.equal(state[key]), (name, key)
    assert cfg.to_dict() == before


def test_a_method_replaces_what_the_config_has_of_another():
    cfg = read('surge_faster_rcnn_r18_bccd')
    cfg.model.backbone.conv_cfg.update(
        eta=0.1, pad_value=-1, **method_cfg('surge+recu')
    )
    place = apply_method(cfg, 'ede').model.backbone.conv_cfg
    assert place == dict(
        type='SURGEConv2d', eta=0.1, pad_value=-1, **method_cfg('ede')
    )
    # Only what is binarized can be padded with -1.
    place = apply_method(cfg, 'float').model.backbone.conv_cfg
    assert place == dict(type='SURGEConv2d', eta=0.1, **method_cfg('float'))


def test_surge_auto_sets_eta_and_the_others_keep_the_configs():
    cfg = small()
    cfg.model.neck.conv_cfg.eta = 0.3
    cfg.optim_wrapper.ags = dict(eta=0.05, overrides={'neck.*': 0.02})
    for name in ('surge', 'surge+reste'):
        found = apply_method(cfg, name)
        assert found.optim_wrapper.ags == cfg.optim_wrapper.ags
        assert found.model.neck.conv_cfg.eta == 0.3
    auto = apply_method(cfg, 'surge_auto')
    assert auto.optim_wrapper.ags == dict(overrides={'neck.*': 0.02})
    layers = named_surge_layers(build(auto))
    assert {layer.ags.eta for _, layer in layers} == {'auto'}


@pytest.mark.parametrize('detector', ['faster_rcnn_r18', 'ssd300_vgg16'])
@pytest.mark.parametrize('method', ['ste', 'float'])
def test_twin_configs_are_their_methods(detector, method):
    cfg = apply_method(read(f'surge_{detector}_voc'), method)
    twin = read(f'{method}_{detector}_voc')
    for key in ('model', 'optim_wrapper', 'custom_hooks'):
        assert cfg[key] == twin[key], key


def test_fsg_config_is_its_method():
    cfg = apply_method(read('surge_faster_rcnn_r18_bccd'), 'fsg')
    twin = read('fsg_faster_rcnn_r18_bccd')
    assert cfg.model == twin.model
    assert cfg.optim_wrapper == twin.optim_wrapper
    assert apply_method(twin, 'surge').optim_wrapper == (
        read('surge_faster_rcnn_r18_bccd').optim_wrapper
    )


def test_fsg_keeps_the_configs_settings_and_mixed_precision():
    cfg = read('surge_faster_rcnn_r18_bccd')
    cfg.optim_wrapper.update(
        type='AGSAmpOptimWrapper', fsg=dict(slow=dict(block_size=64))
    )
    wrapper = apply_method(cfg, 'surge+fsg').optim_wrapper
    assert wrapper.type == 'FSGAmpOptimWrapper'
    # As tools/train.py would train it: nothing is added.
    assert wrapper.fsg == dict(slow=dict(block_size=64))
    cfg.optim_wrapper.fsg = dict(fast_lr=0.001)
    own = apply_method(cfg, 'fsg').optim_wrapper.fsg
    assert own.fast_lr == 0.001
    assert own.slow.block_size == 1024
    cfg.optim_wrapper.fsg = dict(slow=dict(blocksize=64))
    with pytest.raises(ValueError, match="fsg: slow: .*'blocksize'"):
        apply_method(cfg, 'fsg')
    assert 'fsg' not in apply_method(cfg, 'ste').optim_wrapper
    cfg.optim_wrapper.type = 'ApexOptimWrapper'
    with pytest.raises(ValueError, match="type='ApexOptimWrapper' has no"):
        apply_method(cfg, 'fsg')


def test_converted_detector_gets_it_through_layer_cfg():
    cfg = read('surge_faster_rcnn_r18_converted_bccd')
    cfg.model.binarize_cfg = dict(layer_cfg=dict(eta=0.1, compensate=True))
    settings = apply_method(cfg, 'irnet').model.binarize_cfg
    assert settings.layer_cfg == dict(eta=0.1, **method_cfg('irnet'))
    cfg.model.binarize_cfg.overrides = {'rpn_head.*': dict(eta=0.0)}
    apply_method(cfg, 'irnet')
    cfg.model.binarize_cfg.overrides = {'rpn_head.*': dict(compensate=False)}
    with pytest.raises(ValueError, match=r"'rpn_head\.\*'.*'compensate'"):
        apply_method(cfg, 'irnet')


def test_a_part_without_conv_cfg_is_a_place():
    cfg = read('surge_faster_rcnn_r18_bccd')
    for part in ('backbone', 'neck', 'rpn_head'):
        del cfg.model[part].conv_cfg
    model = apply_method(cfg, 'reste').model
    expected = dict(type='SURGEConv2d', **method_cfg('reste'))
    for part in ('backbone', 'neck', 'rpn_head'):
        assert model[part].conv_cfg == expected
    cfg = read('surge_ssd300_vgg16_voc')
    for part in ('backbone', 'neck'):
        cfg.model[part].pop('conv_cfg', None)
    model = apply_method(cfg, 'reste').model
    assert model.backbone.conv_cfg == model.neck.conv_cfg == expected


def test_schedules_are_told_the_progress():
    cfg = read('surge_faster_rcnn_r18_bccd')
    cfg.custom_hooks = [dict(type='AGSHook')]
    assert [h.type for h in apply_method(cfg, 'reste').custom_hooks] == [
        'AGSHook',
        'SURGEProgressHook',
    ]


def test_first_of_two_steps_stays_the_first():
    step1 = read('two_step/surge_faster_rcnn_r18_bccd_step1')
    place = apply_method(step1, 'reactnet').model.backbone.conv_cfg
    assert place.binarize_weight is False
    assert place.activation_estimator.type == 'ApproxSign'


def test_configs_without_a_place_are_refused():
    real = Config(dict(model=dict(type='FasterRCNN', backbone=dict(depth=18))))
    with pytest.raises(ValueError, match='no 1-bit layers to give it to'):
        apply_method(real, 'ste')
    with pytest.raises(ValueError, match='backbone.conv_cfg binarizes neith'):
        apply_method(read('float_faster_rcnn_r18_bccd'), 'reste')
    with pytest.raises(ValueError, match="'surge\\+nothing' is not allowed"):
        apply_method(read('surge_faster_rcnn_r18_bccd'), 'surge+nothing')


def test_what_is_one_bit_by_default_says_so():
    parts = {
        cls
        for cls in MODELS.module_dict.values()
        if cls.__module__.startswith('surge_det.models.')
        and 'conv_cfg' in inspect.signature(cls).parameters
    }
    assert {cls.__name__ for cls in parts} == {
        'SURGEFPN',
        'SURGERPNHead',
        'SURGEResNet',
        'SURGESSDNeck',
        'SURGESSDVGG',
    }
    for cls in parts:
        assert cls.default_conv_cfg == {'type': 'SURGEConv2d'}
