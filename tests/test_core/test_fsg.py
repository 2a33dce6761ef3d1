import copy
import sys
import types
import warnings

import pytest
import torch
import torch.nn.functional as F
from reference import relative_error, straight_through
from torch import nn

from surge_det.core import SURGEConv2d, SURGELinear
from surge_det.core.fsg import FSG, FastNet, SlowNet

pytest.importorskip('mambapy', reason='the slow network is a block of mambapy')

BLOCKS = {
    'literal': {},
    'one sequence': dict(block_size=5, d_model=2, expand=3),
    'independent': dict(
        block_size=5, d_model=2, expand=3, independent=True, blocks_at_once=3
    ),
}


class Net(nn.Module):
    def __init__(self, **surge):
        super().__init__()
        self.conv = SURGEConv2d(2, 3, 3, bias=False, **surge)
        self.head = SURGELinear(3, 2, bias=False, **surge)

    def forward(self, x):
        return self.head(self.conv(x).mean((2, 3)))


def make_net(seed=0, **surge):
    torch.manual_seed(seed)
    return Net(**{'compensate': False, **surge}).double()


def batches(count=5):
    generator = torch.Generator().manual_seed(3)
    return [
        (
            torch.randn(4, 2, 5, 5, generator=generator, dtype=torch.float64),
            torch.tensor([0, 1, 1, 0]),
        )
        for _ in range(count)
    ]


def sgd(model, lr=0.3):
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)


def step(model, fsg, optimizer, batch):
    x, y = batch
    fsg.begin(optimizer)
    F.cross_entropy(model(x), y).backward()
    fsg.finish()
    optimizer.step()
    optimizer.zero_grad()


# Section 3 of the method, written out: one graph from the hypernetworks to
# the loss, the MLP evaluated as such, the scan as a loop over the tokens.


def mamba(params, tokens):
    """One Mamba block on a sequence (T, d_model), token by token."""
    inner = params['conv1d.weight'].shape[0]
    state = params['A_log'].shape[1]
    rank = params['dt_proj.weight'].shape[1]
    width = params['conv1d.weight'].shape[2]
    # The package computes these two in float32, whatever the rest is.
    a = -torch.exp(params['A_log'].float())
    d = params['D'].float()
    hidden = torch.zeros(inner, state, dtype=tokens.dtype)
    past = torch.zeros(width, inner, dtype=tokens.dtype)
    outputs = []
    for token in tokens:
        x, z = (params['in_proj.weight'] @ token).split(inner)
        past = torch.cat([past[1:], x[None]])
        taps = params['conv1d.weight'][:, 0]
        x = F.silu((taps * past.T).sum(1) + params['conv1d.bias'])
        low, b, c = (params['x_proj.weight'] @ x).split([rank, state, state])
        delta = F.softplus(
            params['dt_proj.weight'] @ low + params['dt_proj.bias']
        )
        hidden = (
            torch.exp(delta[:, None] * a) * hidden
            + delta[:, None] * b[None] * x[:, None]
        )
        y = hidden @ c + d * x
        outputs.append(params['out_proj.weight'] @ (y * F.silu(z)))
    return torch.stack(outputs)


def slow_by_hand(params, history, layer, block_size=1, independent=False, **_):
    inner = {
        k.removeprefix('mamba.'): v
        for k, v in params.items()
        if k.startswith('mamba.')
    }
    n = history[0].numel()
    tokens = []
    for gradient in history:
        padded = torch.cat(
            [gradient, gradient.new_zeros(-n % block_size)]
        ).view(-1, block_size)
        if 'project.weight' in params:
            padded = padded @ params['project.weight'].T
        tokens.append(padded)
    front = params['embedding'][layer][None]
    if independent:
        out = torch.stack(
            [
                mamba(
                    inner, torch.cat([front, *[t[i : i + 1] for t in tokens]])
                )[-1]
                for i in range(len(tokens[0]))
            ]
        )
    else:
        out = mamba(inner, torch.cat([front, *tokens]))[-len(tokens[0]) :]
    if 'unproject.weight' in params:
        out = out @ params['unproject.weight'].T
    return out.flatten()[:n]


def fast_by_hand(params, q, w, nonlinearity):
    act = {None: lambda x: x, 'tanh': torch.tanh, 'relu': F.relu}[nonlinearity]
    x = act(w[:, None] @ params['linear1.weight'].T)
    x = act(x @ params['linear2.weight'].T)
    return q * (x @ params['linear3.weight'].T)[:, 0]


