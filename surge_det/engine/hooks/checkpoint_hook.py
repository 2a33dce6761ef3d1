"""Checkpoints that an interruption at any time leaves whole."""

from collections import deque
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.fileio import LocalBackend, get_file_backend, register_backend
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from surge_det.whole_files import replacing

_BACKEND = 'surge_local'


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
    writes under another name (``.part``), syncs, renames, then moves the
    pointer ``last_checkpoint``, and deletes what is outdated at the end.

    Args:
        kwargs: As for mmengine's hook. An ``out_dir`` on another file system
            than the local one is written as mmengine does it.
    """

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
        if not is_main_process():
            return
        with replacing(Path(runner.work_dir, 'last_checkpoint')) as new:
            new.write_text(self.last_ckpt)
        for old in outdated:
            name = self.filename_tmpl.format(old)
            path = self.file_backend.join_path(self.out_dir, name)
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
        for path in waiting:
            self.file_backend.remove(path)
