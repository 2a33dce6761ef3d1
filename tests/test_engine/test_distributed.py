from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from mmengine.model import MMDistributedDataParallel
from torch import nn

from surge_det.core import SURGEConv2d, SURGELinear
from surge_det.engine import AGSOptimWrapper, BroadcastBuffersHook

ETAS = (0.4, 0.0)
ROUNDS = 2  # backward passes accumulated before a step


class Net(nn.Module):
    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.stem = nn.Conv2d(3, 4, 3)
        self.conv = SURGEConv2d(4, 5, 3)
        self.head = SURGELinear(5, 2)

    def forward(self, x):
        return self.head(self.conv(self.stem(x)).mean((2, 3))).pow(2).mean()


def data(rank, index):
    generator = torch.Generator().manual_seed(10 * rank + index)
    return torch.randn(2, 3, 7, 7, generator=generator, dtype=torch.float64)


def train(model, net, rank, eta):
    """Accumulate, step once with lr 1; returns the lambdas of each pass."""
    wrapper = AGSOptimWrapper(
        optimizer=torch.optim.SGD(net.parameters(), lr=1.0),
        accumulative_counts=ROUNDS,
        ags={'eta': eta, 'overrides': {'head': eta / 2}},
    )
    wrapper.initialize_count_status(model, 0, ROUNDS)
    lambdas = []
    for index in range(ROUNDS):
        with wrapper.optim_context(model):
            loss = model(data(rank, index))
        wrapper.update_params(loss)
        lambdas.append([net.conv.ags.last_scale, net.head.ags.last_scale])
    return torch.tensor(lambdas)


def work(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        'gloo', f'file://{folder}/store', rank=rank, world_size=2
    )
    results = []
    for eta in ETAS:
        # Another start on each rank: what counts is rank 0's.
        net = Net(seed=rank).double()
        model = MMDistributedDataParallel(net)
        lambdas = train(model, net, rank, eta)
        results.append((net.state_dict(), lambdas))
    torch.save(results, f'{folder}/rank{rank}.pth')
    norm = nn.BatchNorm2d(3)
    norm(data(rank, 0).float())
    own = {k: v.clone() for k, v in norm.named_buffers()}
    BroadcastBuffersHook().before_val_epoch(SimpleNamespace(model=norm))
    torch.save((own, dict(norm.named_buffers())), f'{folder}/norm{rank}.pth')
    dist.destroy_process_group()


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Return where two processes leave their results."""
    if not (dist.is_available() and dist.is_gloo_available()):
        pytest.skip('needs the gloo backend')
    folder = tmp_path_factory.mktemp('ranks')
    mp.spawn(work, (str(folder),), nprocs=2)
    return folder


def test_buffers_of_the_first_process_are_everyones(folder):
    first, second = (torch.load(folder / f'norm{r}.pth') for r in (0, 1))
    for name, own in first[0].items():
        assert torch.equal(first[1][name], own)
        assert torch.equal(second[1][name], own)
    name = 'running_mean'
    assert not torch.allclose(second[0][name], first[0][name])


def test_two_processes(folder):
    ranks = [torch.load(folder / f'rank{r}.pth') for r in (0, 1)]
    start = Net(seed=0).double().state_dict()
    for case, eta in enumerate(ETAS):
        (state, lambdas), (other, other_lambdas) = (r[case] for r in ranks)
        for name, value in state.items():
            assert torch.equal(value, other[name]), name

        # Each rank by itself: lambda is its own, the step is their average.
        singles = []
        for rank, got in enumerate((lambdas, other_lambdas)):
            net = Net(seed=0).double()
            torch.testing.assert_close(train(net, net, rank, eta), got)
            singles.append(net.state_dict())
        for name, value in state.items():
            average = (singles[0][name] + singles[1][name]) / 2
            torch.testing.assert_close(value, average)

        moved = not torch.equal(state['conv.aux_weight'], start['conv.weight'])
        assert not torch.equal(state['conv.weight'], start['conv.weight'])
        if eta:
            assert moved
            assert not torch.allclose(lambdas, other_lambdas, rtol=1e-3)
        else:
            assert not moved
            assert not lambdas.any()