def by_hand(model, fast, slow, data, blocks, nonlinearity, alpha=0.9, lr=0.3):
    """Train copies of weights and hypernetworks; returns all of them."""

    def leaves(module):
        return {
            k: v.detach().clone().requires_grad_()
            for k, v in module.named_parameters()
        }

    w, phi, psi = leaves(model), leaves(fast), leaves(slow)
    main = torch.optim.SGD(w.values(), lr=lr, momentum=0.9)
    adams = [
        torch.optim.Adam(phi.values(), lr=1e-2),
        torch.optim.Adam(psi.values(), lr=1e-3),
    ]
    history = {name: [] for name in w}
    w_tilde = {}
    for x, y in data:
        for optimizer in (main, *adams):
            optimizer.zero_grad()
        used, generated, q = {}, {}, {}
        for number, (name, value) in enumerate(w.items()):
            used[name] = value * 1
            if history[name]:
                f = fast_by_hand(
                    phi, history[name][-1], w_tilde[name], nonlinearity
                )
                s = slow_by_hand(psi, history[name][-5:], number, **blocks)
                change = alpha * s + (1 - alpha) * f
                used[name] = value - lr * change.view_as(value)
                generated[name] = f.detach().view_as(value)
            dims = tuple(range(1, value.dim()))
            size = used[name].detach().abs().mean(dims, keepdim=True)
            q[name] = size * straight_through(used[name], torch.ones_like)
            q[name].retain_grad()

        def binary(value):
            return straight_through(value, lambda v: (v.abs() <= 1).to(v))

        out = F.conv2d(binary(x), q['conv.weight']).mean((2, 3))
        out = F.linear(binary(out), q['head.weight'])
        F.cross_entropy(out, y).backward()
        for name, value in w.items():
            if name in generated:
                value.grad = generated[name]
            history[name].append(q[name].grad.flatten())
            w_tilde[name] = used[name].detach().flatten()
        for optimizer in (main, *adams) if generated else (main,):
            optimizer.step()
    return w, phi, psi


@pytest.mark.parametrize('nonlinearity', [None, 'tanh', 'relu'])
@pytest.mark.parametrize('blocks', BLOCKS.values(), ids=BLOCKS)
def test_five_steps_equal_the_method_written_out(blocks, nonlinearity):
    model = make_net()
    fsg = FSG(
        model,
        history_dtype='float64',
        fast=dict(nonlinearity=nonlinearity),
        slow=blocks,
    )
    # Large enough to matter, and for Adam not to magnify rounding.
    nn.init.normal_(fsg.slow_net.embedding)
    before = copy.deepcopy((model, fsg.fast_net, fsg.slow_net))
    # Seven, so that the history overflows once.
    data = batches(7 if blocks else 5)
    wanted = by_hand(*before, data, blocks, nonlinearity)
    optimizer = sgd(model)
    for batch in data:
        step(model, fsg, optimizer, batch)
    for module, start, expected in zip(
        (model, fsg.fast_net, fsg.slow_net), before, wanted
    ):
        started = dict(start.named_parameters())
        for name, value in module.named_parameters():
            # The package's float32 is in its gradients too.
            bound = 1e-12 if module is model else 1e-6
            assert relative_error(value, expected[name]) < bound, name
            assert not torch.equal(value, started[name]), name


def test_hypernetworks_learn_from_the_loss_of_the_second_step_on():
    model = make_net()
    fsg = FSG(model, slow=BLOCKS['independent'])
    optimizer = sgd(model)
    start = copy.deepcopy(
        (fsg.fast_net.state_dict(), fsg.slow_net.state_dict())
    )

    def moved():
        return [
            any(not torch.equal(v, s[k]) for k, v in net.state_dict().items())
            for net, s in zip((fsg.fast_net, fsg.slow_net), start)
        ]

    data = batches()
    step(model, fsg, optimizer, data[0])
    assert moved() == [False, False]
    step(model, fsg, optimizer, data[1])
    assert moved() == [True, True]


