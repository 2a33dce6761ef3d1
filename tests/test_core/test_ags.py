import copy
import math

import pytest
import torch
from reference import expected, relative_error

from surge_det.core import AGS, SURGEConv2d, SURGELinear


def step(layer, x, factor=1.0):
    """Gradients after one backward pass of a loss times `factor`."""
    layer.zero_grad()
    x = x.detach().clone().requires_grad_()
    out = layer(x)
    torch.manual_seed(99)
    out.backward(torch.randn_like(out) * factor)
    return x.grad


def test_starts_empty():
    ags = AGS()
    assert ags.eta == 0.1
    assert ags.last_scale is None
    assert ags.last_norm_b is None
    assert ags.last_norm_a is None


def test_layers_share_nothing_and_have_the_same_default():
    one, two = SURGEConv2d(2, 2, 3), SURGELinear(2, 2)
    assert isinstance(one.ags, AGS)
    assert isinstance(two.ags, AGS)
    assert one.ags is not two.ags
    assert one.ags.eta == two.ags.eta == AGS().eta


@pytest.mark.parametrize('bad', [-0.1, math.nan, math.inf, 'high', None])
def test_bad_eta_is_refused_everywhere(bad):
    calls = [
        lambda: AGS(eta=bad),
        lambda: SURGEConv2d(2, 2, 3, eta=bad),
        lambda: SURGELinear(2, 2, eta=bad),
    ]
    for call in calls:
        with pytest.raises(ValueError, match='eta') as error:
            call()
        assert str(bad) in str(error.value)


@pytest.mark.parametrize('bad', [-0.1, math.nan, 'high'])
def test_setting_a_bad_eta_keeps_the_old(bad):
    ags = AGS(eta=0.7)
    with pytest.raises(ValueError, match='eta'):
        ags.eta = bad
    assert ags.eta == 0.7


@pytest.mark.parametrize(
    ('dtype', 'wanted'),
    [
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
    ],
)
@pytest.mark.parametrize('kind', ['conv', 'linear'])
def test_scale_and_norms_are_tensors_of_the_right_type(kind, dtype, wanted):
    torch.manual_seed(0)
    if kind == 'conv':
        layer = SURGEConv2d(3, 4, 3, dtype=dtype)
        x = torch.randn(2, 3, 5, 5, dtype=dtype)
    else:
        layer = SURGELinear(3, 4, dtype=dtype)
        x = torch.randn(2, 3, dtype=dtype)
    step(layer, x)
    for value in (
        layer.ags.last_scale,
        layer.ags.last_norm_b,
        layer.ags.last_norm_a,
    ):
        assert isinstance(value, torch.Tensor)
        assert value.shape == ()
        assert value.dtype == wanted
        assert value.device == x.device
        assert not value.requires_grad
        assert value > 0


def test_forward_alone_records_nothing():
    layer = SURGEConv2d(3, 4, 3)
    layer(torch.randn(1, 3, 5, 5))
    assert layer.ags.last_scale is None


