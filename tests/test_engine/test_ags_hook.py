import json
import math
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper, OptimWrapperDict

from surge_det.core.figures import FIGURES
from surge_det.engine import AGSHook, AGSOptimWrapper
from surge_det.engine.hooks import ags_hook

LAYERS = ('body.1', 'head')


class Recorder(Hook):
    """The layers' own values after each iteration."""

    def __init__(self, model):
        self.layers = dict(zip(LAYERS, (model.body[1], model.head)))
        self.rows = []

    def after_train_iter(self, runner, *args, **kwargs):
        self.rows.append(
            {
                f'ags/{key}/{name}': getattr(layer.ags, attribute).item()
                for name, layer in self.layers.items()
                for key, attribute in (
                    ('scale', 'last_scale'),
                    ('norm_b', 'last_norm_b'),
                    ('norm_a', 'last_norm_a'),
                )
            }
        )


def json_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def text_log(runner):
    path = Path(runner.log_dir) / f'{runner.timestamp}.log'
    return path.read_text()


def ags_rows(runner):
    scalars = json_lines(Path(runner.log_dir) / 'vis_data' / 'scalars.json')
    return {
        row.pop('step'): row
        for row in scalars
        if any(key.startswith('ags/') for key in row)
    }


def test_what_is_logged_where(make_model, make_runner, monkeypatch):
    monkeypatch.setattr(ags_hook, '_TOP', 1)
    model = make_model()
    recorder = Recorder(model)
    runner = make_runner(
        model,
        {'ags': {'eta': 0.4}},
        custom_hooks=[{'type': 'AGSHook'}],
    )
    runner.register_hook(recorder)
    runner.train()

    rows = ags_rows(runner)
    assert sorted(rows) == [2, 4, 6]
    for iteration, row in rows.items():
        known = recorder.rows[iteration - 1]
        assert {k: row[k] for k in known} == pytest.approx(known)
        # There is nothing to compare the signs of the first log with.
        figures = set(FIGURES) - ({'flipped'} if iteration == 2 else set())
        assert {*row} == {f'ags/{f}/{n}' for f in figures for n in LAYERS}
        for name in LAYERS:
            assert row[f'ags/scale/{name}'] == pytest.approx(
                0.4 * row[f'ags/norm_b/{name}'] / row[f'ags/norm_a/{name}'],
                rel=1e-4,
            )

    hub = runner.message_hub
    history, _ = hub.get_scalar('ags/scale/head').data
    assert list(history) == pytest.approx(
        [row['ags/scale/head'] for row in rows.values()]
    )
    assert not any(
        key.startswith('ags/') for key in hub.state_dict()['log_scalars']
    )

    # LoggerHook's own json file has the summary and no layer.
    vis_data = Path(runner.log_dir) / 'vis_data'
    own = json_lines(vis_data / f'{runner.timestamp}.json')
    assert [row['step'] for row in own] == [2, 4, 6]
    for row in own:
        values = rows[row['step']]
        assert row['ags_scale'] == pytest.approx(
            (values['ags/scale/body.1'] + values['ags/scale/head']) / 2
        )
        assert not any('body' in key or 'head' in key for key in row)

    lines = text_log(runner).splitlines()
    steps = [line for line in lines if 'Epoch(train)' in line]
    assert len(steps) == 3
    for line in steps:
        assert 'ags_scale: ' in line
        assert 'body.1' not in line
        assert 'norm_' not in line
    summaries = [line for line in lines if 'AGS lambda of 2 layers' in line]
    assert len(summaries) == 1
    low, high = sorted(LAYERS, key=lambda name: rows[6][f'ags/scale/{name}'])
    assert re.search(
        rf'smallest: {re.escape(low)} [\d.e-]+; '
        rf'largest: {re.escape(high)} [\d.e-]+$',
        summaries[-1],
    )


def test_eta_zero_has_no_norms(make_model, make_runner):
    runner = make_runner(
        make_model(),
        {'ags': {'eta': 0.0}},
        custom_hooks=[{'type': 'AGSHook'}],
    )
    runner.train()
    row = ags_rows(runner)[6]
    figures = set(FIGURES) - {'norm_b', 'norm_a', 'cosine', 'missed'}
    assert {*row} == {f'ags/{f}/{n}' for f in figures for n in LAYERS}
    for name in LAYERS:
        assert row[f'ags/scale/{name}'] == row[f'ags/eta/{name}'] == 0


def test_layers_without_replica_log_what_needs_none(make_model, make_runner):
    runner = make_runner(
        make_model(compensate=False), custom_hooks=[{'type': 'AGSHook'}]
    )
    runner.train()
    row = ags_rows(runner)[6]
    figures = ('clipped', 'flipped', 'outside')
    assert {*row} == {f'ags/{f}/{n}' for f in figures for n in LAYERS}
    assert 0 < row['ags/clipped/body.1'] < 1
    # Of AGS there is nothing to tell.
    text = text_log(runner)
    assert 'ags_scale' not in text
    assert 'AGS lambda' not in text
    assert 'no backward pass' not in text


