import importlib.util
import itertools
from types import SimpleNamespace

import pytest
import torch
from mmengine.device import get_device
from mmengine.model import MMDistributedDataParallel
from processes import needs_gloo, run_processes
from torch import nn

from surge_det.core import SURGEConv2d, SURGELinear
from surge_det.engine import (
    AGSAmpOptimWrapper,
    AGSOptimWrapper,
    BroadcastBuffersHook,
    FSGOptimWrapper,
)

ETAS = (0.4, 0.0)
ROUNDS = 2  # backward passes accumulated before a step
STEPS = 4
FSG = {
    'slow': {'block_size': 16, 'd_model': 2, 'expand': 2, 'independent': True}
}

pytestmark = [
    needs_gloo,
    pytest.mark.skipif(
        get_device() != 'cpu', reason='mmengine trains on the accelerator here'
    ),
]


class Net(nn.Module):
    def __init__(self, seed, norm=nn.Identity):
        super().__init__()
        torch.manual_seed(seed)
        self.stem = nn.Conv2d(3, 4, 3)
        self.norm = norm(4)
        self.conv = SURGEConv2d(4, 5, 3)
        self.head = SURGELinear(5, 2)

    def forward(self, x):
        x = self.conv(self.norm(self.stem(x)))
        return self.head(x.mean((2, 3))).pow(2).mean()


def data(rank, index, dtype=torch.float64):
    generator = torch.Generator().manual_seed(10 * rank + index)
    x = torch.randn(2, 3, 7, 7, generator=generator, dtype=torch.float64)
    return x.to(dtype)


def train(model, net, rank, eta):
    """Accumulate, step once with lr 1; returns the lambdas of each pass."""
    wrapper = AGSOptimWrapper(
        optimizer=torch.optim.SGD(net.parameters(), lr=1.0),
        accumulative_counts=ROUNDS,
        ags={'eta': eta},
    )
    wrapper.initialize_count_status(model, 0, ROUNDS)
    lambdas = []
    for index in range(ROUNDS):
        with wrapper.optim_context(model):
            loss = model(data(rank, index))
        wrapper.update_params(loss)
        lambdas.append([net.conv.ags.last_scale, net.head.ags.last_scale])
    return torch.tensor(lambdas)


def train_on_global_batch(model, net, ranks, fixed):
    """Take three steps with BN frozen; lambda is a constant if `fixed`."""
    net.norm.eval()
    net.norm.running_mean += 0.1
    if fixed:
        for layer in (net.conv, net.head):
            layer.ags.scale = lambda b, *_: torch.full_like(b.sum(), 0.3)
    wrapper = AGSOptimWrapper(
        optimizer=torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    )
    for index in range(3):
        with wrapper.optim_context(model):
            loss = model(torch.cat([data(r, index) for r in ranks]))
        wrapper.update_params(loss)
    return dict(net.named_parameters())


def flat(value):
    """All that a state is made of, tensors and others."""
    if isinstance(value, dict):
        value = list(itertools.chain(*value.items()))
    if isinstance(value, (list, tuple)):
        return [each for item in value for each in flat(item)]
    return [value.detach().clone() if torch.is_tensor(value) else value]


def train_step_by_step(rank, kind):
    """Return weights, and all else that is saved, after each step."""
    model = MMDistributedDataParallel(net := Net(rank, nn.BatchNorm2d))
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    if kind == 'fsg':
        torch.manual_seed(rank)
        wrapper = FSGOptimWrapper(optimizer=optimizer, fsg=FSG)
    elif kind == 'amp':
        wrapper = AGSAmpOptimWrapper(optimizer=optimizer, ags={'eta': 'auto'})
        wrapper.loss_scaler = torch.amp.GradScaler('cpu', init_scale=2.0**10)
    else:
        eta = 'auto' if kind == 'auto' else 0.2
        wrapper = AGSOptimWrapper(optimizer=optimizer, ags={'eta': eta})
    states = []
    for index in range(STEPS):
        x = data(rank, index, torch.float32)
        if kind == 'amp' and (rank, index) == (1, 2):
            # One rank overflows.
            x = x * 1e38
        with wrapper.optim_context(model):
            loss = model(x)
        wrapper.update_params(loss)
        weights = flat(dict(net.named_parameters()))
        states.append((weights, flat(wrapper.state_dict())))
    return states