def test_values_by_hand():
    # x = 0.5, w = -2, w_a = 3, upstream gradient 1, eta = 0.5:
    # alpha = 2 and Q_w = -2, so g_b = -2; g_a = 3; scale = 0.5 * 2 / 3.
    # dx = -2 + 3 / 3 = -1; dw = alpha * sign(x) = 2; dw_a = 0.5 / 3.
    layer = SURGELinear(1, 1, eta=0.5, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.fill_(-2.0)
        layer.aux_weight.fill_(3.0)
        layer.bias.fill_(10.0)
    x = torch.tensor([[0.5]], dtype=torch.float64, requires_grad=True)
    out = layer(x)
    out.sum().backward()
    assert out.item() == 8.0
    assert layer.ags.last_norm_b.item() == 2.0
    assert layer.ags.last_norm_a.item() == 3.0
    assert layer.ags.last_scale.item() == pytest.approx(1 / 3, rel=1e-8)
    assert x.grad.item() == pytest.approx(-1.0, rel=1e-8)
    assert layer.weight.grad.item() == pytest.approx(2.0)
    assert layer.aux_weight.grad.item() == pytest.approx(1 / 6, rel=1e-8)
    assert layer.bias.grad.item() == 1.0


def test_new_eta_counts_from_the_next_backward_pass():
    torch.manual_seed(0)
    layer = SURGEConv2d(3, 4, 3, eta=0.2, dtype=torch.float64)
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    first = step(layer, x)
    aux = layer.aux_weight.grad.clone()
    scale = layer.ags.last_scale.clone()
    layer.ags.eta = 0.6
    second = step(layer, x)
    assert relative_error(layer.ags.last_scale, 3 * scale) < 1e-12
    assert relative_error(layer.aux_weight.grad, 3 * aux) < 1e-12
    # dx = g_b + scale * g_a is linear in eta.
    layer.ags.eta = 0.0
    base = step(layer, x)
    assert relative_error(second - base, 3 * (first - base)) < 1e-10


def test_eta_is_read_back_as_set():
    layer = SURGEConv2d(2, 2, 3, eta=0.45)
    assert layer.ags.eta == 0.45
    layer.ags.eta = 1
    assert layer.ags.eta == 1


def ratios(x, layer, grad):
    """The definition of what 'auto' follows, from autograd alone."""
    signs = torch.where(x >= 0, 1.0, -1.0).to(x.dtype).requires_grad_()
    alpha = layer.weight.abs().mean((1, 2, 3), keepdim=True)
    weight = alpha * torch.where(layer.weight >= 0, 1.0, -1.0).to(x.dtype)
    real = x.detach().requires_grad_()
    outs = [
        torch.conv2d(signs, weight),
        torch.conv2d(real, layer.aux_weight),
    ]
    whole, g_a = torch.autograd.grad(outs, [signs, real], [grad, grad])
    g_b = whole * (x.abs() <= 1)
    return ((whole - g_b) * g_a).sum() / (g_b.norm() * g_a.norm()), g_b, g_a


def run_auto(layer, seed, scale=1.0):
    torch.manual_seed(seed)
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64, requires_grad=True)
    out = layer(x)
    grad = scale * torch.randn_like(out)
    out.backward(grad)
    return x, grad


@pytest.mark.parametrize('scale', [1.0, 1e-150, 1e140])
def test_auto_follows_its_definition(scale):
    torch.manual_seed(0)
    layer = SURGEConv2d(3, 4, 3, eta='auto', bias=False, dtype=torch.float64)
    total = weight = 0.0
    for seed in range(4):
        # What a step would do to both.
        for parameter in layer.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
        layer.begin_training()
        x, grad = run_auto(layer, seed, scale)
        r, g_b, g_a = ratios(x.detach(), layer, grad / scale)
        total = 0.95 * total + 0.05 * r.item()
        weight = 0.95 * weight + 0.05
        eta = min(max(total / weight / 4, 0), 1)
        assert layer.ags.last_eta.item() == pytest.approx(eta, rel=1e-9)
        lam = eta * g_b.norm() / g_a.norm()
        assert torch.allclose(
            x.grad, scale * (g_b + lam * g_a), rtol=1e-6, atol=0
        )
    assert eta > 0


def test_auto_is_bounded_and_never_nan():
    ags = AGS('auto')
    one = torch.ones(4)
    # Nothing passes the estimator: there is nothing to go by.
    assert ags.scale(0 * one, one, one) == 0
    # No replica's gradient.
    assert ags.scale(one, 0 * one, one) == 0
    assert ags.estimate.tolist() == [0, 0]
    # Hardly anything passes: no pass has more than its share.
    ags.scale(one, one, 0 * one)
    ags.scale(1e-30 * one, one, one)
    assert ags.last_eta.item() == pytest.approx(1 / 1.95)
    for _ in range(100):
        ags.scale(1e-30 * one, one, one)
    assert ags.last_eta.item() == pytest.approx(1, abs=0.01)
    known = ags.estimate.clone()
    for bad in (math.nan, math.inf):
        for where in range(3):
            grads = [one.clone() for _ in range(3)]
            grads[where][1] = bad
            ags.scale(*grads)
            assert torch.equal(ags.estimate, known)
    for _ in range(200):
        ags.scale(one, one, -one)
    assert ags.last_eta.item() == 0


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_a_pass_without_a_gradient_tells_auto_nothing(dtype):
    one = torch.ones(4, dtype=dtype)
    ags = AGS('auto')
    ags.watches = True
    ags.scale(one, one, one)
    known, eta = ags.estimate, ags.last_eta
    # A quarter of r = 1.
    assert eta.item() == pytest.approx(0.25)
    for grads in (
        (0 * one, one, one),
        (one, 0 * one, one),
        (0 * one, 0 * one, 0 * one),
        (one[:0], one[:0], one[:0]),
    ):
        for _ in range(50):
            ags.scale(*grads)
        assert torch.equal(ags.estimate, known)
        assert ags.last_eta == eta
        assert ags.last_missed.isnan()
        assert ags.last_cosine.isnan()
        assert ags.last_missed.dtype == dtype


