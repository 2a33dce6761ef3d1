"""The field's estimators and binarizers, number by number.

Nothing here imports the package. Derivatives are written for one Python
number at a time, binarizers for one output channel at a time, and autograd
derives the backward pass of what is joined with `detach`.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from reference import sign, straight_through


def reste_o(p, o_end=3.0):
    return 1 + (o_end - 1) * (1 - math.cos(math.pi / 2 * p))


def reste(v, p, o_end=3.0, m=0.1, t=1.5):
    o, v = reste_o(p, o_end), abs(v)
    if v > t:
        return 0.0
    if v <= m:
        return m ** (1 / o) / m
    return (1 / o) * v ** ((1 - o) / o)


def ede_t_k(p):
    t = 10 ** (-3 + 4 * p)
    return t, max(1 / t, 1)


def ede(v, p):
    t, k = ede_t_k(p)
    # 1 - tanh^2 = 4 / (e^a + e^-a)^2
    return k * t * 4 / (math.exp(t * v) + math.exp(-t * v)) ** 2


def approx(v, p):
    if -1 <= v < 0:
        return 2 + 2 * v
    return 2 - 2 * v if 0 <= v < 1 else 0.0


def ste(v, p):
    return 1.0 if abs(v) <= 1 else 0.0


def identity(v, p):
    return 1.0


def elementwise(h, p):
    """h on tensors."""

    def derivative(x):
        values = [h(v, p) for v in x.detach().flatten().tolist()]
        return torch.tensor(values, dtype=torch.float64).view(x.shape)

    return derivative


def tau(p):
    a = (0.99 - 0.85) / (math.e - 1)
    return a * math.exp(p) + 0.85 - a


def standardised(channel, eps):
    difference = channel - channel.sum() / channel.numel()
    variance = (difference**2).sum() / (channel.numel() - 1)
    return difference / torch.sqrt(variance + eps)


def scaled_sign(weight, alpha, p):
    sizes = [w.detach().abs().sum() / w.numel() for w in weight]
    return weight, torch.stack(sizes)


def ir_net(weight, alpha, p):
    z = torch.stack([standardised(w, 0.0) for w in weight])
    sizes = [c.detach().abs().mean().item() for c in z]
    scales = [2.0 ** round(math.log2(size)) for size in sizes]
    return z, torch.tensor(scales, dtype=torch.float64)


def recu(weight, alpha, p):
    w1 = [2 * math.sqrt(2) * standardised(w, 1e-5) for w in weight]
    w1 = torch.stack(w1)
    bound = -w1.detach().abs().mean() * math.log(2 - 2 * tau(p))
    outside = w1.detach().abs() > bound
    assert outside.any()
    return torch.where(outside, bound * sign(w1.detach()), w1), alpha


def normalized(x):
    """Each sample by its standard deviation."""
    rows = []
    for sample in x:
        difference = sample - sample.sum() / sample.numel()
        variance = (difference**2).sum() / (sample.numel() - 1)
        rows.append(sample / torch.sqrt(variance + 1e-5))
    return torch.stack(rows)


class Expected(NamedTuple):
    """Output and gradients."""

    out: torch.Tensor
    x: torch.Tensor
    weight: torch.Tensor
    alpha: torch.Tensor | None
    aux_weight: torch.Tensor | None


def expected(
    x, weight, alpha, aux_weight, grad, eta, h_x, h_w, binarizer, p, normalize
):
    """One application of a layer without bias, 3x3 with padding 1."""

    def leaf(t):
        return None if t is None else t.detach().clone().requires_grad_()

    def operator(value, kernel):
        if kernel.dim() == 2:
            return F.linear(value, kernel)
        return F.conv2d(value, kernel, padding=1)

    x, weight, alpha, aux_weight = map(leaf, (x, weight, alpha, aux_weight))
    seen = normalized(x) if normalize else x
    z, scale = binarizer(weight, alpha, p)
    scale = scale.view(-1, *[1] * (weight.dim() - 1))
    f_b = operator(
        straight_through(seen, elementwise(h_x, p)),
        scale * straight_through(z, elementwise(h_w, p)),
    )
    out = f_b
    if aux_weight is not None:
        f_a = operator(seen, aux_weight)
        g_b, g_a = (
            torch.autograd.grad(f, seen, grad, retain_graph=True)[0]
            for f in (f_b, f_a)
        )
        factor = eta * g_b.norm() / (g_a.norm() + 1e-8)
        out = f_b + factor * (f_a - f_a.detach())
    leaves = [t for t in (x, weight, alpha, aux_weight) if t is not None]
    grads = iter(torch.autograd.grad(out, leaves, grad))
    return Expected(
        f_b.detach(),
        *(
            None if t is None else next(grads)
            for t in (x, weight, alpha, aux_weight)
        ),
    )
