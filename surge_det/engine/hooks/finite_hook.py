"""Training stops at the first number that is not finite."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import get_rank, get_world_size, is_main_process
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn
from torch.optim import Optimizer

from surge_det.engine.finite import all_finite, is_finite
from surge_det.engine.hooks.runner_info import optim_wrappers, plain_model
from surge_det.text import some

_STATISTICS = ('running_mean', 'running_var')
# After so many halvings torch's gradient scaler, which begins at 65,536, has a
# scale below the smallest number of float16.
_SKIPS = 50


class NonFiniteError(RuntimeError):
    """A loss, a gradient, or a value to be saved is NaN or infinite."""


@HOOKS.register_module()
class SURGEFiniteHook(Hook):
    """Stops training at the first number that is not finite.

    Gradients are looked at just before an optimizer uses them, those of FSG's
    networks too, so weights are still those of the step before. A step that a
    gradient scaler skips, because its scale was too large, does not count; 50
    in a row have another reason. A loss is looked at after its step: where it
    alone is not finite, weights are. No checkpoint is written with a value
    that is not finite, so none takes the place of a good one.

    Raises:
        NonFiniteError: With iteration, images, the first layer whose output
            or gradient is not finite, and what to try. The batch is kept in
            ``non_finite_batch.pth`` of the work folder, or with several
            processes in ``non_finite_batch_RANK.pth`` of each whose outputs
            are not finite, or of the first.
    """

    # Before checkpoints are written.
    priority = 'VERY_HIGH'

    def before_train(self, runner: Runner) -> None:
        """Watch the optimizers."""
        self._runner = runner
        self._stepped, self._skips = False, 0
        self._handles = [
            optimizer.register_step_pre_hook(self._look)
            for wrapper in optim_wrappers(runner)
            for optimizer in _optimizers(wrapper)
        ]

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None
    ) -> None:
        """Hold the batch."""
        self._batch = data_batch
        self._stepped = False

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: dict | None = None,
    ) -> None:
        """Look at the loss, and whether a gradient scaler still steps."""
        outputs = outputs if isinstance(outputs, dict) else {}
        losses = {key: v for key, v in outputs.items() if 'loss' in key}
        if not all_finite(losses.values()):
            names = [key for key, v in losses.items() if not is_finite(v)]
            raise NonFiniteError(
                f'iteration {runner.iter + 1}: not finite: {some(names)}'
                f'{self._describe(self._first_output())}'
            )
        wrappers = optim_wrappers(runner)
        if self._stepped or not any(map(_is_scaled, wrappers)):
            self._skips = 0
        elif any(wrapper.should_update() for wrapper in wrappers):
            self._skips += 1
        if self._skips >= _SKIPS:
            raise NonFiniteError(
                f'iteration {runner.iter + 1}: the gradient scaler has '
                f'skipped {self._skips} steps in a row, so it is not its '
                'scale that makes gradients infinite'
                f'{self._describe(self._first_output())}'
            )

    def after_train(self, runner: Runner) -> None:
        """Leave the optimizers."""
        for handle in self._handles:
            handle.remove()

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """See that what is to be saved is finite."""
        model = plain_model(runner.model)
        # Other buffers may hold infinities on purpose, as masks do.
        learned = {name for name, _ in model.named_parameters()}
        names = [
            name
            for name, value in checkpoint.get('state_dict', {}).items()
            if (name in learned or name.endswith(_STATISTICS))
            and not is_finite(value)
        ]
        if names:
            raise NonFiniteError(
                f'iteration {runner.iter}: {some(names)} of the model are '
                f'not finite; no checkpoint is written. {_remedies(runner)}'
            )

    def _look(self, optimizer: Optimizer, *args: Any) -> None:
        # Fused optimizers skip the step themselves.
        found = getattr(optimizer, 'found_inf', None)
        if found is not None and found:
            return
        self._stepped = True
        if all_finite(
            parameter.grad
            for group in optimizer.param_groups
            for parameter in group['params']
        ):
            return
        gradients = {
            name: parameter.grad
            for name, parameter in plain_model(
                self._runner.model
            ).named_parameters()
            if parameter.grad is not None
        }
        names = [name for name, g in gradients.items() if not is_finite(g)]
        where = self._first_output(of_all=True)
        if where or not names:
            pass
        elif get_world_size() > 1:
            # Gradients are everyone's.
            where = (
                f'; all outputs of process {get_rank()} are finite: it began '
                'in another one, or in the backward pass'
            )
        elif len(names) == len(gradients):
            # One such norm makes all gradients so when they are clipped.
            where = (
                '; all outputs are finite, so it began in the backward pass, '
                'where clipping spreads it to all gradients'
            )
        else:
            # Gradients go from the end to the beginning.
            where = f'; the last layer with such a gradient has {names[-1]}'
        raise NonFiniteError(
            f'iteration {self._runner.iter + 1}: gradients of '
            f'{some(names) or "what FSG trains"} are not finite'
            f'{self._describe(where)}. Weights are those before this step'
        )

    def _first_output(self, of_all: bool = False) -> str:
        # A pass of one process would wait for the others, in vain.
        if get_world_size() > 1 and not of_all:
            return ''
        first = _first_output(self._runner, self._batch)
        if not first:
            return ''
        return f'; the first output that is not finite is that of {first}'

    def _describe(self, where: str) -> str:
        """Keep the batch, and say all that there is to say."""
        runner = self._runner
        paths = list(_image_paths(self._batch))
        suffix = f'_{get_rank()}' * (get_world_size() > 1)
        kept = Path(runner.work_dir, f'non_finite_batch{suffix}.pth')
        text = f'{where}. Images: {some(paths) or "unknown"}'
        if is_main_process() or 'output that is not' in where:
            batch = self._batch if isinstance(self._batch, dict) else {}
            torch.save({'inputs': batch.get('inputs'), 'images': paths}, kept)
            text += f'; the batch is kept in {kept}'
        return f'{text}. {_remedies(runner)}'


def _optimizers(wrapper: OptimWrapper) -> Iterator[Optimizer]:
    yield wrapper.optimizer
    fsg = getattr(wrapper, 'fsg', None)
    if fsg is not None:
        yield from (fsg.fast_optimizer, fsg.slow_optimizer)


def _is_scaled(wrapper: OptimWrapper) -> bool:
    scaler = getattr(wrapper, 'loss_scaler', None)
    return scaler is not None and scaler.is_enabled()


def _remedies(runner: Runner) -> str:
    rate = max(
        group['lr']
        for wrapper in optim_wrappers(runner)
        for group in wrapper.optimizer.param_groups
    )
    narrow = any(map(_is_scaled, optim_wrappers(runner)))
    return (
        'To try: '
        + "optim_wrapper.dtype='bfloat16', " * narrow
        + f'a learning rate below {rate:g}, a warm-up, '
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
def _first_output(runner: Runner, batch: Any) -> str | None:
    """Run the batch again and name the first layer of an unfit output."""
    model = plain_model(runner.model)
    found: list[str] = []

    def look(name: str):
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if not found and not is_finite(output):
                found.append(name)

        return hook

    handles = [
        module.register_forward_hook(look(name))
        for name, module in model.named_modules()
        if not any(module.children())
    ]
    try:
        # As it ran: with autocast, where there is one.
        with optim_wrappers(runner)[0].optim_context(runner.model):
            model(**model.data_preprocessor(batch, True), mode='loss')
    # What the numbers lead to must not hide them.
    except Exception:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None
