"""The method's formula, written out with plain torch and `detach`.

Nothing here imports the package: tests compare its autograd Function with
these two separate convolutions (or linear maps), joined by
`f_b + s * f_a - (s * f_a).detach()`, whose backward pass autograd derives.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode


def sign(x):
    """Sign with sign(0) = +1."""
    return torch.where(x >= 0, torch.ones_like(x), -torch.ones_like(x))


def ste(clip):
    """h(x) = 1{|x| <= clip}, or 1 everywhere for `clip=None`."""
    if clip is None:
        return torch.ones_like
    return lambda x: (x.abs() <= clip).to(x)


def approx_sign(x):
    """h(x) = max(0, 2 - 2|x|)."""
    return (2 - 2 * x.abs()).clamp(min=0)


class ApproxSign:
    """A user's own estimator: anything with `derivative`."""

    def derivative(self, x):
        return approx_sign(x)


def straight_through(x, h):
    """sign(x) whose gradient is h(x) times the incoming one."""
    return sign(x).detach() + h(x).detach() * (x - x.detach())


class Expected(NamedTuple):
    """Output, gradients and what the scaler must have seen."""

    out: torch.Tensor
    x: torch.Tensor
    weight: torch.Tensor
    aux_weight: torch.Tensor
    bias: torch.Tensor | None
    scale: torch.Tensor
    norm_b: torch.Tensor
    norm_a: torch.Tensor


def _pair(value):
    return (value, value) if isinstance(value, int) else tuple(value)


def explicit_padding(kernel_size, padding, dilation):
    """Padding as F.pad wants it: left, right, top, bottom."""
    pads = []
    sizes = zip(_pair(kernel_size), _pair(dilation))
    for axis, (k, d) in enumerate(sizes):
        if padding == 'valid':
            before = after = 0
        elif padding == 'same':
            # An odd total puts the extra element behind, as nn.Conv2d does.
            total = d * (k - 1)
            before = total // 2
            after = total - before
        else:
            before = after = _pair(padding)[axis]
        pads.append((before, after))
    (top, bottom), (left, right) = pads
    return left, right, top, bottom


def expected(
    x,
    weight,
    aux_weight,
    bias,
    grad,
    eta,
    *,
    linear=False,
    stride=1,
    padding=0,
    dilation=1,
    groups=1,
    pad_value=0.0,
    h_x=None,
    h_w=None,
    binarize_weight=True,
    binarize_activation=True,
    eps=1e-8,
):
    """All values of one application, in float64, for upstream `grad`."""

    def leaf(t):
        if t is None:
            return None
        return t.detach().double().clone().requires_grad_()

    x, weight, aux_weight, bias = map(leaf, (x, weight, aux_weight, bias))
    grad = grad.detach().double()
    h_x = h_x or ste(1.0)
    h_w = h_w or ste(None)

    def operator(value, kernel, pad_with):
        if linear:
            return F.linear(value, kernel)
        pads = explicit_padding(kernel.shape[-2:], padding, dilation)
        return F.conv2d(
            F.pad(value, pads, value=pad_with),
            kernel,
            stride=stride,
            dilation=dilation,
            groups=groups,
        )

    def f_b():
        q_x = straight_through(x, h_x) if binarize_activation else x
        q_w = weight
        if binarize_weight:
            dims = tuple(range(1, weight.dim()))
            alpha = weight.detach().abs().mean(dims, keepdim=True)
            q_w = alpha * straight_through(weight, h_w)
        return operator(q_x, q_w, pad_value)

    def f_a():
        return operator(x, aux_weight, 0.0)

    (g_b,) = torch.autograd.grad(f_b(), x, grad)
    (g_a,) = torch.autograd.grad(f_a(), x, grad)
    norm_b, norm_a = g_b.pow(2).sum().sqrt(), g_a.pow(2).sum().sqrt()
    # Relative for small gradients; the paper's is absolute.
    scale = eta * norm_b / (norm_a + eps * min(1, max(norm_a, norm_b, 1e-99)))

    compensation = scale * f_a()
    out = f_b() + compensation - compensation.detach()
    plain = f_b().detach()
    if bias is not None:
        shaped = bias if linear else bias.reshape(-1, 1, 1)
        out, plain = out + shaped, plain + shaped.detach()
    leaves = [t for t in (x, weight, aux_weight, bias) if t is not None]
    grads = list(torch.autograd.grad(out, leaves, grad))
    if bias is None:
        grads.append(None)
    return Expected(plain, *grads, scale, norm_b, norm_a)


def relative_error(actual, wanted):
    """Largest deviation, relative to the largest wanted value."""
    actual, wanted = actual.detach().double(), wanted.detach().double()
    assert actual.shape == wanted.shape, (actual.shape, wanted.shape)
    if wanted.numel() == 0:
        return 0.0
    worst = (actual - wanted).abs().max()
    largest = wanted.abs().max()
    if largest == 0:
        return float(worst)
    return float(worst / largest)


class OpRecorder(TorchDispatchMode):
    """Every ATen call, in order, as (name, arguments)."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls.append((func._schema.name, args))
        return func(*args, **(kwargs or {}))

    def names(self):
        return [name for name, _ in self.calls]

    def convolutions(self):
        """Arguments of the calls that compute a convolution forward."""
        return [
            args
            for name, args in self.calls
            if 'conv' in name and 'backward' not in name
        ]
