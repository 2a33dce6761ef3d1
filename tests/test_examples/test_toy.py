import itertools
import math

import pytest
import torch

pytest.importorskip('matplotlib', reason='draws a picture')

import toy
from PIL import Image
from toy import Latent, Net, Points

pytestmark = pytest.mark.usefixtures('threads_as_before')


def test_nothing_is_below_the_minimum():
    x = toy.draw_points(wrong=0, count=9).x
    points = Points(x, torch.tensor([1.0, -1, -1] * 3))
    lowest, best = toy.find_minimum(points)
    assert lowest > 0
    with torch.no_grad():
        assert points.loss(Net('ste', best)).item() == pytest.approx(lowest)
    # A loop over all signs and, on both sides of each point, thresholds.
    (x, y), losses = (t.double().tolist() for t in points), set()
    for u, v in itertools.product((-1, 1), repeat=2):
        for p, q in itertools.product((-1, 1), repeat=2):
            first = [u * a + v * b for a, b in x]
            second = [p * a + q * b for a, b in x]
            cuts = [
                [-z + e for z in along for e in (-1e-4, 1e-4)]
                for along in (first, second)
            ]
            for b, c in itertools.product(*cuts):
                for s, t in itertools.product((-1, 1), repeat=2):
                    logits = [
                        s * math.copysign(1, z + b)
                        + t * math.copysign(1, w + c)
                        - 1
                        for z, w in zip(first, second)
                    ]
                    margins = [1 - k * m for k, m in zip(y, logits)]
                    losses.add(sum(max(0, m) for m in margins) / len(y))
    assert min(losses) == pytest.approx(lowest)


@pytest.mark.parametrize('wrong', toy.WRONG)
def test_no_start_is_below_the_minimum(wrong):
    points = toy.draw_points(wrong)
    assert points.y.unique().tolist() == [-1, 1]
    lowest, _ = toy.find_minimum(points)
    # The network that drew the points is wrong where they are.
    assert 0 <= lowest <= 4 * wrong / len(points.y)
    with torch.no_grad():
        for seed in range(50):
            net = Net('ste', toy.draw_start(seed))
            assert points.loss(net).item() > lowest - 1e-6


def test_smoothed_loss_is_the_mean_under_noise():
    points, latent = toy.draw_points(wrong=5), toy.draw_start(7)
    generator = torch.Generator().manual_seed(0)
    w1, b1, w2 = (
        t + toy.WIDTH * torch.randn(20_000, *t.shape, generator=generator)
        for t in latent
    )
    hidden = torch.einsum('ni,kji->knj', points.x, w1.sign()) + b1[:, None]
    logits = (hidden.sign() * w2.sign()).sum(2) - 1
    losses = (1 - points.y * logits).clamp(min=0).mean(1)
    error = losses.std() / len(losses) ** 0.5
    assert 0 < error < 0.01
    smoothed = toy.smoothed_loss(latent, points)
    assert abs(smoothed - losses.mean()) < 4 * error


def test_reference_is_the_slope_of_the_smoothed_loss():
    points, latent = toy.draw_points(wrong=5), toy.draw_start(7)
    down = toy.reference_direction(latent, points)
    points = Points(*(t.double() for t in points))
    for part, at in enumerate(latent):
        for i in range(at.numel()):
            ends = []
            for step in (-1e-4, 1e-4):
                moved = [t.double() for t in latent]
                moved[part] = moved[part].clone()
                moved[part].view(-1)[i] += step
                ends.append(toy.smoothed_loss(Latent(*moved), points))
            slope = (ends[1] - ends[0]) / 2e-4
            expected = pytest.approx(slope.item(), abs=1e-5)
            assert -down[part].flatten()[i].item() == expected


def _derivative(look, z):
    if look.method == 'reste':
        o = 1 + 2 * (1 - math.cos(math.pi * look.progress / 2))
        size = z.abs().clamp(min=0.1)
        return size ** (1 / o - 1) / o * (size <= 1.5) + (z.abs() <= 0.1) * (
            0.1 ** (1 / o - 1) * (1 - 1 / o)
        )
    inside = (z.abs() <= (1.5 if look.method == 'ste_wide' else 1)).double()
    return inside.clamp(min=0.1 if look.method == 'ste_leaky' else 0)


