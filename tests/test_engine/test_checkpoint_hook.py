"""Checkpoints and processes that are killed."""

import multiprocessing
import os
import random
import resource
import signal
import subprocess
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip('mmdet', reason='needs the toolbox')

# isort: split
from command_line import python
from mmengine.evaluator import BaseMetric
from mmengine.hooks import EMAHook, Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from processes import needs_gloo, run_processes

from surge_det.compat.safe_load import safe_load
from surge_det.engine import SURGECheckpointHook, Terminated
from surge_det.engine.hooks import checkpoint_hook
from surge_det.engine.hooks.checkpoint_hook import _start
from surge_det.whole_files import newest_checkpoint, replacing


class _Model(BaseModel):
    def __init__(self):
        super().__init__()
        # Large enough to be killed while it is written: 8 MB.
        self.layer = nn.Linear(1000, 2000)

    def forward(self, inputs, mode='tensor'):
        if mode == 'predict':
            return [0]
        return dict(loss=self.layer(inputs).square().mean())


class _Nothing(BaseMetric):
    def process(self, data_batch, data_samples):
        self.results.append(0)

    def compute_metrics(self, results):
        return {'figure': 1.0}


class _Report(Hook):
    priority = 'LOWEST'

    def __init__(self, said):
        self.said = said

    def after_train_epoch(self, runner):
        self.said.value = runner.epoch + 1


def _runner(
    folder,
    epochs,
    checkpoint,
    hooks=(),
    resume=None,
    val=False,
    length=1,
    train_cfg=None,
):
    data = dict(
        dataset=[torch.ones(1000)] * length,
        sampler=dict(type='DefaultSampler', shuffle=False),
        batch_size=1,
        num_workers=0,
    )
    validation = {}
    if val:
        validation = dict(
            val_dataloader=data, val_cfg={}, val_evaluator=[_Nothing()]
        )
    return Runner(
        _Model(),
        str(folder),
        train_dataloader=data,
        train_cfg=train_cfg or dict(by_epoch=True, max_epochs=epochs),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=1e-3)),
        default_hooks=dict(checkpoint=checkpoint),
        custom_hooks=list(hooks),
        default_scope='mmengine',
        resume=resume is not None,
        load_from=resume and str(resume),
        log_level='ERROR',
        experiment_name=f'{Path(folder).name}{time.monotonic_ns()}',
        **validation,
    )


def _train(folder, keep, resume, said):
    # torch's threads are not forked with the process, and it waits for them.
    torch.set_num_threads(1)
    hook = SURGECheckpointHook(interval=1, max_keep_ckpts=keep)
    _runner(folder, 10_000, hook, [_Report(said)], resume).train()


@pytest.mark.parametrize('keep', [1, 3])
def test_a_killed_training_loses_one_epoch_at_most(tmp_path, keep):
    context = multiprocessing.get_context('fork')
    draw = random.Random(keep)
    said = context.Value('q', 0, lock=False)
    for _ in range(4):
        resume, broken = newest_checkpoint(tmp_path)
        assert not broken
        before = said.value
        process = context.Process(
            target=_train, args=(tmp_path, keep, resume, said)
        )
        process.start()
        deadline = time.monotonic() + 120
        while said.value == before and time.monotonic() < deadline:
            assert process.is_alive()
            time.sleep(0.01)
        # It saves nearly all of the time.
        time.sleep(draw.uniform(0, 0.3))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        saved = said.value
        path, _ = newest_checkpoint(tmp_path)
        assert safe_load(path, 'cpu')['meta']['epoch'] >= saved > before
    # One more may be there that was to be deleted.
    assert len(list(tmp_path.glob('*.pth'))) <= keep + 4


