import copy

import pytest
import torch
from float_models import Detector, block, plain, surge_names
from replicas import begin_training
from torch import nn
from torch.nn.utils import parametrizations, weight_norm

from surge_det.core import SURGEConv2d, SURGELinear
from surge_det.core import binarize as binarize_module
from surge_det.core.activations import SlopePReLU
from surge_det.core.binarize import binarize

# --- what is binarized ------------------------------------------------------


def keep_first(layer):
    return 'first convolution' if layer.name == '0' else None


def keep_boxes(layer):
    return 'emits' if layer.name == 'bbox_head.cls' else None


def test_what_stays_real_is_for_the_caller_to_say():
    assert binarize(plain()).binarized == ['0', '2', '5']
    done = binarize(plain(), keep_real=keep_first)
    assert done.binarized == ['2', '5']
    assert done.kept == {'0': 'first convolution'}
    # A layer that is named is binarized all the same.
    done = binarize(plain(), include=['0', '5'], keep_real=keep_first)
    assert done.binarized == ['0', '5']


def test_which_relus_give_way_is_for_the_caller_to_say():
    calls = []

    def only_the_second(relu, binarized):
        calls.append((relu.names, [layer.name for layer in binarized]))
        return relu.name == '3'

    done = binarize(plain(), exclude=['5'], replace_relu=only_the_second)
    assert done.activations == ['3']
    assert calls == [(['1'], ['0', '2']), (['3'], ['0', '2'])]


def test_exclude_wins_over_include():
    done = binarize(plain(), include=['2', '5'], exclude=['[2-4]'])
    assert done.binarized == ['5']
    assert done.kept == {'0': 'not included', '2': 'excluded'}


# --- what is refused ------------------------------------------------------


class Doubling(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class Padding(nn.Conv2d):
    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x.abs(), weight, bias)


def tied():
    model = nn.ModuleDict({'bad': nn.Linear(4, 4), 'other': nn.Linear(4, 4)})
    model['bad'].weight = model['other'].weight
    return model


def hooked():
    layer = nn.Linear(4, 4)
    layer.register_forward_hook(lambda module, args, out: -out)
    return layer


def patched():
    layer = nn.Linear(4, 4)
    layer.forward = torch.nn.functional.relu
    return layer


REFUSED = {
    'attention.out_proj': (
        lambda: nn.ModuleDict({'attention': nn.MultiheadAttention(4, 2)}),
        'functionally',
    ),
    'reflect': (
        lambda: nn.Conv2d(4, 4, 3, padding=1, padding_mode='reflect'),
        "padding_mode='reflect'",
    ),
    'doubling': (lambda: Doubling(4, 4), 'Doubling computes something else'),
    'padding': (lambda: Padding(4, 4, 3), 'Padding computes something else'),
    'patched': (patched, 'Linear computes something else'),
    'normed': (
        lambda: parametrizations.weight_norm(nn.Linear(4, 4)),
        'computed from other parameters',
    ),
    'old_norm': (
        lambda: weight_norm(nn.Linear(4, 4)),
        'computed from other parameters',
    ),
    'lazy': (lambda: nn.LazyConv2d(4, 3), 'lazy'),
    'bad': (tied, 'shares a parameter'),
    'hooked': (hooked, 'hooks'),
}


def with_refused(name):
    made = REFUSED[name][0]()
    holder = (
        made if name.partition('.')[0] in dict(made.named_children()) else None
    )
    model = nn.ModuleDict({'stem': nn.Conv2d(3, 4, 3)})
    model['good'] = nn.Linear(4, 4)
    children = holder.items() if holder is not None else [(name, made)]
    for key, child in children:
        model[key] = child
    return model


