"""ReSTE's two indicators."""

import math

import pytest
import rivals
import torch
from reference import ApproxSign as Foreign
from torch import nn

from surge_det.core import EDE, STE, ApproxSign, ReSTE
from surge_det.core.indicators import (
    estimating_error,
    gradient_variance,
    has_surrogate,
)

# What each takes sign for, for one number, at p = 0.5.
SURROGATES = {
    'STE': (STE(clip=1.0), lambda v: max(-1.0, min(1.0, v))),
    'identity': (STE(clip=None), lambda v: v),
    'ApproxSign': (
        ApproxSign(),
        lambda v: math.copysign(2 * abs(v) - v * v if abs(v) < 1 else 1, v),
    ),
    'ReSTE': (
        ReSTE(),
        lambda v: math.copysign(
            min(abs(v), 1.5) ** (1 / rivals.reste_o(0.5))
            if abs(v) > 0.1
            else abs(v) * 0.1 ** (1 / rivals.reste_o(0.5)) / 0.1,
            v,
        ),
    ),
    'EDE': (
        EDE(),
        lambda v: (
            rivals.ede_t_k(0.5)[1] * math.tanh(rivals.ede_t_k(0.5)[0] * v)
        ),
    ),
}


@pytest.mark.parametrize('name', list(SURROGATES))
def test_estimating_error(name):
    torch.manual_seed(0)
    estimator, f = SURROGATES[name]
    if hasattr(estimator, 'set_progress'):
        estimator.set_progress(0.5)
    z = torch.randn(4, 3, 5, dtype=torch.float64)
    z.view(-1)[:5] = torch.tensor([0.0, 0.05, -0.1, 1.5, -2.0])
    squares = [
        ((1.0 if v >= 0 else -1.0) - f(v)) ** 2 for v in z.flatten().tolist()
    ]
    want = math.sqrt(sum(squares) / len(squares))
    got = estimating_error(estimator, z)
    assert got.shape == ()
    assert got.dtype == torch.float64
    assert got.item() == pytest.approx(want, rel=1e-12)
    narrow = estimating_error(estimator, z.half())
    assert narrow.dtype == torch.float32
    assert narrow.item() == pytest.approx(want, rel=0.01)


def test_a_steeper_reste_errs_less():
    # With m far inside, so that the power is what is compared.
    estimator = ReSTE(m=1e-3)
    z = torch.linspace(-1, 1, 101)
    errors = []
    for p in (0.0, 0.5, 1.0):
        estimator.set_progress(p)
        errors.append(estimating_error(estimator, z).item())
    assert errors[0] > errors[1] > errors[2]


def test_an_estimator_without_surrogate_is_refused():
    assert has_surrogate(STE())
    assert not has_surrogate(Foreign())
    with pytest.raises(ValueError, match='no surrogate') as error:
        estimating_error(Foreign(), torch.zeros(2))
    assert 'ApproxSign' in str(error.value)


def test_gradient_variance_is_of_all_elements_together():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(7, 3), nn.Linear(3, 1, bias=False))
    net[0].weight.grad = torch.randn(3, 7) + 5
    net[0].bias.grad = torch.full((3,), -2.0)
    # Without a gradient: net[1].
    values = [*net[0].weight.grad.flatten().tolist(), -2.0, -2.0, -2.0]
    mean = sum(values) / len(values)
    want = sum((v - mean) ** 2 for v in values) / len(values)
    got = gradient_variance(net.parameters())
    assert got.shape == ()
    assert not got.requires_grad
    assert got.item() == pytest.approx(want, rel=1e-5)


def test_gradient_variance_of_narrow_gradients_does_not_overflow():
    parameter = nn.Parameter(torch.zeros(4, dtype=torch.float16))
    parameter.grad = torch.tensor([6e4, -6e4, 6e4, -6e4]).half()
    got = gradient_variance([parameter]).item()
    assert got == pytest.approx(3.6e9, rel=1e-3)


def test_no_gradient_is_an_error():
    with pytest.raises(ValueError, match='gradient'):
        gradient_variance(nn.Linear(2, 2).parameters())


def test_large_numbers_have_indicators():
    weight = nn.Parameter(torch.zeros(2))
    weight.grad = torch.tensor([1e30, -1e30])
    assert gradient_variance([weight]).item() == pytest.approx(1e60)
    error = estimating_error(STE(clip=None), torch.tensor([1e30, -1e30]))
    assert error.item() == pytest.approx(1e30)
