"""Weight binarizers, alone and with every estimator, with SURGE and not."""

import copy
import math

import pytest
import rivals
import torch
import torch.distributed as dist
from processes import needs_gloo, run_processes
from reference import relative_error
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from surge_det.core import (
    IRNet,
    ReCU,
    ScaledSign,
    SURGEConv2d,
    SURGELinear,
    method_cfg,
    set_progress,
)
from surge_det.core.binarizers import Binarizer, register_binarizer

ESTIMATORS = {
    'STE': (dict(type='STE', clip=1.0), rivals.ste),
    'identity': (dict(type='STE', clip=None), rivals.identity),
    'ApproxSign': (dict(type='ApproxSign'), rivals.approx),
    'ReSTE': (dict(type='ReSTE'), rivals.reste),
    'EDE': (dict(type='EDE'), rivals.ede),
}
BINARIZERS = {
    'ScaledSign': (ScaledSign, rivals.scaled_sign),
    'IRNet': (IRNet, rivals.ir_net),
    'ReCU': (ReCU, rivals.recu),
}
every = pytest.mark.parametrize('name', list(BINARIZERS))
P = 0.7


def build(kind, seed=0, dtype=torch.float64, **kwargs):
    torch.manual_seed(seed)
    kwargs = dict(bias=False, dtype=dtype, **kwargs)
    if kind == 'conv':
        layer = SURGEConv2d(3, 5, 3, padding=1, **kwargs)
    else:
        layer = SURGELinear(40, 5, **kwargs)
    with torch.no_grad():
        layer.weight.normal_(0.1, 0.6)
        layer.weight[0] *= 3
        if layer.aux_weight is not None:
            layer.aux_weight.normal_(std=0.3)
    return layer


def inputs(kind, dtype=torch.float64):
    x = torch.randn((2, 3, 5, 4) if kind == 'conv' else (3, 40), dtype=dtype)
    edges = torch.tensor([0.0, -0.0, 1.0, -1.0, 0.1, -1.5])
    x.view(-1)[: len(edges)] = edges.to(dtype)
    return x


def train_step(layer, kind, lr=0.05):
    optimizer = torch.optim.SGD(layer.parameters(), lr=lr)
    layer.zero_grad()
    layer(inputs(kind, layer.weight.dtype)).pow(2).sum().backward()
    optimizer.step()


# Every combination


def compare(kind, h, binarizer, compensate, h_w=None, **kwargs):
    cfg_x, h_x = ESTIMATORS[h]
    cfg_w, h_w = ESTIMATORS[h_w or h]
    cls, formula = BINARIZERS[binarizer]
    layer = build(
        kind,
        activation_estimator=cfg_x,
        weight_estimator=cfg_w,
        weight_binarizer=dict(type=binarizer),
        compensate=compensate,
        eta=0.3,
        **kwargs,
    )
    set_progress(layer, P)
    x = inputs(kind).requires_grad_()
    out = layer(x)
    grad = torch.randn_like(out)
    out.backward(grad)
    alpha = getattr(layer.weight_binarizer, 'alpha', None)
    want = rivals.expected(
        x,
        layer.weight,
        alpha,
        layer.aux_weight,
        grad,
        0.3,
        h_x,
        h_w,
        formula,
        P,
        layer.normalize_input,
    )
    pairs = {'out': (out, want.out), 'x': (x.grad, want.x)}
    pairs['weight'] = (layer.weight.grad, want.weight)
    if alpha is not None:
        pairs['alpha'] = (alpha.grad, want.alpha)
    if compensate:
        pairs['aux_weight'] = (layer.aux_weight.grad, want.aux_weight)
    errors = {n: relative_error(*pair) for n, pair in pairs.items()}
    assert not {n: e for n, e in errors.items() if not e < 1e-10}
    assert all(wanted.abs().max() > 0 for _, wanted in pairs.values())


@pytest.mark.parametrize('compensate', [False, True], ids=['plain', 'surge'])
@every
@pytest.mark.parametrize('h', list(ESTIMATORS))
def test_every_combination(h, name, compensate):
    compare('conv', h, name, compensate)


@pytest.mark.parametrize('compensate', [False, True], ids=['plain', 'surge'])
@every
def test_linear_with_unlike_estimators(name, compensate):
    compare('linear', 'ApproxSign', name, compensate, h_w='EDE')


