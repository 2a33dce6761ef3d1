"""One training, or one evaluation, as a process with its result."""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, ClassVar

from mmengine.config import Config

from surge_det.cli.plot_run import read_curves, read_map, read_records
from surge_det.datasets.root import test_datasets
from surge_det.whole_files import newest_checkpoint, read_json, replacing

PROGRAM = [sys.executable, '-m', 'surge_det']
LAST_LINES = 8
# Seconds between two looks at a process, and that one has to end when asked.
POLL, GRACE = 0.2, 25.0
# What is printed may go to a file that is read while the runs go on.
say = partial(print, flush=True)
_PROGRESS = re.compile(
    r'(?:Epoch|Iter)\((?:train|test)\)\s*(?:\[(\d+)\])?\[\s*(\d+)/(\d+)\]'
)
# What mmengine formats configs with is not made for threads.
_DUMP_LOCK = threading.Lock()


@dataclass
class TrainingResult:
    """The result of a training.

    ``scores`` are (step, mAP). ``iteration`` is in seconds, data loading
    included: the median of what was logged. ``memory`` is the largest
    resident size of the training process in MiB, without its data loading
    processes, ``cuda_memory`` what torch allocated on the GPU, as mmengine
    logs it.
    """

    scores: list[tuple[int, float]]
    step_name: str
    minutes: float
    iteration: float
    memory: float
    cuda_memory: float | None
    resumed: bool

    @property
    def mAP(self) -> float:
        """That of the last epoch."""
        return self.scores[-1][1]


@dataclass
class EvaluationResult:
    """The result of an evaluation."""

    mAP: float
    minutes: float
    ann_file: str | None = None
    checkpoint: str | None = None


