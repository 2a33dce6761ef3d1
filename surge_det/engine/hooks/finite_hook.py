"""Training stops at the first number that is not finite."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.optim import Optimizer

from surge_det.datasets.dropped import some
from surge_det.engine.hooks.runner_info import optim_wrappers

_STATISTICS = ('running_mean', 'running_var')


class NonFiniteError(RuntimeError):
    """A gradient, or a value to be saved, is NaN or infinite."""


@HOOKS.register_module()
class SURGEFiniteHook(Hook):
    """Stops training at the first gradient or weight that is not finite.

    Gradients are looked at just before the optimizer uses them, so weights
    are still those of the step before. A step that a gradient scaler skips,
    because its scale was too large, never comes there. No checkpoint is
    written with a value that is not finite, so none takes the place of a good
    one.

    Raises:
        NonFiniteError: With iteration, images, the first layer whose output
            or gradient is not finite, and what to try. The batch is kept in
            ``non_finite_batch.pth`` of the work folder.
    """

    # Before checkpoints are written.
    priority = 'VERY_HIGH'

    def before_train(self, runner: Runner) -> None:
        """Watch the optimizers."""
        self._runner = runner
        self._handles = [
            wrapper.optimizer.register_step_pre_hook(self._look)
            for wrapper in optim_wrappers(runner)
        ]

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None
    ) -> None:
        """Hold the batch."""
        self._batch = data_batch

    def after_train(self, runner: Runner) -> None:
        """Leave the optimizers."""
        for handle in self._handles:
            handle.remove()

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """See that what is to be saved is finite."""
        model = _plain(runner.model)
        # Other buffers may hold infinities on purpose, as masks do.
        learned = {name for name, _ in model.named_parameters()}
        names = [
            name
            for name, value in checkpoint.get('state_dict', {}).items()
            if (name in learned or name.endswith(_STATISTICS))
            and not _finite(value)
        ]
        if names:
            raise NonFiniteError(
                f'iteration {runner.iter}: {some(names)} of the model are '
                f'not finite; no checkpoint is written. {_remedies(runner)}'
            )

    def _look(self, optimizer: Optimizer, *args: Any) -> None:
        gradients = [
            parameter.grad
            for group in optimizer.param_groups
            for parameter in group['params']
            if parameter.grad is not None and not parameter.grad.is_sparse
        ]
        # One number to wait for. Infinities that are only in the sum of
        # squares are looked at one by one.
        norms = torch._foreach_norm(gradients) if gradients else []
        if not norms or torch.stack(norms).isfinite().all():
            return
        if all(map(_finite, gradients)):
            return
        raise NonFiniteError(self._describe())

    def _describe(self) -> str:
        runner, model = self._runner, _plain(self._runner.model)
        gradients = {
            name: parameter.grad
            for name, parameter in model.named_parameters()
            if parameter.grad is not None
        }
        names = [name for name, g in gradients.items() if not _finite(g)]
        paths = list(_image_paths(self._batch))
        first = _first_output(model, self._batch)
        if first:
            where = f'the first output that is not finite is that of {first}'
        elif len(names) == len(gradients):
            # One such norm makes all gradients so when they are clipped.
            where = (
                'all outputs are finite, so it began in the backward pass, '
                'where clipping spreads it to all gradients'
            )
        else:
            # Gradients go from the end to the beginning.
            where = f'the last layer with such a gradient has {names[-1]}'
        kept = Path(runner.work_dir, 'non_finite_batch.pth')
        if is_main_process():
            batch = self._batch if isinstance(self._batch, dict) else {}
            torch.save({'inputs': batch.get('inputs'), 'images': paths}, kept)
        return (
            f'iteration {runner.iter + 1}: gradients of {some(names)} are '
            f'not finite; {where}. Images: {some(paths) or "unknown"}; the '
            f'batch is kept in {kept}. Weights are those before this step. '
            f'{_remedies(runner)}'
        )


def _plain(model: nn.Module) -> nn.Module:
    return model.module if is_model_wrapper(model) else model


def _finite(value: Any) -> bool:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return True
    return bool(value.isfinite().all())


def _remedies(runner: Runner) -> str:
    rate = max(
        group['lr']
        for wrapper in optim_wrappers(runner)
        for group in wrapper.optimizer.param_groups
    )
    return (
        f'To try: a learning rate below {rate:g}, a warm-up, '
        'optim_wrapper.clip_grad=dict(max_norm=35), a look at these images '
        'and at the weights that training started from'
    )


def _image_paths(batch: Any) -> Iterator[str]:
    samples = batch.get('data_samples') if isinstance(batch, dict) else None
    for sample in samples or ():
        path = getattr(sample, 'img_path', None)
        if path:
            yield str(path)


@torch.no_grad()
def _first_output(model: nn.Module, batch: Any) -> str | None:
    """Run the batch again and name the first layer of an unfit output."""
    found: list[str] = []

    def look(name: str):
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if not found and not _finite(output):
                found.append(name)

        return hook

    handles = [
        module.register_forward_hook(look(name))
        for name, module in model.named_modules()
        if not any(module.children())
    ]
    try:
        model(**model.data_preprocessor(batch, True), mode='loss')
    # What the numbers lead to must not hide them.
    except Exception:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None
