"""What a step along a layer's two gradients does to the loss, measured."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from . import checks
from .ags import AGS
from .layers import SURGELayer, named_surge_layers
from .sign import binary_sign

# The last one is the replica's gradient alone.
ETAS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, math.inf)
# Turns a few of 100 signs; one of less is lost in the noise of those.
STEP = 0.1


@dataclass(frozen=True)
class LayerProbe:
    """What steps at the input of one layer did.

    Attributes:
        decreases: By how much the loss fell, by :math:`\\eta`.
        turned: Share of the layer's input signs that the step turned, by
            :math:`\\eta`.
        cosine: Of the angle between ``g_b`` and ``g_a``, over all
            applications.
        loss: Of the network as it is.
        applications: How many of the layer's applications had a gradient.
    """

    decreases: dict[float, float]
    turned: dict[float, float]
    cosine: float
    loss: float
    applications: int


def probe(
    model: nn.Module,
    loss: Callable[[nn.Module], Tensor],
    etas: Sequence[float] = ETAS,
    step: float = STEP,
) -> dict[str, LayerProbe]:
    r"""Move the input of each layer with a replica; see how the loss falls.

    With ``g_b`` and ``g_a`` the gradients at a layer's input through the
    1-bit operator and through the replica, the input ``x`` moves along
    :math:`-(g_b + \lambda g_a)`, with :math:`\lambda` as :class:`.AGS` has it
    for each :math:`\eta`. Every step has the same length, ``step`` times the
    norm of ``x``. The loss is that of the 1-bit network, signs and all.

    The gradient at a layer's output comes through the 1-bit operators alone
    (:math:`\eta = 0` behind it). Of a layer that is applied several times,
    each application's input moves along its own gradients and with its own
    :math:`\lambda`, all in one step whose length is that of all of them
    together. ``x`` is what the sign sees: with ``shift`` and
    ``normalize_input``.

    All of it is done with a copy in training mode: the model keeps weights,
    buffers and gradients, torch's random generators their state.

    Args:
        model: With SURGE layers that have replicas.
        loss: Computes the loss of a copy of the model, 0-dim, on the same
            data each time. torch's generators are seeded before each call;
            whatever else it draws from it has to seed itself.
        etas: Values of :math:`\eta`, >= 0; ``inf`` is ``g_a`` alone.
        step: Length of a step over the norm of the input, above 0.

    Returns:
        Layers by name, in the model's order, without those that no gradient
        reaches.

    Raises:
        ValueError: If an argument is out of range, no layer has a replica,
            or the loss is not finite or not the same when it is repeated.
    """
    for eta in etas:
        if eta != math.inf:
            checks.number('etas', eta, low=0)
    checks.number('step', step, above=0)
    model = copy.deepcopy(model).train()
    for module in model.modules():
        # Checkpointing runs layers once more in the backward pass.
        if hasattr(module, 'with_cp'):
            module.with_cp = False
    points = {
        name: _Point(name, layer)
        for name, layer in named_surge_layers(model)
        if layer.ags is not None
    }
    if not points:
        raise ValueError('model has no layer with a replica (compensate=True)')
    with torch.random.fork_rng():
        value = _run(model, loss)
        trained = [p for p in model.parameters() if p.requires_grad]
        if value.requires_grad:
            torch.autograd.grad(value, trained, allow_unused=True)
        for point in points.values():
            point.keeps = False
        with torch.no_grad():
            start = _run(model, loss).item()
            again = _run(model, loss).item()
            if not math.isclose(start, again, rel_tol=1e-6):
                raise ValueError(
                    f'loss is {start!r}, and {again!r} when it is repeated '
                    'on the same data: a step cannot be measured'
                )
            return {
                name: _probe_layer(point, model, loss, etas, step, start)
                for name, point in points.items()
                if point.has_gradient()
            }


def _run(model: nn.Module, loss: Callable[[nn.Module], Tensor]) -> Tensor:
    torch.manual_seed(0)
    value = loss(model)
    if not value.isfinite():
        raise ValueError(f'loss is {value.item()}: nothing can be measured')
    return value


def _probe_layer(
    point: _Point,
    model: nn.Module,
    loss: Callable[[nn.Module], Tensor],
    etas: Sequence[float],
    step: float,
    start: float,
) -> LayerProbe:
    decreases, turned = {}, {}
    for eta in etas:
        point.aim(eta, step)
        decreases[eta] = start - _run(model, loss).item()
        turned[eta] = point.finish()
    applications = len(point.reached())
    return LayerProbe(decreases, turned, point.cosine(), start, applications)


class _Keeper(AGS):
    """Keeps the gradients of one application, and mixes nothing."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.shape = x.shape
        self.norm_x = _norm([x])
        self.grads: tuple[Tensor, Tensor] | None = None

    def scale(
        self, grad_b: Tensor, grad_a: Tensor, dropped: Tensor | None = None
    ) -> Tensor:
        # What is returned from a backward pass may be added to in place.
        self.grads = grad_b.clone(), grad_a.to(grad_b.dtype, copy=True)
        self.skip(grad_b)
        return self.last_scale

    def direction(self, eta: float) -> Tensor:
        grad_b, grad_a = self.grads
        if eta == math.inf:
            return grad_a * AGS(1.0).scale(grad_b, grad_a)
        return grad_b + grad_a * AGS(eta).scale(grad_b, grad_a)


