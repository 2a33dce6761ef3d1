"""A training that is stopped and resumed is the one that never stopped."""

import itertools
import os
import random
import signal
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('mmdet', reason='needs the toolbox')

# isort: split
import torch
from mmdet.datasets import MultiImageMixDataset
from mmengine.dataset import BaseDataset, ConcatDataset, RepeatDataset
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from processes import needs_gloo, run_processes
from torch import nn

from surge_det.core import SURGEConv2d, SURGELinear, method_cfg
from surge_det.engine import Terminated
from surge_det.engine.hooks import seed_hook
from surge_det.engine.hooks.seed_hook import _PlacedBatches
from surge_det.whole_files import newest_checkpoint

_count = itertools.count()
FSG = dict(slow=dict(block_size=16, d_model=4, expand=2, independent=True))


class Model(BaseModel):
    """Draws, as RoI heads and dropout do."""

    def __init__(self, **layers):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.body = nn.Sequential(
            nn.BatchNorm2d(4), SURGEConv2d(4, 6, 3, **layers)
        )
        self.drop = nn.Dropout()
        self.head = SURGELinear(6, 2, **layers)

    def forward(self, inputs, labels=None, mode='tensor'):
        out = self.drop(self.body(self.stem(inputs)).mean((2, 3)))
        noise = random.random() + np.random.rand()
        out = self.head(out + 0.1 * noise)
        if mode == 'loss':
            return {'loss': nn.functional.cross_entropy(out, labels)}
        return out


class Data(BaseDataset):
    """Augments by each of the generators."""

    def load_data_list(self):
        return [{'label': i % 2} for i in range(11)]

    def prepare_data(self, idx):
        image = torch.full((3, 8, 8), float(idx))
        image += random.random() + np.random.rand() + torch.rand(3, 8, 8)
        return {'inputs': image, 'labels': idx % 2}


class Watch(Hook):
    """Notes what is seen and lost; stops with a signal."""

    def __init__(self, stop_at=None):
        self.losses, self.images, self.stop_at = {}, {}, stop_at

    def after_train_iter(self, runner, batch_idx, data_batch, outputs):
        self.losses[runner.iter] = batch_idx, outputs['loss'].item()
        self.images[runner.iter] = data_batch['inputs'].clone()
        if runner.iter == self.stop_at:
            # Schedulers may send it more than once.
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGTERM)


def train(
    folder,
    watch,
    layers=None,
    optim=None,
    workers=0,
    iterations=None,
    dataset=None,
    **kwargs,
):
    torch.manual_seed(0)
    random.seed(next(_count))
    sampler = 'InfiniteSampler' if iterations else 'DefaultSampler'
    loop = dict(by_epoch=True, max_epochs=3)
    if iterations:
        loop = dict(by_epoch=False, max_iters=iterations)
    kwargs = {'randomness': {'seed': 5}, **kwargs}
    runner = Runner(
        Model(**(layers or {})),
        str(folder),
        train_dataloader=dict(
            dataset=dataset or Data(serialize_data=False),
            sampler=dict(type=sampler, shuffle=True),
            batch_size=3,
            num_workers=workers,
            persistent_workers=workers > 0,
            collate_fn=dict(type='default_collate'),
        ),
        train_cfg=loop,
        optim_wrapper=dict(
            type='AGSOptimWrapper',
            optimizer=dict(type='AdamW', lr=0.01),
            ags=dict(eta=0.2),
            clip_grad=dict(max_norm=5),
        )
        | (optim or {}),
        param_scheduler=[
            dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=5),
            dict(type='MultiStepLR', milestones=[1], by_epoch=not iterations),
        ],
        default_hooks=dict(
            checkpoint=dict(
                type='SURGECheckpointHook',
                by_epoch=not iterations,
                interval=1 if not iterations else 100,
            ),
            logger=dict(type='LoggerHook', interval=2),
        ),
        custom_hooks=[
            watch,
            *(dict(type=f'SURGE{k}Hook') for k in ('Progress', 'Seed')),
        ],
        default_scope='mmengine',
        log_level='ERROR',
        experiment_name=f'seed{next(_count)}',
        **kwargs,
    )
    runner.train()


