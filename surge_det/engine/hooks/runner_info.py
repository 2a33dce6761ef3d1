"""What hooks that send values to the log ask of a runner."""

from __future__ import annotations

from mmengine.hooks import Hook, LoggerHook
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import Runner
from torch import nn

_DEFAULT_INTERVAL = 10  # LoggerHook's


def logs_now(
    hook: Hook, runner: Runner, batch_idx: int, interval: int | None
) -> bool:
    """Whether a training iteration is one that logs.

    Args:
        hook: The hook that asks.
        runner: In training.
        batch_idx: As hooks get it.
        interval: Iterations between two logs; ``None``: as the runner's
            ``LoggerHook``.
    """
    # LoggerHook's own rule, so that all log in the same iterations.
    logger_hook = next(
        (h for h in runner.hooks if isinstance(h, LoggerHook)), None
    )
    interval = interval or getattr(logger_hook, 'interval', _DEFAULT_INTERVAL)
    if hook.every_n_inner_iters(batch_idx, interval):
        return True
    loader = runner.train_dataloader
    ignore_last = getattr(logger_hook, 'ignore_last', True)
    return hook.end_of_epoch(loader, batch_idx) and (
        not ignore_last or len(loader) <= interval
    )


def optim_wrappers(runner: Runner) -> list[OptimWrapper]:
    """Return the optimizer wrappers of a runner, one or several."""
    wrapper = runner.optim_wrapper
    if isinstance(wrapper, OptimWrapperDict):
        return list(wrapper.values())
    return [wrapper]


def plain_model(model: nn.Module) -> nn.Module:
    """Return a model without what wraps it, in processes or for TTA."""
    while isinstance(getattr(model, 'module', None), nn.Module):
        model = model.module
    return model