class _Point:
    """Stands between a layer and its sign."""

    def __init__(self, name: str, layer: SURGELayer) -> None:
        self.name = name
        self.layer = layer
        self.keeps = True
        self.applications: list[_Keeper] = []
        self.steps: list[Tensor | None] | None = None
        # Not a hook: shift and normalize_input are part of the layer.
        layer.normalized = self.see

    def see(self, x: Tensor) -> Tensor:
        # Without gradients to come it would do nothing.
        with torch.enable_grad():
            x = type(self.layer).normalized(self.layer, x)
        if self.keeps:
            self.layer.ags = _Keeper(x.detach())
            self.applications.append(self.layer.ags)
            return x
        if self.steps is None:
            return x
        self.passed += 1
        if (
            self.passed > len(self.applications)
            or x.shape != self.applications[self.passed - 1].shape
        ):
            self._refuse()
        move = self.steps[self.passed - 1]
        if move is None:
            return x
        moved = x + move
        self.turned += (binary_sign(moved) != binary_sign(x)).sum()
        self.total += x.numel()
        return moved

    def reached(self) -> list[_Keeper]:
        return [a for a in self.applications if a.grads is not None]

    def has_gradient(self) -> bool:
        return any(a.grads[0].any() for a in self.reached())

    def cosine(self) -> float:
        grads_b, grads_a = zip(*(a.grads for a in self.reached()))
        product = sum(
            (b.double() * a.double()).sum() for b, a in zip(grads_b, grads_a)
        )
        norms = _norm(grads_b) * _norm(grads_a)
        return product.item() / norms if norms else 0.0

    def aim(self, eta: float, step: float) -> None:
        """Take the step of an eta in the passes to come."""
        reached = self.reached()
        directions = [a.direction(eta) for a in reached]
        length = _norm(directions)
        size = step * math.hypot(*(a.norm_x for a in reached))
        # Without a replica's gradient there is no step along it.
        factor = -size / length if length else 0.0
        moves = iter([factor * d for d in directions])
        self.steps = [
            None if a.grads is None else next(moves) for a in self.applications
        ]
        self.passed = self.total = 0
        self.turned: Tensor | int = 0

    def finish(self) -> float:
        """Take no more steps; return the share of signs that it turned."""
        if self.passed != len(self.applications):
            self._refuse()
        self.steps = None
        return int(self.turned) / self.total

    def _refuse(self) -> None:
        raise ValueError(
            f'layer {self.name!r} is not applied to inputs of the same shapes '
            'in each pass: a step cannot be measured'
        )


def _norm(tensors: Sequence[Tensor]) -> float:
    """2-norm of all of them together."""
    norm = torch.linalg.vector_norm
    return math.hypot(*(norm(t, dtype=torch.double).item() for t in tensors))