@pytest.mark.parametrize('compensate', [False, True], ids=['plain', 'surge'])
@pytest.mark.parametrize('kind', ['conv', 'linear'])
def test_normalized_input(kind, compensate):
    compare(
        kind,
        'ApproxSign',
        'ReCU',
        compensate,
        h_w='identity',
        normalize_input=True,
    )


# Forward


@pytest.mark.parametrize(
    ('dtype', 'size'),
    [(torch.float16, 1e4), (torch.bfloat16, 1e30), (torch.float32, 1e30)],
)
def test_normalizing_large_inputs_keeps_their_signs(dtype, size):
    torch.manual_seed(0)
    layer = SURGELinear(8, 3, normalize_input=True).to(dtype)
    x = (torch.randn(2, 8) * size).to(dtype)
    normal = layer.normalized(x)
    assert torch.equal(normal.sign(), x.sign())
    if dtype == torch.float16:
        want = x.double() / x.double().std(1, keepdim=True)
        torch.testing.assert_close(normal.double(), want, rtol=0.01, atol=0)


@every
@pytest.mark.parametrize('kind', ['conv', 'linear'])
def test_weights_have_two_values_per_channel(name, kind):
    layer = build(kind, weight_binarizer=dict(type=name))
    with torch.no_grad():
        # Exactly 0 behind a standardisation too.
        layer.weight[1] = 0
        layer.weight[1].view(-1)[:2] = torch.tensor([1.0, -1.0])
    z = layer.weight_binarizer.prepare(layer.weight)
    scale = layer.weight_binarizer.scale(z)
    assert z.shape == layer.weight.shape
    assert scale.shape == (5, *[1] * (z.dim() - 1))
    n = layer.weight[0].numel()
    # Taps of the effective weight: the layer applied to signs of one input.
    eye = torch.full((n, n), -1.0, dtype=torch.float64)
    eye.fill_diagonal_(1.0)
    if kind == 'conv':
        layer.padding = (0, 0)
        eye = eye.view(n, 3, 3, 3)
    out = layer.eval()(eye).view(n, 5)
    # Differences between rows are 2 (q_i - q_j): back to q by the sum.
    total = -out.sum(0) / (n - 2)
    q = ((out + total) / 2).t()
    assert q.shape == (5, n)
    for channel, row in zip(scale.flatten(), q):
        torch.testing.assert_close(row.abs(), channel.abs().expand(n))
    # sign(0) = +1.
    signs = (q[1] / scale.flatten()[1]).round()
    assert signs.tolist() == [1.0, -1.0] + [1.0] * (n - 2)


@every
def test_output_depends_neither_on_progress_nor_on_mode(name):
    layer = build(
        'conv', weight_binarizer=dict(type=name), normalize_input=True
    )
    x = inputs('conv')
    want = layer(x)
    for p in (0.3, 1.0):
        set_progress(layer, p)
        assert torch.equal(layer(x), want)
    with torch.no_grad():
        assert torch.equal(layer(x), want)
    assert torch.equal(layer.eval()(x), want)
    assert torch.equal(layer.strip()(x), want)


def test_scales_of_ir_net_are_powers_of_two():
    torch.manual_seed(0)
    weight = torch.randn(6, 50, dtype=torch.float64)
    # Few large values: a mean size far below 1.
    weight[3:] = 0.0
    weight[3:, 0] = 1.0
    binarizer = IRNet()
    scale = binarizer.scale(binarizer.prepare(weight)).flatten()
    mean = [z.abs().mean().item() for z in binarizer.prepare(weight)]
    assert scale.tolist() == [2.0 ** round(math.log2(m)) for m in mean]
    assert set(scale.tolist()) == {1.0, 0.25}


def test_clamp_of_recu_moves_with_progress():
    torch.manual_seed(0)
    layer = build('conv', weight_binarizer=dict(type='ReCU'))
    binarizer = layer.weight_binarizer
    assert binarizer.scheduled() == pytest.approx({'tau': 0.85})
    shares = []
    for p in (0.0, 0.5, 1.0):
        set_progress(layer, p)
        assert binarizer.tau == pytest.approx(rivals.tau(p))
        z = binarizer.prepare(layer.weight)
        shares.append((z.abs() == z.abs().max()).double().mean().item())
    assert shares[0] > shares[1] > shares[2]
    assert binarizer.tau == pytest.approx(0.99)
    with pytest.raises(ValueError, match='p=1.5'):
        binarizer.set_progress(1.5)


