"""Optimizer wrappers that schedule AGS."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.dist import all_reduce, get_world_size
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import Tensor, nn

from surge_det.core import AGS
from surge_det.core.layers import SURGELayer, named_surge_layers
from surge_det.core.progress import without_progress

from .ags_schedule import AGSSchedule
from .amp_optim_wrapper import AnyDeviceAmpOptimWrapper

AGS_REMEDY = (
    "Set optim_wrapper.type to 'AGSOptimWrapper', or for mixed precision to "
    "'AGSAmpOptimWrapper' (surge_det's tools/train.py --amp does so; mmdet's "
    "own sets 'AmpOptimWrapper')."
)

# torch's wrappers of single modules put these into the names of what they
# wrap; a config's patterns should not depend on them.
_WRAPPER_NAMES = {
    '_checkpoint_wrapped_module',
    '_fsdp_wrapped_module',
    '_orig_mod',
}


def binarized_layers(model: nn.Module) -> dict[str, SURGELayer]:
    """SURGE layers of a model, by name.

    Args:
        model: A model, in a model wrapper (``DistributedDataParallel``, ...)
            or not.

    Returns:
        Layers by their name in the unwrapped model, in the model's order.
    """
    while is_model_wrapper(model):
        model = model.module
    return {
        '.'.join(p for p in name.split('.') if p not in _WRAPPER_NAMES): layer
        for name, layer in named_surge_layers(model)
    }


def compensated_layers(model: nn.Module) -> dict[str, SURGELayer]:
    """Those of :func:`binarized_layers` that have a replica."""
    return {
        name: layer
        for name, layer in binarized_layers(model).items()
        if layer.ags is not None
    }


class AGSMixin:
    """Adds the schedule of AGS to an optimizer wrapper of mmengine.

    The gradients are mixed in the layers' backward pass; this sets the base
    factor that they use in it. The iteration is mmengine's inner count: one
    per backward pass, also where gradients are accumulated.

    Args:
        *args: Arguments of the optimizer wrapper.
        ags: Settings, see :class:`AGSSchedule`; ``None`` for its defaults,
            which change nothing.
        **kwargs: Arguments of the optimizer wrapper.

    Raises:
        ValueError: If a setting is unknown or out of range.
    """

    # Whether a model without a replica is worth a warning.
    _needs_replica = True

    def __init__(
        self, *args, ags: AGSSchedule | dict | None = None, **kwargs
    ) -> None:
        super().__init__(*args, **kwargs)
        self.ags_schedule = AGSSchedule.from_cfg(ags)
        self._ags_model: nn.Module | None = None
        self._ags: dict[str, AGS] = {}
        self._saved_estimates: dict[str, list[float]] = {}
        self._kept_estimates: dict[AGS, Tensor | None] = {}
        self._ags_factor: float | None = None
        self._schedules_checked = False

    @property
    def ags_factor(self) -> float | None:
        """Factor on every base factor that is set now; ``None``: not yet."""
        return self._ags_factor

    def bind(self, model: nn.Module) -> None:
        """Take over the base factors of a model's SURGE layers.

        Those that the settings name are set, and replicas begin: see
        :meth:`SURGELayer.begin_training`.
        :meth:`initialize_count_status` calls it and, for a model not seen
        before, :meth:`optim_context`. A model without a replica is warned of.

        Args:
            model: The model, in a model wrapper or not.

        Raises:
            ValueError: If a pattern in ``overrides`` matches no layer.
        """
        layers = compensated_layers(model)
        # All at once: a step may reach some layers in one process only.
        for layer in layers.values():
            layer.begin_training()
        self._ags_model = model
        self._ags_factor = None
        self._ags = {name: layer.ags for name, layer in layers.items()}
        if layers:
            etas = {}
            if self.ags_schedule.eta is not None:
                etas = dict.fromkeys(layers, self.ags_schedule.eta)
            etas |= self.ags_schedule.override_etas(layers)
            for name, eta in etas.items():
                self._ags[name].eta = eta
            self._set_factor()
            self._restore_estimates()
        elif self._needs_replica:
            print_log(
                f'{type(self).__name__}: the model has no SURGE layer with a '
                'replica; AGS has nothing to do.',
                logger='current',
                level=logging.WARNING,
            )

    def initialize_count_status(
        self, model: nn.Module, init_counts: int, max_counts: int
    ) -> None:
        """As the base class does; then :meth:`bind` to the model."""
        super().initialize_count_status(model, init_counts, max_counts)
        self.bind(model)

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """As the base class does, with this iteration's base factors set."""
        if model is not self._ags_model:
            self.bind(model)
        self._set_factor()
        self._check_schedules(model)
        with super().optim_context(model):
            yield

    def backward(self, loss: Tensor, **kwargs) -> None:
        """As the base class does, with this iteration's base factors set."""
        # Again, because a forward pass may have run outside optim_context.
        self._set_factor()
        super().backward(loss, **kwargs)
        self._share_estimates()

    def step(self, **kwargs) -> None:
        """As the base class does.

        Where a gradient scaler skips the step, estimates are again those of
        the step before.
        """
        following = [ags for ags in self._ags.values() if ags.follows]
        if not following:
            super().step(**kwargs)
            return
        # What a scaler decides can be seen here without waiting for it. Fused
        # optimizers are called in any case, and told by a tensor.
        calls = []
        handle = self.optimizer.register_step_pre_hook(
            lambda optimizer, *_: calls.append(
                getattr(optimizer, 'found_inf', None)
            )
        )
        try:
            super().step(**kwargs)
        finally:
            handle.remove()
        for ags in following:
            kept = self._kept_estimates.get(ags)
            if not calls:
                ags.estimate = kept
            elif calls[0] is not None and ags.estimate is not None:
                new = ags.estimate
                # Nothing seen is a weight of 0.
                kept = new.new_zeros(2) if kept is None else kept.to(new)
                ags.estimate = torch.where(calls[0] > 0, kept, new)
        self._kept_estimates = {ags: ags.estimate for ags in following}

    def state_dict(self) -> dict:
        """State of the base class, and ``'ags'``.

        That has settings, iteration, and the estimates of ``eta='auto'``.
        """
        state = super().state_dict()
        state['ags'] = {
            'settings': self.ags_schedule.to_dict(),
            'iteration': self.inner_count,
            'estimates': {
                name: ags.estimate.tolist()
                for name, ags in self._ags.items()
                if ags.estimate is not None
            },
        }
        return state

    def load_state_dict(self, state_dict: dict) -> None:
        """Load the state of this or of any stock optimizer wrapper.

        The settings stay those of the config: where the saved ones differ, a
        warning says so.
        """
        state_dict = dict(state_dict)
        ags = state_dict.pop('ags', None)
        super().load_state_dict(state_dict)
        if ags is None:
            return
        # mmengine's Runner sets this too, but not inside an OptimWrapperDict.
        self._inner_count = ags['iteration']
        self._saved_estimates = dict(ags.get('estimates') or {})
        self._restore_estimates()
        ours, saved = self.ags_schedule.to_dict(), ags['settings']
        differ = [
            f'{key}={saved.get(key)!r} (saved) -> {value!r} (now)'
            for key, value in ours.items()
            if saved.get(key) != value
        ]
        if differ:
            print_log(
                'AGS settings differ from the checkpoint, those of the '
                f'config hold: {"; ".join(differ)}',
                logger='current',
                level=logging.WARNING,
            )

    def _check_schedules(self, model: nn.Module) -> None:
        # A config that sets `custom_hooks` anew has lost the hook.
        if self._schedules_checked:
            return
        self._schedules_checked = True
        if names := without_progress(model):
            print_log(
                f'{", ".join(names)}: changes over a run, but training began '
                'without saying how far it is, so it stays at the start; add '
                "dict(type='SURGEProgressHook') to custom_hooks",
                logger='current',
                level=logging.WARNING,
            )

    def _set_factor(self) -> None:
        factor = self.ags_schedule.factor(self._inner_count, self._max_counts)
        if factor != self._ags_factor:
            for ags in self._ags.values():
                ags.factor = factor
            self._ags_factor = factor

    def _restore_estimates(self) -> None:
        # A resumed run loads them before it binds the model.
        for name in self._saved_estimates.keys() & self._ags.keys():
            values = self._saved_estimates.pop(name)
            # In double precision they are what they were.
            estimate = torch.tensor(values, dtype=torch.double)
            self._ags[name].estimate = estimate
            self._kept_estimates[self._ags[name]] = estimate

    def _share_estimates(self) -> None:
        """Give all processes the mean of their estimates.

        That is the estimate from the mean over all of them, as it is linear;
        and the one that the first process saves is everybody's.
        """
        following = [ags for ags in self._ags.values() if ags.follows]
        if not following or get_world_size() == 1:
            return
        device = next(self._ags_model.parameters()).device
        stacked = torch.stack(
            [
                torch.zeros(2, device=device)
                if ags.estimate is None
                else ags.estimate.to(device, torch.float32)
                for ags in following
            ]
        )
        all_reduce(stacked, 'mean')
        for ags, estimate in zip(following, stacked):
            ags.estimate = estimate


@OPTIM_WRAPPERS.register_module()
class AGSOptimWrapper(AGSMixin, OptimWrapper):
    """mmengine's ``OptimWrapper`` with AGS scheduled from the config.

    Example:
        >>> optim_wrapper = dict(
        ...     type='AGSOptimWrapper',
        ...     ags=dict(eta=0.1, warmup_iters=500),
        ...     optimizer=dict(type='SGD', lr=0.01))

    Arguments as in :class:`AGSMixin`.
    """


@OPTIM_WRAPPERS.register_module()
class AGSAmpOptimWrapper(AGSMixin, AnyDeviceAmpOptimWrapper):
    r"""mmengine's ``AmpOptimWrapper`` with AGS scheduled from the config.

    :math:`\lambda` is a ratio of norms, so a loss scale does not change it.
    Arguments as in :class:`AGSMixin` and :class:`AnyDeviceAmpOptimWrapper`.
    """
