"""Logging of what AGS and the estimators do."""

from __future__ import annotations

import math
import statistics

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor, nn

from surge_det.core import checks
from surge_det.core.figures import GROWTH, layer_figures
from surge_det.core.layers import SURGELayer
from surge_det.engine.optim.ags_optim_wrapper import (
    AGS_REMEDY,
    AGSMixin,
    binarized_layers,
    compensated_layers,
)

from .runner_info import logs_now, optim_wrappers, plain_model

# How many logs there are to a line of the text log, where epochs are long.
_LOGS = 10
# How many layers it names at either end.
_TOP = 3


@HOOKS.register_module()
class AGSHook(Hook):
    r"""Sends what every 1-bit layer does to mmengine's message hub.

    At the log interval, for each SURGE layer that is not frozen,
    ``ags/<figure>/<layer>`` with each of
    :data:`~surge_det.core.figures.FIGURES`, without a replica with those
    that need none, and for each ``nn.PReLU`` ``ags/slope/<module>``, its
    largest slope. The same values go to the visualizer, so every entry of
    ``vis_backends`` gets them, and `surge-det plot-ags` draws them. Where
    there are replicas the text log gets ``ags_scale``, the median
    :math:`\lambda`, and at the end of an epoch, or after ten logs, one line
    with its range and the layers at both ends.

    Values are those of the main process and of a layer's last application in
    its last backward pass. Norms contain AMP's loss scale and the division by
    the number of accumulated iterations; :math:`\lambda` does not. Norms,
    :math:`\eta` and :math:`\lambda`, and with ``eta='auto'`` ``r``, are
    computed in every pass, all else only in iterations that log; reading them
    synchronises with the device, once.

    A layer with a gradient of 0 at two logs in a row is warned of, once: its
    :math:`\lambda` says nothing, and it does not learn. A layer whose
    :math:`\lambda`, the base factor aside, is a hundred times that of the
    first iteration is warned of, once, and so is an ``nn.PReLU`` whose largest
    slope is a hundred times the first.

    Where the optimizer wrapper was replaced by one that knows no AGS, a
    warning before training says so.

    Args:
        interval: Iterations between two logs; ``None``: as the runner's
            ``LoggerHook``.

    Raises:
        ValueError: If ``interval`` is out of range.
    """

    # Before LoggerHook (BELOW_NORMAL), which writes what this one sends.
    priority = 'NORMAL'

    def __init__(self, interval: int | None = None) -> None:
        self.interval = checks.integer('interval', interval, 1, or_none=True)
        self._layers: dict[str, SURGELayer] = {}
        self._compensated: dict[str, SURGELayer] = {}
        self._slopes: dict[str, nn.PReLU] = {}
        self._signs: dict[str, Tensor] = {}
        self._line, self._unsaid = '', 0
        self._warned_of_unreached = False
        self._without_gradient: set[str] = set()
        self._warned_of: set[str] = set()
        # What may grow: as it began, not yet read, and read.
        self._start: dict[str, Tensor] = {}
        self._first: dict[str, float] = {}
        self._began = False

    def before_train(self, runner: Runner) -> None:
        """Find the layers; warn where AGS was lost."""
        self._layers = binarized_layers(runner.model)
        self._compensated = compensated_layers(runner.model)
        self._signs, self._unsaid = {}, 0
        self._warned_of_unreached = False
        self._without_gradient, self._warned_of = set(), set()
        self._slopes = {
            name: module
            for name, module in plain_model(runner.model).named_modules()
            if isinstance(module, nn.PReLU)
        }
        self._start, self._first = self._largest_slopes(), {}
        self._began = False
        wrappers = optim_wrappers(runner)
        lost = not any(isinstance(w, AGSMixin) for w in wrappers)
        if self._compensated and lost:
            found = ', '.join(type(w).__name__ for w in wrappers)
            runner.logger.warning(
                f'AGS is not applied from the config: the optimizer wrapper '
                f'is {found}, so {len(self._compensated)} layers keep the '
                f'eta they were built with. {AGS_REMEDY}'
            )

    def before_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict | tuple | list | None = None,
    ) -> None:
        """Ask layers for all figures, if this iteration logs."""
        watches = (
            bool(self._layers)
            and is_main_process()
            and logs_now(self, runner, batch_idx, self.interval)
        )
        for layer in self._layers.values():
            layer.watches = watches

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict | tuple | list | None = None,
        outputs: dict | None = None,
    ) -> None:
        """Send the values, if this iteration logs."""
        if not (self._layers or self._slopes) or not is_main_process():
            return
        if not self._began:
            self._began = True
            self._start |= self._ratios()
        if not logs_now(self, runner, batch_idx, self.interval):
            return
        values, sizes = self._read()
        self._warn_grown(runner, sizes)
        if not self._warned_of_unreached:
            self._warned_of_unreached = True
            self._warn_unreached(runner)
        if not values:
            return
        self._warn_stuck(runner, values)
        scales = {
            key.removeprefix('ags/scale/'): value
            for key, value in values.items()
            if key.startswith('ags/scale/')
        }
        # Not under train/, or mmengine's LogProcessor would put each of them
        # into the text line.
        runner.message_hub.update_scalars(values, resumed=False)
        runner.visualizer.add_scalars(values, step=runner.iter + 1)
        if not scales:
            return
        self._summarize(runner, scales)
        self._unsaid += 1
        if self._unsaid == _LOGS:
            self._say(runner)

    def after_train_epoch(self, runner: Runner) -> None:
        """Write the line of the last log."""
        if self._unsaid:
            self._say(runner)

    def _say(self, runner: Runner) -> None:
        self._unsaid = 0
        runner.logger.info(self._line)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Keep the names of values that are not saved out of the file.

        mmengine saves them and, on resume, warns of each that it is missing.
        """
        hub = checkpoint.get('message_hub')
        if isinstance(hub, dict) and 'resumed_keys' in hub:
            # A new dict: the old one is the message hub's own.
            hub['resumed_keys'] = {
                key: saved
                for key, saved in hub['resumed_keys'].items()
                if saved or not key.startswith('ags/')
            }

    def _read(self) -> tuple[dict[str, float], dict[str, float]]:
        """Return what is logged, and what may have grown."""
        ags = {}
        for name, layer in self._layers.items():
            if not layer.weight.requires_grad:
                continue
            figures, self._signs[name] = layer_figures(
                layer, self._signs.get(name)
            )
            ags |= {f'ags/{k}/{name}': value for k, value in figures.items()}
        slopes = self._largest_slopes()
        ags |= {
            f'ags/slope/{name}': value
            for name, value in zip(self._slopes, slopes.values())
        }
        sizes = {**self._ratios(), **slopes}
        groups = (ags, self._start, sizes)
        tensors = [t for group in groups for t in group.values()]
        if not tensors:
            return {}, {}
        # One transfer for all of them.
        device = tensors[0].device
        numbers = iter(
            torch.stack(
                [t.to(device, torch.float32) for t in tensors]
            ).tolist()
        )
        ags, start, sizes = (
            {key: next(numbers) for key in group} for group in groups
        )
        self._start = {}
        for key, value in (*start.items(), *sizes.items()):
            # 0 may be chance, or a part that begins at 0.
            if 0 < value < math.inf:
                self._first.setdefault(key, value)
        return ags, sizes

    def _ratios(self) -> dict[str, Tensor]:
        """Lambda of each layer over its base factor."""
        return {
            f'lambda / eta of {name}': layer.ags.last_norm_b
            / layer.ags.last_norm_a
            for name, layer in self._compensated.items()
            if layer.ags.last_norm_a is not None
        }

    def _largest_slopes(self) -> dict[str, Tensor]:
        return {
            f'slope of {name}': module.weight.detach().abs().max()
            for name, module in self._slopes.items()
        }

    def _warn_grown(self, runner: Runner, sizes: dict[str, float]) -> None:
        for key, value in sizes.items():
            first = self._first.get(key, math.inf)
            # An infinite one is of a step that a gradient scaler skips.
            grown = GROWTH * first <= value < math.inf
            if grown and key not in self._warned_of:
                self._warned_of.add(key)
                runner.logger.warning(
                    f'{key} has grown from {first:.3g} to {value:.3g}: is the '
                    'learning rate too high?'
                )

    def _warn_unreached(self, runner: Runner) -> None:
        unreached = [
            name
            for name, layer in self._compensated.items()
            if layer.ags.last_scale is None
        ]
        if unreached:
            runner.logger.warning(
                f'AGS: no backward pass has reached {len(unreached)} of '
                f'{len(self._compensated)} SURGE layers (frozen or unused): '
                f'{", ".join(unreached)}'
            )

    def _warn_stuck(self, runner: Runner, values: dict[str, float]) -> None:
        without = {
            name
            for name in self._compensated
            for key in ('norm_b', 'norm_a')
            if values.get(f'ags/{key}/{name}') == 0
        }
        # Once may be chance: a level without an object.
        stuck = (without & self._without_gradient) - self._warned_of
        self._without_gradient = without
        self._warned_of |= stuck
        if stuck:
            names = ', '.join(n for n in self._compensated if n in stuck)
            runner.logger.warning(
                f'AGS: {len(stuck)} of {len(self._compensated)} SURGE layers '
                'had a gradient of 0 at two logs in a row, so lambda is '
                f'stuck: {names}. Does what follows start at 0 '
                '(zero_init_residual)? `surge-det preflight` names such '
                'layers before training'
            )

    def _summarize(self, runner: Runner, scales: dict[str, float]) -> None:
        finite = {n: s for n, s in scales.items() if math.isfinite(s)}
        ordered = sorted(finite, key=finite.get)
        line = f'AGS lambda of {len(scales)} layers'
        if finite:
            median = statistics.median(finite.values())
            runner.message_hub.update_scalar('train/ags_scale', median)
            line += (
                f': min {finite[ordered[0]]:.3g}, median {median:.3g}, '
                f'max {finite[ordered[-1]]:.3g}'
            )
        # Where both ends would overlap, one list is enough.
        ends = {'layers': ordered}
        if len(ordered) >= 2 * _TOP:
            ends = {
                'smallest': ordered[:_TOP],
                'largest': ordered[::-1][:_TOP],
            }
        for label, names in ends.items():
            if names:
                shown = ', '.join(f'{n} {finite[n]:.3g}' for n in names)
                line += f'; {label}: {shown}'
        bad = [name for name in scales if name not in finite]
        if bad:
            line += f'; not finite: {", ".join(bad)}'
        self._line = line
