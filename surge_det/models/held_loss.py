"""The loss of a detector on one batch, as a function of its layers alone."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

from mmdet.models.task_modules import BaseAssigner, BaseSampler
from mmengine.runner import set_random_seed
from torch import Tensor, nn

from .preflight import first_iteration, kept_random_state

_CALLS = {BaseAssigner: 'assign', BaseSampler: 'sample'}


class HeldLoss:
    """The training loss on one batch, with targets held.

    A detector's gradients take targets, and the regions that a second stage
    looks at, for given. But a step at any layer changes which of them are
    chosen, and then the loss jumps by more than the step changes it. So the
    first call keeps what assigners and samplers return, and later calls get
    the same. Random generators are seeded before each call, and have
    their own state afterwards.

    Args:
        batch: Of the training set, as a data loader collates it.
    """

    def __init__(self, batch: dict) -> None:
        self.batch = batch
        self._data: dict | None = None
        self._held: list[_Held] | None = None

    def __call__(self, model: nn.Module) -> Tensor:
        """Compute the loss of a detector, 0-dim.

        Args:
            model: The same one each time.
        """
        with kept_random_state(), first_iteration():
            set_random_seed(0)
            if self._held is None:
                batch = copy.deepcopy(self.batch)
                self._data = model.data_preprocessor(batch, True)
                self._held = [*_hold(model)]
            for held in self._held:
                held.passed = 0
            data = copy.deepcopy(self._data)
            losses = model(**data, mode='loss')
            for held in self._held:
                held.is_known = True
            return model.parse_losses(losses)[0]


class _Held:
    """Calls a function once for all."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.returned: list[Any] = []
        self.is_known = False
        self.passed = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self.is_known:
            self.returned.append(self.function(*args, **kwargs))
        self.passed += 1
        return self.returned[self.passed - 1]


def _hold(model: nn.Module) -> Iterator[_Held]:
    seen = set()
    for module in model.modules():
        for value in vars(module).values():
            # A cascade has a list of them.
            for part in value if isinstance(value, list) else [value]:
                for base, name in _CALLS.items():
                    if isinstance(part, base) and id(part) not in seen:
                        seen.add(id(part))
                        function = getattr(part, name)
                        # Another loss may have held it.
                        if isinstance(function, _Held):
                            function = function.function
                        held = _Held(function)
                        setattr(part, name, held)
                        yield held
