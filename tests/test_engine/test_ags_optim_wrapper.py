import copy

import pytest
import torch
from mmengine.device import get_device
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS, DefaultScope
from replicas import begin_training
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    checkpoint_wrapper,
)

from surge_det.engine import AGSAmpOptimWrapper, AGSOptimWrapper

on_cpu = pytest.mark.skipif(
    get_device() != 'cpu', reason='mmengine trains on the accelerator here'
)


def sgd(model, lr=1.0):
    return torch.optim.SGD(model.parameters(), lr=lr)


def batch(seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return {
        'inputs': torch.randn(4, 3, 8, 8, generator=generator).to(dtype),
        'labels': torch.tensor([0, 1, 0, 1]),
    }


def step(wrapper, model, data):
    with wrapper.optim_context(model):
        loss = model(**data, mode='loss')['loss']
    wrapper.update_params(loss)


def scales(model):
    return [model.body[1].ags.last_scale, model.head.ags.last_scale]


class EtaRecorder(Hook):
    def __init__(self, layer):
        self.layer = layer
        self.etas = []

    def after_train_iter(self, runner, *args, **kwargs):
        self.etas.append(float(self.layer.ags.last_eta))


@pytest.mark.parametrize('scope', ['mmengine', 'mmdet'])
@pytest.mark.parametrize('name', ['AGSOptimWrapper', 'AGSAmpOptimWrapper'])
def test_registered_in_both_scopes(scope, name):
    pytest.importorskip(scope)
    with (
        DefaultScope.overwrite_default_scope(scope),
        OPTIM_WRAPPERS.switch_scope_and_registry(None) as registry,
    ):
        assert registry.get(name).__name__ == name


@pytest.mark.parametrize('eta', [0.4, 0, 'auto'])
def test_eta_of_the_config_holds_in_a_runner(make_model, make_runner, eta):
    model = make_model(eta=0.7)
    recorder = EtaRecorder(model.body[1])
    runner = make_runner(model, {'ags': {'eta': eta}})
    runner.register_hook(recorder)
    runner.train()
    assert model.body[1].ags.eta == eta
    if eta == 'auto':
        assert len(set(recorder.etas)) == 6
    else:
        assert recorder.etas == [eta] * 6


@pytest.mark.parametrize(
    'ags', [{'eta': -1}, {'eta': 'best'}, {'warmup_iters': 3}, 0.1]
)
def test_other_settings_are_refused(make_model, ags):
    with pytest.raises(ValueError, match='^ags'):
        AGSOptimWrapper(optimizer=sgd(make_model()), ags=ags)


def test_all_replicas_begin_before_the_first_step(make_model):
    model, trained = make_model(), make_model()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    step(AGSOptimWrapper(sgd(trained)), trained, batch(0))
    model.head.load_state_dict(trained.head.state_dict())
    AGSOptimWrapper(sgd(model)).initialize_count_status(model, 0, 10)
    layer = model.body[1]
    assert torch.equal(layer.aux_weight, layer.weight)
    # Loaded, as by a resumed run.
    assert torch.equal(model.head.aux_weight, trained.head.aux_weight)
    assert not torch.equal(model.head.aux_weight, model.head.weight)


def test_without_settings_layers_keep_their_eta(make_model):
    model = make_model(eta=0.7)
    model.head.ags.eta = 0.3
    wrapper = AGSOptimWrapper(optimizer=sgd(model))
    step(wrapper, model, batch(0))
    assert (model.body[1].ags.eta, model.head.ags.eta) == (0.7, 0.3)


def test_names_do_not_depend_on_wrappers(make_model):
    model = make_model(eta='auto')
    model.head = checkpoint_wrapper(model.head)
    wrapper = AGSOptimWrapper(optimizer=sgd(model))
    step(wrapper, model, batch(0))
    assert {*wrapper.state_dict()['ags']['estimates']} == {'body.1', 'head'}


def test_model_without_a_replica_is_warned_of(
    make_model, float_model, log_messages
):
    for model in (make_model(compensate=False), float_model):
        log_messages.clear()
        wrapper = AGSOptimWrapper(optimizer=sgd(model, 0.1), ags={'eta': 0.1})
        before = copy.deepcopy(model.head.weight)
        step(wrapper, model, batch(0))
        step(wrapper, model, batch(1))
        warnings = [m for level, m in log_messages if level == 'WARNING']
        assert len(warnings) == 1
        assert 'no SURGE layer with a replica' in warnings[0]
        assert not torch.equal(model.head.weight, before)


def test_accumulation_has_one_lambda_per_backward(make_model):
    model = make_model(eta=0.4).double()
    # What each batch gives by itself, with the loss not divided.
    grads, lambdas = [], []
    for seed in (0, 1):
        single = copy.deepcopy(model)
        single(**batch(seed, torch.float64), mode='loss')['loss'].backward()
        lambdas.append(torch.stack(scales(single)))
        grads.append([p.grad for p in single.parameters()])
    assert not torch.allclose(lambdas[0], lambdas[1], rtol=1e-3)

    begin_training(model)
    before = copy.deepcopy(model)
    wrapper = AGSOptimWrapper(optimizer=sgd(model), accumulative_counts=2)
    wrapper.initialize_count_status(model, 0, 10)
    for seed in (0, 1):
        step(wrapper, model, batch(seed, torch.float64))
        torch.testing.assert_close(
            torch.stack(scales(model)), lambdas[seed], rtol=1e-5, atol=0
        )
    for new, old, a, b in zip(model.parameters(), before.parameters(), *grads):
        torch.testing.assert_close(
            old - new, (a + b) / 2, rtol=1e-5, atol=1e-12
        )


@on_cpu
def test_amp_trains_on_cpu(make_model, make_runner):
    model = make_model(eta=0.4)
    before = copy.deepcopy(model.state_dict())
    dtypes = []
    model.head.register_forward_hook(
        lambda module, args, out: dtypes.append(out.dtype)
    )
    runner = make_runner(
        model,
        {'type': 'AGSAmpOptimWrapper', 'loss_scale': 'dynamic'},
    )
    runner.train()
    assert set(dtypes) == {torch.bfloat16}
    for scale in scales(model):
        assert scale.dtype == torch.float32
        assert 0 < scale.item() < float('inf')
    for name in ('head.weight', 'head.aux_weight', 'stem.weight'):
        assert model.state_dict()[name].isfinite().all()
        assert not torch.equal(model.state_dict()[name], before[name])


@on_cpu
@pytest.mark.parametrize('dtype', ['float16', torch.float16, 'float32'])
def test_amp_on_cpu_is_bfloat16(make_model, dtype):
    with pytest.raises(ValueError, match=r'float.*bfloat16'):
        AGSAmpOptimWrapper(optimizer=sgd(make_model()), dtype=dtype)


@on_cpu
def test_loss_scale_does_not_change_lambda(make_model):
    results = []
    for scaler in (
        torch.amp.GradScaler('cpu', enabled=False),
        torch.amp.GradScaler('cpu', init_scale=2.0**16),
    ):
        model = make_model(eta=0.4)
        wrapper = AGSAmpOptimWrapper(optimizer=sgd(model, 0.1))
        wrapper.loss_scaler = scaler
        step(wrapper, model, batch(0))
        results.append((scales(model), model.head.ags.last_norm_b, model))
    (plain, norm, model), (scaled, scaled_norm, scaled_model) = results
    torch.testing.assert_close(scaled_norm, norm * 2**16, rtol=1e-3, atol=0)
    torch.testing.assert_close(scaled, plain, rtol=1e-4, atol=0)
    for a, b in zip(model.parameters(), scaled_model.parameters()):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@on_cpu
@pytest.mark.parametrize('fused', [False, True])
@pytest.mark.parametrize('eta', [0.4, 'auto'])
def test_a_skipped_step_leaves_all_as_it_was(make_model, eta, fused):
    # A scaler calls a fused optimizer in any case.
    model, twin = make_model(eta=eta), make_model(eta=eta)
    for each in (model, twin):
        wrapper = AGSAmpOptimWrapper(
            optimizer=torch.optim.SGD(
                each.parameters(), 0.1, momentum=0.9, fused=fused
            )
        )
        wrapper.loss_scaler = torch.amp.GradScaler('cpu', init_scale=2.0**10)
        step(wrapper, each, batch(0))
        if each is model:
            weights = [p.detach().clone() for p in each.parameters()]
            wrapper.loss_scaler.update(2.0**127)
            large = batch(1)
            large['inputs'] *= 1e4
            step(wrapper, each, large)
            assert wrapper.loss_scaler.get_scale() == 2.0**126
            assert all(map(torch.equal, weights, each.parameters()))
            wrapper.loss_scaler.update(2.0**10)
        for seed in (2, 3):
            step(wrapper, each, batch(seed))
        each.momenta = [
            wrapper.optimizer.state[p]['momentum_buffer']
            for p in each.parameters()
        ]
    assert scales(model) == scales(twin)
    for name in ('body.1', 'head'):
        a, b = (m.get_submodule(name).ags for m in (model, twin))
        assert a.eta == b.eta == eta
        assert a.last_eta == b.last_eta
        if eta == 'auto':
            assert torch.equal(a.estimate, b.estimate)
    assert all(map(torch.equal, model.parameters(), twin.parameters()))
    assert all(map(torch.equal, model.momenta, twin.momenta))


@on_cpu
@pytest.mark.parametrize('fused', [False, True])
def test_a_first_step_that_is_skipped_keeps_what_was_resumed(
    make_model, fused
):
    def make():
        model = make_model(eta='auto')
        optimizer = torch.optim.SGD(model.parameters(), 1.0, fused=fused)
        return model, AGSAmpOptimWrapper(optimizer=optimizer)

    model, first = make()
    step(first, model, batch(0))
    known = model.head.ags.estimate.clone()
    model, wrapper = make()
    wrapper.loss_scaler = torch.amp.GradScaler('cpu', init_scale=2.0**127)
    wrapper.load_state_dict(first.state_dict())
    large = batch(1)
    large['inputs'] *= 1e4
    step(wrapper, model, large)
    torch.testing.assert_close(
        model.head.ags.estimate.float(), known, rtol=0, atol=0
    )


@on_cpu
@pytest.mark.parametrize(
    ('saver', 'loader'),
    [
        (AGSOptimWrapper, OptimWrapper),
        (AGSAmpOptimWrapper, OptimWrapper),
        (OptimWrapper, AGSOptimWrapper),
        (OptimWrapper, AGSAmpOptimWrapper),
        (AGSOptimWrapper, AGSAmpOptimWrapper),
        (AGSAmpOptimWrapper, AGSOptimWrapper),
    ],
)
def test_state_passes_between_wrappers(make_model, tmp_path, saver, loader):
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    wrapper = saver(optimizer=optimizer)
    step(wrapper, model, batch(0))
    torch.save(wrapper.state_dict(), tmp_path / 'state.pth')
    state = torch.load(tmp_path / 'state.pth', weights_only=True)
    keys = set(state)

    other = loader(
        optimizer=torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    )
    other.load_state_dict(state)
    assert other.get_lr()['lr'] == [0.1]
    for param in model.parameters():
        torch.testing.assert_close(
            other.optimizer.state[param]['momentum_buffer'],
            optimizer.state[param]['momentum_buffer'],
        )
    if loader is not OptimWrapper:
        assert other.inner_count == (0 if saver is OptimWrapper else 1)
        # The caller's dict is not emptied.
        assert set(state) == keys


@on_cpu
def test_loss_scale_is_saved_where_there_is_one(make_model):
    model = make_model()
    plain = AGSAmpOptimWrapper(optimizer=sgd(model))
    scaled, other = (AGSAmpOptimWrapper(optimizer=sgd(model)) for _ in 'ab')
    scaled.loss_scaler = torch.amp.GradScaler('cpu', init_scale=2.0**9)
    other.loss_scaler = torch.amp.GradScaler('cpu', init_scale=2.0**16)
    # From a run without a loss scale: one's own holds.
    scaled.load_state_dict(plain.state_dict())
    assert scaled.loss_scaler.get_scale() == 2.0**9
    other.load_state_dict(scaled.state_dict())
    assert other.loss_scaler.get_scale() == 2.0**9
    plain.load_state_dict(scaled.state_dict())
    step(plain, model, batch(0))


def test_config_wins_over_the_checkpoint(make_model, log_messages):
    model = make_model()
    saved = AGSOptimWrapper(optimizer=sgd(model), ags={'eta': 0.1})
    same = AGSOptimWrapper(optimizer=sgd(model), ags={'eta': 0.1})
    same.load_state_dict(saved.state_dict())
    assert log_messages == []

    other = AGSOptimWrapper(optimizer=sgd(model), ags={'eta': 0.3})
    other.load_state_dict(saved.state_dict())
    ((level, message),) = log_messages
    assert level == 'WARNING'
    assert 'eta=0.1 (saved) -> 0.3 (now)' in message
    other.initialize_count_status(model, 0, 10)
    assert model.head.ags.eta == 0.3


@pytest.mark.parametrize('eta', [0.3, 'auto'])
def test_only_auto_saves_its_estimates(make_model, eta):
    model = make_model(eta='auto')
    first = AGSOptimWrapper(optimizer=sgd(model))
    step(first, model, batch(0))
    model = make_model()
    wrapper = AGSOptimWrapper(optimizer=sgd(model), ags={'eta': eta})
    wrapper.load_state_dict(first.state_dict())
    step(wrapper, model, batch(1))
    estimates = wrapper.state_dict()['ags']['estimates']
    assert {*estimates} == ({'body.1', 'head'} if eta == 'auto' else set())


@pytest.mark.parametrize('told', [False, True])
def test_schedule_without_progress_is_warned_of_once(
    make_model, monkeypatch, told
):
    from surge_det.core import set_progress
    from surge_det.engine.optim import ags_optim_wrapper

    said = []
    monkeypatch.setattr(
        ags_optim_wrapper, 'print_log', lambda text, **_: said.append(text)
    )
    model = make_model(activation_estimator=dict(type='ReSTE'))
    wrapper = AGSOptimWrapper(optimizer=sgd(model))
    if told:
        set_progress(model, 0.0)
    for seed in range(2):
        step(wrapper, model, batch(seed))
    assert len(said) == (0 if told else 1)
    for text in said:
        assert text.startswith('ReSTE: ')
        assert 'SURGEProgressHook' in text