def test_auto_without_an_estimator_adds_nothing():
    layer = SURGEConv2d(
        3, 4, 3, eta='auto', activation_estimator={'type': 'STE', 'clip': None}
    )
    x = torch.randn(2, 3, 5, 5, requires_grad=True)
    layer(x).sum().backward()
    assert layer.ags.last_scale == pytest.approx(0, abs=1e-6)
    assert not layer.aux_weight.grad.abs().max() > 1e-5


def test_auto_after_each_application():
    layer = SURGEConv2d(3, 3, 1, eta='auto')
    x = 2 * torch.randn(2, 3, 5, 5)
    (layer(x).sum() + layer(x.flip(0)).square().sum()).backward()
    assert layer.ags.estimate[1].item() == pytest.approx(1 - 0.95**2)


def test_scale_ignores_the_size_of_the_gradient():
    torch.manual_seed(0)
    layer = SURGEConv2d(3, 4, 3, dtype=torch.float64)
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    small = step(layer, x)
    aux = layer.aux_weight.grad.clone()
    scale = layer.ags.last_scale.clone()
    large = step(layer, x, factor=2.0**16)
    # Only eps, 1e-8 beside a norm of about 1, may make a difference.
    assert relative_error(layer.ags.last_scale, scale) < 1e-7
    assert relative_error(large, small * 2.0**16) < 1e-7
    assert relative_error(layer.aux_weight.grad, aux * 2.0**16) < 1e-7


SIZES = [1e-38, 1e-30, 1e-20, 1e-12, 1e-8, 1e-3, 1.0, 1e3, 1e20, 1e30]


def gradients(size, dtype):
    torch.manual_seed(0)
    return torch.randn(2, 2, 3, 5, 5, dtype=torch.float64).to(dtype) * size


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('size', [*SIZES, 1e-300, 1e300])
def test_scale_is_that_of_the_formula_at_every_size(size, dtype):
    if not torch.finfo(dtype).tiny < size < torch.finfo(dtype).max:
        pytest.skip(f'{dtype} has no {size}')
    precision = 1e-6 if dtype == torch.float32 else 1e-12
    g_b, g_a = gradients(size, dtype)
    ags = AGS(eta=0.3)
    scale = ags.scale(g_b, 0.01 * g_a).item()
    # By Python's own numbers, which have room for the squares once they are
    # divided by the size.
    norm_b, norm_a = (
        size * math.sqrt(sum((v / size) ** 2 for v in g.flatten().tolist()))
        for g in (g_b, 0.01 * g_a)
    )
    assert ags.last_norm_b.item() == pytest.approx(norm_b, rel=precision)
    assert ags.last_norm_a.item() == pytest.approx(norm_a, rel=precision)
    # The paper's formula, whose epsilon is 1e-8 at every size.
    if size >= 1:
        wanted = 0.3 * norm_b / (norm_a + 1e-8)
        assert scale == pytest.approx(wanted, rel=precision)
    # Elsewhere it is the formula without one, but for 1e-8 of the larger.
    wanted = 0.3 * norm_b / norm_a
    assert scale == pytest.approx(wanted, rel=max(precision, 2e-6))