def test_a_disk_that_is_full_leaves_the_last_checkpoint(tmp_path):
    hook = SURGECheckpointHook(interval=1, max_keep_ckpts=1)
    _runner(tmp_path, 1, hook).train()
    old = (tmp_path / 'epoch_1.pth').read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))
    try:
        runner = _runner(tmp_path, 2, hook, resume=tmp_path / 'epoch_1.pth')
        with pytest.raises(OSError, match=r'epoch_2\.pth'):
            runner.train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert [path.name for path in tmp_path.glob('*.pth*')] == ['epoch_1.pth']
    assert (tmp_path / 'epoch_1.pth').read_bytes() == old
    assert newest_checkpoint(tmp_path) == (tmp_path / 'epoch_1.pth', [])


def test_the_best_is_deleted_after_the_better_one_is_there(
    tmp_path, monkeypatch
):
    hook = SURGECheckpointHook(interval=1, max_keep_ckpts=1, save_best='mAP')
    runner = _runner(tmp_path, 1, hook)
    runner.train()
    hook.after_val_epoch(runner, {'mAP': 0.1})
    (first,) = tmp_path.glob('best_*')
    there = []

    def replace(*args):
        there.append(first.is_file())
        os.rename(*args)

    monkeypatch.setattr(os, 'replace', replace)
    runner.train_loop._epoch = 2
    hook.after_val_epoch(runner, {'mAP': 0.2})
    assert there[0]
    (second,) = tmp_path.glob('best_*')
    assert second != first
    # Without an optimizer nothing can go on from it.
    assert newest_checkpoint(tmp_path)[0].name == 'epoch_2.pth'


def test_the_best_may_have_the_old_ones_name(tmp_path):
    hook = SURGECheckpointHook(interval=1, save_best='mAP')
    runner = _runner(tmp_path / 'a', 1, hook)
    runner.train()
    hook.after_val_epoch(runner, {'mAP': 0.1})
    # As it is where a resumed training validates again, by another way.
    (tmp_path / 'b').symlink_to(tmp_path / 'a')
    hook = SURGECheckpointHook(interval=1, save_best='mAP')
    path = tmp_path / 'b' / 'epoch_1.pth'
    runner = _runner(tmp_path / 'b', 1, hook, resume=path)
    runner.train()
    hook.after_val_epoch(runner, {'mAP': 0.2})
    (best,) = tmp_path.glob('a/best_*')
    assert best.name == 'best_mAP_epoch_1.pth'
    saved = safe_load(best, 'cpu')['message_hub']['runtime_info']
    assert saved['best_score'] == 0.2


def test_what_is_broken_is_passed_over(tmp_path):
    assert newest_checkpoint(tmp_path) == (None, [])
    for epoch in (2, 9, 10, 11):
        torch.save(
            {'weights': torch.ones(999)}, tmp_path / f'epoch_{epoch}.pth'
        )
    whole = (tmp_path / 'epoch_11.pth').read_bytes()
    (tmp_path / 'epoch_11.pth').write_bytes(whole[:-30])
    middle = len(whole) // 2
    damaged = whole[:middle] + b'???' + whole[middle + 3 :]
    (tmp_path / 'epoch_10.pth').write_bytes(damaged)
    path, broken = newest_checkpoint(tmp_path)
    assert path.name == 'epoch_9.pth'
    assert [reason.split(':')[0][-12:] for reason in broken] == [
        'epoch_11.pth',
        'epoch_10.pth',
    ]
    for epoch in (2, 9):
        (tmp_path / f'epoch_{epoch}.pth').write_bytes(b'')
    with pytest.raises(ValueError, match=r'epoch_2\.pth: half'):
        newest_checkpoint(tmp_path)


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / 'file'
    path.write_text('old')
    with pytest.raises(ZeroDivisionError), replacing(path) as new:
        new.write_text(f'half {1 / 0}')
    assert path.read_text() == 'old'
    with replacing(path) as new:
        new.write_text('new')
    assert [p.name for p in tmp_path.iterdir()] == ['file']
    assert path.read_text() == 'new'


def test_of_epochs_and_iterations_the_later_file_is_newest(tmp_path):
    for age, name in enumerate(('epoch_12', 'iter_500', 'other_20260101')):
        path = tmp_path / f'{name}.pth'
        torch.save({}, path)
        os.utime(path, (0, 1000 - age))
    assert newest_checkpoint(tmp_path)[0].name == 'epoch_12.pth'


