import json
from pathlib import Path

import pytest
import rivals
import torch
from mmengine.hooks import Hook
from mmengine.runner import IterBasedTrainLoop

from surge_det.core import ReSTE, method_cfg
from surge_det.engine import SURGEProgressHook

HOOK = {'type': 'SURGEProgressHook'}


class Watcher(Hook):
    """Progress that each forward pass runs with."""

    priority = 'LOWEST'

    def __init__(self, model, stop_before_epoch=None):
        self.seen = []
        self.stop_before_epoch = stop_before_epoch
        model.head.register_forward_pre_hook(
            lambda m, args: self.seen.append(m.weight_binarizer.progress)
        )

    def before_train_epoch(self, runner):
        if runner.epoch == self.stop_before_epoch:
            raise KeyboardInterrupt


def rows(runner):
    path = Path(runner.log_dir) / 'vis_data' / f'{runner.timestamp}.json'
    lines = (json.loads(line) for line in path.read_text().splitlines())
    return {line['step']: line for line in lines}


@pytest.fixture
def make_scheduled(make_model):
    def make():
        cfg = method_cfg('surge+recu')
        return make_model(**{**cfg, 'weight_estimator': dict(type='ReSTE')})

    return make


def test_by_iteration_before_the_forward_pass(make_scheduled, make_runner):
    model = make_scheduled()
    watcher = Watcher(model)
    runner = make_runner(model, max_epochs=2, interval=3, custom_hooks=[HOOK])
    runner.register_hook(watcher)
    runner.train()
    assert watcher.seen == [i / 12 for i in range(12)]
    assert model.body[1].weight_estimator.progress == 11 / 12


def test_what_is_logged(make_scheduled, make_runner):
    runner = make_runner(
        make_scheduled(), max_epochs=2, interval=3, custom_hooks=[HOOK]
    )
    runner.train()
    logged = rows(runner)
    assert sorted(logged) == [3, 6, 9, 12]
    for step, row in logged.items():
        # Step 3 is the iteration with two done before.
        p = (step - 1) / 12
        assert row['progress/ReCU.tau'] == pytest.approx(rivals.tau(p))
        assert row['progress/ReSTE.o'] == pytest.approx(rivals.reste_o(p))
        assert not any(key.startswith('indicator') for key in row)
    text = (Path(runner.log_dir) / f'{runner.timestamp}.log').read_text()
    lines = [line for line in text.splitlines() if 'Epoch(train)' in line]
    assert len(lines) == 4
    assert all('progress/ReCU.tau: 0.' in line for line in lines)
    history, _ = runner.message_hub.get_scalar('train/progress/ReSTE.o').data
    assert len(history) == 4


def test_own_interval(make_scheduled, make_runner):
    runner = make_runner(
        make_scheduled(),
        interval=6,
        custom_hooks=[{**HOOK, 'interval': 2}],
    )
    runner.train()
    history, _ = runner.message_hub.get_scalar('train/progress/ReSTE.o').data
    assert len(history) == 3


def test_iteration_based_loop(make_scheduled, make_runner):
    model = make_scheduled()
    watcher = Watcher(model)
    runner = make_runner(model, custom_hooks=[HOOK])
    runner.register_hook(watcher)
    runner._train_loop = IterBasedTrainLoop(
        runner, runner._train_dataloader, max_iters=8
    )
    runner.train()
    assert watcher.seen == [i / 8 for i in range(8)]


def test_a_resumed_run_is_the_uninterrupted_one(make_scheduled, make_runner):
    whole = make_scheduled()
    make_runner(
        whole, max_epochs=2, work_dir='whole', custom_hooks=[HOOK]
    ).train()

    stopped = make_scheduled()
    runner = make_runner(
        stopped, max_epochs=2, work_dir='stopped', custom_hooks=[HOOK]
    )
    runner.register_hook(Watcher(stopped, stop_before_epoch=1))
    with pytest.raises(KeyboardInterrupt):
        runner.train()
    file = Path(runner.work_dir) / 'epoch_1.pth'

    resumed = make_scheduled()
    watcher = Watcher(resumed)
    runner = make_runner(
        resumed,
        max_epochs=2,
        work_dir='resumed',
        custom_hooks=[HOOK],
        resume=True,
        load_from=str(file),
    )
    runner.register_hook(watcher)
    runner.train()
    assert watcher.seen == [i / 12 for i in range(6, 12)]
    # 'progress/...' goes on where it was.
    assert rows(runner)[8]['progress/ReCU.tau'] == pytest.approx(
        rivals.tau(7 / 12)
    )
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value)
        assert not torch.equal(stopped.state_dict()[name], value) or (
            'num_batches' in name
        )


@pytest.mark.parametrize('indicators', [False, True])
def test_models_without_schedule(
    make_model, float_model, make_runner, indicators
):
    hook = {**HOOK, 'indicators': indicators}
    for model in (make_model(), float_model):
        runner = make_runner(model, custom_hooks=[hook])
        runner.train()
        for row in rows(runner).values():
            assert not any(key.startswith('progress') for key in row)