@dataclass(eq=False)
class Task:
    """A process of the comparison, and its result.

    ``folder`` is that of the run it belongs to. Neither ``result`` nor
    ``failure`` is there until the process has ended.
    """

    kind: ClassVar[str]
    result_type: ClassVar[type]

    folder: Path
    cfg: Config = field(repr=False)
    result: TrainingResult | EvaluationResult | None = field(
        default=None, init=False
    )
    failure: str | None = field(default=None, init=False)

    @property
    def open(self) -> bool:
        """Whether it neither is done nor has failed."""
        return not (self.result or self.failure)

    def load(self) -> bool:
        """Take over the result of an earlier call, if there is one."""
        if self.result_file.is_file():
            known = read_json(self.result_file)
            try:
                self.result = self.result_type(**known)
                float(self.result.mAP)
            except (LookupError, TypeError, ValueError) as error:
                raise ValueError(
                    f'{self.result_file}: no result of a {self.kind}: {error}'
                ) from error
        return self.result is not None

    def lock(self) -> IO | None:
        """Lock the run; None if another process works on it."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        lock = open(self.folder.with_suffix('.lock'), 'w')  # noqa: SIM115
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            return None
        return lock

    def execute(
        self, env: Mapping[str, str], lock: IO, stop: threading.Event
    ) -> None:
        """Run the process until it ends; set ``result`` or ``failure``.

        Args:
            env: Environment variables of the process.
            lock: Of the run; it is released at the end.
            stop: Ends the process early, without result and failure.
        """
        start = time.monotonic()
        with lock:
            try:
                command = self._prepare()
                status, memory = _run(command, env, self.log, lock, stop)
                if status and stop.is_set():
                    return
                if status:
                    raise RuntimeError(
                        f'{self.kind} ended with status {status}'
                    )
                minutes = (time.monotonic() - start) / 60
                result = self._read_result(minutes, memory)
                with replacing(self.result_file) as new:
                    new.write_text(json.dumps(asdict(result), indent=1))
                self.result = result
            except (OSError, RuntimeError, ValueError) as error:
                self.failure = f'{error}{self._last_lines()}'

    def _last_lines(self) -> str:
        if not self.log.is_file():
            return ''
        lines = self.log.read_text(errors='replace').splitlines()
        text = '\n'.join(f'    {line}' for line in lines[-LAST_LINES:])
        return f'; {self.log} ends with:\n{text}'

    def share(self) -> float:
        """How much is done, from 0 to 1, by the log."""
        text = b''
        with suppress(FileNotFoundError), open(self.log, 'rb') as file:
            file.seek(max(file.seek(0, os.SEEK_END) - 20_000, 0))
            text = file.read()
        places = _PROGRESS.findall(text.decode(errors='replace'))
        if not places:
            return 0.0
        epoch, done, total = places[-1]
        share = int(done) / int(total)
        if not epoch:
            return share
        return (int(epoch) - 1 + share) / self.cfg.train_cfg.max_epochs


@dataclass(eq=False)
class Run(Task):
    """The training of a method (or config) with one learning rate and seed.

    ``from_grid`` says that the rate is one of several to choose from.
    """

    kind = 'training'
    result_type = TrainingResult

    method: str
    lr: float | None
    seed: int
    from_grid: bool = False
    resumed: bool = False

    def __post_init__(self) -> None:
        """Name what belongs to it."""
        rate = f' lr {self.lr:g}' if self.from_grid else ''
        self.name = f'{self.method}{rate} seed {self.seed}'
        self.log = self.folder / 'train.log'
        self.result_file = self.folder / 'result.json'

    def _prepare(self) -> list[str]:
        if not self.resumed:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir()
        # They are of what was trained here before.
        for old in self.folder.glob('evaluation_*.json'):
            old.unlink()
        # Not in the folder, where mmengine writes one of this name.
        config = self.folder.with_suffix('.py')
        command = _command('train', self.cfg, config, self.folder)
        return command + (['--resume'] if self.resumed else [])

    def _read_result(self, minutes: float, memory: float) -> TrainingResult:
        curves = read_curves(self.folder)
        if not curves.scores:
            raise RuntimeError('no mAP was logged')
        times, cuda = [], []
        for path in sorted(self.folder.glob('*/vis_data/scalars.json')):
            for record in read_records(path):
                if 'loss' in record and 'time' in record:
                    times.append(record['time'])
                    cuda.append(record.get('memory'))
        return TrainingResult(
            curves.scores,
            curves.step_name,
            minutes,
            # Logged means of a window; the first one has the start in it.
            statistics.median(times[1:] or times),
            memory,
            max(cuda) if all(cuda) else None,
            self.resumed,
        )

    def newest(self) -> Path | None:
        """Find the newest checkpoint that is whole, if there is one."""
        with suppress(ValueError):
            return newest_checkpoint(self.folder)[0]
        return None

    def checkpoint(self) -> Path:
        """Find the checkpoint of the last epoch.

        Raises:
            FileNotFoundError: If there is none; the message says what to do.
        """
        path = self.newest()
        if path is None:
            raise FileNotFoundError(
                f'{self.name}: no checkpoint in {self.folder} to evaluate; '
                'delete that folder, so that it is trained again, or fix the '
                f'rate by --lr {self.method}=VALUE'
            )
        stem = re.fullmatch(r'(epoch|iter)_(\d+)', path.stem)
        last = stem and self.cfg.train_cfg.get(f'max_{stem[1]}s')
        if last and int(stem[2]) != last:
            raise FileNotFoundError(
                f'{self.name}: the last checkpoint is {path}, not that of '
                f'{stem[1]} {last}; leave '
                'default_hooks.checkpoint.save_last on'
            )
        return path


@dataclass(eq=False)
class Evaluation(Task):
    """The evaluation of a run's last checkpoint on another split."""

    kind = 'evaluation'
    result_type = EvaluationResult

    run: Run
    split: str

    def __post_init__(self) -> None:
        """Name what belongs to it."""
        self.name = f'{self.run.name} on {self.split}'
        self.work_dir = self.folder / f'evaluation_{self.split}'
        self.log = self.work_dir.with_suffix('.log')
        self.result_file = self.work_dir.with_suffix('.json')

    @property
    def failed(self) -> Task | None:
        """The training or the evaluation, whichever has failed."""
        return next((t for t in (self.run, self) if t.failure), None)

    def _prepare(self) -> list[str]:
        self.log.unlink(missing_ok=True)
        shutil.rmtree(self.work_dir, ignore_errors=True)
        config = self.work_dir.with_suffix('.py')
        checkpoint = self.run.checkpoint()
        return _command('test', self.cfg, config, self.work_dir, checkpoint)

    def _read_result(self, minutes: float, memory: float) -> EvaluationResult:
        score = read_map(self.work_dir)
        if score is None or not math.isfinite(score):
            found = [*map(read_json, sorted(self.work_dir.glob('*/*.json')))]
            raise RuntimeError(
                f'no mAP was measured on {self.split}: {found or "nothing"}'
            )
        ann_file = test_datasets(self.cfg)[0].get('ann_file')
        checkpoint = self.run.checkpoint().name
        return EvaluationResult(score, minutes, ann_file, checkpoint)


