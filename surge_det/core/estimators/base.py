"""What every gradient estimator has, and how one is found by name."""

from __future__ import annotations

from torch import Tensor

from ..registry import Registry

ESTIMATORS = Registry(
    'an estimator', ['derivative'], "dict(type='STE', clip=1.0)"
)
register_estimator = ESTIMATORS.register
build_estimator = ESTIMATORS.build


class Estimator:
    """Surrogate for the derivative of sign.

    With ``B = sign(z)`` an estimator ``h`` gives ``dL/dz = h(z) * dL/dB``.
    To add one, subclass this in a file beside ``ste.py``, implement
    :meth:`derivative` and decorate the class with
    :func:`register_estimator`; one that changes over a run is a
    :class:`~surge_det.core.progress.Scheduled` too.

    An estimator whose derivative is 1 or ``leak`` may have a method
    ``window(x)`` that returns as bool where it is 1, or ``None`` for
    everywhere. A bit of each element is then kept for the backward pass
    instead of the input.
    """

    # The derivative outside of a window.
    leak: float = 0.0

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