class Grads(Hook):
    """Gradients that the optimizer gets, and what the signs see."""

    def __init__(self, model):
        self.model = model
        self.variances, self.inputs, self.weights = [], [], []
        self.model.body[1].register_forward_pre_hook(
            lambda m, args: self.inputs.append(args[0].detach().clone())
        )

    def before_train(self, runner):
        runner.optim_wrapper.optimizer.register_step_pre_hook(self.record)

    def record(self, *_):
        named = dict(self.model.named_parameters())
        flat = [
            p.grad.flatten()
            for n, p in named.items()
            if not n.endswith('aux_weight')
        ]
        assert len(flat) == len(named) - 2
        self.variances.append(torch.cat(flat).var(correction=0).item())
        self.weights.append(
            [
                m.weight.detach().clone()
                for m in (self.model.body[1], self.model.head)
            ]
        )


def test_indicators(make_model, make_runner):
    model = make_model(
        activation_estimator=dict(type='ApproxSign'),
        weight_estimator=dict(type='STE', clip=1.0),
        shift=0.25,
    )
    # One layer's inputs are enough: the other keeps them real.
    model.head.binarize_activation = False
    record = Grads(model)
    runner = make_runner(
        model,
        {'clip_grad': {'max_norm': 1e-3}},
        custom_hooks=[{**HOOK, 'indicators': True}],
    )
    runner.register_hook(record)
    runner.train()
    logged = rows(runner)
    assert sorted(logged) == [2, 4, 6]
    for step, row in logged.items():
        i = step - 1
        assert row['indicator/gradient_variance'] == pytest.approx(
            record.variances[i], rel=1e-4
        )
        z = record.inputs[i] + 0.25
        assert z.shape[0] == 4
        signs = torch.where(z >= 0, 1.0, -1.0)
        inside = z.clamp(-1, 1)
        error = signs - (2 * inside - inside * inside.abs())
        # The shift has moved a little since the start.
        assert row['indicator/activation_error'] == pytest.approx(
            error.pow(2).mean().sqrt().item(), rel=1e-2
        )
        errors = [
            (torch.where(w >= 0, 1.0, -1.0) - w.clamp(-1, 1))
            .pow(2)
            .mean()
            .sqrt()
            .item()
            for w in record.weights[i]
        ]
        assert row['indicator/weight_error'] == pytest.approx(
            sum(errors) / 2, rel=1e-4
        )
    for layer in (model.body[1], model.head):
        # The test's own hook is all that is left.
        assert len(layer._forward_pre_hooks) == (layer is model.body[1])
    assert len(runner.optim_wrapper.optimizer._optimizer_step_pre_hooks) == 1


@pytest.mark.parametrize(
    'method', ['float', 'ste', 'reste', 'irnet', 'surge+recu']
)
def test_indicators_of_every_method_change_no_training(
    method, make_model, make_runner
):
    states = []
    for indicators in (False, True):
        model = make_model(**method_cfg(method))
        runner = make_runner(
            model, custom_hooks=[{**HOOK, 'indicators': indicators}]
        )
        runner.train()
        states.append(model.state_dict())
    for name, value in states[0].items():
        assert torch.equal(states[1][name], value)
    (*_, last) = rows(runner).values()
    names = {'gradient_variance'}
    if method != 'float':
        names |= {'activation_error', 'weight_error'}
    got = {k.removeprefix('indicator/') for k in last if k.startswith('ind')}
    assert got == names
    assert all(last[f'indicator/{name}'] > 0 for name in names)


def test_errors_are_of_normalized_inputs_and_prepared_weights(
    make_model, make_runner
):
    kinds = []

    class Spy(ReSTE):
        def surrogate(self, x):
            kinds.append((tuple(x.shape), x.std().item()))
            return super().surrogate(x)

    # Of a size that standardisation changes.
    model = make_model(
        activation_estimator=Spy(),
        weight_estimator=Spy(),
        weight_binarizer=dict(type='IRNet'),
        normalize_input=True,
    )
    with torch.no_grad():
        model.body[0].weight.fill_(9.0)
    make_runner(
        model, custom_hooks=[{**HOOK, 'indicators': True}], interval=6
    ).train()
    assert [shape for shape, _ in kinds] == [
        (4, 4, 6, 6),
        (6, 4, 3, 3),
        (4, 6),
        (2, 6),
    ]
    for _, std in kinds:
        assert 0.7 < std < 1.3


@pytest.mark.parametrize(
    'bad',
    [
        {'interval': 0},
        {'interval': 2.5},
        {'interval': True},
        {'indicators': 'yes'},
    ],
    ids=str,
)
def test_bad_arguments(bad):
    ((name, value),) = bad.items()
    with pytest.raises(ValueError, match=f'{name}=') as error:
        SURGEProgressHook(**bad)
    assert repr(value) in str(error.value)