def test_first_iteration_is_plain():
    model, twin = make_net(), make_net()
    fsg = FSG(model, slow=BLOCKS['independent'])
    optimizers = sgd(model), sgd(twin)
    (x, y), *_ = batches()
    fsg.begin(optimizers[0])
    outs = model(x), twin(x)
    assert torch.equal(*outs)
    for out in outs:
        F.cross_entropy(out, y).backward()
    fsg.finish()
    for a, b in zip(model.parameters(), twin.parameters()):
        assert torch.equal(a.grad, b.grad)


def trained(**settings):
    model = make_net()
    fsg = FSG(
        model,
        slow=BLOCKS['independent'],
        **{'history_dtype': 'float64', **settings},
    )
    optimizer = sgd(model)
    for batch in batches(3):
        step(model, fsg, optimizer, batch)
    return model, fsg, optimizer


def test_weights_are_generated_between_begin_and_finish_in_training_only():
    model, fsg, optimizer = trained()
    x, _ = batches()[4]
    plain = make_net()
    plain.load_state_dict(model.state_dict())
    assert torch.equal(model(x), plain(x))
    fsg.begin(optimizer)
    assert not torch.equal(model(x), plain(x))
    with torch.no_grad():
        assert torch.equal(model(x), plain(x))
    assert torch.equal(model.eval()(x), plain.eval()(x))
    model.train()
    fsg.discard()
    assert torch.equal(model(x), plain(x))


def test_gradient_of_the_main_optimizer_is_the_fast_one():
    model, fsg, optimizer = trained()
    kept = fsg.state_dict()['layers']['conv']
    slope = fsg.fast_net.slopes()[0].detach()
    x, y = batches()[4]
    fsg.begin(optimizer)
    F.cross_entropy(model(x), y).backward()
    fsg.finish()
    wanted = kept['history'][-1].view(3, 2, 3, 3) * kept['point'] * slope
    assert relative_error(model.conv.weight.grad, wanted) < 1e-12
    assert not model.conv.weight.grad.requires_grad


def test_accumulated_gradients_are_one_iteration():
    model, twin = make_net(), make_net()
    data = batches(3)
    (x0, y0), (x1, y1) = data[1:]
    for net in (model, twin):
        fsg = FSG(net, history_dtype='float64', slow=BLOCKS['independent'])
        torch.manual_seed(5)
        for param in fsg.slow_net.parameters():
            nn.init.normal_(param, std=0.3)
        for param in fsg.fast_net.parameters():
            nn.init.normal_(param, std=0.3)
        optimizer = sgd(net)
        step(net, fsg, optimizer, data[0])
        fsg.begin(optimizer)
        if net is model:
            (F.cross_entropy(net(x0), y0) / 2).backward()
            fsg.begin(optimizer)
            (F.cross_entropy(net(x1), y1) / 2).backward()
        else:
            F.cross_entropy(
                net(torch.cat([x0, x1])), torch.cat([y0, y1])
            ).backward()
        fsg.finish()
        net.state = fsg.state_dict()
    for name in ('conv', 'head'):
        a, b = (net.state['layers'][name] for net in (model, twin))
        assert len(a['history']) == 2
        assert relative_error(a['history'][1], b['history'][1]) < 1e-12
    for key in ('fast_net', 'slow_net'):
        for name, value in model.state[key].items():
            assert relative_error(value, twin.state[key][name]) < 1e-7, name


def test_loss_scale_makes_no_difference():
    results = []
    for scale in (1.0, 2.0**10):
        model = make_net()
        torch.manual_seed(1)
        fsg = FSG(model, history_dtype='float64', slow=BLOCKS['independent'])
        optimizer = sgd(model)
        for batch in batches(3):
            x, y = batch
            fsg.begin(optimizer)
            (F.cross_entropy(model(x), y) * scale).backward()
            fsg.finish(scale)
            for param in model.parameters():
                param.grad /= scale
            optimizer.step()
            optimizer.zero_grad()
        results.append([*model.parameters(), *fsg.slow_net.parameters()])
    for a, b in zip(*results):
        assert relative_error(a, b) < 1e-12


@pytest.mark.parametrize('dtype', [torch.bfloat16, 'float16', 'float64'])
def test_history_is_kept_in_the_type_that_was_asked_for(dtype):
    _, fsg, _ = trained(history_dtype=dtype, history_length=2)
    wanted = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    for kept in fsg.state_dict()['layers'].values():
        assert [h.dtype for h in kept['history']] == [wanted] * 2


