"""Train one detector by several methods and put their mAP side by side.

Each method is trained with each seed, as ``tools/train.py`` does it, and
evaluated by the validation of its last epoch. Runs of one seed are paired:
they start from the same weights and see the images in the same order. Given
several configs and no ``--methods``, the configs are what is compared.

A finished run is kept, recognised by the whole text of its config (method,
seed, learning rate and ``--cfg-options`` included), so an interrupted
comparison goes on where it stopped and one folder can hold several. A half
run starts anew, because random states are not in a checkpoint and its figures
would not be those of a whole one; ``--resume`` goes on from its last
checkpoint all the same, for runs of days.

Example::

    python tools/compare.py configs/surge_faster_rcnn_r18_bccd.py \\
        --methods float ste reste fsg surge surge+reste \\
        --seeds 0 1 2 --jobs 2 --lr reste=0.001 fsg=0.001 \\
        --out work_dirs/compare_bccd
"""

from __future__ import annotations

import argparse
import csv
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
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, NamedTuple

# First: closes the toolbox's gaps before anything of it is imported.
import surge_det  # noqa: F401

# isort: split
import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt
import torch
from matplotlib.ticker import MaxNLocator
from mmengine.config import Config, DictAction
from plot_run import read_curves
from scipy import stats

from surge_det.core.methods import METHODS
from surge_det.datasets import check_data, merge_options
from surge_det.engine.methods import apply_method

TOOLS = Path(__file__).resolve().parent
MIB = 2**20
# Seconds between two looks at the running trainings, and between two lines
# about them, on a terminal and in a file.
POLL, ON_TERMINAL, IN_FILE = 0.2, 2.0, 300.0
# Seconds that a training has to end when it is told to.
GRACE = 10.0
LAST_LINES = 8
_PLACE = re.compile(
    r'(?:Epoch\(train\)\s*\[(?P<epoch>\d+)\]|Iter\(train\)\s*)'
    r'\[\s*(?P<done>\d+)/(?P<all>\d+)\]'
)
_SPLIT = re.compile(r'train(?:val)?|val|test')


class Entry(NamedTuple):
    """What is compared: a method, or a config, and its learning rate."""

    name: str
    cfg: Config
    lr: float | None


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