@pytest.mark.parametrize(
    'dtype', [torch.float16, torch.bfloat16, torch.float32, torch.float64]
)
@pytest.mark.parametrize('empty', [False, True])
def test_no_pair_of_sizes_makes_nan(dtype, empty):
    limits = torch.finfo(dtype)
    values = [0.0, limits.tiny / 4, limits.tiny, 1.0, limits.max]
    shape = (2, 0, 3, 3) if empty else (2, 3, 4, 4)
    for b in values:
        for a in values:
            g_b = torch.full(shape, b, dtype=dtype)
            g_a = torch.full(shape, a, dtype=dtype)
            ags = AGS(eta=0.2)
            scale = ags.scale(g_b, g_a)
            assert scale.isfinite(), (b, a)
            assert (scale * g_a.to(scale.dtype)).isnan().sum() == 0, (b, a)
            if b == 0 or empty:
                assert scale == 0, (b, a)
            if a == b != 0 and not empty:
                assert scale.item() == pytest.approx(0.2, rel=1e-5), (b, a)


@pytest.mark.parametrize('factor', [1e-30, 1e-12, 1.0, 1e12, 1e30, 1e36])
@pytest.mark.parametrize('kind', ['conv', 'linear'])
def test_a_step_with_tiny_and_huge_gradients(kind, factor):
    torch.manual_seed(0)
    if kind == 'conv':
        layer, x = SURGEConv2d(3, 4, 3), torch.randn(2, 3, 5, 5)
    else:
        layer, x = SURGELinear(3, 4), torch.randn(2, 3)
    ordinary = step(layer, x)
    scale = layer.ags.last_scale.clone()
    wanted = {n: p.grad.clone() for n, p in layer.named_parameters()}
    got = step(layer, x, factor=factor)
    assert relative_error(layer.ags.last_scale, scale) < 1e-6
    assert relative_error(got.double() / factor, ordinary) < 1e-5
    for name, parameter in layer.named_parameters():
        grad = parameter.grad.double() / factor
        assert relative_error(grad, wanted[name]) < 1e-5, name


ENDS = [
    (torch.float64, 1e300),
    (torch.float64, 1e-310),
    (torch.float32, 1e37),
    (torch.float32, 1e-44),
    (torch.bfloat16, 1e37),
    (torch.bfloat16, 1e-40),
    (torch.float16, 6e4),
    (torch.float16, 6e-8),
]


@pytest.mark.parametrize(('dtype', 'size'), ENDS)
@pytest.mark.parametrize('eta', [0.2, 5.0])
def test_scale_at_the_ends_of_each_type(dtype, size, eta):
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(0, 2, (2, 10, 10), generator=generator)
    g_b, g_a = (bits.double() * 2 - 1).mul(size).to(dtype)
    # A quarter as many of the same size: half of the norm.
    g_a[:5, :], g_a[5:, :5] = 0, 0
    ags = AGS(eta=eta)
    scale = ags.scale(g_b, g_a)
    want = g_b.double().abs().max().item() * 10
    precision = 1e-12 if dtype == torch.float64 else 1e-6
    assert ags.last_norm_b.item() == pytest.approx(want, rel=precision)
    assert ags.last_norm_a.item() == pytest.approx(want / 2, rel=precision)
    # Below the normal numbers lambda goes to 0.
    want = 2 * eta * min(1, want / 2 / torch.finfo(scale.dtype).tiny)
    assert scale.item() == pytest.approx(want, rel=1e-6)
    # A norm that the type cannot hold makes no NaN.
    huge = torch.full((1000,), torch.finfo(dtype).max, dtype=dtype)
    for other in (huge, -huge, huge / 2, g_a, torch.zeros_like(huge)):
        for pair in ((huge, other), (other, huge)):
            assert 0 <= ags.scale(*pair).item() < math.inf
    zeros = torch.zeros_like(huge)
    assert ags.scale(zeros, zeros).item() == 0
    assert AGS(eta='auto').scale(huge, zeros, zeros).item() == 0


