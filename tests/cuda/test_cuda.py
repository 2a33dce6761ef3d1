"""On a CUDA GPU: what the check looks at, NCCL, and a resumed training."""

import itertools
import os
import random
from importlib.util import find_spec

import pytest
import torch
import torch.distributed as dist
from torch import nn

pytest.importorskip('mmdet', reason='needs the toolbox')
pytest.importorskip('rich', reason='the benchmark shows its progress')

# isort: split
from mmengine.device import get_device
from mmengine.model import BaseModel, MMDistributedDataParallel
from mmengine.runner import Runner

from surge_det.cli.benchmark import cuda_check
from surge_det.core import SURGEConv2d, SURGELinear
from surge_det.engine import AGSAmpOptimWrapper, AGSOptimWrapper

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason='needs a CUDA GPU'
)
# To be set before cuBLAS is used; deterministic algorithms ask for it.
os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')
DEVICE = torch.device(get_device())
HOOKS = ['AGSHook', 'SURGEProgressHook', 'SURGEFiniteHook', 'SURGESeedHook']
_count = itertools.count()


@pytest.mark.parametrize(
    'check', cuda_check.CHECKS, ids=lambda check: check.__name__
)
def test_check(check):
    if check is cuda_check.fsg:
        pytest.importorskip('mambapy')
    rows = list(check(DEVICE))
    assert [row for row in rows if not row.passed] == []


@pytest.mark.parametrize(
    ('types', 'limit'),
    [({'dtype': torch.float64}, 1e-10), ({'narrow': torch.bfloat16}, 0.02)],
    ids=str,
)
def test_types_that_the_check_leaves_out(types, limit):
    for name, layer, x, grad in cuda_check._cases():
        found = cuda_check._apply(layer, x, grad, DEVICE, **types)[0]
        wanted = cuda_check._formula(layer, x, grad)
        assert cuda_check._distance(found, wanted) < limit, name


def test_a_step_under_autocast_waits_for_nothing():
    net, x = cuda_check._net(DEVICE), cuda_check._images(DEVICE)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)

    def step():
        optimizer.zero_grad()
        with torch.autocast(DEVICE.type):
            loss = net(x).float().square().mean()
        loss.backward()
        optimizer.step()

    step()
    with cuda_check.waiting_forbidden(DEVICE):
        step()


@pytest.mark.skipif(
    find_spec('openvino') is None, reason='needs the extra deploy'
)
def test_openvino_takes_images_of_a_gpu():
    from surge_det.deploy.openvino import Network, convert

    x = torch.randn(2, 3, 4, 4)
    network = Network(convert(nn.ReLU(), x), threads=1)
    (y,) = network.tensors(x.to(DEVICE))
    assert torch.equal(y, x.relu().to(DEVICE))


class Model(BaseModel):
    """Draws on the device, as RoI heads and dropout do."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
        self.body = SURGEConv2d(8, 8, 3, eta='auto')
        self.drop = nn.Dropout()
        self.head = SURGELinear(8, 2)

    def forward(self, inputs, labels=None, mode='tensor'):
        out = self.drop(self.body(self.stem(inputs)).mean((2, 3)))
        out = self.head(out)
        if mode == 'loss':
            return {'loss': nn.functional.cross_entropy(out, labels)}
        return out


def images(seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(4, 3, 16, 16, generator=generator).to(DEVICE)


@pytest.fixture
def one_process():
    """Make a group of one process, with the GPU's backend."""
    backend = 'gloo' if DEVICE.type == 'cpu' else 'nccl'
    dist.init_process_group(
        backend, store=dist.HashStore(), rank=0, world_size=1
    )
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize('wrapper', [AGSOptimWrapper, AGSAmpOptimWrapper])
def test_steps_of_a_group_of_one_are_those_without(
    one_process, wrapper, monkeypatch
):
    # What several processes would do: the sum is of one alone.
    monkeypatch.setattr(
        'surge_det.engine.optim.ags_optim_wrapper.get_world_size', lambda: 2
    )
    results = []
    for wrap in (MMDistributedDataParallel, lambda model: model):
        net = Model().to(DEVICE)
        net.drop.eval()
        net.train = lambda mode=True: None
        model = wrap(net)
        optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
        steps = wrapper(optimizer=optimizer)
        for seed in range(3):
            with steps.optim_context(model):
                loss = model(images(seed)).square().mean()
            steps.update_params(loss)
        results.append([*net.parameters(), net.body.ags.estimate])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
    assert not torch.equal(results[0][0], Model().to(DEVICE).stem[0].weight)


def train(folder, epochs, resume=None):
    random.seed(next(_count))
    torch.manual_seed(next(_count))
    generator = torch.Generator().manual_seed(1)
    data = [
        {'inputs': torch.randn(3, 16, 16, generator=generator), 'labels': i}
        for i in (0, 1) * 8
    ]
    runner = Runner(
        Model(),
        str(folder),
        train_dataloader=dict(
            dataset=data,
            sampler=dict(type='DefaultSampler', shuffle=True),
            batch_size=4,
            num_workers=0,
            collate_fn=dict(type='default_collate'),
        ),
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        optim_wrapper=dict(
            type='AGSAmpOptimWrapper',
            optimizer=dict(type='AdamW', lr=0.01),
            clip_grad=dict(max_norm=5),
        ),
        default_hooks=dict(
            checkpoint=dict(type='SURGECheckpointHook', interval=1),
            logger=dict(type='LoggerHook', interval=2),
        ),
        custom_hooks=[dict(type=name) for name in HOOKS],
        default_scope='mmengine',
        log_level='ERROR',
        experiment_name=f'cuda{next(_count)}',
        randomness=dict(seed=0, deterministic=True),
        resume=resume is not None,
        load_from=resume and str(resume),
    )
    runner.train()
    return runner


def test_a_training_that_is_resumed_is_the_whole_one(tmp_path):
    try:
        whole = train(tmp_path / 'whole', 2)
        train(tmp_path / 'part', 1)
        part = train(tmp_path / 'part', 2, tmp_path / 'part' / 'epoch_1.pth')
    finally:
        torch.use_deterministic_algorithms(False)
    assert next(part.model.parameters()).device.type == DEVICE.type
    assert all(
        map(torch.equal, whole.model.parameters(), part.model.parameters())
    )
    states = [r.optim_wrapper.state_dict() for r in (whole, part)]
    for key in ('ags', *({'loss_scaler'} & states[0].keys())):
        assert states[0][key] == states[1][key]
    moments = [
        [s['exp_avg'] for s in state['state'].values()] for state in states
    ]
    assert all(map(torch.equal, *moments))
