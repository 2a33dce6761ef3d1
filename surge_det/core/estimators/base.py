"""What every gradient estimator has, and how one is found by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

ESTIMATORS: dict[str, type] = {}


def register_estimator(cls: type) -> type:
    """Make an estimator class available as ``dict(type=cls.__name__)``.

    Raises:
        ValueError: If the name is taken by another class.
    """
    name = cls.__name__
    if ESTIMATORS.get(name, cls) is not cls:
        raise ValueError(f'estimator {name!r} is registered already')
    ESTIMATORS[name] = cls
    return cls


class Estimator:
    """Surrogate for the derivative of sign.

    With ``B = sign(z)`` an estimator ``h`` gives ``dL/dz = h(z) * dL/dB``.
    To add one, subclass this in a file beside ``ste.py``, implement
    :meth:`derivative` and decorate the class with
    :func:`register_estimator`.
    """

    # True lets the layers skip the multiplication by ones.
    is_identity: bool = False

    def derivative(self, x: Tensor) -> Tensor:
        """Return ``h(x)``, same shape and dtype as ``x``."""
        raise NotImplementedError


def build_estimator(spec: Any, argument: str = 'estimator') -> Any:
    """Turn an estimator or its config into an estimator.

    Args:
        spec: Any object with a ``derivative(x)`` method, used as it is, or a
            dict with the class name under ``type`` and its arguments, e.g.
            ``dict(type='STE', clip=1.0)``.
        argument: Name to use in error messages.

    Raises:
        ValueError: If ``spec`` is neither, its type is not registered, or
            the class refuses its arguments.
    """
    if isinstance(spec, dict):
        kwargs = dict(spec)
        name = kwargs.pop('type', None)
        if isinstance(name, type):
            cls: Callable | None = name
        else:
            cls = ESTIMATORS.get(name)
        if cls is None:
            raise ValueError(
                f'{argument}: unknown type {name!r} in {spec!r}; '
                f'allowed are {sorted(ESTIMATORS)}'
            )
        try:
            spec = cls(**kwargs)
        except TypeError as error:
            raise ValueError(f'{argument}: {name}: {error}') from error
    if isinstance(spec, type) or not callable(
        getattr(spec, 'derivative', None)
    ):
        raise ValueError(
            f'{argument}={spec!r} is not an estimator; allowed are an object '
            "with a derivative(x) method or a dict such as dict(type='STE', "
            f'clip=1.0) with type in {sorted(ESTIMATORS)}'
        )
    return spec