def test_huge_gradients_under_autocast():
    torch.manual_seed(0)
    layer = SURGEConv2d(4, 8, 3)
    x = torch.randn(2, 4, 9, 9)
    scales = []
    for factor in (1.0, 1e30):
        with torch.autocast('cpu', dtype=torch.bfloat16):
            grad = step(layer, x, factor)
        scales.append(layer.ags.last_scale)
        assert grad.isfinite().all()
        assert all(p.grad.isfinite().all() for p in layer.parameters())
    assert relative_error(scales[1], scales[0]) < 0.01
    assert layer.aux_weight.grad.abs().max() > 1e28


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('factor', [2000.0, 1e-4])
def test_norms_of_half_types_neither_overflow_nor_vanish(dtype, factor):
    torch.manual_seed(0)
    layer = SURGEConv2d(4, 8, 3, eta=0.2).to(dtype)
    x = torch.randn(2, 4, 9, 9).to(dtype).requires_grad_()
    out = layer(x)
    grad = (torch.randn(out.shape) * factor).to(dtype)
    out.backward(grad)
    want = expected(x, layer.weight, layer.aux_weight, layer.bias, grad, 0.2)
    # The premise: in half precision these squares would be lost.
    if dtype == torch.float16:
        squares = want.norm_b.pow(2)
        limits = torch.finfo(dtype)
        assert squares > limits.max or squares / x.numel() < limits.tiny
    assert layer.ags.last_norm_b.isfinite()
    assert relative_error(layer.ags.last_norm_b, want.norm_b) < 0.02
    assert relative_error(layer.ags.last_norm_a, want.norm_a) < 0.02
    assert relative_error(layer.ags.last_scale, want.scale) < 0.02


def test_zero_gradient_gives_zero_scale_and_no_nan():
    layer = SURGEConv2d(3, 4, 3)
    x = torch.randn(2, 3, 5, 5, requires_grad=True)
    (layer(x) * 0).sum().backward()
    assert layer.ags.last_scale.item() == 0
    for grad in [x.grad] + [p.grad for p in layer.parameters()]:
        assert torch.equal(grad, torch.zeros_like(grad))


def test_replica_without_gradient_is_no_division_by_zero():
    layer = SURGEConv2d(3, 4, 3, dtype=torch.float64)
    layer.begin_training()
    with torch.no_grad():
        layer.aux_weight.zero_()
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64, requires_grad=True)
    out = layer(x)
    grad = torch.randn_like(out)
    out.backward(grad)
    want = expected(
        x, layer.weight, layer.aux_weight, layer.bias, grad, layer.ags.eta
    )
    assert relative_error(layer.ags.last_scale, want.scale) < 1e-10
    assert relative_error(x.grad, want.x) < 1e-10


def test_infinite_gradient_is_not_hidden():
    # A gradient scaler skips the step only if it sees the infinity.
    layer = SURGEConv2d(3, 4, 3)
    x = torch.randn(2, 3, 5, 5)
    out = layer(x)
    grad = torch.ones_like(out)
    grad[0, 0, 0, 0] = math.inf
    out.backward(grad)
    assert not layer.weight.grad.isfinite().all()
    assert not layer.aux_weight.grad.isfinite().all()


@pytest.mark.parametrize('needs_grad', [True, False])
def test_zero_eta_is_plain_and_keeps_a_zero_gradient(needs_grad):
    torch.manual_seed(0)
    layer = SURGEConv2d(3, 4, 3, eta=0)
    plain = SURGEConv2d(3, 4, 3, compensate=False)
    plain.load_state_dict(
        {k: v for k, v in layer.state_dict().items() if k != 'aux_weight'}
    )
    inputs = []
    data = torch.randn(2, 3, 5, 5)
    for module in (layer, plain):
        x = data.clone().requires_grad_(needs_grad)
        out = module(x)
        torch.manual_seed(5)
        out.backward(torch.randn_like(out))
        inputs.append(x.grad)
    if needs_grad:
        assert torch.equal(*inputs)
    assert torch.equal(layer.weight.grad, plain.weight.grad)
    assert torch.equal(layer.bias.grad, plain.bias.grad)
    assert layer.aux_weight.grad is not None
    assert torch.equal(
        layer.aux_weight.grad, torch.zeros_like(layer.aux_weight)
    )
    assert isinstance(layer.ags.last_scale, torch.Tensor)
    assert layer.ags.last_scale.item() == 0
    assert layer.ags.last_norm_b is None
    assert layer.ags.last_norm_a is None


def test_eta_of_zero_after_other_values_forgets_the_norms():
    layer = SURGEConv2d(3, 4, 3, eta=0.3)
    x = torch.randn(2, 3, 5, 5)
    step(layer, x)
    assert layer.ags.last_norm_b is not None
    layer.ags.eta = 0
    step(layer, x)
    assert layer.ags.last_scale.item() == 0
    assert layer.ags.last_norm_b is None
    assert layer.ags.last_norm_a is None


