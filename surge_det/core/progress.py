"""Estimators and binarizers that change over a training run."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from torch import nn

from . import checks

# Where a layer keeps what is no submodule of it.
_ESTIMATORS = ('activation_estimator', 'weight_estimator')


class Scheduled:
    """Base of estimators and binarizers that change with progress.

    A subclass computes what moves from ``self.progress``, a plain number. It
    is in no state dict: a resumed run sets it again from the iteration.

    Attributes:
        progress: 0 at the start of training, 1 at the end.
        progress_was_set: Whether :meth:`set_progress` was ever called.
    """

    progress: float = 0.0
    progress_was_set: bool = False

    def set_progress(self, p: float) -> None:
        """Say how much of the training is done.

        Args:
            p: 0 at the start, 1 at the end.

        Raises:
            ValueError: If ``p`` is not in [0, 1].
        """
        self.progress = checks.number('p', p, low=0, high=1)
        self.progress_was_set = True

    def scheduled(self) -> dict[str, float]:
        """Return what moves, by its symbol in the source, to be logged."""
        return {}


def set_progress(model: nn.Module, p: float) -> int:
    """Set the progress of everything in a model that has a schedule.

    That is every estimator and binarizer of a binarized layer and every
    other submodule with a ``set_progress(p)``, each object once.

    Args:
        model: Any module, in a wrapper or not.
        p: 0 at the start, 1 at the end.

    Returns:
        How many objects were set.

    Raises:
        ValueError: If ``p`` is not in [0, 1].
    """
    p = checks.number('p', p, low=0, high=1)
    parts = list(_parts(model, 'set_progress'))
    for part in parts:
        part.set_progress(p)
    return len(parts)


def scheduled_values(model: nn.Module) -> dict[str, float]:
    """Return the present values of everything with a schedule.

    Args:
        model: Any module, in a wrapper or not.

    Returns:
        Values under ``'<class>.<symbol>'``, such as ``'ReSTE.o'``, averaged
        over the objects of a class.
    """
    values = defaultdict(list)
    for part in _parts(model, 'scheduled'):
        for symbol, value in part.scheduled().items():
            values[f'{type(part).__name__}.{symbol}'].append(value)
    return {name: sum(v) / len(v) for name, v in values.items()}


def without_progress(model: nn.Module) -> list[str]:
    """Return the classes with a schedule whose progress was never set.

    Args:
        model: Any module, in a wrapper or not.

    Returns:
        Their names, each once, sorted.
    """
    return sorted(
        {
            type(part).__name__
            for part in _parts(model, 'set_progress')
            if not getattr(part, 'progress_was_set', True)
        }
    )


def _parts(model: nn.Module, method: str) -> Iterator[Any]:
    seen = set()
    for module in model.modules():
        for part in (
            module,
            *(getattr(module, name, None) for name in _ESTIMATORS),
        ):
            if id(part) not in seen and callable(getattr(part, method, None)):
                seen.add(id(part))
                yield part