@pytest.mark.parametrize(
    'surge', [{}, dict(weight_binarizer=dict(type='IRNet'))]
)
def test_state_goes_on_exactly(tmp_path, surge):
    def make():
        model = make_net(**surge)
        # Another draw than the saved one's: what is loaded must hold.
        fsg = FSG(
            model,
            history_dtype='bfloat16',
            history_length=2,
            slow=BLOCKS['independent'],
        )
        return model, fsg, sgd(model)

    data = batches(4)
    model, fsg, optimizer = make()
    for batch in data[:2]:
        step(model, fsg, optimizer, batch)
    torch.save(
        [x.state_dict() for x in (model, fsg, optimizer)], tmp_path / 's.pth'
    )
    for batch in data[2:]:
        step(model, fsg, optimizer, batch)

    again = make()
    assert not torch.equal(
        again[1].fast_net.linear1.weight, fsg.fast_net.linear1.weight
    )
    for target, state in zip(
        again, torch.load(tmp_path / 's.pth', weights_only=True)
    ):
        target.load_state_dict(state)
    for batch in data[2:]:
        step(*again, batch)
    for name, value in model.state_dict().items():
        assert torch.equal(again[0].state_dict()[name], value), name
    for net in ('fast_net', 'slow_net'):
        ours, theirs = (getattr(f, net).state_dict() for f in (again[1], fsg))
        for name, value in theirs.items():
            assert torch.equal(ours[name], value), name


def test_settings_hold_over_the_saved_ones():
    _, fsg, _ = trained()
    other = FSG(
        make_net(),
        history_length=2,
        history_dtype='bfloat16',
        slow_lr=0.5,
        slow=BLOCKS['independent'],
    )
    with warnings.catch_warnings():
        # Of what is meant to be changed nothing is said.
        warnings.simplefilter('error')
        other.load_state_dict(fsg.state_dict())
    kept = other.state_dict()['layers']['head']
    newest = fsg.state_dict()['layers']['head']['history'][-1]
    assert len(kept['history']) == 2
    assert torch.equal(kept['history'][-1], newest.bfloat16())
    assert other.slow_optimizer.param_groups[0]['lr'] == 0.5


def test_changed_settings_of_a_saved_state_are_told():
    _, fsg, _ = trained()
    other = FSG(
        make_net(),
        alpha=0.1,
        fast=dict(nonlinearity='relu'),
        slow=dict(BLOCKS['independent'], independent=False),
    )
    with pytest.warns(UserWarning, match='differ from the saved') as caught:
        other.load_state_dict(fsg.state_dict())
    for said in ('alpha=0.9 (saved) -> 0.1', "-> 'relu'", '-> False'):
        assert said in str(caught[0].message)


@pytest.mark.parametrize(
    ('settings', 'named'),
    [
        (dict(fast=dict(hidden=7)), '(?s)fast_net of another size.*linear1'),
        (dict(slow=dict(block_size=3)), 'slow_net of another size'),
    ],
)
def test_networks_of_another_size_are_refused(settings, named):
    _, fsg, _ = trained()
    own = FSG(make_net(), **{'slow': BLOCKS['independent'], **settings})
    before = {k: v.clone() for k, v in own.fast_net.state_dict().items()}
    with pytest.raises(ValueError, match=named):
        own.load_state_dict(fsg.state_dict())
    for key, value in own.fast_net.state_dict().items():
        assert torch.equal(value, before[key])


def test_standardised_weights_are_differentiated_through():
    # Standardised weights are large: a clipped estimator passes nothing.
    model = make_net(
        seed=1,
        weight_binarizer=dict(type='IRNet'),
        activation_estimator=dict(type='STE', clip=None),
    )
    fsg = FSG(model, history_dtype='float64', slow=BLOCKS['independent'])
    optimizer = sgd(model)
    data = batches(3)
    for batch in data[:2]:
        step(model, fsg, optimizer, batch)
    kept = fsg.state_dict()['layers']['conv']
    start = fsg.fast_net.slopes()[0].detach()
    x, y = data[2]
    fsg.begin(optimizer)
    F.cross_entropy(model(x), y).backward()
    upstream = model.conv.weight.grad.clone()
    offset = fsg.updates['conv'].offset.clone()
    slope_grads = []
    fsg.fast_optimizer.register_step_pre_hook(
        lambda *_: slope_grads.append(
            [p.grad.clone() for p in fsg.fast_net.parameters()]
        )
    )
    fsg.finish()

    q = kept['history'][-1].view_as(upstream)
    jacobian = torch.autograd.functional.jacobian(
        lambda v: (
            (v - v.mean((1, 2, 3), keepdim=True))
            / v.std((1, 2, 3), keepdim=True)
        ),
        kept['point'],
    ).view(54, 54)
    z = (kept['point'] - kept['point'].mean((1, 2, 3), keepdim=True)) / kept[
        'point'
    ].std((1, 2, 3), keepdim=True)
    direction = (jacobian.T @ (q * z).flatten()).view_as(q)
    assert relative_error(model.conv.weight.grad, start * direction) < 1e-9
    assert offset.abs().sum() > 0
    assert all(g.abs().sum() > 0 for g in slope_grads[0])