def stop_and_resume(folder, stop_at, **kwargs):
    """Train whole, and with a stop; return both, and both last files."""
    whole, first = Watch(), Watch(stop_at)
    train(folder / 'whole', whole, **kwargs)
    with pytest.raises(Terminated) as end:
        train(folder / 'parts', first, **kwargs)
    assert end.value.code == 143
    assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
    path, broken = newest_checkpoint(folder / 'parts')
    assert (path.name, broken) == (f'iter_{stop_at + 1}.pth', [])
    second = Watch()
    train(folder / 'parts', second, **kwargs, resume=True, load_from=str(path))
    assert len(first.losses) == stop_at + 1
    assert not first.losses.keys() & second.losses.keys()
    assert not path.exists()
    first.losses |= second.losses
    first.images |= second.images
    last = newest_checkpoint(folder / 'whole')[0].name
    assert newest_checkpoint(folder / 'parts')[0].name == last
    files = [
        torch.load(folder / part / last, weights_only=False)
        for part in ('whole', 'parts')
    ]
    return whole, first, *files


def same(one, two, where=''):
    """Compare bit for bit whatever is in a checkpoint, but its times."""
    if isinstance(one, torch.Tensor):
        assert one.dtype == two.dtype, where
        assert torch.equal(one, two), where
    elif isinstance(one, np.ndarray):
        assert np.array_equal(one, two, equal_nan=True), where
    elif isinstance(one, dict):
        assert list(one) == list(two), where
        for key, value in one.items():
            if not (isinstance(key, str) and key.endswith(('time', 'cfg'))):
                same(value, two[key], f'{where}.{key}')
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(two), where
        for place, value in enumerate(one):
            same(value, two[place], f'{where}.{place}')
    elif hasattr(one, '__dict__'):
        same(vars(one), vars(two), where)
    else:
        assert one == two, where


def check(whole, parts, last, other):
    assert whole.losses == parts.losses
    for iteration, images in whole.images.items():
        assert torch.equal(images, parts.images[iteration]), iteration
    for file in (last, other):
        file['meta'].pop('experiment_name')
        # What there is beside the training's state.
        for name in ('last_ckpt', 'experiment_name', 'cfg', 'iter'):
            file['message_hub']['runtime_info'].pop(name, None)
    same(last, other)


METHODS = {
    'surge': (method_cfg('surge'), {}),
    'auto': ({}, dict(ags=dict(eta='auto'))),
    'reste': (method_cfg('reste'), {}),
    'recu': (dict(weight_binarizer={'type': 'ReCU'}), {}),
    'fsg': (method_cfg('ste'), dict(type='FSGOptimWrapper', fsg=FSG)),
    'surge, bf16': (
        method_cfg('surge'),
        dict(type='AGSAmpOptimWrapper', dtype='bfloat16'),
    ),
    'fsg, bf16': (
        method_cfg('ste'),
        dict(type='FSGAmpOptimWrapper', fsg=FSG, dtype='bfloat16'),
    ),
}


@pytest.mark.parametrize('method', METHODS)
def test_methods(tmp_path, method):
    layers, optim = METHODS[method]
    # Inside the second of three epochs, of four iterations each.
    check(*stop_and_resume(tmp_path, 5, layers=layers, optim=optim))


@pytest.mark.parametrize('stop_at', [0, 3, 11])
def test_places_in_an_epoch(tmp_path, stop_at):
    check(*stop_and_resume(tmp_path, stop_at))


def test_data_loading_processes(tmp_path):
    whole, *others = stop_and_resume(tmp_path, 5, workers=2)
    check(whole, *others)
    alone = Watch()
    train(tmp_path / 'alone', alone)
    assert alone.losses == whole.losses


@pytest.mark.parametrize('workers', [0, 2])
def test_loops_by_iterations(tmp_path, workers):
    whole, *others = stop_and_resume(
        tmp_path, 4, workers=workers, iterations=9
    )
    check(whole, *others)
    # The order is the one without the hook, and as without processes.
    alone = Watch()
    train(tmp_path / 'alone', alone, iterations=9)
    assert alone.losses == whole.losses