@pytest.mark.parametrize(
    ('interval', 'logger_interval', 'expected'),
    [(3, 2, [3, 6]), (None, 4, [4]), (None, 50, [6])],
)
def test_interval(
    make_model, make_runner, interval, logger_interval, expected
):
    runner = make_runner(
        make_model(),
        interval=logger_interval,
        custom_hooks=[{'type': 'AGSHook', 'interval': interval}],
    )
    runner.train()
    assert sorted(ags_rows(runner)) == expected


def test_unreached_layers_are_listed_once(make_model, make_runner):
    model = make_model()
    # No gradient is asked for before the head.
    for module in (model.stem, model.body):
        module.requires_grad_(False)
    runner = make_runner(model, custom_hooks=[{'type': 'AGSHook'}])
    runner.train()
    lines = text_log(runner).splitlines()
    (warning,) = (line for line in lines if 'no backward pass' in line)
    assert warning.endswith('1 of 2 SURGE layers (frozen or unused): body.1')
    assert 'WARNING' in warning
    assert 'ags/scale/body.1' not in ags_rows(runner)[6]


def test_a_frozen_layer_that_gradients_pass_is_reached(
    make_model, make_runner
):
    model = make_model()
    # The stem before it learns.
    model.body[1].requires_grad_(False)
    runner = make_runner(model, custom_hooks=[{'type': 'AGSHook'}])
    runner.train()
    assert 'no backward pass' not in text_log(runner)
    # What does not learn is not logged.
    assert not any('body.1' in key for key in ags_rows(runner)[6])


def test_layers_without_gradient_are_warned_of_once(make_model):
    model = make_model()
    runner = fake_runner(model, None)
    hook = AGSHook(interval=1)

    def log(norms):
        """One iteration; the warnings of it."""
        for layer, (norm_b, norm_a) in zip((model.body[1], model.head), norms):
            layer.ags.last_scale = torch.tensor(0.1)
            layer.ags.last_norm_b = torch.tensor(norm_b)
            layer.ags.last_norm_a = torch.tensor(norm_a)
        runner.messages.clear()
        hook.after_train_iter(runner, 0)
        return [m for m in runner.messages if 'gradient of 0' in m]

    hook.before_train(runner)
    fine, tiny = (1.0, 1.0), (1e-30, 1e-30)
    assert log([(0.0, 0.0), tiny]) == []
    (warning,) = log([(0.0, 0.0), tiny])
    assert '1 of 2 SURGE layers' in warning
    assert 'stuck: body.1. Does' in warning
    assert log([(0.0, 0.0), (2.0, 0.0)]) == []
    # A layer that dies later, of the other gradient.
    (warning,) = log([(0.0, 0.0), (2.0, 0.0)])
    assert 'stuck: head. Does' in warning
    # Zero now and then is no fault.
    hook.before_train(runner)
    for norms in ([(0.0, 1.0), fine], [fine, (0.0, 0.0)]) * 3:
        assert log(norms) == []


@pytest.mark.parametrize('compensate', [True, False])
def test_growth_a_hundredfold_is_warned_of_once(make_model, compensate):
    model = make_model(compensate=compensate)
    model.act = torch.nn.PReLU(2)
    runner = fake_runner(model, None)
    hook = AGSHook(interval=2)

    def step(index, ratio, slope):
        """One iteration; the warnings of it."""
        if compensate:
            # The base factor is another one at each step.
            for layer, norm in ((model.body[1], 1.0), (model.head, ratio)):
                layer.ags.last_scale = torch.tensor(norm * index)
                layer.ags.last_norm_b = torch.tensor(norm)
                layer.ags.last_norm_a = torch.tensor(1.0)
        with torch.no_grad():
            model.act.weight[1] = slope
        runner.messages.clear()
        hook.after_train_iter(runner, index)
        return [m for m in runner.messages if 'has grown' in m]

    hook.before_train(runner)
    # What counts is the first iteration, which does not log.
    assert step(0, 1e-3, 0.5) == []
    # As it is where a gradient scaler's scale was too large.
    assert step(1, math.inf, -24.0) == []
    # The slope has grown from 0.25, where it began.
    assert step(1, 0.099, -24.0) == []
    wanted = ['slope of act has grown from 0.25 to 26: is the learning rate']
    if compensate:
        wanted.insert(
            0, 'lambda / eta of head has grown from 0.001 to 0.11: is the'
        )
    told = step(3, 0.11, -26.0)
    assert len(told) == len(wanted)
    assert all(map(str.startswith, told, wanted))
    assert step(5, 1.0, 99.0) == []
    # What begins at 0 counts from what is first not 0; NaN is no growth.
    hook.before_train(runner)
    assert step(0, 0.0, math.nan) == []
    assert step(1, 0.5, 1.0) == step(3, 10.0, 1.0) == []