def test_works_beside_a_replica():
    model, twin = (make_net(compensate=True, eta=0.3) for _ in 'ab')
    fsg = FSG(model, slow=BLOCKS['independent'])
    optimizer = sgd(model)
    for batch in batches(3):
        step(model, fsg, optimizer, batch)
    assert model.conv.ags.last_scale > 0
    for name in ('weight', 'aux_weight'):
        moved = getattr(model.conv, name) - getattr(twin.conv, name)
        assert moved.abs().sum() > 0


def test_each_layer_has_its_groups_rate():
    model, fsg, _ = trained()
    offsets = []
    for rates in ((0.1, 0.2), (0.2, 0.2)):
        groups = [
            dict(params=[layer.weight], lr=rate)
            for layer, rate in zip((model.conv, model.head), rates)
        ]
        fsg.begin(torch.optim.SGD(groups))
        offsets.append([u.offset for u in fsg.updates.values()])
        fsg.discard()
    (conv, head), (double, same) = offsets
    assert relative_error(double, 2 * conv) < 1e-12
    assert torch.equal(head, same)


def test_only_binarized_trained_weights_take_part():
    model = make_net()
    model.real = SURGELinear(2, 2, binarize_weight=False)
    model.head.weight.requires_grad_(False)
    assert list(FSG(model, slow=BLOCKS['independent']).updates) == ['conv']
    model.conv.weight.requires_grad_(False)
    with pytest.raises(ValueError, match='at least one binarized layer'):
        FSG(model)


def test_literal_method_on_a_large_layer_is_warned_of():
    layer = nn.ModuleDict(dict(conv=SURGEConv2d(64, 64, 3)))
    # 1 + 5 * 36864 tokens, 100 inner dimensions, 16 states, 4 bytes: 1.1 GiB.
    with pytest.warns(UserWarning, match=r"36864 weights of 'conv'.*1\.1 GiB"):
        FSG(layer)


def test_global_random_numbers_are_not_drawn():
    model = make_net()
    torch.manual_seed(4)
    FSG(model)
    after = torch.rand(3)
    torch.manual_seed(4)
    assert torch.equal(after, torch.rand(3))


def test_results_do_not_depend_on_how_many_blocks_at_once():
    history = [torch.randn(23, dtype=torch.float64) for _ in range(3)]
    outs = []
    for count in (1, 4, 100):
        torch.manual_seed(0)
        net = SlowNet(
            2, 3, 2, expand=2, independent=True, blocks_at_once=count
        ).double()
        outs.append(net(history, 1))
    assert outs[0].shape == (23,)
    assert relative_error(outs[0], outs[2]) < 1e-12
    assert relative_error(outs[1], outs[2]) < 1e-12


def test_layers_are_told_apart():
    torch.manual_seed(0)
    net = SlowNet(2).double()
    history = [torch.randn(6, dtype=torch.float64)]
    assert not torch.equal(net(history, 0), net(history, 1))


@pytest.mark.parametrize('nonlinearity', [None, 'relu'])
def test_straight_fast_net_makes_no_wide_tensor(nonlinearity):
    net = FastNet(hidden=100, nonlinearity=nonlinearity).double()
    shapes = []

    def pack(tensor):
        shapes.append(tensor.numel())
        return tensor

    w, q = torch.randn(2, 7, 1601, dtype=torch.float64)
    w[0, :3] = 0
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        out = net(w, q)
    assert max(shapes) <= max(100 * 100, w.numel())
    wide = fast_by_hand(
        dict(net.named_parameters()), q.flatten(), w.flatten(), nonlinearity
    ).view_as(w)
    assert relative_error(out, wide) < 1e-12
    upstream = torch.randn_like(out)
    for param in net.parameters():
        grads = [
            torch.autograd.grad(value, param, upstream, retain_graph=True)[0]
            for value in (out, wide)
        ]
        assert relative_error(*grads) < 1e-12


