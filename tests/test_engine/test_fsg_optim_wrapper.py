import pytest
import torch
from mmengine.device import get_device
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS, DefaultScope
from processes import needs_gloo, run_processes
from torch import nn

from surge_det.core import SURGEConv2d, SURGELinear
from surge_det.core.fsg import FSG
from surge_det.engine import (
    AGSOptimWrapper,
    FSGAmpOptimWrapper,
    FSGOptimWrapper,
)

pytest.importorskip('mambapy', reason='the slow network is a block of mambapy')

on_cpu = pytest.mark.skipif(
    get_device() != 'cpu', reason='mmengine trains on the accelerator here'
)
FSG_CFG = {
    'history_length': 2,
    'slow': {
        'block_size': 16,
        'd_model': 2,
        'expand': 2,
        'independent': True,
    },
}


def sgd(model, lr=0.1):
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)


def batch(seed):
    generator = torch.Generator().manual_seed(seed)
    return {
        'inputs': torch.randn(4, 3, 8, 8, generator=generator),
        'labels': torch.tensor([0, 1, 0, 1]),
    }


def step(wrapper, model, data):
    with wrapper.optim_context(model):
        loss = model(**data, mode='loss')['loss']
    wrapper.update_params(loss)


def make_wrapper(model, kind=FSGOptimWrapper, **kwargs):
    # The same hypernetworks whatever was drawn before.
    torch.manual_seed(7)
    kwargs = {'optimizer': sgd(model), 'fsg': FSG_CFG, **kwargs}
    wrapper = kind(**kwargs)
    wrapper.initialize_count_status(model, 0, 100)
    return wrapper


@pytest.mark.parametrize('scope', ['mmengine', 'mmdet'])
@pytest.mark.parametrize('name', ['FSGOptimWrapper', 'FSGAmpOptimWrapper'])
def test_registered_in_both_scopes(scope, name):
    pytest.importorskip(scope)
    with (
        DefaultScope.overwrite_default_scope(scope),
        OPTIM_WRAPPERS.switch_scope_and_registry(None) as registry,
    ):
        assert registry.get(name).__name__ == name


@pytest.mark.parametrize('compensate', [False, True])
def test_equals_the_loop_over_the_core(make_model, compensate):
    model, twin = (make_model(compensate=compensate) for _ in 'ab')
    wrapper = make_wrapper(
        model, clip_grad={'max_norm': 0.2}, ags={'eta': 0.3}
    )
    if compensate:
        assert model.head.ags.eta == 0.3
        for layer in (twin.body[1], twin.head):
            layer.ags.eta = 0.3
    torch.manual_seed(7)
    fsg, optimizer = FSG(twin, **FSG_CFG), sgd(twin)
    generated = [fsg.weight(name) for name in fsg.updates]
    known = {id(param) for param in generated}
    others = [p for p in twin.parameters() if id(p) not in known]
    hub = wrapper.message_hub
    norms = []
    for seed in range(4):
        step(wrapper, model, batch(seed))
        fsg.begin(optimizer)
        twin(**batch(seed), mode='loss')['loss'].backward()
        fsg.finish()
        # What is clipped is what FSG has put there, and apart from the rest.
        norms.append(
            [
                nn.utils.clip_grad_norm_(params, 0.2).item()
                for params in (others, generated)
            ]
        )
        for name, norm in zip(('', '_fsg'), norms[-1], strict=True):
            logged = hub.get_scalar(f'train/grad_norm{name}').current()
            assert logged == pytest.approx(norm)
        optimizer.step()
        optimizer.zero_grad()
    assert all(max(column) > 0.2 for column in zip(*norms, strict=True))
    for name, value in twin.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


def test_accumulation_is_one_iteration(make_model):
    model = make_model(compensate=False)
    wrapper = make_wrapper(model, accumulative_counts=2)
    for seed in range(6):
        step(wrapper, model, batch(seed))
    assert len(wrapper.state_dict()['fsg']['layers']['head']['history']) == 2
    assert wrapper.state_dict()['fsg']['slow_optimizer']['state'][0][
        'step'
    ] == torch.tensor(2.0)


def test_frozen_layer_is_left_alone(make_model):
    model = make_model(compensate=False)
    model.head.weight.requires_grad_(False)
    before = model.head.weight.clone()
    wrapper = make_wrapper(model)
    for seed in range(3):
        step(wrapper, model, batch(seed))
    assert list(wrapper.fsg.updates) == ['body.1']
    assert torch.equal(model.head.weight, before)


@pytest.mark.parametrize('other', [OptimWrapper, AGSOptimWrapper])
def test_state_passes_to_and_from_other_wrappers(make_model, tmp_path, other):
    model = make_model(compensate=False)
    wrapper = make_wrapper(model)
    for seed in range(2):
        step(wrapper, model, batch(seed))
    torch.save(wrapper.state_dict(), tmp_path / 'state.pth')
    state = torch.load(tmp_path / 'state.pth', weights_only=True)
    plain = other(optimizer=sgd(model, 0.3))
    plain.load_state_dict(state)
    assert plain.get_lr()['lr'] == [0.1]

    fresh = FSGOptimWrapper(optimizer=sgd(model, 0.3), fsg=FSG_CFG)
    fresh.load_state_dict(other(optimizer=sgd(model, 0.2)).state_dict())
    assert fresh.get_lr()['lr'] == [0.2]
    # Saved again before it has seen a model.
    fresh.load_state_dict(state)
    assert fresh.state_dict()['fsg'] is state['fsg']
    fresh.bind(model)
    assert len(fresh.state_dict()['fsg']['layers']['head']['history']) == 2


