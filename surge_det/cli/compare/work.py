"""All runs of a comparison, some at a time, with their progress."""

from __future__ import annotations

import math
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import torch

from .choice import Contender
from .runs import TOOLS, Evaluation, Task, told

# Seconds between two looks at the running trainings, and between two lines
# about them, on a terminal and in a file.
POLL, ON_TERMINAL, IN_FILE = 0.2, 2.0, 300.0
# Seconds that a training has to end when it is told to.
GRACE = 10.0
# Of its training's time, for an evaluation while none has been timed.
EVALUATION = 0.1


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


def outlook(contenders: Sequence[Contender]) -> list[Task]:
    """All that was or will be done, as far as that is known."""
    return [task for each in contenders for task in each.outlook()]


def remaining(tasks: Sequence[Task], jobs: int) -> float | None:
    """Estimate the seconds that are left; None while nothing is known.

    A method's runs take as long as its others did, or else as those of all
    methods did on average; a running one is believed from a twentieth on.
    The same holds for evaluations.
    """
    now = time.monotonic()
    known: tuple[dict[str, list[float]], ...] = ({}, {})
    left: dict[int, float] = {}
    for task in tasks:
        if task.finished:
            seconds = task.minutes * 60
        elif task.process and not task.failure:
            share = task.share()
            if share < 0.05:
                continue
            seconds = (now - task.start) / share
            left[id(task)] = seconds * (1 - share)
        else:
            continue
        of_kind = known[isinstance(task, Evaluation)]
        of_kind.setdefault(task.entry.name, []).append(seconds)
    trainings, evaluations = (
        {name: statistics.mean(v) for name, v in of_kind.items()}
        for of_kind in known
    )
    if not trainings:
        return None
    usual = statistics.mean(trainings.values())
    usual_evaluation = (
        statistics.mean(evaluations.values())
        if evaluations
        else EVALUATION * usual
    )
    total = 0.0
    for task in tasks:
        if not task.open:
            continue
        if isinstance(task, Evaluation):
            whole = evaluations.get(task.entry.name, usual_evaluation)
        else:
            whole = trainings.get(task.entry.name, usual)
        if task.process:
            whole = left.get(id(task), max(whole - (now - task.start), 0))
        total += whole
    open_tasks = sum(task.open for task in tasks)
    return total / max(min(jobs, open_tasks), 1)


def summary(tasks: Sequence[Task], jobs: int) -> str:
    """Say in a line what is done, running and failed, and what is left."""
    done = sum(task.finished for task in tasks)
    failed = sum(task.failure is not None for task in tasks)
    at_work = [
        f'{task.name} {100 * task.share():.0f} %'
        for task in tasks
        if task.process and task.open
    ]
    seconds = remaining(tasks, jobs)
    if seconds is None:
        left = 'time left not known yet'
    else:
        minutes = math.ceil(seconds / 60)
        left = f'about {minutes // 60} h {minutes % 60:02d} min left'
    return (
        f'{done} of {len(tasks)} done, {failed} failed; {left}; '
        f'running: {", ".join(at_work) or "none"}'
    )


def environment(slot: int, jobs: int) -> dict[str, str]:
    """Give a process its share of the machine."""
    env = dict(os.environ)
    share = str(max((os.cpu_count() or 1) // jobs, 1))
    # One number: MKL takes OpenMP's. Where they differed, changes between the
    # two made iterations take several times as long.
    env.setdefault('OMP_NUM_THREADS', env.get('MKL_NUM_THREADS', share))
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


def _waiting(contenders: Sequence[Contender]) -> list[Task]:
    """What could start now, seed by seed, so that pairs are complete early.

    Later seeds of a method whose rate is chosen so fill the places that the
    others' first seed leaves free.
    """
    ready = [pair for each in contenders for pair in each.ready()]
    ready.sort(key=lambda pair: pair[0])
    return [task for _, task in ready if task.open and not task.process]


def do_all(
    contenders: Sequence[Contender],
    jobs: int,
    resume: bool,
    report: Callable[[], None],
) -> None:
    """Train and evaluate what is not done yet, ``jobs`` at a time.

    Args:
        contenders: All that is compared.
        jobs: Processes at a time.
        resume: Whether half runs go on.
        report: Called after each task that was finished.

    Raises:
        KeyboardInterrupt: After all processes were ended.
    """
    screen = Screen()
    running: list[Task] = []
    elsewhere: set[str] = set()

    def through(task: Task, note: str = '') -> None:
        screen.say(told(task) + note)
        screen.due = True
        for each in contenders:
            each.choose(screen.say)
        report()

    try:
        with stopped_as_by_keyboard():
            while True:
                for task in [t for t in running if t.poll()]:
                    running.remove(task)
                    through(task)
                waiting = _waiting(contenders)
                if not (waiting or running):
                    break
                for task in waiting:
                    if len(running) == jobs:
                        break
                    slot = min(set(range(jobs)) - {t.slot for t in running})
                    env = environment(slot, jobs)
                    if not task.begin(slot, env, resume):
                        if task.name not in elsewhere:
                            elsewhere.add(task.name)
                            screen.say(
                                f'{task.name}: another process is at it'
                            )
                        continue
                    if not task.process:
                        by = ' (by another process)' if task.finished else ''
                        through(task, by)
                        continue
                    running.append(task)
                    how = 'resumed' if task.resumed else 'started'
                    screen.say(f'{task.name}: {how}, log: {task.log}')
                if screen.due:
                    screen.state(summary(outlook(contenders), jobs))
                time.sleep(POLL)
    finally:
        tasks = [task for each in contenders for _, task in each.ready()]
        end([task for task in tasks if task.process and task.open])


def end(running: Sequence[Task]) -> None:
    """End processes, with their data loading processes."""
    for task in running:
        with suppress(ProcessLookupError):
            os.killpg(task.process.pid, signal.SIGTERM)
    deadline = time.monotonic() + GRACE
    for task in running:
        try:
            task.process.wait(max(deadline - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            os.killpg(task.process.pid, signal.SIGKILL)
            task.process.wait()
