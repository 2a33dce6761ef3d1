"""Optimizer wrappers that train with FSG."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine import dist
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import nn

from surge_det.core import checks
from surge_det.core.fsg import FSG, FSGConfig
from surge_det.engine.finite import all_finite

from .ags_optim_wrapper import AGSMixin, binarized_layers
from .amp_optim_wrapper import AnyDeviceAmpOptimWrapper


class FSGMixin:
    """Adds FSG to an optimizer wrapper of mmengine.

    In :meth:`optim_context` the binarized layers get the weights of
    :class:`~surge_det.core.fsg.FSG`. :meth:`step` trains the hypernetworks and
    sets the generated gradients; *then* it clips and takes the main
    optimizer's step. ``clip_grad`` is applied separately to the generated
    gradients and to all others: a fast network may generate gradients of any
    size, and with one norm over both nothing of the others would be left. The
    log has the norm of the others (``train/grad_norm``, or what ``clip_grad``
    names) and that of the generated ones (the same name with ``_fsg``). The
    hypernetworks' own gradients and the history are not clipped, and no
    parameter scheduler changes the hypernetworks' optimizers.

    Where gradients are accumulated, one update of the optimizer is one
    iteration of FSG. With several processes, the stored gradient is the mean
    over them. A step that mixed precision skips because gradients overflowed
    leaves FSG as it was.

    Args:
        *args: Arguments of the optimizer wrapper.
        fsg: Arguments of :class:`~surge_det.core.fsg.FSG` but the model;
            ``None`` for its defaults, the literal method with one token per
            weight, far too large for a detector.
        **kwargs: Arguments of the optimizer wrapper.

    Attributes:
        fsg: The :class:`~surge_det.core.fsg.FSG`; ``None`` before the
            wrapper has seen its model.

    Raises:
        ValueError: If a setting is unknown or out of range.
    """

    _needs_replica = False

    def __init__(self, *args, fsg: dict | None = None, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        if fsg is not None and not isinstance(fsg, dict):
            checks.refuse('fsg', fsg, 'a dict of settings, or None')
        self._fsg_settings = dict(fsg or {})
        checks.from_settings(FSGConfig, self._fsg_settings, 'fsg')
        self._fsg_state: dict | None = None
        self._fsg_model: nn.Module | None = None
        self.fsg: FSG | None = None

    def bind(self, model: nn.Module) -> None:
        """Build the hypernetworks for a model's layers.

        It takes over a state that was loaded before.

        Args:
            model: The model, in a model wrapper or not.

        Raises:
            ValueError: If the model has no layer to work on, or the loaded
                state is of other layers.
        """
        super().bind(model)
        if model is self._fsg_model:
            return
        self.fsg = FSG(binarized_layers(model), **self._fsg_settings)
        self._fsg_model = model
        if dist.is_distributed():
            for net in (self.fsg.fast_net, self.fsg.slow_net):
                for param in net.parameters():
                    dist.broadcast(param.data)
        if self._fsg_state is not None:
            self.fsg.load_state_dict(self._fsg_state)
            self._fsg_state = None

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """As the base class does, with this iteration's weights in place."""
        if model is not self._fsg_model:
            self.bind(model)
        # Outside of autocast: hypernetworks compute in full precision.
        self.fsg.begin(self.optimizer)
        with super().optim_context(model):
            yield

    def step(self, **kwargs) -> None:
        """Finish FSG's iteration; then as the base class does.

        Raises:
            RuntimeError: If there was no forward pass in
                :meth:`optim_context`.
        """
        if self.fsg is None:
            raise RuntimeError(
                f'{type(self).__name__}.step() needs a forward pass in '
                'optim_context()'
            )
        scale, overflow = 1.0, False
        scaler = getattr(self, 'loss_scaler', None)
        if scaler is not None and scaler.is_enabled():
            # What waits for the backward pass comes first; then the scale,
            # which is known by then, is no wait.
            overflow = not all_finite(
                param.grad
                for group in self.param_groups
                for param in group['params']
            )
            scale = scaler.get_scale()
        if overflow:
            self.fsg.discard()
        else:
            if dist.is_distributed():
                self._reduce()
            self.fsg.finish(scale)
        super().step(**kwargs)

    def _clip_grad(self) -> None:
        # As the base class does, but separately for the generated gradients.
        generated = {id(self.fsg.weight(name)) for name in self.fsg.updates}
        params = [
            param
            for group in self.optimizer.param_groups
            for param in group['params']
            if param.requires_grad and param.grad is not None
        ]
        for suffix, inside in (('', False), ('_fsg', True)):
            own = [p for p in params if (id(p) in generated) == inside]
            if not own:
                continue
            norm = self.clip_func(own, **self.clip_grad_kwargs)
            # Clipping by value gives none.
            if norm is not None:
                self.message_hub.update_scalar(
                    f'train/{self.grad_name}{suffix}', float(norm)
                )

    def _reduce(self) -> None:
        for name, update in self.fsg.updates.items():
            if update.gradient is None:
                # Every process has to take part.
                weight = self.fsg.weight(name)
                update.gradient = torch.zeros_like(weight)
            update.gradient = update.gradient.contiguous()
            dist.all_reduce(update.gradient, 'mean')

    def state_dict(self) -> dict:
        """State of the base class, and ``'fsg'``: all of FSG's."""
        state = super().state_dict()
        if self.fsg is not None:
            state['fsg'] = self.fsg.state_dict()
        elif self._fsg_state is not None:
            state['fsg'] = self._fsg_state
        return state

    def load_state_dict(self, state_dict: dict) -> None:
        """Load the state of this or of any stock optimizer wrapper.

        From one without FSG's state, FSG starts anew.

        Raises:
            ValueError: If FSG's state is of other layers.
        """
        state_dict = dict(state_dict)
        state = state_dict.pop('fsg', None)
        super().load_state_dict(state_dict)
        if state is None:
            return
        if self.fsg is None:
            self._fsg_state = state
        else:
            self.fsg.load_state_dict(state)


@OPTIM_WRAPPERS.register_module()
class FSGOptimWrapper(FSGMixin, AGSMixin, OptimWrapper):
    """mmengine's ``OptimWrapper`` with FSG, and AGS where there is a replica.

    Examples:
        >>> optim_wrapper = dict(
        ...     type='FSGOptimWrapper',
        ...     fsg=dict(history_dtype='bfloat16', slow=dict(
        ...         block_size=1024, d_model=8, expand=2, independent=True)),
        ...     optimizer=dict(type='SGD', lr=0.01))

    Arguments as in :class:`FSGMixin` and :class:`AGSMixin`.
    """


@OPTIM_WRAPPERS.register_module()
class FSGAmpOptimWrapper(FSGMixin, AGSMixin, AnyDeviceAmpOptimWrapper):
    """mmengine's ``AmpOptimWrapper`` with FSG, as ``AGSAmpOptimWrapper``.

    The hypernetworks compute in full precision.
    """