@on_cpu
def test_amp_trains_on_cpu(make_model, make_runner):
    model = make_model(compensate=False)
    before = model.head.weight.detach().clone()
    runner = make_runner(model, {'type': 'FSGAmpOptimWrapper', 'fsg': FSG_CFG})
    runner.train()
    assert model.head.weight.isfinite().all()
    assert not torch.equal(model.head.weight, before)
    (moment,) = (
        state['exp_avg']
        for key, state in runner.optim_wrapper.fsg.slow_optimizer.state.items()
        if key is runner.optim_wrapper.fsg.slow_net.embedding
    )
    assert moment.dtype == torch.float32


@on_cpu
@pytest.mark.parametrize('clip_grad', [None, {'max_norm': 0.5}])
def test_loss_scale_makes_no_difference(make_model, clip_grad):
    results = []
    for scaler in (
        torch.amp.GradScaler('cpu', enabled=False),
        torch.amp.GradScaler('cpu', init_scale=2.0**10),
    ):
        model = make_model(compensate=False)
        wrapper = make_wrapper(model, FSGAmpOptimWrapper, clip_grad=clip_grad)
        wrapper.loss_scaler = scaler
        for seed in range(3):
            step(wrapper, model, batch(seed))
        results.append(
            [*model.parameters(), *wrapper.fsg.slow_net.parameters()]
        )
    for a, b in zip(*results):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@on_cpu
def test_overflow_leaves_fsg_as_it_was(make_model):
    model = make_model(compensate=False)
    wrapper = make_wrapper(model, FSGAmpOptimWrapper)
    wrapper.loss_scaler = torch.amp.GradScaler('cpu', init_scale=2.0**10)
    for seed in range(2):
        step(wrapper, model, batch(seed))
    newest = wrapper.fsg.state_dict()['layers']['head']['history'][-1]
    weights = model.head.weight.detach().clone()
    slow = wrapper.fsg.slow_net.embedding.detach().clone()
    data = batch(2)
    data['inputs'][0] = float('inf')
    step(wrapper, model, data)
    kept = wrapper.fsg.state_dict()['layers']['head']['history']
    assert kept[-1] is newest
    assert torch.equal(model.head.weight, weights)
    assert torch.equal(wrapper.fsg.slow_net.embedding, slow)


@on_cpu
def test_huge_gradients_are_no_overflow(make_model):
    states = []
    # As the square of this scale is beyond float32.
    for scale in (2.0**10, 2.0**90):
        model = make_model(compensate=False)
        wrapper = make_wrapper(model, FSGAmpOptimWrapper)
        wrapper.loss_scaler = torch.amp.GradScaler('cpu', init_scale=scale)
        for seed in range(3):
            step(wrapper, model, batch(seed))
        states.append(
            [*model.parameters(), *wrapper.fsg.slow_net.parameters()]
        )
        states[-1] += wrapper.fsg.state_dict()['layers']['head']['history']
    for a, b in zip(*states, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ('fsg', 'named'),
    [
        ({'alpha': 2}, 'alpha=2'),
        ({'block_size': 2}, r"unknown \['block_size'\].*slow"),
        ([1], r'fsg=\[1\]'),
        ({'slow': {'blocksize': 2}}, "slow: .*'blocksize'"),
        ({'fast': {'nonlinearity': 'gelu'}}, "fast: nonlinearity='gelu'"),
    ],
)
def test_bad_settings_are_named_at_once(make_model, fsg, named):
    with pytest.raises(ValueError, match=named):
        FSGOptimWrapper(optimizer=sgd(make_model()), fsg=fsg)


def test_model_without_binarized_layers(float_model):
    wrapper = FSGOptimWrapper(optimizer=sgd(float_model))
    with pytest.raises(ValueError, match='at least one binarized layer'):
        wrapper.initialize_count_status(float_model, 0, 10)


def test_step_without_a_forward_pass_is_an_error(make_model):
    model = make_model(compensate=False)
    wrapper = FSGOptimWrapper(optimizer=sgd(model), fsg=FSG_CFG)
    with pytest.raises(RuntimeError, match='optim_context'):
        wrapper.step()


class Net(nn.Module):
    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.conv = SURGEConv2d(3, 5, 3, compensate=False)
        self.head = SURGELinear(5, 2, compensate=False)

    def forward(self, x):
        return self.head(self.conv(x).mean((2, 3))).pow(2).mean()


def images(rank, index):
    generator = torch.Generator().manual_seed(10 * rank + index)
    return torch.randn(2, 3, 7, 7, generator=generator, dtype=torch.float64)


def train(model, net, ranks):
    wrapper = FSGOptimWrapper(
        optimizer=sgd(net), fsg={**FSG_CFG, 'history_dtype': 'float64'}
    )
    torch.manual_seed(20 + ranks[0])
    wrapper.initialize_count_status(model, 0, 3)
    for index in range(3):
        with wrapper.optim_context(model):
            loss = model(torch.cat([images(r, index) for r in ranks]))
        wrapper.update_params(loss)
    state = wrapper.fsg.state_dict()
    return [net.state_dict(), state['slow_net'], state['fast_net']]


def work(rank, world, folder):
    # Another start on each rank: what counts is rank 0's.
    net = Net(seed=rank).double()
    states = train(MMDistributedDataParallel(net), net, [rank])
    torch.save(states, f'{folder}/rank{rank}.pth')


@needs_gloo
def test_two_processes_equal_one_with_both_batches(tmp_path):
    run_processes(work, tmp_path)
    first, second = (torch.load(tmp_path / f'rank{r}.pth') for r in (0, 1))
    net = Net(seed=0).double()
    single = train(net, net, [0, 1])
    for a, b, both in zip(first, second, single):
        for name, value in both.items():
            assert torch.equal(a[name], b[name]), name
            torch.testing.assert_close(a[name], value, rtol=1e-6, atol=1e-9)