@pytest.mark.parametrize('look', toy.LOOKS, ids=lambda look: look.label)
def test_arrows_are_the_methods_formulas(look):
    points, latent = toy.draw_points(wrong=5), toy.draw_start(7)
    down = toy.direction(look, latent, points)
    replica = toy.prepare(look, latent, points).layer2.aux_weight

    x, y = (t.double() for t in points)
    w1, b1, w2 = (t.double() for t in latent)
    hidden = x @ w1.sign().T + b1
    logits = (hidden.sign() * w2.sign()).sum(1) - 1
    g = (-y * (y * logits < 1) / len(y))[:, None]
    dropped = g * w2.sign() * (1 - _derivative(look, hidden))
    g_hidden = g_b = g * w2.sign() * _derivative(look, hidden)
    if replica is not None:
        assert replica.equal(latent.w2) is not look.trained
        g_a = g * replica.detach().double()
        norms = g_b.norm(), g_a.norm()
        eta = 0.1
        if look.method == 'surge_auto' and not look.trained:
            eta = ((dropped * g_a).sum() / math.prod(norms) / 4).clamp(0, 1)
            assert 0 < eta < 1
        if look.method == 'surge_auto' and look.trained:
            # The estimate has a history, but one factor fits all.
            rest = -down.b1.double() - g_b.sum(0)
            eta = (rest / g_a.sum(0)).mean() / (norms[0] / norms[1])
            assert 0 < eta < 1
        g_hidden = g_b + eta * norms[0] / norms[1] * g_a
    slopes = [g_hidden.T @ x, g_hidden.sum(0), g.T @ hidden.sign()]
    if look.method == 'reste':
        slopes[0] = slopes[0] * _derivative(look, w1)
        slopes[2] = slopes[2] * _derivative(look, w2)
    for mine, slope in zip(down, slopes):
        torch.testing.assert_close(mine.double(), -slope, atol=1e-6, rtol=1e-5)


def test_training_halts_where_nothing_is_wrong():
    points = toy.draw_points(wrong=0)
    lowest, best = toy.find_minimum(points)
    assert lowest == 0
    loss, early = toy.train('surge', best, 1.0, points)
    assert loss == 0
    assert all(a.equal(b) for a, b in zip(early, best))
    # And learns where much is.
    start = toy.draw_start(0)
    with torch.no_grad():
        before = points.loss(Net('ste', start)).item()
    for method in (*toy.METHODS, toy.REFERENCE):
        loss, early = toy.train(method, start, 0.3, points)
        assert loss < before
        assert not early.b1.equal(start.b1)


def test_cosine_of_nothing_is_not_a_number():
    a, b = toy.draw_start(0), toy.draw_start(1)
    zero = Latent(*(torch.zeros_like(t) for t in a))
    assert toy.cosine(a, a) == pytest.approx(1)
    assert -1 < toy.cosine(a, b) < 1
    assert math.isnan(toy.cosine(a, zero))


def test_whole_example(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(toy, 'STEPS', 12)
    monkeypatch.setattr(toy, 'RATES', (1.0,))
    monkeypatch.setattr(toy, 'SIDE', 3)
    toy.main(['--starts', '2', '--out', str(tmp_path / 'new')])
    printed = capsys.readouterr().out
    assert printed == (tmp_path / 'new' / 'tables.md').read_text()
    for look in toy.LOOKS:
        assert f'\n| {look.label} |' in printed
    rows = [line for line in printed.splitlines() if '%' in line]
    assert len(rows) == len(toy.METHODS) + 1
    with Image.open(tmp_path / 'new' / 'toy.png') as picture:
        assert picture.size == (960, 600)


def test_bad_arguments(tmp_path, capsys):
    (tmp_path / 'file').touch()
    for argv, words in (
        (['--starts', '0'], '--starts 0: at least 1'),
        (['--out', str(tmp_path / 'file')], 'file'),
    ):
        with pytest.raises(SystemExit) as caught:
            toy.main(argv)
        assert caught.value.code == 2
        assert words in capsys.readouterr().err