@dataclass(eq=False)
class Run:
    """One training of the comparison, to be done, running or done."""

    entry: Entry
    seed: int
    folder: Path
    cfg: Config = field(repr=False)
    slot: int = -1
    resumed: bool = False
    start: float = 0.0
    peak: float | None = None
    process: subprocess.Popen | None = None
    lock: IO | None = None
    result: Result | None = None
    failure: str | None = None

    @property
    def name(self) -> str:
        """Of the run, for people."""
        return f'{self.entry.name} seed {self.seed}'

    @property
    def log(self) -> Path:
        """What the training wrote to its terminal."""
        return self.folder / 'train.log'

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

    def begin(self, slot: int, env: Mapping[str, str], resume: bool) -> bool:
        """Start the training; False if another process is at this run."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        # The training holds the lock too: it may outlive this process.
        lock = open(self.folder.with_suffix('.lock'), 'w')  # noqa: SIM115
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            return False
        if self.load():
            lock.close()
            return True
        self.resumed = resume and (self.folder / 'last_checkpoint').is_file()
        if not self.resumed:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir()
        # Not in the folder, where mmengine writes one of this name.
        config = self.folder.with_suffix('.py')
        self.cfg.dump(config)
        command = [sys.executable, str(TOOLS / 'train.py'), str(config)]
        command += ['--work-dir', str(self.folder)]
        command += ['--resume'] if self.resumed else []
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
        self.peak = resident_peak(self.process.pid)
        return True

    def poll(self) -> bool:
        """Whether the training has ended; then take what it gave."""
        pid, status, usage = os.wait4(self.process.pid, os.WNOHANG)
        if not pid:
            self.peak = resident_peak(self.process.pid) or self.peak
            return False
        self.process.returncode = os.waitstatus_to_exitcode(status)
        minutes = (time.monotonic() - self.start) / 60
        unit = 1 if sys.platform == 'darwin' else 1024
        try:
            if self.process.returncode:
                raise RuntimeError(
                    f'training ended with status {self.process.returncode}'
                )
            # The second is at least this tool's own, which it started with.
            memory = self.peak or usage.ru_maxrss * unit / MIB
            self.result = self._read(minutes, memory)
        except (OSError, RuntimeError, ValueError) as error:
            lines = self.log.read_text(errors='replace').splitlines()
            tail = '\n'.join(f'    {x}' for x in lines[-LAST_LINES:])
            self.failure = f'{error}; {self.log} ends with:\n{tail}'
        else:
            half = self._done.with_suffix('.half')
            half.write_text(json.dumps(asdict(self.result), indent=1))
            half.replace(self._done)
        self.lock.close()
        return True

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
        with open(self.log, 'rb') as file:
            file.seek(max(file.seek(0, os.SEEK_END) - 20_000, 0))
            text = file.read().decode(errors='replace')
        places = list(_PLACE.finditer(text))
        if not places:
            return 0.0
        found = places[-1]
        part = int(found['done']) / int(found['all'])
        if found['epoch'] is None:
            return part
        return (int(found['epoch']) - 1 + part) / self.cfg.train_cfg.max_epochs


def resident_peak(pid: int) -> float | None:
    """Largest resident size of a process so far in MiB, where Linux tells."""
    try:
        status = Path(f'/proc/{pid}/status').read_text()
    except OSError:
        return None
    found = re.search(r'VmHWM:\s+(\d+) kB', status)
    return int(found[1]) * 1024 / MIB if found else None


def settle(cfg: Config, name: str, lr: float | None) -> float | None:
    """Give a config its learning rate; return the one it has then.

    Raises:
        ValueError: If it has no single one.
    """
    optimizer = (cfg.get('optim_wrapper') or {}).get('optimizer')
    if lr is not None:
        if optimizer is None:
            raise ValueError(
                f'--lr {name}={lr}: the config has no optim_wrapper.optimizer'
            )
        optimizer.lr = lr
    return optimizer.get('lr') if optimizer else None


def choose_split(cfg: Config, split: str) -> None:
    """Make validation, and so the comparison, use a split of the data.

    The file that lists the images is the one that the config validates on,
    with ``train``, ``val`` or ``test`` in its name replaced.

    Raises:
        ValueError: If there is no such file, or it lists training images.
    """
    dataset = cfg.val_dataloader.dataset
    old = dataset.get('ann_file') or ''
    stem = Path(old).name
    found = _SPLIT.search(stem)
    if not found:
        raise ValueError(
            f'--split {split}: val_dataloader.dataset.ann_file={old!r} has '
            "no 'val' or 'test' in its name; name the file by --cfg-options"
        )
    new = str(Path(old).with_name(_SPLIT.sub(split, stem, count=1)))
    root = dataset.get('data_root') or ''
    path = Path(root, new)
    if not path.is_file():
        raise ValueError(f'--split {split}: there is no {path}')
    dataset.ann_file = new
    evaluator = cfg.get('val_evaluator') or {}
    if isinstance(evaluator, dict) and evaluator.get('ann_file'):
        evaluator.ann_file = str(path)
    if split == 'val' and path.suffix == '.txt':
        wanted = set(path.read_text().split())
        for other in _lists(cfg.train_dataloader.dataset):
            if other.parent == path.parent and other.is_file():
                both = wanted & set(other.read_text().split())
                if both:
                    raise ValueError(
                        f'--split val: {len(both)} of {len(wanted)} images '
                        f'of {path} are trained on (in {other})'
                    )


def _lists(dataset: object) -> Iterator[Path]:
    if isinstance(dataset, (list, tuple)):
        for item in dataset:
            yield from _lists(item)
    elif isinstance(dataset, dict):
        yield from _lists(dataset.get('dataset') or dataset.get('datasets'))
        if dataset.get('ann_file'):
            yield Path(dataset.get('data_root') or '', dataset['ann_file'])


def plan(args: argparse.Namespace) -> list[Entry]:
    """Make a config of everything that is compared.

    Raises:
        ValueError: If a config does not admit a method or an option.
    """
    entries = []
    for path in args.configs:
        cfg = Config.fromfile(path)
        merge_options(cfg, args.cfg_options)
        if args.split:
            choose_split(cfg, args.split)
        for method in args.methods or [None]:
            own = apply_method(cfg, method) if method else cfg
            name = method or path.stem
            lr = settle(own, name, args.lr.get(name))
            entries.append(Entry(name, own, lr))
    return entries


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


class Screen:
    """Lines about events, and one about the state of things."""

    def __init__(self) -> None:
        self._terminal = sys.stdout.isatty()
        self._shown = 0
        self._next = 0.0

    def say(self, text: str) -> None:
        """Print a line that stays."""
        self._wipe()
        print(text, flush=True)

    def state(self, text: str) -> None:
        """Print the state, where the last one stood on a terminal."""
        self._wipe()
        if self._terminal:
            text = text[: shutil.get_terminal_size().columns - 1]
            self._shown = len(text)
        print(text, end='' if self._terminal else '\n', flush=True)
        wait = ON_TERMINAL if self._terminal else IN_FILE
        self._next = time.monotonic() + wait

    @property
    def due(self) -> bool:
        """Whether the state was last shown long enough ago, or is new."""
        return time.monotonic() >= self._next

    @due.setter
    def due(self, value: bool) -> None:
        self._next = 0.0 if value else math.inf

    def _wipe(self) -> None:
        if self._shown:
            print('\r' + ' ' * self._shown + '\r', end='')
            self._shown = 0


def remaining(runs: Sequence[Run], jobs: int) -> float | None:
    """Estimate the seconds that are left; None while nothing is known.

    A method's runs take as long as its others did, or else as those of all
    methods did on average; a running one is believed from a twentieth on.
    """
    now = time.monotonic()
    known: dict[str, list[float]] = {}
    left: dict[int, float] = {}
    for run in runs:
        if run.result:
            seconds = run.result.minutes * 60
        elif run.process and not run.failure:
            share = run.share()
            if share < 0.05:
                continue
            seconds = (now - run.start) / share
            left[id(run)] = seconds * (1 - share)
        else:
            continue
        known.setdefault(run.entry.name, []).append(seconds)
    if not known:
        return None
    usual = statistics.mean(statistics.mean(v) for v in known.values())
    total = 0.0
    for run in runs:
        if run.result or run.failure:
            continue
        whole = statistics.mean(known.get(run.entry.name, [usual]))
        if run.process:
            whole = left.get(id(run), max(whole - (now - run.start), 0))
        total += whole
    open_runs = sum(not (r.result or r.failure) for r in runs)
    return total / max(min(jobs, open_runs), 1)


def summary(runs: Sequence[Run], jobs: int) -> str:
    """Say in a line which runs are done, running, failed, and what is left."""
    done = sum(run.result is not None for run in runs)
    failed = sum(run.failure is not None for run in runs)
    at_work = [
        f'{run.name} {100 * run.share():.0f} %'
        for run in runs
        if run.process and not (run.result or run.failure)
    ]
    seconds = remaining(runs, jobs)
    if seconds is None:
        left = 'time left not known yet'
    else:
        minutes = math.ceil(seconds / 60)
        left = f'about {minutes // 60} h {minutes % 60:02d} min left'
    return (
        f'{done} of {len(runs)} done, {failed} failed; {left}; '
        f'running: {", ".join(at_work) or "none"}'
    )


def environment(slot: int, jobs: int) -> dict[str, str]:
    """Give a training its share of the machine."""
    env = dict(os.environ)
    threads = str(max((os.cpu_count() or 1) // jobs, 1))
    for name in ('OMP_NUM_THREADS', 'MKL_NUM_THREADS'):
        env.setdefault(name, threads)
    env['PYTHONPATH'] = os.pathsep.join(
        filter(None, [str(TOOLS.parent), env.get('PYTHONPATH')])
    )
    gpus = torch.cuda.device_count()
    if gpus > 1:
        visible = env.get('CUDA_VISIBLE_DEVICES')
        names = visible.split(',') if visible else list(map(str, range(gpus)))
        env['CUDA_VISIBLE_DEVICES'] = names[slot % gpus]
    return env


@contextmanager
def stopped_as_by_keyboard() -> Iterator[None]:
    """Make a polite kill end the comparison as Ctrl-C does."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = {
        number: signal.signal(number, stop)
        for number in (signal.SIGTERM, signal.SIGHUP)
        # As nohup wants it.
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def train_all(
    runs: Sequence[Run], jobs: int, resume: bool, report: Callable[[], None]
) -> None:
    """Train what is not done yet, ``jobs`` at a time.

    Args:
        runs: All runs of the comparison.
        jobs: Trainings at a time.
        resume: Whether half runs go on.
        report: Called after each run that was finished.

    Raises:
        KeyboardInterrupt: After all trainings were ended.
    """
    screen = Screen()
    waiting = [run for run in runs if not run.result]
    running: list[Run] = []
    elsewhere: set[str] = set()
    try:
        with stopped_as_by_keyboard():
            while waiting or running:
                for run in [r for r in running if r.poll()]:
                    running.remove(run)
                    screen.say(told(run))
                    screen.due = True
                    report()
                for run in list(waiting):
                    if len(running) == jobs:
                        break
                    slot = min(set(range(jobs)) - {r.slot for r in running})
                    env = environment(slot, jobs)
                    if not run.begin(slot, env, resume):
                        if run.name not in elsewhere:
                            elsewhere.add(run.name)
                            screen.say(f'{run.name}: another process is at it')
                        continue
                    waiting.remove(run)
                    if run.result:
                        screen.say(f'{told(run)} (by another process)')
                        report()
                        continue
                    running.append(run)
                    how = 'resumed' if run.resumed else 'started'
                    screen.say(f'{run.name}: {how}, log: {run.log}')
                if screen.due:
                    screen.state(summary(runs, jobs))
                time.sleep(POLL if waiting or running else 0)
    finally:
        end([r for r in runs if r.process and not (r.result or r.failure)])


