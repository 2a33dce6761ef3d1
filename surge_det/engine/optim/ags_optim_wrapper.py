"""Optimizer wrappers that set AGS and keep its state."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.dist import all_reduce, get_world_size
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import Tensor, nn

from surge_det.core import AGS, checks
from surge_det.core.ags import check_eta
from surge_det.core.layers import SURGELayer, named_surge_layers
from surge_det.core.progress import without_progress

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
    """Adds AGS to an optimizer wrapper of mmengine.

    The gradients are mixed in the layers' backward pass; this sets the factor
    that they use in it, and keeps what ``eta='auto'`` has estimated in step
    with the other processes, skipped steps and checkpoints.

    Args:
        *args: Arguments of the optimizer wrapper.
        ags: ``dict(eta=...)``, the factor of all layers, >= 0 or ``'auto'``
            (:class:`~surge_det.core.AGS`); ``None`` keeps what each layer was
            built with, which a layer's own ``eta`` sets.
        **kwargs: Arguments of the optimizer wrapper.

    Raises:
        ValueError: If there is another setting, or it is out of range.
    """

    # Whether a model without a replica is worth a warning.
    _needs_replica = True

    def __init__(self, *args, ags: dict | None = None, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.ags_eta = _eta_of(ags)
        self._ags_model: nn.Module | None = None
        self._ags: dict[str, AGS] = {}
        self._saved_estimates: dict[str, list[float]] = {}
        self._kept_estimates: dict[AGS, Tensor | None] = {}
        self._schedules_checked = False

    def bind(self, model: nn.Module) -> None:
        """Set the factor of a model's SURGE layers, if one is given.

        Replicas begin, too: see :meth:`SURGELayer.begin_training`.
        :meth:`initialize_count_status` calls it and, for a model not seen
        before, :meth:`optim_context`. A model without a replica is warned of.

        Args:
            model: The model, in a model wrapper or not.
        """
        layers = compensated_layers(model)
        # All at once: a step may reach some layers in one process only.
        for layer in layers.values():
            layer.begin_training()
        self._ags_model = model
        self._ags = {name: layer.ags for name, layer in layers.items()}
        if layers:
            if self.ags_eta is not None:
                for ags in self._ags.values():
                    ags.eta = self.ags_eta
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
        """As the base class does, for a model that is bound."""
        if model is not self._ags_model:
            self.bind(model)
        self._check_schedules(model)
        with super().optim_context(model):
            yield

    def backward(self, loss: Tensor, **kwargs) -> None:
        """As the base class does; then all processes share estimates."""
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

        That has ``eta``, iteration, and the estimates of ``eta='auto'``.
        """
        state = super().state_dict()
        state['ags'] = {
            'settings': {'eta': self.ags_eta},
            'iteration': self.inner_count,
            'estimates': {
                name: ags.estimate.tolist()
                for name, ags in self._ags.items()
                if ags.follows and ags.estimate is not None
            },
        }
        return state

    def load_state_dict(self, state_dict: dict) -> None:
        """Load the state of this or of any stock optimizer wrapper.

        ``eta`` stays that of the config: where the saved one differs, a
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
        saved = ags['settings'].get('eta')
        if saved != self.ags_eta:
            print_log(
                'AGS settings differ from the checkpoint, those of the '
                f'config hold: eta={saved!r} (saved) -> '
                f'{self.ags_eta!r} (now)',
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


def _eta_of(ags: Any) -> float | str | None:
    if ags is None:
        return None
    if not isinstance(ags, dict) or not {*ags} <= {'eta'}:
        checks.refuse('ags', ags, 'None or dict(eta=...)')
    return check_eta('ags: eta', ags.get('eta'), or_none=True)


@OPTIM_WRAPPERS.register_module()
class AGSOptimWrapper(AGSMixin, OptimWrapper):
    """mmengine's ``OptimWrapper`` with AGS set by the config.

    Examples:
        >>> optim_wrapper = dict(
        ...     type='AGSOptimWrapper',
        ...     ags=dict(eta=0.1),
        ...     optimizer=dict(type='SGD', lr=0.01))

    Arguments as in :class:`AGSMixin`.
    """


@OPTIM_WRAPPERS.register_module()
class AGSAmpOptimWrapper(AGSMixin, AnyDeviceAmpOptimWrapper):
    r"""mmengine's ``AmpOptimWrapper`` with AGS set by the config.

    :math:`\lambda` is a ratio of norms, so a loss scale does not change it.
    Arguments as in :class:`AGSMixin` and :class:`AnyDeviceAmpOptimWrapper`.
    """
