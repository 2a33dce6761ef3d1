"""Run the tasks of a comparison, some at a time, and show how far they are."""

from __future__ import annotations

import math
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from datetime import timedelta
from typing import IO

import torch
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from .candidates import Candidate, expected_tasks
from .runs import POLL, Evaluation, Run, Task, describe, say

# Of a training's time, for an evaluation.
EVALUATION = 0.1
# Seconds between two looks at all logs: with bars, and without.
ON_TERMINAL, IN_FILE = 2.0, 300.0


def environment(slot: int, jobs: int) -> dict[str, str]:
    """Give a process its share of the machine."""
    env = dict(os.environ)
    share = str(max((os.cpu_count() or 1) // jobs, 1))
    # One number: MKL takes OpenMP's. Where they differed, changes between the
    # two made iterations take several times as long.
    env.setdefault('OMP_NUM_THREADS', env.get('MKL_NUM_THREADS', share))
    gpus = torch.cuda.device_count()
    if gpus > 1:
        visible = env.get('CUDA_VISIBLE_DEVICES')
        names = visible.split(',') if visible else list(map(str, range(gpus)))
        env['CUDA_VISIBLE_DEVICES'] = names[slot % gpus]
    return env


def _waiting(candidates: Sequence[Candidate]) -> list[Task]:
    """List what is ready and not done, seed by seed.

    So pairs are complete early, and later seeds of a method whose rate is
    chosen fill the places that the others' first seed leaves free.
    """
    ready = [pair for each in candidates for pair in each.ready()]
    ready.sort(key=lambda pair: pair[0])
    return [task for _, task in ready if task.open]


def show(
    progress: Progress, tasks: Sequence[Task], bars: Mapping[Task, TaskID]
) -> str:
    """Show how far all tasks are; return it in words.

    Args:
        progress: Its first bar is that of the whole.
        tasks: All that was or will be done.
        bars: Of the running tasks.
    """
    total = completed = 0.0
    running = []
    for task in tasks:
        weight = EVALUATION if isinstance(task, Evaluation) else 1.0
        share = 1.0 if task.result else 0.0
        if task in bars:
            share = task.share()
            progress.update(bars[task], completed=share)
            running.append(f'{task.name} {share:.0%}')
        if not task.failure:
            total += weight
            completed += weight * share
    done = sum(task.result is not None for task in tasks)
    failed = sum(task.failure is not None for task in tasks)
    text = f'{done} of {len(tasks)} done, {failed} failed'
    whole = progress.tasks[0]
    progress.update(
        whole.id, total=total, completed=completed, description=text
    )
    if whole.time_remaining:
        text += f', about {timedelta(seconds=whole.time_remaining)} left'
    if running:
        text += f'; running: {", ".join(running)}'
    return text


def run_all(
    candidates: Sequence[Candidate],
    jobs: int,
    resume: bool,
    report: Callable[[], None],
) -> None:
    """Train and evaluate what is not done yet, ``jobs`` at a time.

    Args:
        candidates: All that is compared.
        jobs: Processes at a time.
        resume: Whether half runs go on.
        report: Called after each task that has ended.

    Raises:
        KeyboardInterrupt: After all processes were ended.
    """
    environments: queue.SimpleQueue[dict[str, str]] = queue.SimpleQueue()
    for slot in range(jobs):
        environments.put(environment(slot, jobs))
    stop = threading.Event()
    running: dict[Future, Task] = {}
    bars: dict[Task, TaskID] = {}
    elsewhere: set[Task] = set()
    progress = Progress(
        TextColumn('{task.description}', markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        speed_estimate_period=math.inf,
        transient=True,
        disable=not sys.stdout.isatty(),
    )
    progress.add_task('')
    next_look = 0.0

    def execute(task: Task, lock: IO) -> None:
        env = environments.get()
        task.execute(env, lock, stop)
        environments.put(env)

    def start(task: Task, lock: IO) -> None:
        how = 'started'
        if resume and isinstance(task, Run) and task.newest():
            task.resumed = True
            how = 'resumed'
        say(f'{task.name}: {how}, log: {task.log}')
        bars[task] = progress.add_task(task.name, total=1)
        running[pool.submit(execute, task, lock)] = task

    def ended(task: Task, note: str = '') -> None:
        nonlocal next_look
        say(f'{describe(task)}{note}')
        for each in candidates:
            each.choose()
        report()
        next_look = 0.0

    with ExitStack() as handlers, progress, ThreadPoolExecutor(jobs) as pool:
        for number in (signal.SIGTERM, signal.SIGHUP):
            # Where nohup ignores SIGHUP, that stays so.
            if signal.getsignal(number) is not signal.SIG_IGN:
                old = signal.signal(number, signal.default_int_handler)
                handlers.callback(signal.signal, number, old)
        try:
            while running or _waiting(candidates):
                for future in [f for f in running if f.done()]:
                    future.result()
                    task = running.pop(future)
                    progress.remove_task(bars.pop(task))
                    ended(task)
                at_work = {task.folder for task in bars}
                for task in _waiting(candidates):
                    if len(running) == jobs:
                        break
                    if task.folder in at_work:
                        continue
                    lock = task.lock()
                    if lock is None:
                        if task not in elsewhere:
                            say(f'{task.name}: another process is at it')
                        elsewhere.add(task)
                    elif task.load():
                        lock.close()
                        ended(task, ' (by another process)')
                    else:
                        start(task, lock)
                if time.monotonic() >= next_look:
                    state = show(progress, expected_tasks(candidates), bars)
                    wait = ON_TERMINAL
                    if progress.disable:
                        say(state)
                        wait = IN_FILE
                    next_look = time.monotonic() + wait
                time.sleep(POLL)
        finally:
            # The pool waits until each thread has ended its process.
            stop.set()
