"""Training that goes wrong."""

import os
import time
from pathlib import Path

import pytest
import torch
from processes import needs_gloo, run_processes
from torch import nn

pytest.importorskip('mmdet', reason='needs the toolbox')

# isort: split
from mmengine.device import get_device
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement

from surge_det.core import SURGELinear
from surge_det.engine import (
    AGSAmpOptimWrapper,
    NonFiniteError,
    SURGEFiniteHook,
)

on_cpu = pytest.mark.skipif(
    get_device() != 'cpu', reason='mmengine trains on the accelerator here'
)


class _Explode(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient / 0


class _Model(BaseModel):
    def __init__(self, way):
        super().__init__()
        self.way = way
        self.body = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
        self.head = nn.Linear(4, 1)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        x = self.body(torch.stack(list(inputs)))
        if self.way == 'gradient':
            x = _Explode.apply(x)
        losses = dict(loss=self.head(x).square().mean())
        if self.way == 'large':
            losses['loss'] = losses['loss'] * 1000
        if self.way == 'loss':
            # No gradient comes of it.
            losses['loss_other'] = losses['loss'].detach() / 0
        return losses


class _Images(torch.utils.data.Dataset):
    def __init__(self, way):
        self.way = way

    def __len__(self):
        return 8

    def __getitem__(self, i):
        x = torch.arange(4.0) + i
        if self.way == 'image' and i == 5:
            x = x / 0
        sample = BaseDataElement(metainfo=dict(img_path=f'{i}.jpg'))
        return dict(inputs=x, data_samples=sample)


def _runner(folder, way, wrapper=None, **changes):
    settings = dict(
        train_dataloader=dict(
            dataset=_Images(way),
            sampler=dict(type='DefaultSampler', shuffle=False),
            batch_size=2,
            num_workers=0,
            collate_fn=dict(type='pseudo_collate'),
        ),
        train_cfg=dict(by_epoch=True, max_epochs=2),
        optim_wrapper=wrapper
        or dict(optimizer=dict(type='SGD', lr=1e30 * (way == 'rate'))),
        custom_hooks=[SURGEFiniteHook()],
        default_hooks=dict(
            checkpoint=dict(type='CheckpointHook', interval=1, by_epoch=False)
        ),
        default_scope='mmengine',
        log_level='ERROR',
        experiment_name=f'{folder.name}{time.monotonic_ns()}',
    )
    return Runner(_Model(way), str(folder), **{**settings, **changes})


@pytest.mark.parametrize(
    ('way', 'iteration', 'said'),
    [
        ('image', 3, r'output .* body\.0\. Images: 4\.jpg, 5\.jpg'),
        ('weight', 1, r'that of head\. Images: 0\.jpg, 1\.jpg'),
        ('gradient', 1, r'last layer with such a gradient has body\.1\.bias'),
        ('rate', 2, r'learning rate below 1e\+30'),
    ],
)
def test_training_stops_before_the_step(tmp_path, way, iteration, said):
    runner = _runner(tmp_path, way)
    if way == 'weight':
        with torch.no_grad():
            runner.model.head.weight[0, 0] = float('inf')
    with pytest.raises(NonFiniteError, match=said) as caught:
        runner.train()
    assert str(caught.value).startswith(f'iteration {iteration}: gradients')
    if way in ('image', 'gradient'):
        assert all(p.isfinite().all() for p in runner.model.parameters())
    # What was good is still there.
    files = [f'iter_{i}.pth' for i in range(1, iteration)]
    found = sorted(path.name for path in tmp_path.glob('*.pth'))
    assert found == sorted([*files, 'non_finite_batch.pth'])
    kept = torch.load(tmp_path / 'non_finite_batch.pth')
    assert len(kept['inputs']) == len(kept['images']) == 2


def test_a_loss_of_finite_gradients_stops_training(tmp_path):
    runner = _runner(tmp_path, 'loss')
    said = r'iteration 1: not finite: loss_other\. Images: 0\.jpg, 1\.jpg'
    with pytest.raises(NonFiniteError, match=said):
        runner.train()
    assert all(p.isfinite().all() for p in runner.model.parameters())
    names = [path.name for path in tmp_path.glob('*.pth')]
    assert names == ['non_finite_batch.pth']


def _scaled_runner(folder, way, fused, init_scale, epochs):
    wrapper = AGSAmpOptimWrapper(
        optimizer=torch.optim.AdamW([torch.zeros(1)], lr=1e-3)
    )
    runner = _runner(
        folder,
        way,
        wrapper,
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        default_hooks=dict(checkpoint=None),
    )
    wrapper.optimizer = torch.optim.AdamW(
        runner.model.parameters(), lr=1e-3, fused=fused
    )
    wrapper.loss_scaler = torch.amp.GradScaler('cpu', init_scale=init_scale)
    return runner


@on_cpu
@pytest.mark.parametrize('fused', [False, True])
def test_steps_that_a_scaler_skips_do_not_count(tmp_path, fused):
    runner = _scaled_runner(tmp_path, 'large', fused, 2.0**127, 5)
    before = runner.model.head.weight.detach().clone()
    runner.train()
    scale = runner.optim_wrapper.loss_scaler.get_scale()
    # Some were skipped, and not all of the 20.
    assert 2.0**107 < scale < 2.0**127
    assert runner.model.head.weight.isfinite().all()
    assert not torch.equal(runner.model.head.weight, before)


@on_cpu
@pytest.mark.parametrize('fused', [False, True])
def test_a_scaler_that_skips_all_steps_stops_training(tmp_path, fused):
    runner = _scaled_runner(tmp_path, 'gradient', fused, 2.0**16, 20)
    said = r"iteration 50: .* 50 steps in a row.*dtype='bfloat16'"
    with pytest.raises(NonFiniteError, match=said):
        runner.train()


@on_cpu
def test_a_loss_that_is_not_finite_stops_a_scaler_too(tmp_path):
    runner = _scaled_runner(tmp_path, 'image', False, 2.0**16, 1)
    said = r'iteration 3: not finite: loss; .* that of body\.0'
    with pytest.raises(NonFiniteError, match=said):
        runner.train()


def test_gradients_of_fsg_are_looked_at(tmp_path):
    pytest.importorskip('mambapy', reason='the slow network is a block of it')
    runner = _runner(
        tmp_path,
        None,
        dict(
            type='FSGOptimWrapper',
            optimizer=dict(type='SGD', lr=1e-3),
            fsg=dict(slow=dict(block_size=2, d_model=2, expand=2)),
        ),
    )
    runner.model.head = SURGELinear(4, 1, compensate=False)
    found = []

    class Spoil(Hook):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            net = runner.optim_wrapper.fsg.slow_net
            if batch_idx == 2:
                net.embedding.register_hook(lambda g: g / 0)
            found.append(net.embedding)

    runner.register_hook(Spoil())
    said = 'iteration 3: gradients of what FSG trains are not finite'
    with pytest.raises(NonFiniteError, match=said):
        runner.train()
    assert found[0].isfinite().all()


def _train_in_group(rank, world, folder):
    os.environ['LOCAL_RANK'] = str(rank)
    runner = _runner(
        Path(folder, 'work'),
        'image',
        dict(optimizer=dict(type='SGD', lr=1e-3)),
        launcher='pytorch',
        cfg=dict(
            model_wrapper_cfg=dict(
                type='MMDistributedDataParallel', device_ids=None
            )
        ),
    )
    try:
        runner.train()
    except NonFiniteError as error:
        Path(folder, f'{rank}.txt').write_text(str(error))


@needs_gloo
@on_cpu
def test_each_process_tells_what_it_saw(tmp_path):
    run_processes(_train_in_group, tmp_path)
    first, second = ((tmp_path / f'{r}.txt').read_text() for r in (0, 1))
    for text in (first, second):
        assert text.startswith('iteration 2: gradients of ')
    assert 'all outputs of process 0 are finite: it began in ano' in first
    assert 'is that of body.0. Images: 5.jpg, 7.jpg; the batch is' in second
    kept = torch.load(tmp_path / 'work' / 'non_finite_batch_1.pth')
    assert kept['images'] == ['5.jpg', '7.jpg']
    assert [p.name for p in (tmp_path / 'work').glob('iter*')] == [
        'iter_1.pth'
    ]


def test_no_checkpoint_is_written_of_what_is_not_finite(tmp_path):
    runner = _runner(tmp_path, None)
    runner.train()
    good = (tmp_path / 'iter_8.pth').read_bytes()
    runner.model.body[1].running_var[0] = float('nan')
    with pytest.raises(NonFiniteError, match=r'body\.1\.running_var'):
        runner.save_checkpoint(str(tmp_path), 'iter_8.pth')
    assert (tmp_path / 'iter_8.pth').read_bytes() == good


def test_large_gradients_and_training_as_usual_go_on(tmp_path):
    runner = _runner(tmp_path, None)
    runner.train()
    (hook,) = [h for h in runner.hooks if isinstance(h, SURGEFiniteHook)]
    hook.before_train(runner)
    for parameter in runner.model.parameters():
        parameter.grad = torch.full_like(parameter, 1e30)
    # Their norm is beyond float32.
    runner.optim_wrapper.optimizer.step()
    runner.optim_wrapper.optimizer.zero_grad()
    hook.after_train(runner)
    for parameter in runner.model.parameters():
        parameter.grad = torch.full_like(parameter, float('nan'))
    # Nobody looks any more.
    runner.optim_wrapper.optimizer.step()


def test_no_layer_is_blamed_for_what_clipping_spread(tmp_path):
    wrapper = dict(
        optimizer=dict(type='SGD', lr=0.1), clip_grad=dict(max_norm=1)
    )
    runner = _runner(tmp_path, 'gradient', wrapper)
    with pytest.raises(NonFiniteError, match='began in the backward') as error:
        runner.train()
    assert 'last layer' not in str(error.value)