def test_fused_kernel_gets_float32_on_cuda_only(monkeypatch):
    calls = []
    package = types.ModuleType('mamba_ssm')
    package.__spec__ = types.SimpleNamespace(name='mamba_ssm')
    ops = types.ModuleType('mamba_ssm.ops')
    interface = types.ModuleType('mamba_ssm.ops.selective_scan_interface')

    def selective_scan_fn(x, delta, a, b, c, d, z, **kwargs):
        calls.append(tuple(x.shape))
        assert kwargs['delta_softplus'] is True
        delta = F.softplus(delta + kwargs['delta_bias'][:, None])
        hidden = x.new_zeros(*x.shape[:2], a.shape[1])
        outs = []
        for t in range(x.shape[2]):
            step = delta[:, :, t, None]
            hidden = torch.exp(step * a) * hidden + (
                step * b[:, None, :, t] * x[:, :, t, None]
            )
            outs.append((hidden * c[:, None, :, t]).sum(-1))
        return (torch.stack(outs, 2) + d[:, None] * x) * F.silu(z)

    interface.selective_scan_fn = selective_scan_fn
    for module in (package, ops, interface):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    torch.manual_seed(0)
    net = SlowNet(1, 4, 2, expand=2)
    history = [torch.randn(9) for _ in range(2)]
    plain = net(history, 0)
    assert not calls

    # There is no GPU in a test: the tensor says that it is on one.
    monkeypatch.setattr(torch.Tensor, 'is_cuda', True)
    fused = net(history, 0)
    assert calls == [(1, 4, 7)]
    assert relative_error(fused, plain) < 1e-5
    net.double()([h.double() for h in history], 0)
    assert len(calls) == 1


def test_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, 'mambapy.mamba', None)
    with pytest.raises(ImportError, match='pip install mambapy'):
        SlowNet(1)


@pytest.mark.parametrize(
    ('settings', 'named'),
    [
        (dict(alpha=1.5), 'alpha=1.5'),
        (dict(alpha=True), 'alpha=True'),
        (dict(history_length=0), 'history_length=0'),
        (dict(history_dtype='int8'), "history_dtype='int8'.*bfloat16"),
        (dict(fast_lr=0), 'fast_lr=0'),
        (dict(slow_lr=float('nan')), 'slow_lr=nan'),
        (dict(slow=3), 'slow=3'),
        (dict(slow=dict(block_size=0)), 'slow: block_size=0'),
        (dict(slow=dict(d_model=1.0)), 'slow: d_model=1.0'),
        (dict(slow=dict(independent=1)), 'slow: independent=1'),
        (dict(slow=dict(num_layers=3)), 'slow: .*num_layers'),
        (dict(slow=dict(width=3)), 'slow: .*width'),
        (dict(fast=dict(hidden=0)), 'fast: hidden=0'),
        (dict(fast=dict(nonlinearity='gelu')), "nonlinearity='gelu'.*tanh"),
    ],
)
def test_bad_settings_are_named(settings, named):
    with pytest.raises(ValueError, match=named):
        FSG(make_net(), **settings)


def test_misuse_is_named():
    model, fsg, optimizer = trained()
    with pytest.raises(RuntimeError, match='without FSG.begin'):
        fsg.finish()
    with pytest.raises(ValueError, match=r'no group with head\.weight'):
        fsg.begin(torch.optim.SGD([model.conv.weight], lr=0.1))
    other = nn.ModuleDict(dict(conv=SURGEConv2d(2, 3, 3), tail=model.head))
    with pytest.raises(ValueError, match=r"not in it: \['tail'\].*'head'"):
        FSG(other, slow=BLOCKS['independent']).load_state_dict(
            fsg.state_dict()
        )
    wide = make_net()
    wide.head = SURGELinear(4, 2).double()
    with pytest.raises(ValueError, match=r'head: .*\(2, 3\).*\(2, 4\)'):
        FSG(wide, slow=BLOCKS['independent']).load_state_dict(fsg.state_dict())