@pytest.mark.filterwarnings('ignore::FutureWarning')
@pytest.mark.filterwarnings('ignore:Lazy modules')
@pytest.mark.parametrize('name', REFUSED)
def test_what_cannot_be_binarized_is_kept_or_refused_by_name(name):
    reason = REFUSED[name][1]
    done = binarize(with_refused(name))
    assert 'good' in done.binarized
    assert reason in done.kept[name]

    for include in ([name], ['good', f'{name[:-1]}?']):
        model = with_refused(name)
        before = list(model.modules())
        with pytest.raises(ValueError, match='exclude=') as error:
            binarize(model, include=include)
        assert name in str(error.value)
        assert reason in str(error.value)
        assert list(model.modules()) == before

    done = binarize(
        with_refused(name),
        include=['good', name],
        exclude=[name],
    )
    assert done.kept[name] == 'excluded'


def test_all_refused_layers_are_in_one_error():
    model = nn.Sequential(Doubling(4, 4), nn.Linear(4, 4), Padding(4, 4, 3))
    with pytest.raises(ValueError, match=r'0 \(Doubling.*2 \(Padding'):
        binarize(model, include=['[0-9]'])


def test_equivalent_subclass_is_covered(monkeypatch):
    class Wrapper(nn.Linear):
        def forward(self, x):
            return super().forward(x) if x.numel() else x

    monkeypatch.setattr(binarize_module, '_EQUIVALENT', {nn.Conv2d, nn.Linear})
    model = nn.Sequential(Wrapper(4, 4), nn.Linear(4, 4))
    assert '0' in binarize(model).kept
    binarize_module.add_equivalent(Wrapper)
    model = nn.Sequential(Wrapper(4, 4), nn.Linear(4, 4))
    assert binarize(model).binarized == ['0', '1']
    with pytest.raises(ValueError, match='ReLU'):
        binarize_module.add_equivalent(nn.ReLU)


def test_layers_of_a_functional_owner_are_refused(monkeypatch):
    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.reduce = block(8, 8)

    monkeypatch.setattr(
        binarize_module, '_FUNCTIONAL', {nn.MultiheadAttention}
    )
    binarize_module.add_functional(Reads)
    done = binarize(nn.Sequential(block(3, 8), block(8, 8), Reads()))
    assert 'functionally' in done.kept['2.reduce.conv']


def test_subclass_without_a_forward_of_its_own_is_covered():
    class Named(nn.Linear):
        pass

    assert binarize(nn.Sequential(Named(4, 4))).binarized == ['0']


# --- patterns -------------------------------------------------------------


@pytest.mark.parametrize(
    ('argument', 'value'),
    [
        ('include', ['nek.*', 'neck.*']),
        ('exclude', ['neck.0.conv']),
        ('overrides', {'head.*': {}}),
        # It matches a layer, but one that stays real.
        ('overrides', {'bbox_head.cls': {}}),
    ],
)
def test_pattern_that_matches_nothing_is_named(argument, value):
    model = Detector()
    before = list(model.modules())
    with pytest.raises(ValueError, match=argument) as error:
        binarize(model, keep_real=keep_boxes, **{argument: value})
    assert repr(list(value)[0]) in str(error.value)
    assert 'neck.' in str(error.value) or 'backbone.' in str(error.value)
    assert list(model.modules()) == before


@pytest.mark.parametrize('value', ['neck.*', [1], [None]])
def test_patterns_are_lists_of_names(value):
    with pytest.raises(ValueError, match='include=.*list of name patterns'):
        binarize(Detector(), include=value)


def test_nothing_left_is_an_error():
    with pytest.raises(ValueError, match='nothing to binarize') as error:
        binarize(nn.Sequential(nn.Conv2d(3, 4, 3)), keep_real=keep_first)
    for named in ('include=', 'exclude=', 'defaults=', 'first convolution'):
        assert named in str(error.value)


def test_a_second_conversion_has_other_candidates():
    model = plain()
    binarize(model, include=['2'])
    layer = model[2]
    with pytest.raises(ValueError, match="include: '2' matches none"):
        binarize(model, include=['2'])
    assert binarize(model, keep_real=keep_first).binarized == ['5']
    assert model[2] is layer