def told(run: Run) -> str:
    """Say how a run went."""
    if run.failure:
        return f'{run.name}: FAILED, {run.failure}'
    result = run.result
    return f'{run.name}: mAP {result.final:.3f}, {result.minutes:.1f} min'


def end(running: Sequence[Run]) -> None:
    """End trainings, with their data loading processes."""
    for run in running:
        with suppress(ProcessLookupError):
            os.killpg(run.process.pid, signal.SIGTERM)
    deadline = time.monotonic() + GRACE
    for run in running:
        try:
            run.process.wait(max(deadline - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            os.killpg(run.process.pid, signal.SIGKILL)
            run.process.wait()


def half_width(values: Sequence[float]) -> float:
    """Half of the mean's 95 % interval, by Student's t; two values or more."""
    error = statistics.stdev(values) / len(values) ** 0.5
    return float(stats.t.ppf(0.975, len(values) - 1)) * error


def table(
    runs: Sequence[Run], names: Sequence[str], baseline: str, head: str
) -> str:
    """Make a Markdown table with a row for each method (or config).

    mAP of each seed, mean ± standard deviation, mean paired difference to
    the baseline ± half of its 95 % interval (Student's t) over the seeds that
    both have, seconds per iteration (median), peak memory of the process and
    on the GPU (largest), minutes (median).
    """
    results = {
        name: {
            r.seed: r.result for r in runs if r.entry.name == name and r.result
        }
        for name in names
    }
    rates = {run.entry.name: run.entry.lr for run in runs}
    seeds = sorted({run.seed for run in runs})
    on_cuda = any(run.result and run.result.cuda_memory for run in runs)
    titles = [
        head,
        'lr',
        *(f'seed {s}' for s in seeds),
        'mean ± std',
        f'minus {baseline}',
        's/iter',
        'memory, MiB',
        *(['GPU, MiB'] if on_cuda else []),
        'minutes',
    ]
    lines = [
        f'| {" | ".join(titles)} |',
        '|---' * len(titles) + '|',
    ]
    for name in names:
        mine, base = results[name], results[baseline]
        finals = [result.final for result in mine.values()]
        mean = difference = '—'
        costs = ['—'] * (4 if on_cuda else 3)
        if finals:
            mean = f'{statistics.mean(finals):.3f}'
            costs = [
                f'{statistics.median(r.iteration for r in mine.values()):.3f}',
                f'{max(r.memory for r in mine.values()):.0f}',
                f'{statistics.median(r.minutes for r in mine.values()):.1f}',
            ]
            if on_cuda:
                cuda = max(r.cuda_memory or 0 for r in mine.values())
                costs.insert(2, f'{cuda:.0f}')
        if len(finals) > 1:
            mean += f' ± {statistics.stdev(finals):.3f}'
        pairs = [
            mine[s].final - base[s].final
            for s in seeds
            if s in mine and s in base
        ]
        if pairs and name != baseline:
            difference = f'{statistics.mean(pairs):+.3f}'
            if len(pairs) > 1:
                difference += f' ± {half_width(pairs):.3f}'
        cells = [
            name,
            '—' if rates[name] is None else f'{rates[name]:g}',
            *(f'{mine[s].final:.3f}' if s in mine else '—' for s in seeds),
            mean,
            difference,
            *costs,
        ]
        lines.append(f'| {" | ".join(cells)} |')
    return '\n'.join(lines)


def write_csv(runs: Sequence[Run], path: Path, split: str, head: str) -> None:
    """Write a row for each run; its curve is in the columns at the end."""
    steps = sorted({s for r in runs if r.result for s, _ in r.result.scores})
    names = {r.result.step_name for r in runs if r.result} or {'epoch'}
    step_name = min(names)
    with open(path, 'w', newline='') as file:
        writer = csv.writer(file)
        writer.writerow(
            [head, 'seed', 'lr', 'split', 'status', 'mAP']
            + ['s_per_iter', 'memory_mib', 'cuda_memory_mib', 'minutes']
            + ['resumed', *(f'mAP_{step_name}_{step}' for step in steps)]
        )
        for run in runs:
            row = [run.entry.name, run.seed, run.entry.lr, split]
            result = run.result
            if result is None:
                writer.writerow([*row, 'failed' if run.failure else 'open'])
                continue
            scores = dict(result.scores)
            row += ['done', f'{result.final:.4f}', f'{result.iteration:.4f}']
            row += [f'{result.memory:.0f}', result.cuda_memory]
            row += [f'{result.minutes:.2f}', int(result.resumed)]
            row += [f'{scores[s]:.4f}' if s in scores else '' for s in steps]
            writer.writerow(row)


def draw(runs: Sequence[Run], names: Sequence[str], path: Path) -> None:
    """Draw mAP over epochs: mean of the seeds, band of ± 1 std."""
    figure, axes = plt.subplots(figsize=(8, 5), layout='constrained')
    colors = plt.get_cmap('tab10' if len(names) <= 10 else 'tab20')
    step_name = 'epoch'
    for i, name in enumerate(names):
        mine = [r.result for r in runs if r.entry.name == name and r.result]
        if not mine:
            continue
        step_name = mine[0].step_name
        curves = [dict(result.scores) for result in mine]
        steps = sorted({step for curve in curves for step in curve})
        columns = [[c[s] for c in curves if s in c] for s in steps]
        means = [statistics.mean(column) for column in columns]
        spreads = [statistics.stdev(c) if len(c) > 1 else 0 for c in columns]
        axes.plot(
            steps,
            means,
            marker='o',
            markersize=4,
            color=colors(i % colors.N),
            linestyle='--' if name == 'float' else '-',
            label=f'{name} (n={len(mine)})',
        )
        axes.fill_between(
            steps,
            [m - s for m, s in zip(means, spreads)],
            [m + s for m, s in zip(means, spreads)],
            alpha=0.15,
            color=colors(i % colors.N),
            linewidth=0,
        )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel(step_name)
    axes.set_ylabel('mAP (mean; band: ± 1 std over seeds)')
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend(loc='lower right', frameon=False, fontsize='small')
    figure.savefig(path, dpi=130)
    plt.close(figure)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog=__doc__.partition('\n')[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('configs', nargs='+', type=Path, metavar='CONFIG')
    parser.add_argument(
        '--methods',
        nargs='+',
        metavar='METHOD',
        help=f'of the one config: {", ".join(METHODS)}, and surge+METHOD',
    )
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    parser.add_argument('--jobs', type=int, default=1, help='runs at a time')
    parser.add_argument(
        '--baseline',
        metavar='METHOD',
        help='what the others are compared with; default: ste, or the first',
    )
    parser.add_argument(
        '--lr',
        nargs='+',
        default=[],
        metavar='METHOD=VALUE',
        help="learning rate, where it is not the config's",
    )
    parser.add_argument(
        '--split',
        choices=['val', 'test'],
        help='of the data to evaluate on; default: the one that the config '
        'validates on',
    )
    parser.add_argument(
        '--resume',
        action='store_true',
        help='go on with half runs from their last checkpoint; other random '
        'numbers than in a whole run',
    )
    parser.add_argument(
        '--work-dir',
        type=Path,
        metavar='DIR',
        help='logs and checkpoints of the runs; default: as --out',
    )
    parser.add_argument(
        '--out',
        type=Path,
        default=Path('work_dirs/compare'),
        metavar='FOLDER',
        help='table, CSV and picture',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='override settings in all runs, as in tools/train.py',
    )
    args = parser.parse_args(argv)
    if args.jobs < 1:
        parser.error(f'--jobs {args.jobs}: at least 1')
    for config in args.configs:
        if not config.is_file():
            parser.error(f'config {str(config)!r} does not exist')
    if args.methods and len(args.configs) > 1:
        parser.error(
            f'--methods: one config, not {len(args.configs)}; without '
            '--methods the configs themselves are compared'
        )
    args.names = args.methods or [config.stem for config in args.configs]
    for option, values in (
        ('--methods' if args.methods else 'CONFIG', args.names),
        ('--seeds', args.seeds),
    ):
        if len(set(values)) < len(values):
            parser.error(f'{option}: one of {values} is given twice')
    if args.baseline is None:
        args.baseline = 'ste' if 'ste' in args.names else args.names[0]
    if args.baseline not in args.names:
        parser.error(f'--baseline {args.baseline!r}: one of {args.names}')
    rates = {}
    for item in args.lr:
        name, _, value = item.rpartition('=')
        try:
            rate = float(value)
        except ValueError:
            rate = math.nan
        if name not in args.names or not 0 < rate < math.inf:
            parser.error(
                f'--lr {item!r}: METHOD=VALUE with a method of {args.names} '
                'and a number > 0'
            )
        rates[name] = rate
    args.lr = rates
    return args


def write_report(
    runs: Sequence[Run], args: argparse.Namespace, entries: Sequence[Entry]
) -> None:
    """Write table, CSV and picture of what is done so far."""
    head = 'method' if args.methods else 'config'
    text = table(runs, args.names, args.baseline, head)
    (args.out / 'table.md').write_text(text + '\n')
    listed = entries[0].cfg.val_dataloader.dataset.get('ann_file') or ''
    split = args.split or Path(listed).stem
    write_csv(runs, args.out / 'runs.csv', split, head)
    draw(runs, args.names, args.out / 'map_over_epochs.png')


def main(argv: list[str] | None = None) -> int:
    """Run the tool; exit status 1 if a run failed, 2 if none could start."""
    args = parse_args(argv)
    try:
        entries = plan(args)
        work_dir = args.work_dir or args.out
        # Seed by seed, so that pairs are complete early.
        runs = [make_run(e, s, work_dir) for s in args.seeds for e in entries]
        kept = [run for run in runs if run.load()]
        for run in runs:
            if not run.result:
                check_data(run.cfg, ('train', 'val'))
    except (FileNotFoundError, ValueError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    ordered = sorted(
        runs, key=lambda run: (args.names.index(run.entry.name), run.seed)
    )
    args.out.mkdir(parents=True, exist_ok=True)

    def report() -> None:
        write_report(ordered, args, entries)

    for run in kept:
        print(f'{told(run)} (kept)')
    try:
        train_all(runs, args.jobs, args.resume, report)
    except KeyboardInterrupt:
        done = sum(run.result is not None for run in runs)
        print(
            f'\ninterrupted: {done} of {len(runs)} runs are finished and '
            'kept; the same command does the rest'
        )
        return 130
    report()
    print(f'\n{(args.out / "table.md").read_text()}')
    print(f'Table, runs.csv and picture: {args.out}')
    failed = [run for run in runs if run.failure]
    for run in failed:
        print(f'error: {told(run)}', file=sys.stderr)
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main())