def test_a_norm_of_zero_is_told_in_training(make_model, make_runner):
    model = make_model()
    torch.nn.init.zeros_(model.head.weight)
    model.head.weight.requires_grad_(False)
    runner = make_runner(model, custom_hooks=[{'type': 'AGSHook'}])
    runner.train()
    told = [x for x in text_log(runner).splitlines() if 'gradient of 0' in x]
    assert len(told) == 1
    assert 'WARNING' in told[0]


@pytest.mark.parametrize(
    'constructor',
    ['SURGEOptimWrapperConstructor', 'DefaultOptimWrapperConstructor'],
)
def test_lost_ags_is_told(make_model, make_runner, constructor):
    model = make_model(eta=0.3)
    ags = {}
    if constructor.startswith('SURGE'):
        ags = {'ags': {'eta': 0.1}}
    runner = make_runner(
        model,
        {'type': 'OptimWrapper', 'constructor': constructor, **ags},
        custom_hooks=[{'type': 'AGSHook'}],
    )
    runner.train()
    assert model.head.ags.eta == 0.3
    lines = text_log(runner).splitlines()
    (told,) = (line for line in lines if 'AGS is not applied' in line)
    assert 'WARNING' in told
    assert 'wrapper is OptimWrapper, so 2 layers keep the eta' in told
    assert "'AGSOptimWrapper'" in told
    # What the layers do is recorded all the same.
    assert ags_rows(runner)[6]['ags/scale/head'] > 0


def fake_runner(model, optim_wrapper):
    messages = []
    hub = {}
    return SimpleNamespace(
        model=model,
        optim_wrapper=optim_wrapper,
        hooks=[],
        iter=0,
        train_dataloader=range(100),
        messages=messages,
        hub=hub,
        logger=SimpleNamespace(info=messages.append, warning=messages.append),
        message_hub=SimpleNamespace(
            update_scalars=lambda values, resumed: hub.update(values),
            update_scalar=hub.__setitem__,
        ),
        visualizer=SimpleNamespace(add_scalars=lambda values, step: None),
    )


def test_wrapper_dict_and_float_models(make_model, float_model):
    model = make_model()
    ags, stock = (
        wrapper(optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
        for wrapper in (AGSOptimWrapper, OptimWrapper)
    )
    for runner, told in (
        (fake_runner(model, OptimWrapperDict(a=ags, b=stock)), False),
        (fake_runner(model, OptimWrapperDict(a=stock)), True),
        (fake_runner(float_model, stock), False),
    ):
        AGSHook().before_train(runner)
        assert any('not applied' in m for m in runner.messages) is told


def test_one_line_for_ten_logs(make_model):
    model = make_model()
    model.head.ags.last_scale = torch.tensor(0.25)
    runner = fake_runner(model, None)
    hook = AGSHook(interval=1)
    hook.before_train(runner)
    said = []
    for index in range(25):
        runner.messages.clear()
        hook.after_train_iter(runner, index)
        said += [index for m in runner.messages if 'lambda of' in m]
    assert said == [9, 19]


def test_figures_are_asked_for_where_they_are_logged(make_model):
    model = make_model()
    runner = fake_runner(model, None)
    hook = AGSHook(interval=3)
    hook.before_train(runner)
    seen = []
    for index in range(6):
        hook.before_train_iter(runner, index)
        seen.append(model.head.watches)
    assert seen == [False, False, True] * 2


def test_values_that_are_not_finite_are_named(make_model):
    model = make_model()
    model.body[1].ags.last_scale = torch.tensor(math.nan)
    model.head.ags.last_scale = torch.tensor(0.25)
    runner = fake_runner(model, None)
    hook = AGSHook(interval=1)
    hook.before_train(runner)
    runner.messages.clear()
    hook.after_train_iter(runner, 0)
    assert runner.messages == []
    hook.after_train_epoch(runner)
    hook.after_train_epoch(runner)
    assert runner.messages == [
        'AGS lambda of 2 layers: min 0.25, median 0.25, max 0.25; '
        'layers: head 0.25; not finite: body.1'
    ]
    assert runner.hub['train/ags_scale'] == 0.25


@pytest.mark.parametrize(
    ('arguments', 'named'),
    [
        ({'interval': 0}, 'interval=0 is not allowed: None or'),
        ({'interval': 1.5}, 'interval=1.5'),
    ],
)
def test_bad_arguments(arguments, named):
    with pytest.raises(ValueError, match=named):
        AGSHook(**arguments)


def test_a_checkpoint_names_no_value_that_it_has_not(make_model):
    from mmengine.logging import MessageHub

    hub = MessageHub.get_instance('checkpointed')
    hub.update_scalar('train/loss', 1.0)
    hub.update_scalars({'ags/scale/head': 0.1}, resumed=False)
    checkpoint = {'message_hub': hub.state_dict()}
    AGSHook().before_save_checkpoint(fake_runner(None, None), checkpoint)
    assert checkpoint['message_hub']['resumed_keys'] == {'train/loss': True}
    # The run goes on as before.
    hub.update_scalars({'ags/scale/head': 0.2}, resumed=False)
    assert 'ags/scale/head' in hub.log_scalars
