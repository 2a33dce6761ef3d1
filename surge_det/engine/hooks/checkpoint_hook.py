"""Checkpoints that an interruption at any time leaves whole."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import (
    all_reduce,
    barrier,
    get_comm_device,
    get_world_size,
    is_main_process,
)
from mmengine.fileio import LocalBackend, get_file_backend, register_backend
from mmengine.hooks import CheckpointHook, EMAHook
from mmengine.registry import HOOKS
from mmengine.runner import BaseLoop, IterBasedTrainLoop, Runner

from surge_det.engine.hooks.runner_info import optim_wrappers
from surge_det.engine.hooks.seed_hook import DONE
from surge_det.whole_files import replacing

_BACKEND = 'surge_local'
# Key of the `meta` of a checkpoint that a signal made: its own name.
_INTERRUPTED = 'interrupted'
# Iterations after which processes tell one another of signals, where that
# makes them wait for their GPUs.
_INTERVAL = 10


# The hook that listens to the signal.
_listening = None


def _forget_signal() -> None:
    # Pools of processes, as metrics have, end theirs by this signal.
    if _listening is not None:
        _listening.leave_signal()


# A signal that a child gets before it has forgotten ours would be lost, and
# who joins the child would wait for ever: it is held back until then.
_mask = threading.local()


def _hold_signal() -> None:
    _mask.before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})


def _release_signal() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _mask.before)


def _begin_child() -> None:
    _forget_signal()
    _release_signal()


os.register_at_fork(
    before=_hold_signal,
    after_in_parent=_release_signal,
    after_in_child=_begin_child,
)


class Terminated(SystemExit):
    """Training ended on SIGTERM, with a checkpoint.

    The status is what shells give for a program that this signal ended, 128
    and its number: neither that of success nor one of an error.
    """

    def __init__(self) -> None:
        super().__init__(128 + signal.SIGTERM)


@register_backend(_BACKEND)
class _WholeFiles(LocalBackend):
    """mmengine's local backend; a file has its name when it is whole.

    What is removed may have to wait (``waiting``), until what takes its
    place is there.
    """

    waiting: list[str] | None = None

    def put(self, obj: bytes, filepath: str | Path) -> None:
        path = Path(filepath)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as new:
            new.write_bytes(obj)

    def remove(self, filepath: str | Path) -> None:
        if self.waiting is None:
            super().remove(filepath)
        else:
            self.waiting.append(str(filepath))


@HOOKS.register_module()
class SURGECheckpointHook(CheckpointHook):
    """mmengine's ``CheckpointHook``, safe against interruption.

    mmengine's writes a checkpoint under its final name, and deletes an old
    one before it writes the new one. So a process that is killed meanwhile
    leaves half a file, and with ``max_keep_ckpts=1`` nothing else. This one
    writes under another name (``.part.pth``), syncs, renames, then moves the
    pointer ``last_checkpoint``, and deletes what is outdated at the end.

    On SIGTERM, which schedulers send before they kill, training ends after
    the iteration, with a checkpoint ``iter_N.pth`` that is deleted once there
    is a later one. With several processes it is enough that one gets it; on
    GPUs they tell one another every ten iterations and before a validation.
    In validation it ends at once; the checkpoint is that before it.

    A training that is resumed after an epoch (or iteration) for which
    validation is due begins with that: whether it was done, no checkpoint
    tells.

    Args:
        kwargs: As for mmengine's hook. An ``out_dir`` on another file system
            than the local one is written as mmengine does it.

    Raises:
        Terminated: After SIGTERM. It is a ``SystemExit`` with status 143.
    """

    _terminated = False
    # Whether all processes know that one is.
    _ends = False
    # Iterations that the newest checkpoint has.
    _saved: int | None = None
    # Of the one that is resumed: batches of the running epoch, and its name if
    # a signal made it.
    _done = 0
    _interrupted: str | None = None

    def before_run(self, runner: Runner) -> None:
        """Keep data loading alive where all processes get the signal."""
        for loop in (runner._train_loop, runner._val_loop):
            if isinstance(loop, BaseLoop):
                loader = loop.dataloader
                loader.worker_init_fn = partial(_start, loader.worker_init_fn)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """See whether it is from inside an epoch, and made by a signal."""
        meta = checkpoint.get('meta') or {}
        self._done = meta.get(DONE, (0, 0))[0]
        self._interrupted = meta.get(_INTERRUPTED)

    def before_train(self, runner: Runner) -> None:
        """Take the backend that writes whole files, where files are local."""
        out_dir = str(self.out_dir or runner.work_dir)
        if (
            self.file_client_args is None
            and self.backend_args is None
            and type(get_file_backend(out_dir)) is LocalBackend
        ):
            self.backend_args = {'backend': _BACKEND}
        super().before_train(runner)
        self._terminated = self._ends = False
        # Only there can a handler be set.
        if threading.current_thread() is threading.main_thread():
            global _listening
            # A training that ended by an error is still listening.
            _forget_signal()
            _listening = self
            self._handler = signal.signal(signal.SIGTERM, self._terminate)
        if runner.iter:
            self._saved = runner.iter
            if not self._done and _validation_is_due(runner):
                runner.val_loop.run()

    def after_train_iter(
        self, runner: Runner, batch_idx: int, *args: Any, **kwargs: Any
    ) -> None:
        """Save as mmengine does, and end on SIGTERM."""
        super().after_train_iter(runner, batch_idx, *args, **kwargs)
        self._share_signal(runner, batch_idx)
        # Gradients that are being accumulated are in no checkpoint.
        wrappers = optim_wrappers(runner)
        if self._ends and all(w.should_update() for w in wrappers):
            self._end(runner, runner.iter + 1, barrier)

    def _share_signal(self, runner: Runner, batch_idx: int) -> None:
        if get_world_size() == 1:
            self._ends = self._terminated
        elif (
            get_comm_device().type == 'cpu'
            or self.every_n_train_iters(runner, _INTERVAL)
            or self.is_last_train_iter(runner)
            or self._validation_may_follow(runner, batch_idx)
        ):
            ends = torch.tensor(int(self._terminated))
            all_reduce(ends, 'max')
            self._ends = bool(ends)

    def _validation_may_follow(self, runner: Runner, batch_idx: int) -> bool:
        if isinstance(runner.train_loop, IterBasedTrainLoop):
            return _validation_is_due(runner, ahead=1)
        return self.end_of_epoch(runner.train_dataloader, batch_idx)

    def after_val_iter(
        self, runner: Runner, *args: Any, **kwargs: Any
    ) -> None:
        """End on SIGTERM."""
        if not self._terminated:
            return
        for hook in runner.hooks:
            if isinstance(hook, EMAHook):
                # Until then the model has the averaged weights.
                hook.after_val_epoch(runner)
        self._end(runner, runner.iter)

    def after_train(self, runner: Runner) -> None:
        """Publish as mmengine does; leave the signal alone."""
        super().after_train(runner)
        if threading.current_thread() is threading.main_thread():
            self.leave_signal()

    def leave_signal(self) -> None:
        """Leave SIGTERM to what it did before training."""
        global _listening
        _listening = None
        signal.signal(signal.SIGTERM, self._handler)

    def _terminate(self, *args: Any) -> None:
        self._terminated = True

    def _end(
        self, runner: Runner, step: int, wait: Callable[[], None] | None = None
    ) -> None:
        if self._saved != step:
            name = f'iter_{step}.pth'
            meta = {'epoch': runner.epoch, 'iter': step, _INTERRUPTED: name}
            self._write(runner, name, meta)
        if wait is not None:
            # Where one process ends, launchers kill the others.
            wait()
        path = self.last_ckpt or runner._load_from
        runner.logger.warning(
            f'SIGTERM: training ends, --resume goes on from {path}'
        )
        raise Terminated

    def _save_checkpoint_with_step(
        self, runner: Runner, step: int, meta: dict[str, Any]
    ) -> None:
        # As mmengine's, in another order.
        outdated = []
        if self.max_keep_ckpts > 0:
            steps = [*(s for s in self.keep_ckpt_ids if s != step), step]
            outdated = steps[: -self.max_keep_ckpts]
            self.keep_ckpt_ids = deque(steps[-self.max_keep_ckpts :])
            runner.message_hub.update_info(
                'keep_ckpt_ids', list(self.keep_ckpt_ids)
            )
        name = self.filename_tmpl.format(step)
        outdated = [self.filename_tmpl.format(old) for old in outdated]
        self._write(runner, name, meta, outdated)

    def _write(
        self,
        runner: Runner,
        name: str,
        meta: dict[str, Any],
        outdated: Iterable[str] = (),
    ) -> None:
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        runner.save_checkpoint(
            self.out_dir,
            name,
            self.file_client_args,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **self.args,
        )
        self._saved = meta['iter']
        if not is_main_process():
            return
        with replacing(Path(runner.work_dir, 'last_checkpoint')) as new:
            new.write_text(self.last_ckpt)
        if self._interrupted:
            outdated = [*outdated, self._interrupted]
            self._interrupted = None
        for old in outdated:
            if old == name:
                continue
            path = self.file_backend.join_path(self.out_dir, old)
            # Others than files are of another model's parallelism.
            if self.file_backend.isfile(path):
                self.file_backend.remove(path)
            elif self.file_backend.isdir(path):
                self.file_backend.rmtree(path)

    def _save_best_checkpoint(
        self, runner: Runner, metrics: dict[str, Any]
    ) -> None:
        if not isinstance(self.file_backend, _WholeFiles):
            super()._save_best_checkpoint(runner, metrics)
            return
        self.file_backend.waiting = waiting = []
        try:
            super()._save_best_checkpoint(runner, metrics)
        finally:
            self.file_backend.waiting = None
        if not waiting:
            return
        # mmengine has one attribute for one metric, another for several.
        if len(self.key_indicators) == 1:
            best = [self.best_ckpt_path]
        else:
            best = self.best_ckpt_path_dict.values()
        best = {Path(path).resolve() for path in best if path}
        for path in waiting:
            # The new one may have the old one's name.
            if Path(path).resolve() not in best:
                self.file_backend.remove(path)


def _validation_is_due(runner: Runner, ahead: int = 0) -> bool:
    # As the loops decide it.
    loop = runner.train_loop
    if runner.val_loop is None:
        return False
    loop._decide_current_val_interval()
    if isinstance(loop, IterBasedTrainLoop):
        done, last = loop.iter, loop.max_iters
    else:
        done, last = loop.epoch, loop.max_epochs
    done += ahead
    return done >= loop.val_begin and (
        done % loop.val_interval == 0 or done == last
    )


def _start(init: Callable[[int], None] | None, worker: int) -> None:
    """Start a process of data loading that SIGTERM does not end.

    Training needs it for the iteration that it ends with. Training itself may
    end it.
    """
    # Not everywhere can be seen who sent it.
    if hasattr(signal, 'sigwaitinfo'):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with_parent, daemon=True).start()
    if init is not None:
        init(worker)


def _end_with_parent() -> None:
    # A fork server is the parent to the system.
    training = multiprocessing.parent_process().pid
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != training:
        pass
    os._exit(0)
