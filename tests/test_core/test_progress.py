"""One way to move everything that changes over a run."""

import copy
import math

import pytest
import rivals
import torch
from torch import nn

from surge_det.core import (
    EDE,
    METHODS,
    ReSTE,
    SURGEConv2d,
    SURGELinear,
    method_cfg,
    scheduled_values,
    set_progress,
)
from surge_det.core.progress import Scheduled, without_progress


class Counter(nn.Module):
    """A user's own module with a schedule."""

    def __init__(self):
        super().__init__()
        self.got = []

    def set_progress(self, p):
        self.got.append(p)


def test_everything_is_reached_once():
    shared = ReSTE()
    counter = Counter()
    layer = SURGEConv2d(2, 3, 3, activation_estimator=shared)
    net = nn.Sequential(
        layer,
        nn.ModuleDict(dict(again=layer, other=SURGEConv2d(3, 3, 3))),
        SURGELinear(3, 2, activation_estimator=shared),
        SURGELinear(2, 2, weight_binarizer=dict(type='ReCU')),
        counter,
        nn.ReLU(),
    )
    assert set_progress(net, 0.25) == 3
    assert counter.got == [0.25]
    assert shared.progress == 0.25
    assert net[3].weight_binarizer.progress == 0.25
    assert set_progress(nn.DataParallel(net), 1) == 3
    assert shared.progress == 1
    assert set_progress(nn.Conv2d(2, 2, 1), 0.5) == 0


def test_values_are_averaged_per_kind():
    net = nn.Sequential(
        SURGEConv2d(2, 3, 3, activation_estimator=ReSTE(o_end=3.0)),
        SURGEConv2d(3, 3, 3, weight_estimator=ReSTE(o_end=5.0)),
        SURGELinear(3, 3, weight_estimator=EDE()),
        SURGELinear(3, 3, weight_binarizer=dict(type='ReCU')),
        SURGELinear(3, 3),
    )
    set_progress(net, 0.5)
    rise = 1 - math.cos(math.pi / 4)
    assert scheduled_values(net) == pytest.approx(
        {
            'ReSTE.o': 1 + 3 * rise,
            'EDE.t': 0.1,
            'EDE.k': 10.0,
            'ReCU.tau': rivals.tau(0.5),
        }
    )
    assert scheduled_values(net[4]) == {}


@pytest.mark.parametrize('bad', [-0.1, 1.1, math.nan, 'half', None, True])
def test_bad_progress_changes_nothing(bad):
    layer = SURGEConv2d(2, 3, 3, **method_cfg('reste'))
    set_progress(layer, 0.5)
    with pytest.raises(ValueError, match='p=') as error:
        set_progress(layer, bad)
    assert repr(bad) in str(error.value)
    assert layer.activation_estimator.progress == 0.5
    # Refused by a model without a schedule too.
    with pytest.raises(ValueError, match='p='):
        set_progress(nn.ReLU(), bad)


def test_progress_is_in_no_state_dict_and_copied():
    layer = SURGEConv2d(2, 3, 3, **method_cfg('surge+recu'))
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    set_progress(layer, 0.75)
    after = layer.state_dict()
    assert set(after) == set(before)
    for name, value in before.items():
        assert torch.equal(after[name], value)
    twin = copy.deepcopy(layer)
    assert twin.weight_binarizer.progress == 0.75
    set_progress(twin, 1.0)
    assert layer.weight_binarizer.progress == 0.75


# Methods by name


# Activation and weight estimator, binarizer, both as repr and class name.
PARTS = {
    'ste': ('STE(clip=1.0)', 'STE(clip=None)', 'ScaledSign'),
    'approxsign': ('ApproxSign()', 'STE(clip=None)', 'ScaledSign'),
    'reste': ('ReSTE(', 'ReSTE(', 'ScaledSign'),
    'ede': ('EDE()', 'EDE()', 'ScaledSign'),
    'irnet': ('EDE()', 'EDE()', 'IRNet'),
    'recu': ('ApproxSign()', 'STE(clip=None)', 'ReCU'),
    'reactnet': ('ApproxSign()', 'STE(clip=1.0)', 'ScaledSign'),
}


@pytest.mark.parametrize('compensate', [False, True])
@pytest.mark.parametrize('name', list(PARTS))
def test_layers_of_a_method(name, compensate):
    cfg = method_cfg(f'surge+{name}' if compensate else name)
    for layer in (SURGEConv2d(2, 3, 3, **cfg), SURGELinear(2, 3, **cfg)):
        h_x, h_w, binarizer = PARTS[name]
        assert repr(layer.activation_estimator).startswith(h_x)
        assert repr(layer.weight_estimator).startswith(h_w)
        assert type(layer.weight_binarizer).__name__ == binarizer
        assert layer.normalize_input is (name == 'recu')
        assert layer.compensate is compensate
        assert layer.binarize_weight
        assert layer.binarize_activation


def test_float_and_surge():
    layer = SURGEConv2d(2, 3, 3, **method_cfg('float'))
    x = torch.randn(1, 2, 5, 5)
    plain = nn.functional.conv2d(x, layer.weight, layer.bias)
    assert torch.equal(layer(x), plain)
    assert not layer.compensate
    assert method_cfg('surge') == method_cfg('surge+ste')
    assert SURGEConv2d(2, 3, 3, **method_cfg('surge')).compensate


def test_what_is_returned_may_be_changed():
    cfg = method_cfg('reste')
    cfg['activation_estimator']['o_end'] = 9.0
    cfg['compensate'] = True
    assert method_cfg('reste')['activation_estimator'] == dict(type='ReSTE')
    assert not method_cfg('reste')['compensate']
    one = SURGEConv2d(2, 3, 3, **method_cfg('reste'))
    assert one.activation_estimator is not one.weight_estimator


@pytest.mark.parametrize(
    'bad',
    ['resnet', 'surge+float', 'surge+surge', 'surge+', 'reste+surge', '', 3],
)
def test_unknown_methods_are_named_with_what_is_allowed(bad):
    with pytest.raises(ValueError, match='name=') as error:
        method_cfg(bad)
    text = str(error.value)
    assert repr(bad) in text
    for name in METHODS:
        assert repr(name) in text
    assert "'surge+reste'" in text
    assert "'surge+float'" not in text.removeprefix(f'name={bad!r}')


def test_classes_whose_progress_was_never_set_are_named():
    model = nn.Sequential(
        SURGEConv2d(2, 3, 3, **method_cfg('reste')),
        SURGEConv2d(3, 3, 3, **method_cfg('recu')),
        SURGEConv2d(3, 3, 3, **method_cfg('ste')),
    )
    assert without_progress(model) == ['ReCU', 'ReSTE']
    set_progress(model, 0.0)
    assert without_progress(model) == []


def test_a_schedule_that_logs_nothing():
    class Quiet(Scheduled, nn.Module):
        pass

    assert scheduled_values(Quiet()) == {}
