"""One training, or one evaluation, as a process with what it gave."""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, ClassVar

from mmengine.config import Config

from surge_det.cli.plot_run import MAP, read_curves

from .plan import Entry

TOOLS = Path(__file__).resolve().parents[3] / 'tools'
MIB = 2**20
LAST_LINES = 8
_TRAINED = re.compile(
    r'(?:Epoch\(train\)\s*\[(?P<epoch>\d+)\]|Iter\(train\)\s*)'
    r'\[\s*(?P<done>\d+)/(?P<all>\d+)\]'
)
_TESTED = re.compile(r'\(test\)\s*\[\s*(?P<done>\d+)/(?P<all>\d+)\]')
_MAP = re.compile(rf'(^|/)({MAP})$')


@dataclass
class Result:
    """What a finished run gave.

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
    def final(self) -> float:
        """The mAP of the last epoch."""
        return self.scores[-1][1]


@dataclass(eq=False, kw_only=True)
class Task:
    """A process of the comparison, to be done, running or done.

    Subclasses have ``name`` (for people), ``log``, ``score`` (mAP) and
    ``minutes`` (None until it is done), ``home`` (the folder of the run it
    belongs to), ``load``, ``share``, ``_prepare`` and ``_take``.
    """

    what: ClassVar[str]

    slot: int = -1
    start: float = 0.0
    peak: float | None = None
    process: subprocess.Popen | None = None
    lock: IO | None = None
    failure: str | None = None
    resumed: bool = False

    @property
    def finished(self) -> bool:
        """Whether it is done and gave what it should."""
        return self.score is not None

    @property
    def open(self) -> bool:
        """Whether it neither is done nor has failed."""
        return not (self.finished or self.failure)

    def begin(self, slot: int, env: Mapping[str, str], resume: bool) -> bool:
        """Start the process; False if another process is at this run."""
        self.home.parent.mkdir(parents=True, exist_ok=True)
        # The process holds the lock too: it may outlive this one.
        lock = open(self.home.with_suffix('.lock'), 'w')  # noqa: SIM115
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            return False
        if self.load():
            lock.close()
            return True
        try:
            command = self._prepare(resume)
        except FileNotFoundError as error:
            self.failure = str(error)
            lock.close()
            return True
        with open(self.log, 'a') as log:
            self.process = subprocess.Popen(
                command,
                env=env,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                pass_fds=[lock.fileno()],
                # Ctrl-C reaches this process alone, which ends the others.
                start_new_session=True,
            )
        self.lock, self.slot, self.start = lock, slot, time.monotonic()
        return True

    def poll(self) -> bool:
        """Whether the process has ended; then take what it gave."""
        pid, status, usage = os.wait4(self.process.pid, os.WNOHANG)
        if not pid:
            # Not right behind the start, where it is that of no program yet.
            self.peak = resident_peak(self.process.pid) or self.peak
            return False
        self.process.returncode = os.waitstatus_to_exitcode(status)
        minutes = (time.monotonic() - self.start) / 60
        unit = 1 if sys.platform == 'darwin' else 1024
        try:
            if self.process.returncode:
                raise RuntimeError(
                    f'{self.what} ended with status {self.process.returncode}'
                )
            # The second is at least this tool's own, which it started with.
            memory = self.peak or usage.ru_maxrss * unit / MIB
            self._take(minutes, memory)
        except (OSError, RuntimeError, ValueError) as error:
            lines = self.log.read_text(errors='replace').splitlines()
            tail = '\n'.join(f'    {x}' for x in lines[-LAST_LINES:])
            self.failure = f'{error}; {self.log} ends with:\n{tail}'
        self.lock.close()
        return True

    def _place(self, pattern: re.Pattern) -> re.Match | None:
        """Find the last mention of a place in what the process wrote."""
        with open(self.log, 'rb') as file:
            file.seek(max(file.seek(0, os.SEEK_END) - 20_000, 0))
            text = file.read().decode(errors='replace')
        places = list(pattern.finditer(text))
        return places[-1] if places else None


@dataclass(eq=False)
class Run(Task):
    """One training of the comparison."""

    what = 'training'

    entry: Entry
    seed: int
    folder: Path
    cfg: Config = field(repr=False)
    result: Result | None = None

    @property
    def name(self) -> str:
        """Of the run, for people."""
        rate = f' lr {self.entry.lr:g}' if self.entry.from_grid else ''
        return f'{self.entry.name}{rate} seed {self.seed}'

    @property
    def home(self) -> Path:
        """Where all is that belongs to the run."""
        return self.folder

    @property
    def log(self) -> Path:
        """What the training wrote to its terminal."""
        return self.folder / 'train.log'

    @property
    def score(self) -> float | None:
        """The mAP of the last epoch."""
        return self.result.final if self.result else None

    @property
    def minutes(self) -> float | None:
        """Wall time of the training."""
        return self.result.minutes if self.result else None

    @property
    def _done(self) -> Path:
        return self.folder / 'result.json'

    def load(self) -> bool:
        """Take over the result of an earlier call, if there is one."""
        if not self._done.is_file():
            return False
        known = json.loads(self._done.read_text())
        known['scores'] = [tuple(score) for score in known['scores']]
        self.result = Result(**known)
        return True

    def _prepare(self, resume: bool) -> list[str]:
        self.resumed = resume and (self.folder / 'last_checkpoint').is_file()
        if not self.resumed:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir()
        # They are of what was trained here before.
        for old in self.folder.glob('evaluation_*.json'):
            old.unlink()
        # Not in the folder, where mmengine writes one of this name.
        config = self.folder.with_suffix('.py')
        self.cfg.dump(config)
        command = [sys.executable, str(TOOLS / 'train.py'), str(config)]
        command += ['--work-dir', str(self.folder)]
        return command + (['--resume'] if self.resumed else [])

    def _take(self, minutes: float, memory: float) -> None:
        result = self._read(minutes, memory)
        _write(asdict(result), self._done)
        self.result = result

    def _read(self, minutes: float, memory: float) -> Result:
        curves = read_curves(self.folder)
        if not curves.scores:
            raise RuntimeError('no mAP was logged')
        times, cuda = [], []
        for path in sorted(self.folder.glob('*/vis_data/scalars.json')):
            for line in path.read_text().splitlines():
                try:
                    record = json.loads(line)
                except ValueError:
                    # Half a last line of a run that was resumed; elsewhere
                    # `read_curves` has refused it.
                    continue
                if 'loss' in record and 'time' in record:
                    times.append(record['time'])
                    cuda.append(record.get('memory'))
        return Result(
            scores=curves.scores,
            step_name=curves.step_name,
            minutes=minutes,
            # Logged means of a window; the first one has the start in it.
            iteration=statistics.median(times[1:] or times),
            memory=memory,
            cuda_memory=max(cuda) if all(cuda) else None,
            resumed=self.resumed,
        )

    def share(self) -> float:
        """How much of the training is done, from 0 to 1, by its log."""
        found = self._place(_TRAINED)
        if not found:
            return 0.0
        part = int(found['done']) / int(found['all'])
        if found['epoch'] is None:
            return part
        return (int(found['epoch']) - 1 + part) / self.cfg.train_cfg.max_epochs

    def checkpoint(self) -> Path:
        """Find the checkpoint of the last epoch.

        Raises:
            FileNotFoundError: If there is none; the message says what to do.
        """
        pointer = self.folder / 'last_checkpoint'
        named = pointer.read_text().strip() if pointer.is_file() else ''
        # By its name in the folder, which may have been moved.
        path = self.folder / Path(named).name
        if not named or not path.is_file():
            raise FileNotFoundError(
                f'{self.name}: no checkpoint in {self.folder} to evaluate; '
                'delete that folder, so that it is trained again, or fix the '
                f'rate by --lr {self.entry.name}=VALUE'
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

    what = 'evaluation'

    run: Run
    split: str
    cfg: Config = field(repr=False)
    score: float | None = None
    minutes: float | None = None

    @property
    def name(self) -> str:
        """Of the evaluation, for people."""
        return f'{self.run.name} on {self.split}'

    @property
    def entry(self) -> Entry:
        """What is evaluated."""
        return self.run.entry

    @property
    def home(self) -> Path:
        """The folder of the run."""
        return self.run.folder

    @property
    def log(self) -> Path:
        """What the evaluation wrote to its terminal."""
        return self._folder.with_suffix('.log')

    @property
    def _folder(self) -> Path:
        return self.home / f'evaluation_{self.split}'

    @property
    def _done(self) -> Path:
        return self._folder.with_suffix('.json')

    def load(self) -> bool:
        """Take over the result of an earlier call, if there is one."""
        if not self._done.is_file():
            return False
        known = json.loads(self._done.read_text())
        self.score, self.minutes = known['mAP'], known['minutes']
        return True

    def _prepare(self, resume: bool) -> list[str]:
        checkpoint = self.run.checkpoint()
        shutil.rmtree(self._folder, ignore_errors=True)
        self.log.unlink(missing_ok=True)
        config = self._folder.with_suffix('.py')
        self.cfg.dump(config)
        command = [sys.executable, str(TOOLS / 'test.py'), str(config)]
        return [*command, str(checkpoint), '--work-dir', str(self._folder)]

    def _take(self, minutes: float, memory: float) -> None:
        # mmengine's logger hook writes what was measured to
        # TIMESTAMP/TIMESTAMP.json.
        found = {}
        for path in sorted(self._folder.glob('*/*.json')):
            found.update(json.loads(path.read_text()))
        scores = [v for k, v in found.items() if _MAP.search(k)]
        if not scores or not math.isfinite(scores[0]):
            raise RuntimeError(
                f'no mAP was measured on {self.split}: {found or "nothing"}'
            )
        data = self.cfg.test_dataloader.dataset.get('ann_file')
        _write(
            {
                'mAP': scores[0],
                'minutes': minutes,
                'ann_file': data,
                'checkpoint': self.run.checkpoint().name,
            },
            self._done,
        )
        self.score, self.minutes = scores[0], minutes

    def share(self) -> float:
        """How much of the evaluation is done, from 0 to 1, by its log."""
        found = self._place(_TESTED)
        return int(found['done']) / int(found['all']) if found else 0.0


def _write(known: dict, path: Path) -> None:
    half = path.with_suffix('.half')
    half.write_text(json.dumps(known, indent=1))
    half.replace(path)


def resident_peak(pid: int) -> float | None:
    """Largest resident size of a process so far in MiB, where Linux tells."""
    try:
        status = Path(f'/proc/{pid}/status').read_text()
    except OSError:
        return None
    found = re.search(r'VmHWM:\s+(\d+) kB', status)
    return int(found[1]) * 1024 / MIB if found else None


def make_run(entry: Entry, seed: int, work_dir: Path) -> Run:
    """Name the run of one seed by all that decides its figures."""
    cfg = Config(entry.cfg.to_dict())
    cfg.setdefault('randomness', {})
    cfg.randomness.seed = seed
    text = json.dumps(cfg.to_dict(), sort_keys=True, default=repr)
    digest = hashlib.sha256(text.encode()).hexdigest()[:10]
    return Run(
        entry, seed, work_dir / entry.name / f'seed{seed}-{digest}', cfg
    )


def told(task: Task) -> str:
    """Say how a run or an evaluation went."""
    if task.failure:
        return f'{task.name}: FAILED, {task.failure}'
    return f'{task.name}: mAP {task.score:.3f}, {task.minutes:.1f} min'