def test_recu_is_blind_to_scale_and_offset_of_channels():
    layer = build('conv', weight_binarizer=dict(type='ReCU'))
    binarizer = layer.weight_binarizer
    w = layer.weight.detach() * 100
    torch.testing.assert_close(
        binarizer.prepare(w), binarizer.prepare(3 * w + 5)
    )


@every
@pytest.mark.parametrize('value', [0.0, 0.3, 1e-30])
def test_channels_without_variance_are_finite(name, value):
    layer = build('conv', weight_binarizer=dict(type=name))
    nn.init.constant_(layer.weight, value)
    x = inputs('conv').requires_grad_()
    out = layer(x)
    out.sum().backward()
    for tensor in (out, x.grad, layer.weight.grad):
        assert tensor.isfinite().all()


@every
def test_one_weight_per_channel_is_finite(name):
    layer = SURGEConv2d(
        4, 4, 1, groups=4, weight_binarizer=dict(type=name), bias=False
    )
    layer(torch.randn(2, 4, 3, 3)).sum().backward()
    assert layer.weight.grad.isfinite().all()


def test_one_value_per_sample_is_finite():
    layer = SURGELinear(1, 3, normalize_input=True)
    x = torch.randn(4, 1, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad.isfinite().all()
    layer(torch.randn(1)).sum().backward()


@every
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('autocast', [False, True])
def test_narrow_types(name, dtype, autocast):
    kwargs = dict(weight_binarizer=dict(type=name), normalize_input=True)
    wide = build('conv', dtype=torch.float32, **kwargs)
    layer = copy.deepcopy(wide)
    if not autocast:
        layer.to(dtype)
        # The same start for both: what rounding left.
        wide = copy.deepcopy(layer).float()
    x = inputs('conv', torch.float32).to(dtype)
    grads = []
    for module, value in ((wide, x.float()), (layer, x)):
        value.requires_grad_()
        with torch.autocast(
            'cpu', dtype, enabled=module is layer and autocast
        ):
            out = module(value)
        assert out.dtype == (torch.float32 if module is wide else dtype)
        out.float().pow(2).sum().backward()
        names = dict(module.named_parameters())
        for parameter in names.values():
            assert parameter.grad.dtype == parameter.dtype
        grads.append([value.grad, *(q.grad for q in names.values())])
    for got, want in zip(grads[1], grads[0]):
        assert relative_error(got, want) < 0.1


# State


def test_names_in_the_state_dict():
    plain = {'weight', 'aux_weight'}
    for name in BINARIZERS:
        layer = build('conv', weight_binarizer=dict(type=name))
        extra = {'weight_binarizer.alpha'} if name == 'ReCU' else set()
        assert set(layer.state_dict()) == plain | extra
    layer = build(
        'conv', weight_binarizer=dict(type='ReCU'), binarize_weight=False
    )
    assert set(layer.state_dict()) == plain


def test_alpha_starts_uniform_of_the_weights_type():
    layer = SURGEConv2d(
        2, 4000, 1, weight_binarizer=dict(type='ReCU'), dtype=torch.float64
    )
    alpha = layer.weight_binarizer.alpha
    assert alpha.shape == (4000,)
    assert alpha.dtype == torch.float64
    assert alpha.requires_grad
    assert 0 <= alpha.min() < 0.01
    assert 0.99 < alpha.max() < 1
    assert alpha.mean().item() == pytest.approx(0.5, abs=0.02)
    assert alpha.std().item() == pytest.approx(math.sqrt(1 / 12), abs=0.01)


def test_all_binarizers_leave_the_random_state_alone():
    def net(**kwargs):
        torch.manual_seed(5)
        return [SURGEConv2d(3, 4, 3, **kwargs), SURGELinear(4, 2, **kwargs)]

    one, two = (net(weight_binarizer=dict(type=n)) for n in ('IRNet', 'ReCU'))
    for a, b in zip(one, two):
        assert torch.equal(a.weight, b.weight)
        assert torch.equal(a.bias, b.bias)
    again = net(weight_binarizer=dict(type='ReCU'))
    assert torch.equal(
        again[0].weight_binarizer.alpha, two[0].weight_binarizer.alpha
    )
    assert not torch.equal(
        two[0].weight_binarizer.alpha[:2], two[1].weight_binarizer.alpha
    )


def test_from_float_makes_alpha_on_the_layers_own():
    source = nn.Conv2d(3, 5, 3).double().requires_grad_(False)
    layer = SURGEConv2d.from_float(source, weight_binarizer=dict(type='ReCU'))
    alpha = layer.weight_binarizer.alpha
    assert not alpha.is_meta
    assert alpha.dtype == torch.float64
    assert not alpha.requires_grad
    meta = SURGEConv2d(
        3, 5, 3, device='meta', weight_binarizer=dict(type='ReCU')
    )
    assert meta.weight_binarizer.alpha.is_meta
    meta.to_empty(device='cpu')
    meta.weight_binarizer.reset_parameters()
    assert meta.weight_binarizer.alpha.min() >= 0
    assert meta.weight_binarizer.alpha.max() < 1


@every
@pytest.mark.parametrize('kind', ['conv', 'linear'])
def test_strict_round_trip_and_resume(name, kind):
    def make(seed):
        return build(
            kind,
            seed,
            weight_binarizer=dict(type=name),
            activation_estimator=dict(type='ReSTE'),
            weight_estimator=dict(type='EDE'),
        )

    layer = make(0)
    for step in range(4):
        if step == 2:
            state = copy.deepcopy(layer.state_dict())
        set_progress(layer, step / 4)
        torch.manual_seed(step)
        train_step(layer, kind)
    resumed = make(1)
    resumed.load_state_dict(state, strict=True)
    for step in (2, 3):
        set_progress(resumed, step / 4)
        torch.manual_seed(step)
        train_step(resumed, kind)
    for key, value in layer.state_dict().items():
        assert torch.equal(resumed.state_dict()[key], value), key
        assert not torch.equal(state[key], value), key


def test_a_checkpoint_without_the_learned_scale_is_told():
    source = build('conv')
    layer = build('conv', weight_binarizer=dict(type='ReCU'))
    with pytest.raises(RuntimeError, match='weight_binarizer.alpha'):
        layer.load_state_dict(source.state_dict())
    result = layer.load_state_dict(source.state_dict(), strict=False)
    assert result.missing_keys == ['weight_binarizer.alpha']
    with pytest.raises(RuntimeError, match='weight_binarizer.alpha'):
        source.load_state_dict(layer.state_dict())


@every
def test_copies_are_independent(name):
    layer = build('conv', weight_binarizer=dict(type=name))
    twin = copy.deepcopy(layer)
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    set_progress(twin, 0.5)
    train_step(twin, 'conv')
    for key, value in layer.state_dict().items():
        assert torch.equal(value, before[key])
        assert not torch.equal(twin.state_dict()[key], value)
    if name == 'ReCU':
        assert layer.weight_binarizer.progress == 0


@every
@pytest.mark.parametrize('eta', [0.3, 0.0])
@pytest.mark.parametrize('binarize_weight', [True, False])
def test_every_parameter_gets_a_gradient(name, eta, binarize_weight):
    layer = build(
        'conv',
        weight_binarizer=dict(type=name),
        eta=eta,
        binarize_weight=binarize_weight,
    )
    layer(inputs('conv')).sum().backward()
    for key, parameter in layer.named_parameters():
        assert parameter.grad is not None, key


@every
@pytest.mark.parametrize('frozen', ['weight', 'alpha', 'x'])
def test_whatever_is_frozen_the_rest_is_right(name, frozen):
    grads = []
    for freeze in (False, True):
        layer = build('conv', weight_binarizer=dict(type=name))
        x = inputs('conv').requires_grad_()
        tensors = dict(layer.named_parameters(), x=x)
        held = [t for key, t in tensors.items() if key.endswith(frozen)]
        for tensor in held if freeze else ():
            tensor.requires_grad_(False)
        layer(x).pow(2).sum().backward()
        grads.append({key: t.grad for key, t in tensors.items()})
    for key, want in grads[0].items():
        if key.endswith(frozen):
            assert grads[1][key] is None
        else:
            assert torch.equal(grads[1][key], want), key


@pytest.mark.parametrize('kind', ['conv', 'linear'])
def test_default_keeps_a_number_per_channel_and_no_copy(kind):
    layer = build(kind, compensate=True)
    x = inputs(kind).requires_grad_()
    sizes = []

    def pack(tensor):
        known = (x, layer.weight, layer.aux_weight)
        if all(tensor.data_ptr() != t.data_ptr() for t in known):
            sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        layer(x)
    assert sizes == [5]


# Errors and names


@every
def test_by_name_object_and_default(name):
    cls = BINARIZERS[name][0]
    by_name = build('conv', weight_binarizer=dict(type=name))
    by_object = build('conv', weight_binarizer=cls())
    assert type(by_name.weight_binarizer) is cls
    x = inputs('conv')
    assert torch.equal(by_name(x), by_object(x))
    assert type(build('conv').weight_binarizer) is ScaledSign
    assert (f'weight_binarizer={name}()' in repr(by_name)) is (
        name != 'ScaledSign'
    )


@pytest.mark.parametrize(
    'bad',
    [
        dict(type='NoSuchBinarizer'),
        dict(type='STE'),
        dict(type='ReCU', tau=1),
        'ReCU',
        ReCU,
        3,
        nn.Identity(),
    ],
    ids=str,
)
def test_a_bad_binarizer_is_refused(bad):
    with pytest.raises(ValueError, match='weight_binarizer') as error:
        SURGEConv2d(2, 3, 3, weight_binarizer=bad)
    shown = bad['type'] if isinstance(bad, dict) else repr(bad)
    assert shown in str(error.value)


def test_one_recu_for_two_layers_is_refused():
    binarizer = ReCU()
    SURGEConv2d(2, 3, 3, weight_binarizer=binarizer)
    with pytest.raises(ValueError, match='another layer'):
        SURGEConv2d(2, 4, 3, weight_binarizer=binarizer)


def test_weights_made_real_tell_what_is_missing():
    layer = build(
        'conv', weight_binarizer=dict(type='ReCU'), binarize_weight=False
    )
    layer.binarize_weight = True
    with pytest.raises(RuntimeError, match='binarize_weight=False'):
        layer(inputs('conv'))


def test_a_normalized_real_input_is_refused():
    with pytest.raises(ValueError, match='normalize_input=True'):
        SURGELinear(2, 3, normalize_input=True, binarize_activation=False)
    with pytest.raises(ValueError, match='normalize_input'):
        SURGELinear(2, 3, normalize_input='yes')


def test_users_own_binarizer():
    class HalfSign(Binarizer):
        """Half a sign, of weights shifted by what is learned."""

        def setup(self, weight):
            self.offset = nn.Parameter(weight.detach().new_zeros(()))

        def prepare(self, weight):
            return weight + self.offset

        def scale(self, z):
            return z.detach().new_full((len(z), 1, 1, 1), 0.5)

    register_binarizer(HalfSign)
    layer = build('conv', weight_binarizer=dict(type='HalfSign'))
    layer(inputs('conv')).pow(2).sum().backward()
    torch.testing.assert_close(
        layer.weight_binarizer.offset.grad, layer.weight.grad.sum()
    )
    with pytest.raises(ValueError, match='registered already'):
        register_binarizer(type('ReCU', (Binarizer,), {}))


# Several processes


def _train_in_group(rank, world, folder):
    torch.manual_seed(rank)
    cfg = method_cfg('surge+recu')
    net = nn.Sequential(
        SURGEConv2d(3, 4, 3, **cfg),
        SURGEConv2d(4, 4, 3, **{**cfg, 'binarize_weight': False}),
        SURGEConv2d(4, 4, 1, **method_cfg('irnet')),
    )
    model = DistributedDataParallel(net)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for step in range(3):
        assert set_progress(model, step / 3) == 4
        optimizer.zero_grad()
        model(torch.randn(2, 3, 7, 7)).pow(2).sum().backward()
        optimizer.step()
    for name, parameter in net.named_parameters():
        gathered = [torch.empty_like(parameter) for _ in range(world)]
        dist.all_gather(gathered, parameter.detach())
        assert torch.equal(*gathered), f'{name} differs between ranks'


@needs_gloo
def test_two_processes_agree(tmp_path):
    run_processes(_train_in_group, tmp_path)


def test_combinations_cover_what_is_registered():
    from surge_det.core.binarizers import BINARIZERS as registered
    from surge_det.core.estimators import ESTIMATORS as estimators

    own = {n for n in registered if registered[n].__module__.startswith('sur')}
    assert own == set(BINARIZERS)
    own = {n for n in estimators if estimators[n].__module__.startswith('sur')}
    assert own == {c['type'] for c, _ in ESTIMATORS.values()}
