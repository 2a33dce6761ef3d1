"""Schedules that a training is too short for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.optim.scheduler.param_scheduler import INF
from mmengine.runner import IterBasedTrainLoop, Runner


def late_schedules(runner: Runner) -> Iterator[str]:
    """Tell which schedules end, or have a milestone, after the training.

    Args:
        runner: That trains; its ``param_schedulers`` are built.
    """
    built = runner.param_schedulers or []
    # One list for each optimizer, where there are several.
    lists = built if isinstance(built, Mapping) else {'': built}
    for optimizer, schedulers in lists.items():
        for index, scheduler in enumerate(schedulers):
            parts = filter(None, ['param_scheduler', optimizer, str(index)])
            for text in _problem(runner, scheduler):
                yield f'{".".join(parts)}{text}'


def _problem(runner: Runner, scheduler: Any) -> Iterator[str]:
    kind = type(scheduler).__name__
    by_epoch = scheduler.by_epoch
    if by_epoch and isinstance(runner.train_loop, IterBasedTrainLoop):
        yield (
            f' ({kind}) goes by epochs, and the training by iterations, so '
            'it never moves; give it by_epoch=False'
        )
        return
    length = runner.max_epochs if by_epoch else runner.max_iters
    setting = _late(scheduler, length)
    if setting:
        yield (
            f'.{setting} ({kind}): the training has {length} '
            f'{"epochs" if by_epoch else "iterations"}, so this schedule '
            'does not get to its end'
        )


def _late(scheduler: Any, length: int) -> str | None:
    milestones = sorted(getattr(scheduler, 'milestones', []))
    if milestones:
        # What changes after the last epoch changes nothing.
        late = milestones[-1] >= length
        return f'milestones={milestones}' if late else None
    if length < scheduler.end < INF:
        return f'end={scheduler.end}'
    # After how many steps a cosine is at its end, and StepLR goes down; what
    # changes after the last epoch changes nothing.
    for name, last in ('T_max', length), ('step_size', length - 1):
        value = getattr(scheduler, name, None)
        if value is not None and scheduler.begin + value > last:
            return f'{name}={value}'
    return None
