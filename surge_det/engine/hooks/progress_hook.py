"""Training progress for what changes over a run, and ReSTE's indicators."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor

from surge_det.core import checks
from surge_det.core.indicators import (
    estimating_error,
    gradient_variance,
    has_surrogate,
)
from surge_det.core.layers import SURGELayer, named_surge_layers
from surge_det.core.progress import scheduled_values, set_progress

from .runner_info import logs_now, optim_wrappers


@HOOKS.register_module()
class SURGEProgressHook(Hook):
    """Moves everything in the model that has a schedule, and logs it.

    Before each training iteration, progress is set to iterations done over
    iterations of the run, whether the loop counts epochs or iterations, and
    after a resume as well. A model without a schedule is left alone.

    At the log interval ``train/progress/<class>.<symbol>`` (``ReSTE.o``,
    ``EDE.t``, ``EDE.k``, ``ReCU.tau``, the mean over all layers) go to the
    message hub and so into the log and to every entry of ``vis_backends``.

    With ``indicators`` ReSTE's two (arXiv 2308.06689) go there too:
    ``train/indicator/activation_error`` and
    ``train/indicator/weight_error``, the estimating errors of the binarized
    layers, mean over their applications; and
    ``train/indicator/gradient_variance``, of all gradients that the
    optimizer steps with, clipped where the config clips, without those of
    the replicas. An estimator without a ``surrogate`` is left out. Only
    iterations that log cost anything.

    Args:
        interval: Iterations between two logs; ``None``: as the runner's
            ``LoggerHook``.
        indicators: Whether the indicators are logged.

    Raises:
        ValueError: If an argument is out of range.
    """

    # Before LoggerHook (BELOW_NORMAL), which writes what this one sends.
    priority = 'NORMAL'

    def __init__(
        self, interval: int | None = None, indicators: bool = False
    ) -> None:
        self.interval = checks.integer('interval', interval, 1, or_none=True)
        self.indicators = checks.boolean('indicators', indicators)
        self._handles: list[Any] = []
        self._seen: dict[str, list[Tensor]] = defaultdict(list)

    def before_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict | tuple | list | None = None,
    ) -> None:
        """Set the progress; watch the iteration, if it logs."""
        set_progress(runner.model, min(runner.iter / runner.max_iters, 1.0))
        if (
            self.indicators
            and is_main_process()
            and logs_now(self, runner, batch_idx, self.interval)
        ):
            self._watch(runner)

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict | tuple | list | None = None,
        outputs: dict | None = None,
    ) -> None:
        """Send the values, if this iteration logs."""
        if not is_main_process() or not logs_now(
            self, runner, batch_idx, self.interval
        ):
            return
        values = {
            f'train/progress/{name}': value
            for name, value in scheduled_values(runner.model).items()
        }
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        for name, tensors in self._seen.items():
            # One transfer for all of them.
            device = tensors[0].device
            numbers = torch.stack([t.to(device) for t in tensors]).cpu()
            values[f'train/indicator/{name}'] = numbers.double().mean().item()
        self._seen.clear()
        runner.message_hub.update_scalars(values)

    def _watch(self, runner: Runner) -> None:
        replicas = set()
        for _, layer in named_surge_layers(runner.model):
            self._handles.append(
                layer.register_forward_pre_hook(
                    self._see_layer, with_kwargs=True
                )
            )
            replicas.add(id(layer.aux_weight))

        # After the step the wrapper has set the gradients to none.
        def see_gradients(
            optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict
        ) -> None:
            parameters = [
                p
                for group in optimizer.param_groups
                for p in group['params']
                if id(p) not in replicas and p.grad is not None
            ]
            if parameters:
                variance = gradient_variance(parameters)
                self._seen['gradient_variance'].append(variance)

        for wrapper in optim_wrappers(runner):
            self._handles.append(
                wrapper.optimizer.register_step_pre_hook(see_gradients)
            )

    def _see_layer(self, layer: SURGELayer, args: tuple, kwargs: dict) -> None:
        x = args[0] if args else next(iter(kwargs.values()))
        # Without a region of interest a head runs on nothing.
        if not x.numel():
            return
        if layer.binarize_activation and has_surrogate(
            layer.activation_estimator
        ):
            z = layer.normalized(layer.shifted(x.detach()))
            self._seen['activation_error'].append(
                estimating_error(layer.activation_estimator, z.detach())
            )
        if layer.binarize_weight and has_surrogate(layer.weight_estimator):
            z = layer.binarized_weight().z
            self._seen['weight_error'].append(
                estimating_error(layer.weight_estimator, z)
            )