# --- shared modules -------------------------------------------------------


class Levels(nn.Module):
    """Two levels that share convolution and ReLU but not their norms."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.levels = nn.ModuleList([block(4, 4), block(4, 4)])
        self.levels[1].conv = self.levels[0].conv
        self.levels[1].activate = self.levels[0].activate


@pytest.mark.parametrize('pattern', ['levels.0.conv', 'levels.1.conv'])
def test_shared_layers_stay_shared_and_match_by_any_name(pattern):
    model = Levels()
    done = binarize(model, include=[pattern])
    assert done.binarized == ['levels.0.conv']
    assert done.activations == ['levels.0.activate']
    assert type(model.levels[0].conv) is SURGEConv2d
    assert model.levels[1].conv is model.levels[0].conv
    assert isinstance(model.levels[0].activate, SlopePReLU)
    assert model.levels[1].activate is model.levels[0].activate

    model = Levels()
    done = binarize(model, include=['*'], exclude=[pattern], keep_real=None)
    assert done.kept == {'levels.0.conv': 'excluded'}


# --- ReLUs ----------------------------------------------------------------


def test_excluded_relu_stays():
    done = binarize(plain(), exclude=['3'])
    assert done.activations == ['1']


def test_activation_cfg():
    model = plain()
    done = binarize(model, activation_cfg=None)
    assert done.activations == []
    assert type(model[1]) is nn.ReLU

    model = plain()
    binarize(model, activation_cfg=dict(type='PReLU', init=0.1))
    assert model[1].weight.tolist() == pytest.approx([0.1])
    assert model[1] is not model[3]

    model = plain()
    binarize(model, activation_cfg=dict(type='LeakyReLU', negative_slope=0.3))
    assert model[1].negative_slope == 0.3


@pytest.mark.parametrize(
    'cfg',
    [
        'PReLU',
        {},
        dict(type='ReLU'),
        dict(type='PReLU', slope=1),
        dict(type='PReLU', init='big'),
        dict(type='PReLU', init=float('nan')),
    ],
)
def test_activation_cfg_is_checked(cfg):
    model = plain()
    with pytest.raises(ValueError, match='activation_cfg|init'):
        binarize(model, activation_cfg=cfg)
    assert not surge_names(model)


# --- the layers -----------------------------------------------------------


def test_layers_are_from_float_with_the_same_keywords():
    model = plain()
    twin = copy.deepcopy(model)
    binarize(model, layer_cfg=dict(eta=0.3, pad_value=1, shift=None))
    conv = SURGEConv2d.from_float(twin[2], eta=0.3, pad_value=1)
    # Only convolutions pad.
    linear = SURGELinear.from_float(twin[5], eta=0.3)
    for made, wanted in ((model[2], conv), (model[5], linear)):
        assert type(made) is type(wanted)
        assert made.extra_repr() == wanted.extra_repr()
        state = made.state_dict()
        assert state.keys() == wanted.state_dict().keys()
        for key, value in wanted.state_dict().items():
            assert torch.equal(state[key], value)


def test_shift_is_learned_by_default():
    model = plain()
    binarize(model)
    assert torch.equal(model[2].shift, torch.zeros(4))
    assert torch.equal(model[5].shift, torch.zeros(16))


def test_overrides_last_one_wins():
    model = plain()
    binarize(
        model,
        layer_cfg=dict(eta=0.1),
        overrides={'*': dict(eta=0.4, compensate=True), '5': dict(eta=0.5)},
    )
    assert (model[2].ags.eta, model[5].ags.eta) == (0.4, 0.5)


@pytest.mark.parametrize(
    ('settings', 'match'),
    [
        (dict(layer_cfg=dict(etta=1)), "'etta'.*'eta'"),
        (dict(layer_cfg=dict(type='SURGEConv2d')), "'type'"),
        (dict(overrides={'5': dict(eta=-1)}), '5: eta=-1'),
    ],
)
def test_keywords_are_checked_before_anything_changes(settings, match):
    model = plain()
    with pytest.raises(ValueError, match=match):
        binarize(model, **settings)
    assert not surge_names(model)


def test_type_mode_and_freezing_are_kept():
    model = plain().double().eval()
    model[2].weight.requires_grad_(False)
    binarize(model)
    assert model[2].weight.dtype == torch.float64
    assert model[1].weight.dtype == torch.float64
    assert not any(m.training for m in model.modules())
    assert not model[2].weight.requires_grad
    assert model[2].bias.requires_grad


def test_float_checkpoint_loads_strictly():
    stock = plain()
    model = plain()
    for p in model.parameters():
        nn.init.normal_(p)
    binarize(model, activation_cfg=dict(type='PReLU', init=0.1))
    nn.init.ones_(model[2].shift)
    model.load_state_dict(stock.state_dict())
    assert torch.equal(model[2].weight, stock[2].weight)
    begin_training(model)
    assert torch.equal(model[2].aux_weight, stock[2].weight)
    assert model[1].weight.item() == pytest.approx(0.1)

    broken = stock.state_dict()
    del broken['2.weight']
    with pytest.raises(RuntimeError, match='2.weight'):
        model.load_state_dict(broken)


def test_own_checkpoint_loads_strictly_and_restores_all():
    model, other = plain(), plain()
    for m in (model, other):
        binarize(m)
    for p in model.parameters():
        nn.init.normal_(p)
    other.load_state_dict(model.state_dict())
    for key, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[key], value)
    assert other[1].weight.item() == model[1].weight.item() != 0.25


def test_converted_model_sees_both_signs_and_learns():
    torch.manual_seed(0)
    model = plain()
    binarize(model)
    seen = []
    model[2].register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    before = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.randn(2, 3, 6, 6)).square().sum().backward()
    optimizer.step()
    assert (seen[0] < 0).any()
    assert (seen[0] >= 0).any()
    moved = {
        name
        for name, p in model.named_parameters()
        if not torch.equal(p, before.get_parameter(name))
    }
    assert moved == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize('include', [('*', '0'), ('*',)])
def test_asking_for_all_does_not_ask_for_the_impossible(include):
    model = plain()
    model[2] = nn.Conv2d(4, 4, 3, padding_mode='circular')
    done = binarize(model, include=include, keep_real=keep_first)
    assert "padding_mode='circular'" in done.kept['2']
    # By its name the first convolution is binarized all the same.
    assert ('0' in done.binarized) == ('0' in include)


@pytest.mark.parametrize(
    ('settings', 'match'),
    [
        (dict(layer_cfg=3), 'layer_cfg=3'),
        (dict(overrides=3), 'overrides=3'),
        (dict(overrides={'2': 3}), r"overrides\['2'\]=3"),
        (dict(activation_cfg=dict(type='PReLU', init=0.0)), 'init=0.0'),
        (
            dict(activation_cfg=dict(type='LeakyReLU', negative_slope=0)),
            'negative_slope=0',
        ),
        (
            dict(activation_cfg=dict(type='LeakyReLU', negative_slope='x')),
            "negative_slope='x'",
        ),
        (dict(overrides={'5': dict(pad_value=-1)}), 'pad_value.*SURGELinear'),
        (dict(include=['1']), "'1' is a ReLU"),
        (
            dict(activation_cfg=dict(type='PReLU', init=0)),
            'init=0 is not allowed: a finite number that is not 0',
        ),
    ],
)
def test_bad_settings_are_named_and_change_nothing(settings, match):
    model = plain()
    before = repr(model)
    with pytest.raises(ValueError, match=match):
        binarize(model, **settings)
    assert repr(model) == before


def test_an_override_by_wildcard_reaches_the_layers_that_know_it():
    model = plain()
    binarize(model, overrides={'*': dict(pad_value=-1)})
    assert model[2].pad_value == -1
    assert isinstance(model[5], SURGELinear)
