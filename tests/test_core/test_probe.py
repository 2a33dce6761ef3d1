"""Steps along the gradients, against what can be computed by hand."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from surge_det.core import SURGEConv2d, SURGELinear
from surge_det.core.probe import probe

ETAS = (0.0, 0.1, 0.7, math.inf)
STEP = 0.3


def sign(x):
    return torch.where(x >= 0, 1.0, -1.0).to(x.dtype)


def quantized(layer):
    weight = layer.weight.detach()
    return weight.abs().mean(1, keepdim=True) * sign(weight)


def linear(seed=0, **kwargs):
    torch.manual_seed(seed)
    layer = SURGELinear(6, 5, bias=False, dtype=torch.double, **kwargs)
    layer.begin_training()
    with torch.no_grad():
        layer.aux_weight.add_(torch.randn_like(layer.aux_weight))
    return layer


def directions(eta, grads):
    """`g_b + lambda g_a` of each pair; each has its own lambda."""
    found = []
    for g_b, g_a in grads:
        ratio = g_b.norm() / g_a.norm()
        found.append(
            ratio * g_a if eta == math.inf else g_b + eta * ratio * g_a
        )
    return found


def norm(tensors):
    return torch.cat([t.flatten() for t in tensors]).norm()


class Net(nn.Module):
    """One layer, applied to each input; what it gives has weights."""

    def __init__(self, layer, inputs, weights):
        super().__init__()
        self.layer = layer
        self.inputs = inputs
        self.weights = weights

    def forward(self):
        return sum(
            (c * self.layer(x)).sum()
            for x, c in zip(self.inputs, self.weights)
        )


def net(applications, **kwargs):
    layer = linear(**kwargs)
    inputs = [torch.randn(4, 6).double() for _ in range(applications)]
    # Of other sizes, so that applications count differently.
    weights = [
        10.0**k * torch.randn(4, 5).double() for k in range(applications)
    ]
    return Net(layer, inputs, weights)


def loss(model):
    return model()


@pytest.mark.parametrize('applications', [1, 3])
def test_a_linear_loss_falls_by_the_angle(applications):
    # A real input: no sign, so g_b is the loss's own gradient.
    model = net(applications, binarize_activation=False)
    found = probe(model, loss, ETAS, STEP)['layer']
    q, w_a = quantized(model.layer), model.layer.aux_weight.detach()
    grads = [(c @ q, c @ w_a) for c in model.weights]
    g_b, g_a = zip(*grads)
    length = STEP * norm(model.inputs)
    for eta in ETAS:
        v = directions(eta, grads)
        product = sum((a * b).sum() for a, b in zip(v, g_b))
        expected = (length * product / norm(v)).item()
        assert found.decreases[eta] == pytest.approx(expected, rel=1e-9)
    cosine = sum((a * b).sum() for a, b in grads) / norm(g_b) / norm(g_a)
    assert found.cosine == pytest.approx(cosine.item(), rel=1e-9)
    assert found.loss == model().item()
    assert found.applications == applications


@pytest.mark.parametrize('applications', [1, 2])
@pytest.mark.parametrize('shift', [None, 0.4])
@pytest.mark.parametrize('normalize', [False, True])
def test_the_loss_is_that_of_the_signs(applications, shift, normalize):
    options = dict(shift=shift, normalize_input=normalize)
    model = net(applications, **options)
    found = probe(model, loss, ETAS, STEP)['layer']
    q, w_a = quantized(model.layer), model.layer.aux_weight.detach()
    seen = [x + (shift or 0) for x in model.inputs]
    if normalize:
        seen = [
            x / (x.var(1, correction=1, keepdim=True) + 1e-5).sqrt()
            for x in seen
        ]
    window = [(x.abs() <= 1).double() for x in seen]
    grads = [
        (inside * (c @ q), c @ w_a) for c, inside in zip(model.weights, window)
    ]
    for eta in ETAS:
        v = directions(eta, grads)
        factor = STEP * norm(seen) / norm(v)
        moved = [sign(x - factor * d) for x, d in zip(seen, v)]
        value = sum(
            (c * (s @ q.T)).sum() for s, c in zip(moved, model.weights)
        )
        expected = model().item() - value.item()
        assert found.decreases[eta] == pytest.approx(expected, abs=1e-9)
        changed = [(s != sign(x)).double() for s, x in zip(moved, seen)]
        share = torch.stack(changed).mean().item()
        assert found.turned[eta] == pytest.approx(share)
    assert found.turned[0.0] > 0


class Small(nn.Module):
    """What a detector has: batch statistics, dropout, layers in a row."""

    with_cp = False

    def __init__(self):
        super().__init__()
        self.conv = SURGEConv2d(3, 4, 3, eta='auto')
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.fc = SURGELinear(4, 2)
        self.unused = SURGELinear(4, 2)
        self.x = torch.randn(8, 3, 5, 5)

    def forward(self):
        x = self.x
        if self.with_cp:
            x = checkpoint(self.front, x, use_reentrant=False)
        else:
            x = self.front(x)
        return self.fc(x.mean((2, 3))).square().mean()

    def front(self, x):
        return self.drop(self.norm(self.conv(x)))


def test_the_model_stays_as_it_was():
    torch.manual_seed(0)
    model = Small().eval()
    model.conv.begin_training()
    before = copy.deepcopy(model.state_dict())
    ags, random = model.conv.ags, torch.get_rng_state()
    found = probe(model, loss)
    assert list(found) == ['conv', 'fc']
    assert torch.equal(torch.get_rng_state(), random)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert all(p.grad is None for p in model.parameters())
    assert model.conv.ags is ags
    assert ags.estimate is ags.last_scale is None
    assert not model.training
    assert 'normalized' not in vars(model.conv)
    # The same again, dropout and all.
    assert probe(model, loss) == found


def test_layers_behind_mix_nothing():
    torch.manual_seed(0)
    model = Small()
    first = probe(model, loss)['conv']
    model.fc.ags.eta = 5.0
    assert probe(model, loss)['conv'] == first


def test_checkpointing_changes_nothing():
    torch.manual_seed(0)
    model = Small()
    first = probe(model, loss)
    model.with_cp = True
    assert probe(model, loss) == first
    assert model.with_cp


def test_a_replica_of_zeros_takes_no_step():
    model = net(1)
    with torch.no_grad():
        model.layer.aux_weight.zero_()
    found = probe(model, loss, ETAS, STEP)['layer']
    assert found.decreases[0.7] == found.decreases[0.0] != 0
    assert found.decreases[math.inf] == found.cosine == 0


def test_what_is_frozen_has_no_gradient():
    model = net(1).requires_grad_(False)
    assert probe(model, loss) == {}


def changing(model):
    return model() + torch.rand((), generator=changing.generator)


def growing(model):
    """One row more of the input in each pass."""
    growing.rows += 1
    return model.layer(model.inputs[0][: growing.rows]).sum() * 0 + model()


def more(model):
    more.calls += 1
    return model() + 0 * sum(model() for _ in range(more.calls // 4))


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(etas=(0.0, -0.1)), 'etas=-0.1'),
        (dict(step=0), 'step=0'),
        (dict(loss=lambda m: m() * math.nan), 'loss is nan'),
        (dict(loss=changing), 'when it is repeated'),
        (dict(loss=growing), "'layer' is not applied to inputs of the same"),
    ],
)
def test_what_cannot_be_measured(options, message):
    changing.generator = torch.Generator().manual_seed(0)
    growing.rows = 0
    with pytest.raises(ValueError, match=message):
        probe(**{'model': net(1), 'loss': loss, **options})


def test_more_applications_than_there_were():
    more.calls = 0
    with pytest.raises(ValueError, match='same shapes'):
        probe(net(1), more)


def test_a_model_without_replica():
    model = net(1)
    model.layer.strip()
    with pytest.raises(ValueError, match='no layer with a replica'):
        probe(model, loss)