def _command(
    name: str, cfg: Config, config: Path, work_dir: Path, *args: Path
) -> list[str]:
    """Write a config; return the command that trains or tests with it."""
    with _DUMP_LOCK:
        cfg.dump(config)
    command = [*PROGRAM, name, config, *args, '--work-dir', work_dir]
    return [*map(str, command)]


def _run(
    command: list[str],
    env: Mapping[str, str],
    log: Path,
    lock: IO,
    stop: threading.Event,
) -> tuple[int, float]:
    """Run a process until it ends; return its status and memory in MiB."""
    with open(log, 'a') as output:
        process = subprocess.Popen(
            command,
            env=env,
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            # The process holds the lock too: it may outlive this one.
            pass_fds=[lock.fileno()],
            # Ctrl-C reaches this process alone, which ends the others.
            start_new_session=True,
        )
    peak = None
    while not (ended := os.wait4(process.pid, os.WNOHANG))[0]:
        # Not right after the start, where it is that of no program yet.
        peak = _peak_memory(process.pid) or peak
        if stop.wait(POLL):
            _end(process)
            # It may have finished just before.
            finished = process.returncode == 0 and peak
            return (0, peak) if finished else (-1, 0.0)
    _, status, usage = ended
    process.returncode = os.waitstatus_to_exitcode(status)
    # ru_maxrss is never less than this program's own, with which a child
    # starts.
    unit = 2**20 if sys.platform == 'darwin' else 2**10
    return process.returncode, peak or usage.ru_maxrss / unit


def _peak_memory(pid: int) -> float | None:
    """Largest resident size of a process so far in MiB, where Linux tells."""
    with suppress(OSError):
        text = Path(f'/proc/{pid}/status').read_text()
        if found := re.search(r'VmHWM:\s+(\d+) kB', text):
            return int(found[1]) / 1024
    return None


def _end(process: subprocess.Popen) -> None:
    """End a process, with its data loading processes."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(process.pid, number)
            process.wait(GRACE)


def make_run(
    method: str,
    lr: float | None,
    seed: int,
    cfg: Config,
    work_dir: Path,
    from_grid: bool = False,
) -> Run:
    """Make a run whose folder is named by all that its result depends on.

    Args:
        method: The method or the config's name.
        lr: Learning rate; None for the config's own.
        seed: Of the training.
        cfg: The method's config; it is not changed.
        work_dir: Where folders of runs go.
        from_grid: Whether the rate is one of several to choose from.

    Raises:
        ValueError: If the config has no single rate to set.
    """
    cfg = Config(cfg.to_dict())
    optimizer = (cfg.get('optim_wrapper') or {}).get('optimizer')
    if lr is not None:
        if optimizer is None:
            raise ValueError(
                f'--lr, --lr-grid: lr={lr} needs a config with '
                'optim_wrapper.optimizer'
            )
        optimizer.lr = lr
    elif optimizer:
        lr = optimizer.get('lr')
    cfg.setdefault('randomness', {})
    cfg.randomness.seed = seed
    text = json.dumps(cfg.to_dict(), sort_keys=True, default=repr)
    digest = hashlib.sha256(text.encode()).hexdigest()[:10]
    folder = work_dir / method / f'seed{seed}-{digest}'
    return Run(folder, cfg, method, lr, seed, from_grid)


def describe(task: Task) -> str:
    """Say how a training or an evaluation went."""
    if task.failure:
        return f'{task.name}: FAILED, {task.failure}'
    result = task.result
    return f'{task.name}: mAP {result.mAP:.3f}, {result.minutes:.1f} min'