KINDS = ['ags', 'auto', 'amp']
if importlib.util.find_spec('mambapy'):
    KINDS.append('fsg')


def work(rank, world, folder):
    results = {'etas': [], 'global': []}
    for eta in ETAS:
        # Another start on each rank: what counts is rank 0's.
        net = Net(seed=rank).double()
        model = MMDistributedDataParallel(net)
        lambdas = train(model, net, rank, eta)
        results['etas'].append((net.state_dict(), lambdas))
    for fixed in (True, False):
        net = Net(rank, nn.BatchNorm2d).double()
        model = MMDistributedDataParallel(net)
        state = train_on_global_batch(model, net, [rank], fixed)
        results['global'].append(state)
    norm = nn.BatchNorm2d(3)
    norm(data(rank, 0).float())
    own = {k: v.clone() for k, v in norm.named_buffers()}
    BroadcastBuffersHook().before_val_epoch(SimpleNamespace(model=norm))
    results['norm'] = own, dict(norm.named_buffers())
    for kind in KINDS:
        results[kind] = train_step_by_step(rank, kind)
    torch.save(results, f'{folder}/rank{rank}.pth')


@pytest.fixture(scope='module', params=[2, 4])
def ranks(request, tmp_path_factory):
    """Return what each process has computed."""
    folder = tmp_path_factory.mktemp('ranks')
    run_processes(work, folder, request.param)
    return [torch.load(folder / f'rank{r}.pth') for r in range(request.param)]


def test_buffers_of_the_first_process_are_everyones(ranks):
    first, *others = (rank['norm'] for rank in ranks)
    for name, own in first[0].items():
        assert torch.equal(first[1][name], own)
        for other in others:
            assert torch.equal(other[1][name], own)
    name = 'running_mean'
    assert not torch.allclose(others[0][0][name], first[0][name])


@pytest.mark.parametrize('kind', KINDS)
def test_all_that_is_saved_is_the_same_after_every_step(ranks, kind):
    first = ranks[0][kind]
    for step, states in enumerate(zip(*(rank[kind] for rank in ranks))):
        for other in states[1:]:
            for own, others in zip(states[0], other, strict=True):
                for a, b in zip(own, others, strict=True):
                    same = torch.equal(a, b) if torch.is_tensor(a) else a == b
                    assert same, step
    # And each step is one, but that which the scaler skipped.
    for step in range(1, STEPS):
        (before, _), (after, _) = first[step - 1 : step + 1]
        moved = not all(
            torch.equal(a, b)
            for a, b in zip(before, after)
            if torch.is_tensor(a)
        )
        assert moved is not (kind == 'amp' and step == 2)


@pytest.mark.parametrize('fixed', [True, False])
def test_one_process_with_the_global_batch(ranks, fixed):
    net = Net(0, nn.BatchNorm2d).double()
    single = train_on_global_batch(net, net, range(len(ranks)), fixed)
    worst = max(
        (value - ranks[0]['global'][not fixed][name]).abs().max().item()
        for name, value in single.items()
    )
    # Each process has a lambda of its own, of the images that it sees.
    assert worst < 1e-12 if fixed else 1e-6 < worst < 0.1


def test_lambda_is_of_each_rank_and_the_step_their_average(ranks):
    start = Net(seed=0).double().state_dict()
    for case, eta in enumerate(ETAS):
        states, lambdas = zip(*(rank['etas'][case] for rank in ranks))
        for name, value in states[0].items():
            for other in states[1:]:
                assert torch.equal(value, other[name]), name

        # Each rank by itself.
        singles = []
        for rank, got in enumerate(lambdas):
            net = Net(seed=0).double()
            torch.testing.assert_close(train(net, net, rank, eta), got)
            singles.append(net.state_dict())
        for name, value in states[0].items():
            average = sum(single[name] for single in singles) / len(ranks)
            torch.testing.assert_close(value, average)

        state = states[0]
        moved = not torch.equal(state['conv.aux_weight'], start['conv.weight'])
        assert not torch.equal(state['conv.weight'], start['conv.weight'])
        if eta:
            assert moved
            assert not torch.allclose(lambdas[0], lambdas[1], rtol=1e-3)
        else:
            assert not moved
            assert not lambdas[0].any()
