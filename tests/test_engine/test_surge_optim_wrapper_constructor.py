import pytest
import torch
from mmengine.optim import build_optim_wrapper
from mmengine.optim.optimizer import amp_optimizer_wrapper
from replicas import begin_training

from surge_det.core import SURGEConv2d
from surge_det.engine import AGSOptimWrapper


def build(model, paramwise_cfg, optimizer=None, **kwargs):
    return build_optim_wrapper(
        model,
        {
            'type': 'AGSOptimWrapper',
            'constructor': 'SURGEOptimWrapperConstructor',
            'paramwise_cfg': paramwise_cfg,
            'optimizer': optimizer
            or {'type': 'SGD', 'lr': 1.0, 'weight_decay': 0.5},
            **kwargs,
        },
    )


def settings(wrapper, model):
    """Name -> (lr, weight decay), each parameter exactly once."""
    names = {id(p): n for n, p in model.named_parameters()}
    found = {}
    for group in wrapper.optimizer.param_groups:
        for param in group['params']:
            name = names[id(param)]
            assert name not in found
            found[name] = (group['lr'], group['weight_decay'])
    return found


def test_factors(make_model):
    model = make_model()
    wrapper = build(
        model,
        {
            'latent_lr_mult': 0.5,
            'latent_decay_mult': 0.0,
        },
    )
    assert isinstance(wrapper, AGSOptimWrapper)
    assert settings(wrapper, model) == {
        'stem.weight': (1.0, 0.5),
        'stem.bias': (1.0, 0.5),
        'body.0.weight': (1.0, 0.5),
        'body.0.bias': (1.0, 0.5),
        'body.1.weight': (0.5, 0.0),
        'body.1.aux_weight': (1.0, 0.5),
        'body.1.bias': (1.0, 0.5),
        'head.weight': (0.5, 0.0),
        'head.aux_weight': (1.0, 0.5),
        'head.bias': (1.0, 0.5),
    }


def test_factors_multiply_stock_rules(make_model):
    model = make_model()
    wrapper = build(
        model,
        {
            'latent_decay_mult': 0.5,
            'bias_lr_mult': 2.0,
            'norm_decay_mult': 0.0,
            'custom_keys': {'head': {'lr_mult': 0.1, 'decay_mult': 0.2}},
        },
    )
    expected = {
        'stem.weight': (1.0, 0.5),
        'stem.bias': (2.0, 0.5),
        'body.0.weight': (1.0, 0.0),
        'body.0.bias': (1.0, 0.0),
        'body.1.weight': (1.0, 0.25),
        'body.1.aux_weight': (1.0, 0.5),
        'body.1.bias': (2.0, 0.5),
        'head.weight': (0.1, 0.05),
        'head.aux_weight': (0.1, 0.1),
        'head.bias': (0.1, 0.1),
    }
    got = settings(wrapper, model)
    assert set(got) == set(expected)
    for name, values in expected.items():
        assert got[name] == pytest.approx(values), name


def test_real_weights_are_not_latent():
    model = torch.nn.Sequential(
        SURGEConv2d(2, 2, 1, binarize_weight=False, bias=False),
        SURGEConv2d(2, 2, 1, compensate=False, bias=False),
    )
    wrapper = build(model, {'latent_lr_mult': 0.5})
    assert {n: lr for n, (lr, _) in settings(wrapper, model).items()} == {
        '0.weight': 1.0,
        '0.aux_weight': 1.0,
        '1.weight': 0.5,
    }


def test_frozen_and_shared_parameters(make_model):
    model = make_model()
    model.head.weight.requires_grad_(False)
    model.alias = torch.nn.ModuleDict({'body': model.body[1]})
    wrapper = build(model, {'latent_lr_mult': 0.5, 'bypass_duplicate': True})
    got = settings(wrapper, model)
    assert 'head.weight' not in got
    assert got['body.1.weight'] == (0.5, 0.5)


def test_weights_move_by_their_factor(make_model):
    model = make_model()
    begin_training(model)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    wrapper = build(
        model,
        {'latent_lr_mult': 0.0},
        {'type': 'SGD', 'lr': 1.0},
    )
    inputs = torch.randn(4, 3, 8, 8)
    with wrapper.optim_context(model):
        loss = model(inputs, torch.tensor([0, 1, 0, 1]), 'loss')['loss']
    wrapper.update_params(loss)
    assert torch.equal(model.head.weight, before['head.weight'])
    assert not torch.equal(model.head.aux_weight, before['head.aux_weight'])


@pytest.mark.parametrize(
    ('paramwise_cfg', 'optimizer', 'named'),
    [
        ({'latent_lr_mult': -1}, None, 'latent_lr_mult=-1'),
        ({'latent_lr_mult': None}, None, 'latent_lr_mult=None'),
        ({'aux_lr_mult': 1}, None, 'aux_lr_mult.*latent_lr_mult'),
        (
            {'latent_decay_mult': 0},
            {'type': 'SGD', 'lr': 0.1},
            "latent_decay_mult=0 needs 'weight_decay'",
        ),
        (
            {'latent_lr_mult': 2},
            {'type': 'SGD', 'weight_decay': 0.1},
            "latent_lr_mult=2 needs 'lr'",
        ),
    ],
)
def test_bad_settings(make_model, paramwise_cfg, optimizer, named):
    with pytest.raises(ValueError, match=named):
        build(make_model(), paramwise_cfg, optimizer)


@pytest.mark.parametrize('kind', ['OptimWrapper', 'AmpOptimWrapper', None])
def test_settings_of_a_replaced_wrapper(
    make_model, log_messages, monkeypatch, kind
):
    # Stock mixed precision refuses to be built without an accelerator.
    monkeypatch.setattr(
        amp_optimizer_wrapper, 'is_cuda_available', lambda: True
    )
    amp = {'loss_scale': 'dynamic'} if kind == 'AmpOptimWrapper' else {}
    optimizer = {'type': 'SGD', 'lr': 1.0}
    config = {
        'constructor': 'SURGEOptimWrapperConstructor',
        'optimizer': optimizer,
        'ags': {'eta': 0.1},
        **amp,
    }
    if kind:
        config['type'] = kind
    wrapper = build_optim_wrapper(make_model(), config)
    kind = kind or 'OptimWrapper'
    assert type(wrapper).__name__ == kind
    (warning,) = (m for level, m in log_messages if level == 'WARNING')
    assert 'AGS settings of the config are lost' in warning
    assert f"optim_wrapper.type='{kind}'" in warning
    assert "'AGSAmpOptimWrapper'" in warning
    assert config['ags'] == {'eta': 0.1}


def test_settings_reach_the_wrapper(make_model, log_messages):
    wrapper = build(make_model(), None, ags={'eta': 0.1})
    assert wrapper.ags_eta == 0.1
    assert not [m for level, m in log_messages if level == 'WARNING']