@pytest.mark.parametrize('others', ['epoch', 'iter'])
def test_what_an_earlier_training_left_is_not_newest(tmp_path, others):
    ages = {f'{others}_3': 3, f'{others}_2': 4, 'epoch_1': 1}
    for name, age in ages.items():
        torch.save({}, tmp_path / f'{name}.pth')
        os.utime(tmp_path / f'{name}.pth', (0, 1000 - age))
    (tmp_path / 'last_checkpoint').write_text('/moved/epoch_1.pth')
    assert newest_checkpoint(tmp_path) == (tmp_path / 'epoch_1.pth', [])
    # Killed before the pointer was moved.
    torch.save({}, tmp_path / 'epoch_2.pth')
    assert newest_checkpoint(tmp_path)[0].name == 'epoch_2.pth'
    for epoch in (1, 2):
        (tmp_path / f'epoch_{epoch}.pth').write_bytes(b'')
        os.utime(tmp_path / f'epoch_{epoch}.pth', (0, 1000))
    path, broken = newest_checkpoint(tmp_path)
    assert (path.name, len(broken)) == (f'{others}_3.pth', 2)


def _sleep(begin=None):
    if begin is not None:
        begin(None, 0)
    time.sleep(200)


class _Fork(Hook):
    """Ends a process by SIGTERM, as pools end theirs."""

    def after_train_iter(self, runner, *args, **kwargs):
        context = multiprocessing.get_context('fork')
        runs = context.Event()
        process = context.Process(target=_sleep, args=(lambda *_: runs.set(),))
        process.start()
        runs.wait(120)
        process.terminate()
        process.join(120)
        self.status = process.exitcode
        process.kill()


def test_processes_that_training_starts_end_by_the_signal(tmp_path):
    fork = _Fork()
    hook = SURGECheckpointHook(interval=1)
    _runner(tmp_path, 1, hook, [fork]).train()
    assert fork.status == -signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


EARLY = """
import os
import signal

# Before the hook's own, as if a pool had ended a worker that it just began.
os.register_at_fork(
    after_in_child=lambda: os.kill(os.getpid(), signal.SIGTERM)
)
from surge_det.engine.hooks import checkpoint_hook

hook = checkpoint_hook.SURGECheckpointHook()
hook._handler = signal.signal(signal.SIGTERM, hook._terminate)
checkpoint_hook._listening = hook
child = os.fork()
if not child:
    os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
assert not signal.pthread_sigmask(signal.SIG_BLOCK, [])
"""


def test_a_child_that_is_ended_at_once_ends():
    assert python(EARLY).strip() == str(-signal.SIGTERM)


def test_only_training_ends_its_data_loading():
    context = multiprocessing.get_context('fork')
    runs = context.Event()
    process = context.Process(
        target=_sleep, args=(lambda *args: (_start(*args), runs.set()),)
    )
    process.start()
    assert runs.wait(120)
    # As a scheduler does that signals all processes of a job.
    subprocess.run(['kill', '-TERM', str(process.pid)], check=True)
    process.join(0.5)
    assert process.exitcode is None
    process.terminate()
    process.join(120)
    assert process.exitcode == 0


class _Term(Hook):
    """Sends SIGTERM in an iteration of validation."""

    def after_val_iter(self, runner, *args, **kwargs):
        os.kill(os.getpid(), signal.SIGTERM)