def test_seeds_that_no_config_names(tmp_path):
    first, second = Watch(6), Watch()
    seeds = dict(randomness={'seed': None})
    with pytest.raises(Terminated):
        train(tmp_path / 'parts', first, **seeds)
    path = tmp_path / 'parts' / 'iter_7.pth'
    seed = torch.load(path, weights_only=False)['meta']['seed']
    again = dict(resume=True, load_from=str(path))
    train(tmp_path / 'parts', second, **seeds | again)
    whole = Watch()
    train(tmp_path / 'whole', whole, randomness={'seed': seed})
    assert whole.losses == first.losses | second.losses


def test_accumulated_gradients_are_stepped_with_first(tmp_path):
    watch, optim = Watch(4), {'accumulative_counts': 3}
    with pytest.raises(Terminated):
        train(tmp_path / 'parts', watch, optim=optim)
    (path,) = (tmp_path / 'parts').glob('iter_*')
    assert path.name == 'iter_6.pth'
    second, whole = Watch(), Watch()
    again = dict(resume=True, load_from=str(path))
    train(tmp_path / 'parts', second, optim=optim, **again)
    train(tmp_path / 'whole', whole, optim=optim)
    assert whole.losses == watch.losses | second.losses


def _train_in_group(rank, world, folder):
    folder, watch = Path(folder), Watch(5 if rank else None)
    try:
        train(folder / 'work', watch)
    except Terminated as end:
        (folder / f'rank{rank}').write_text(f'{end.code} {len(watch.losses)}')


@needs_gloo
def test_one_process_gets_the_signal_and_all_end(tmp_path):
    run_processes(_train_in_group, tmp_path)
    told = [(tmp_path / f'rank{rank}').read_text() for rank in range(2)]
    assert told == ['143 6'] * 2
    assert newest_checkpoint(tmp_path / 'work')[0].name == 'iter_6.pth'


def test_an_epoch_of_another_length_begins_anew(tmp_path, caplog):
    with pytest.raises(Terminated):
        train(tmp_path, Watch(5))
    path = tmp_path / 'iter_6.pth'
    other = ConcatDataset([Data(serialize_data=False)] * 2)
    watch = Watch()
    again = dict(resume=True, load_from=str(path))
    train(tmp_path, watch, dataset=other, **again)
    # The second epoch and the third, of eight batches each.
    assert len(watch.losses) == 16
    assert watch.losses[6][0] == 0


@pytest.mark.parametrize(
    'wrapper',
    [
        lambda d: RepeatDataset(d, times=4),
        lambda d: ConcatDataset([d] * 4),
        lambda d: MultiImageMixDataset(d, pipeline=[]),
    ],
)
def test_each_sample_of_each_epoch_has_its_own_draw(tmp_path, wrapper):
    watch, dataset = Watch(), wrapper(Data(serialize_data=False))
    train(tmp_path, watch, dataset=dataset)
    images = torch.cat(list(watch.images.values()))
    assert len(images) == 3 * len(dataset)
    # What was drawn, without the image.
    drawn = {tuple((x - x.floor()).flatten()[:5].tolist()) for x in images}
    assert len(drawn) == len(images)


def test_what_a_model_draws_leaves_images_alone(tmp_path):
    one, other = Watch(), Watch()
    train(tmp_path / '1', one, layers=method_cfg('ste'))
    optim = dict(type='FSGOptimWrapper', fsg=FSG)
    train(tmp_path / '2', other, layers=method_cfg('ste'), optim=optim)
    assert one.losses != other.losses
    for iteration, images in one.images.items():
        assert torch.equal(images, other.images[iteration])


def test_an_index_that_comes_twice_has_two_draws(monkeypatch):
    inner = torch.utils.data.BatchSampler([3, 3], 2, drop_last=False)
    draws = set()
    for rank in (0, 1):
        monkeypatch.setattr(seed_hook, 'get_rank', lambda rank=rank: rank)
        (batch,) = _PlacedBatches(inner)
        draws |= {random.random() for _ in batch}
    assert len(draws) == 4