def test_one_scale_per_application():
    torch.manual_seed(0)
    layer = SURGEConv2d(3, 3, 3, padding=1, eta=0.4, dtype=torch.float64)
    sizes = [(2, 3, 8, 8), (2, 3, 4, 4), (1, 3, 2, 3)]
    xs = [torch.randn(s, dtype=torch.float64).requires_grad_() for s in sizes]
    outs = [layer(x) for x in xs]
    grads = [torch.randn_like(o) * 10**i for i, o in enumerate(outs)]
    torch.autograd.backward(outs, grads)
    wants = [
        expected(
            x, layer.weight, layer.aux_weight, layer.bias, g, 0.4, padding=1
        )
        for x, g in zip(xs, grads)
    ]
    for x, want in zip(xs, wants):
        assert relative_error(x.grad, want.x) < 1e-10
    for name in ('weight', 'aux_weight', 'bias'):
        total = sum(getattr(want, name) for want in wants)
        assert relative_error(getattr(layer, name).grad, total) < 1e-10
    scales = [want.scale.item() for want in wants]
    assert len({round(s, 6) for s in scales}) == 3
    assert (
        min(abs(layer.ags.last_scale.item() / s - 1) for s in scales) < 1e-10
    )


def test_one_scale_per_application_in_a_chain():
    # The same layer twice in a row: the second's input needs the first.
    torch.manual_seed(0)
    layer = SURGELinear(4, 4, eta=0.4, dtype=torch.float64)
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    middle = layer(x)
    middle.retain_grad()
    out = layer(middle)
    grad = torch.randn_like(out)
    out.backward(grad)
    args = (layer.weight, layer.aux_weight, layer.bias)
    last = expected(middle, *args, grad, 0.4, linear=True)
    first = expected(x, *args, last.x, 0.4, linear=True)
    assert relative_error(middle.grad, last.x) < 1e-10
    assert relative_error(x.grad, first.x) < 1e-10
    total = first.aux_weight + last.aux_weight
    assert relative_error(layer.aux_weight.grad, total) < 1e-10
    # The backward pass ends at the first application.
    assert relative_error(layer.ags.last_scale, first.scale) < 1e-10


def test_accumulated_steps_add_up():
    torch.manual_seed(0)
    layer = SURGEConv2d(3, 4, 3, eta=0.4, dtype=torch.float64)
    total = torch.zeros_like(layer.aux_weight)
    for factor in (1.0, 50.0):
        x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
        out = layer(x)
        grad = torch.randn_like(out) * factor
        out.backward(grad)
        want = expected(
            x, layer.weight, layer.aux_weight, layer.bias, grad, 0.4
        )
        total += want.aux_weight
        assert relative_error(layer.ags.last_scale, want.scale) < 1e-10
    assert relative_error(layer.aux_weight.grad, total) < 1e-10


def test_a_copy_after_a_step_has_its_own_scaler():
    layer = SURGEConv2d(3, 4, 3, eta=0.3)
    x = torch.randn(2, 3, 5, 5)
    step(layer, x)
    scale = layer.ags.last_scale.clone()
    twin = copy.deepcopy(layer)
    assert twin.ags is not layer.ags
    assert twin.ags.eta == 0.3
    twin.ags.eta = 0.9
    assert layer.ags.eta == 0.3
    step(twin, x)
    assert torch.equal(layer.ags.last_scale, scale)
    assert relative_error(twin.ags.last_scale, 3 * scale) < 1e-5


@pytest.mark.parametrize('large', ['weight', 'aux_weight'])
def test_a_scaler_sees_a_gradient_that_overflows_in_float16(large):
    torch.manual_seed(0)
    layer = SURGEConv2d(8, 8, 3, eta='auto').half()
    x = torch.randn(1, 8, 9, 9).half()
    assert step(layer, x).isfinite().all()
    known = layer.ags.estimate
    with torch.no_grad():
        getattr(layer, large).mul_(1000)
    assert not step(layer, x, 1000).isfinite().all()
    assert torch.equal(layer.ags.estimate, known)