def test_validation_that_ends_saves_no_averaged_weights(tmp_path):
    class Stop(_Term):
        def after_train_iter(self, runner, *args, **kwargs):
            self.weights = runner.model.layer.weight.detach().clone()

        def after_val_iter(self, runner, *args, **kwargs):
            # In the first iteration the average is what is trained.
            if runner.iter == 2:
                super().after_val_iter(runner)

    stop = Stop()
    hook = SURGECheckpointHook(interval=9, save_last=False)
    ema = EMAHook(momentum=0.5)
    runner = _runner(tmp_path, 2, hook, [ema, stop], val=True)
    with pytest.raises(Terminated):
        runner.train()
    saved = safe_load(tmp_path / 'iter_2.pth', 'cpu')
    # EMAHook has the averaged ones in the place of the trained ones.
    trained = saved['ema_state_dict']['module.layer.weight']
    assert torch.equal(trained, stop.weights)
    assert not torch.equal(trained, saved['state_dict']['layer.weight'])


class _Count(Hook):
    def __init__(self):
        self.at = []

    def after_val_epoch(self, runner, metrics):
        self.at.append(runner.iter)


@pytest.mark.parametrize('interval', [1, 9])
def test_validation_that_was_not_finished_is_done_first(tmp_path, interval):
    hook = SURGECheckpointHook(interval=interval, save_last=False)
    with pytest.raises(Terminated) as end:
        _runner(tmp_path, 2, hook, [_Term()], val=True).train()
    assert end.value.code == 143
    (path,) = tmp_path.glob('*.pth')
    assert path.name == ('epoch_1.pth' if interval == 1 else 'iter_1.pth')
    count = _Count()
    hook = SURGECheckpointHook(interval=interval, save_last=False)
    _runner(tmp_path, 2, hook, [count], path, val=True).train()
    assert count.at == [1, 2]
    # Of the last epoch, too: nothing else is left to be done.
    hook = SURGECheckpointHook(interval=interval, save_last=False)
    if interval == 1:
        path = tmp_path / 'epoch_2.pth'
        _runner(tmp_path, 2, hook, [count], path, val=True).train()
        assert count.at == [1, 2, 2]


class _Signal(Hook):
    """Sends SIGTERM to its own process in the second iteration."""

    def after_train_iter(self, runner, *args, **kwargs):
        if runner.iter == 1:
            os.kill(os.getpid(), signal.SIGTERM)


def _train_in_group(rank, world, folder):
    for kind, length in (('cpu', 30), ('cuda', 30), ('cuda', 7)):
        # Tensors stay on the CPU; what counts is how often it is asked.
        checkpoint_hook.get_comm_device = partial(torch.device, kind)
        hook = SURGECheckpointHook(interval=99)
        signals = [_Signal()] * (rank == 1)
        name = f'{folder}/{kind}{length}'
        runner = _runner(name, 1, hook, signals, length=length * world)
        with pytest.raises(Terminated):
            runner.train()
        assert Path(name, f'iter_{runner.iter + 1}.pth').is_file()
        Path(f'{name}-{rank}-{runner.iter + 1}').touch()
    checkpoint_hook.get_comm_device = partial(torch.device, 'cuda')
    for interval, last in ((7, 30), (99, 6), (None, 6)):
        loop = dict(by_epoch=False, max_iters=last, val_interval=interval)
        hook = SURGECheckpointHook(
            interval=99, by_epoch=False, save_last=False
        )
        signals = [_Signal()] * (rank == 1)
        name = f'{folder}/by_iter{interval}'
        val = interval is not None
        if not val:
            del loop['val_interval']
        runner = _runner(
            name, 1, hook, signals, val=val, length=60, train_cfg=loop
        )
        with pytest.raises(Terminated):
            runner.train()
        assert Path(name, f'iter_{runner.iter + 1}.pth').is_file()
        Path(f'{name}-{rank}-{runner.iter + 1}').touch()


@needs_gloo
def test_processes_end_together(tmp_path):
    run_processes(_train_in_group, tmp_path)
    # At once, every ten iterations, before a validation, or at the end.
    at = {'cpu30': 2, 'cuda30': 10, 'cuda7': 7}
    at |= {'by_iter7': 7, 'by_iter99': 6, 'by_iterNone': 6}
    assert {path.name for path in tmp_path.glob('*-*')} == {
        f'{name}-{rank}-{step}' for name, step in at.items() for rank in (0, 1)
    }
