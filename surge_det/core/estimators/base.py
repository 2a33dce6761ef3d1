"""What every gradient estimator has, and how one is found by name."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .._registry import build, register

ESTIMATORS: dict[str, type] = {}


def register_estimator(cls: type) -> type:
    """Make an estimator class available as ``dict(type=cls.__name__)``.

    Raises:
        ValueError: If the name is taken by another class.
    """
    return register(ESTIMATORS, cls, 'estimator')


class Estimator:
    """Surrogate for the derivative of sign.

    With ``B = sign(z)`` an estimator ``h`` gives ``dL/dz = h(z) * dL/dB``.
    To add one, subclass this in a file beside ``ste.py``, implement
    :meth:`derivative` and decorate the class with
    :func:`register_estimator`; one that changes over a run is a
    :class:`~surge_det.core.progress.Scheduled` too.

    An estimator whose derivative is 0 or 1 may have a method ``window(x)``
    that returns as bool where it is 1, or ``None`` for everywhere. A bit of
    each element is then kept for the backward pass instead of the input.
    """

    # True lets the layers skip the multiplication by ones.
    is_identity: bool = False

    def derivative(self, x: Tensor) -> Tensor:
        """Return ``h(x)``, same shape and dtype as ``x``."""
        raise NotImplementedError

    def times_derivative(self, x: Tensor, grad: Tensor) -> Tensor:
        """Return ``h(x) * grad``, in the type of ``grad``.

        To be overridden where there is a faster way.
        """
        return grad * self.derivative(x).to(grad.dtype)

    def surrogate(self, x: Tensor) -> Tensor:
        """Return ``f(x)``, the integral of ``h`` from 0 to ``x``.

        What the estimator takes sign for; only the estimating error
        (:mod:`surge_det.core.indicators`) asks for it.
        """
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
    return build(
        ESTIMATORS,
        spec,
        argument,
        'an estimator',
        ['derivative'],
        "dict(type='STE', clip=1.0)",
    )
