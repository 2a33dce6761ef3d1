"""Where gradient estimators point, on a 1-bit network whose minimum is known.

Points in the plane, two classes. Layer 1 has 1-bit weights and real
thresholds, layer 2 is 1-bit::

    hidden = x @ sign(w1).T + b1                  (2 inputs, 2 units)
    logit  = sign(hidden) @ sign(w2).T - 1        (2 inputs, 1 unit)
    loss   = mean over points of max(0, 1 - y * logit)

Six signs have 64 patterns, and a threshold matters only by the points that it
parts. So all networks can be counted, and the best of them is known.

What directions are compared with is the exact gradient of the smoothed loss:
the mean loss if every latent weight and threshold has Gaussian noise of
deviation ``WIDTH``. Example::

    python examples/toy.py --starts 12 --out work_dirs/toy
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from surge_det.cli.tables import markdown_table
from surge_det.core import ScaledSign, SURGELinear, binary_sign
from surge_det.core.methods import method_cfg
from surge_det.core.progress import set_progress
from surge_det.paired import estimate, paired_differences, plus_minus

# Points are in [-EDGE, EDGE]², and no nearer to a border than GAP along each
# axis. A sum of coordinates is in [-REACH, REACH], where thresholds begin.
POINTS, EDGE, GAP, REACH = 100, 2.0, 0.3, 4.0
# Of how many points the class is wrong.
WRONG = (0, 5)
WIDTH = 0.5
STEPS, MOMENTUM = 100, 0.9
# When directions are looked at a second time.
EARLY = 10
RATES = (0.3, 1.0)
# What a replica has learned in these steps of the whole network counts as
# trained.
REPLICA_STEPS, REPLICA_RATE = 20, 0.3
METHODS = ('ste', 'ste_wide', 'ste_leaky', 'reste', 'surge', 'surge_auto')
# Arrows of a picture in a row.
SIDE = 15
# Goes down the smoothed loss itself.
REFERENCE = 'reference'


class Look(NamedTuple):
    """A method at the time at which its direction is looked at.

    Attributes:
        label: What it is called.
        method: A name that ``surge_det.core.methods.method_cfg`` takes.
        progress: Where its schedule is, 0 to 1.
        trained: Whether its replica is.
    """

    label: str
    method: str
    progress: float = 0.0
    trained: bool = False


LOOKS = (
    Look('STE', 'ste'),
    Look('STE, window 1.5', 'ste_wide'),
    Look('STE, slope 0.1 outside', 'ste_leaky'),
    Look('ReSTE, halfway', 'reste', 0.5),
    Look('ReSTE, at its end', 'reste', 1.0),
    Look('SURGE, η = 0.1, new replica', 'surge'),
    Look('SURGE, η = 0.1', 'surge', trained=True),
    Look('SURGE, η = auto, new replica', 'surge_auto'),
    Look('SURGE, η = auto', 'surge_auto', trained=True),
)
DRAWN = (LOOKS[0], LOOKS[2], LOOKS[3], LOOKS[6])


class UnitSign(ScaledSign):
    """Signs without a scale, so that the loss depends on signs alone."""

    def scale(self, z: Tensor) -> Tensor:
        """Return ones, (C_out, 1)."""
        return torch.ones_like(super().scale(z))


class Latent(NamedTuple):
    """All of the network but the replica; or a direction.

    Attributes:
        w1: Latent weights of layer 1, (2 units, 2 coordinates).
        b1: Its thresholds, (2,).
        w2: Latent weights of layer 2, (1, 2 units).
    """

    w1: Tensor
    b1: Tensor
    w2: Tensor


class Net(nn.Module):
    """The network of the module's docstring.

    Args:
        method: A name that ``surge_det.core.methods.method_cfg`` takes.
        start: Where it begins.

    Shape:
        (N, 2) to logits (N,).
    """

    def __init__(self, method: str, start: Latent) -> None:
        super().__init__()
        keywords = {**method_cfg(method), 'weight_binarizer': UnitSign()}
        self.layer2 = SURGELinear(2, 1, bias=False, **keywords)
        # Its input is data, which takes no gradient: a replica is no use.
        keywords |= {'binarize_activation': False, 'compensate': False}
        self.layer1 = SURGELinear(2, 2, **keywords)
        self.put(start)
        self.layer2.begin_training()

    @property
    def latent(self) -> Latent:
        """Its own parameters."""
        return Latent(self.layer1.weight, self.layer1.bias, self.layer2.weight)

    @torch.no_grad()
    def put(self, latent: Latent) -> None:
        """Copy these to its own; the replica stays."""
        for param, value in zip(self.latent, latent):
            param.copy_(value)

    def forward(self, x: Tensor) -> Tensor:
        """Apply."""
        return self.layer2(self.layer1(x))[:, 0] - 1


class Points(NamedTuple):
    """Points ``x`` (N, 2) of the classes ``y`` (N,), -1 and +1."""

    x: Tensor
    y: Tensor

    def losses(self, logits: Tensor) -> Tensor:
        """Return those of logits (..., N), the same shape."""
        return F.relu(1 - self.y * logits)

    def loss(self, net: Net) -> Tensor:
        """Return a network's mean loss."""
        return self.losses(net(self.x)).mean()


def draw_points(wrong: int, count: int = POINTS) -> Points:
    """Draw points, always the same.

    Class +1 is right of two diagonal lines.

    Args:
        wrong: Of how many points, the first, the class is turned.
        count: How many points.
    """
    generator = torch.Generator().manual_seed(0)
    x = EDGE * (2 * torch.rand(4 * count, 2, generator=generator) - 1)
    sides = torch.stack([x.sum(1) + 1, x[:, 0] - x[:, 1] + 0.5], 1)
    apart = (sides.abs() > GAP).all(1).nonzero()[:count, 0]
    y = torch.where((sides[apart] > 0).all(1), 1.0, -1.0)
    y[:wrong] *= -1
    return Points(x[apart], y)


def draw_start(seed: int) -> Latent:
    """Draw where a training begins, evenly."""
    generator = torch.Generator().manual_seed(seed)
    w1, b1, w2 = (
        2 * torch.rand(*shape, generator=generator) - 1
        for shape in ((2, 2), (2,), (1, 2))
    )
    return Latent(w1, REACH * b1, w2)


def unit_parts(points: Points, w1: Tensor, b1: Tensor, w2: Tensor) -> Tensor:
    """Return a hidden unit's part of the logit, (thresholds, N).

    Args:
        points: The points.
        w1: Its weights, (2,).
        b1: Its thresholds, (thresholds,).
        w2: Layer 2's weight for it, ().
    """
    along = points.x @ binary_sign(w1)
    return binary_sign(along + b1[:, None]) * binary_sign(w2)


def find_minimum(points: Points) -> tuple[float, Latent]:
    """Count all networks.

    Returns:
        The lowest loss, and the first of the networks that have it, with
        latent weights of size 1/2. Units may change places and turn all
        their signs, so it is one of several.
    """
    units, found = [], []
    for *w1, w2 in itertools.product((-0.5, 0.5), repeat=3):
        w1, w2 = torch.tensor(w1), torch.tensor(w2)
        along = points.x @ binary_sign(w1)
        ends = along.sort().values
        ends = torch.cat([ends[:1] - 1, ends, ends[-1:] + 1])
        cuts = -(ends[1:] + ends[:-1]) / 2
        units += [Latent(w1, b1, w2) for b1 in cuts]
        found.append(unit_parts(points, w1, cuts, w2))
    parts = torch.cat(found)
    best = math.inf, 0, 0
    for i, part in enumerate(parts):
        loss, j = points.losses(part + parts - 1).mean(1).min(0)
        best = min(best, (loss.item(), i, int(j)))
    loss, *both = best
    w1, b1, w2 = (torch.stack(t) for t in zip(*(units[i] for i in both)))
    return loss, Latent(w1, b1, w2[None])


def smoothed_loss(latent: Latent, points: Points) -> Tensor:
    """Return the mean loss under noise of ``WIDTH``, exactly.

    The noises are independent, so it is a sum over signs of products of
    probabilities.
    """

    def positive(value: Tensor) -> Tensor:
        return torch.special.ndtr(value / WIDTH)

    # That a hidden unit is +1 at a point, (N, 2).
    hidden = 0
    for signs in itertools.product((-1, 1), repeat=2):
        signs = points.x.new_tensor(signs)
        pattern = positive(latent.w1 * signs).prod(1)
        at = (points.x @ signs)[:, None] + latent.b1
        hidden = hidden + pattern * positive(at)
    # And its part of the logit.
    last = positive(latent.w2)
    part = hidden * last + (1 - hidden) * (1 - last)
    total = 0
    for a, b in itertools.product((-1, 1), repeat=2):
        first, second = (
            part[:, i] if sign > 0 else 1 - part[:, i]
            for i, sign in enumerate((a, b))
        )
        logits = torch.full_like(points.y, a + b - 1)
        total = total + first * second * points.losses(logits)
    return total.mean()


def reference_direction(latent: Latent, points: Points) -> Latent:
    """Return the smoothed loss's negative gradient."""
    latent = Latent(*(t.detach().double().requires_grad_() for t in latent))
    loss = smoothed_loss(latent, Points(*(t.double() for t in points)))
    slopes = torch.autograd.grad(loss, latent)
    return Latent(*(-slope.float() for slope in slopes))


def prepare(look: Look, latent: Latent, points: Points) -> Net:
    """Return a method's network, at its time."""
    net = Net(look.method, latent)
    if look.trained:
        for _ in _descend(net, points, REPLICA_STEPS, REPLICA_RATE):
            pass
        net.put(latent)
    set_progress(net, look.progress)
    return net


def direction(look: Look, latent: Latent, points: Points) -> Latent:
    """Return a method's negative gradient."""
    net = prepare(look, latent, points)
    slopes = torch.autograd.grad(points.loss(net), net.latent)
    return Latent(*(-slope for slope in slopes))


def cosine(a: Latent, b: Latent) -> float:
    """Return that of the angle at layer 1, NaN where one of them is 0.

    Layer 2's own weights have the same gradient with all but ReSTE.
    """
    a, b = (torch.cat([t.w1.flatten(), t.b1]) for t in (a, b))
    return ((a @ b) / (a.norm() * b.norm())).item()


def _descend(
    net: Net, points: Points, steps: int, rate: float, method: str = ''
) -> Iterator[torch.optim.Optimizer]:
    """Make steps of SGD, and yield after each."""
    optimizer = torch.optim.SGD(net.parameters(), rate, momentum=MOMENTUM)
    for _ in range(steps):
        optimizer.zero_grad()
        if method == REFERENCE:
            downward = reference_direction(net.latent, points)
            for param, down in zip(net.latent, downward):
                param.grad = -down
        else:
            points.loss(net).backward()
        optimizer.step()
        yield optimizer


def train(
    method: str, start: Latent, rate: float, points: Points
) -> tuple[float, Latent]:
    """Train by SGD; the rate, the replica's too, falls to 0 along a cosine.

    Args:
        method: As in ``Net``, or ``REFERENCE``.
        start: Where it begins.
        rate: The first learning rate.
        points: What it learns.

    Returns:
        The loss of the network at the end, and the parameters after ``EARLY``
        steps.
    """
    net = Net('ste' if method == REFERENCE else method, start)
    steps = _descend(net, points, STEPS, rate, method)
    for step, optimizer in enumerate(steps, 1):
        progress = step / STEPS
        set_progress(net, progress)
        for group in optimizer.param_groups:
            group['lr'] = rate * (1 + math.cos(math.pi * progress)) / 2
        if step == EARLY:
            early = Latent(*(t.detach().clone() for t in net.latent))
    with torch.no_grad():
        return points.loss(net).item(), early


def compare_directions(starts: Sequence[Latent]) -> str:
    """Make a table of cosines, with ``WRONG``'s last number of wrong classes.

    At the starts, and after ``EARLY`` steps of STE from there: mean and
    deviation over starts, and the mean paired difference to STE with its
    95 % interval. Where a direction is 0 there is no cosine.
    """
    header = ['direction']
    columns = [[look.label for look in LOOKS]]
    points = draw_points(WRONG[-1])
    early = [train('ste', s, RATES[0], points)[1] for s in starts]
    for step, places in ((0, starts), (EARLY, early)):
        header += [f'cosine at step {step}', 'minus STE', 'none']
        down = [reference_direction(p, points) for p in places]
        cosines: list[dict[int, float]] = []
        for look in LOOKS:
            found = (
                cosine(direction(look, p, points), d)
                for p, d in zip(places, down)
            )
            known = {i: c for i, c in enumerate(found) if not math.isnan(c)}
            cosines.append(known)
        means, differences = [], []
        for known in cosines:
            mean, std, _ = estimate([*known.values()])
            means.append(plus_minus(mean, std, '.2f'))
            mean, _, half = estimate(paired_differences(known, cosines[0]))
            differences.append(plus_minus(mean, half, '+.3f'))
        differences[0] = '—'
        nones = [len(places) - len(known) for known in cosines]
        columns += [means, differences, nones]
    return markdown_table(header, zip(*columns))


def compare_trainings(starts: Sequence[Latent]) -> str:
    """Make a table of how many percent end in the minimum, and how near.

    Mean loss above the minimum is in brackets.
    """
    header, columns = ['training'], []
    for wrong, rate in itertools.product(WRONG, RATES):
        header.append(f'rate {rate:g}, {wrong} wrong')
        points = draw_points(wrong)
        lowest, _ = find_minimum(points)
        column = []
        for method in (*METHODS, REFERENCE):
            above = [
                train(method, s, rate, points)[0] - lowest for s in starts
            ]
            reached = statistics.mean(loss < 1e-6 for loss in above)
            column.append(f'{reached:.0%} ({statistics.mean(above):.2f})')
        columns.append(column)
    return markdown_table(header, zip((*METHODS, REFERENCE), *columns))


def draw(path: Path, wrong: int = WRONG[-1]) -> None:
    """Draw points and minimum, the loss over thresholds, and arrows.

    Args:
        path: The picture.
        wrong: Of how many points the class is wrong.
    """
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    from matplotlib.colors import LinearSegmentedColormap

    colours = ['tab:red', 'tab:orange', 'tab:green']
    colours = LinearSegmentedColormap.from_list('cosine', colours)
    points = draw_points(wrong)
    lowest, best = find_minimum(points)
    figure, ((data, *panels), others) = plt.subplots(
        2, 3, figsize=(9.6, 6), layout='constrained'
    )
    panels = [*panels, *others]
    data.scatter(*points.x.T, c=points.y, cmap='coolwarm', s=14)

    def at(b: Sequence[float]) -> Latent:
        return best._replace(b1=torch.tensor(b))

    far = REACH + 1
    fine = torch.linspace(-far, far, 161)
    first, second = (
        unit_parts(points, best.w1[i], fine, best.w2[0, i]) for i in (0, 1)
    )
    # In rows of unit 2's threshold.
    losses = points.losses(first + second[:, None] - 1).mean(2)
    least = losses < lowest + 1e-6
    middle = least.nonzero().float().mean(0).round().int().flip(0).tolist()
    line = torch.linspace(-EDGE, EDGE, 2)
    for (u, v), i in zip(binary_sign(best.w1), middle):
        data.plot(line, -(u * line + fine[i]) / v, 'k', lw=1)
    data.set(xlim=(-EDGE, EDGE), ylim=(-EDGE, EDGE), aspect='equal')
    data.set_title(f'points, and the minimum (loss {lowest:.2f})', size=9)
    coarse = torch.linspace(-far, far, SIDE).tolist()
    places = list(itertools.product(coarse, repeat=2))
    down = [reference_direction(at(b), points) for b in places]
    for panel, look in zip(panels, [None, *DRAWN]):
        panel.pcolormesh(fine, fine, losses, cmap='Greys', alpha=0.6)
        arrows = down
        if look is not None:
            arrows = [direction(look, at(b), points) for b in places]
        # Cosines in the plane that is drawn.
        parts = [F.normalize(a.b1, dim=0) for a in arrows]
        known = [
            part @ F.normalize(d.b1, dim=0) for part, d in zip(parts, down)
        ]
        still = [b for b, part in zip(places, parts) if not part.any()]
        quiver = panel.quiver(
            *zip(*places),
            *zip(*(part.tolist() for part in parts)),
            [k.item() for k in known],
            cmap=colours,
            clim=(-1, 1),
            pivot='mid',
            scale=SIDE + 3,
            width=0.006,
        )
        if still:
            panel.plot(*zip(*still), '.', color='tab:blue', ms=4)
        panel.contour(fine, fine, least, [0.5], colors='k', linewidths=1.5)
        panel.set(aspect='equal')
        title = 'loss, and the smoothed loss downward'
        panel.set_title(title if look is None else look.label, size=9)
        panel.set_xlabel('threshold of unit 1', size=8)
        panel.set_ylabel('of unit 2', size=8)
    for axes in (data, *panels):
        axes.tick_params(labelsize=7)
    bar = figure.colorbar(quiver, ax=others.tolist(), shrink=0.8)
    bar.set_label('cosine with the smoothed loss', size=8)
    bar.ax.tick_params(labelsize=7)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add('--starts', type=int, default=12, help='trainings per figure')
    add(
        '--out',
        type=Path,
        default=Path('work_dirs/toy'),
        help='folder for tables and picture',
    )
    args = parser.parse_args(argv)
    if args.starts < 1:
        parser.error(f'--starts {args.starts}: at least 1')
    # The tensors are too small for more.
    torch.set_num_threads(1)
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        draw(args.out / 'toy.png')
        starts = [draw_start(seed) for seed in range(args.starts)]
        text = compare_directions(starts)
        print(text + '\n', flush=True)
        text += '\n\n' + compare_trainings(starts) + '\n'
        print(text.split('\n\n')[1], end='')
        (args.out / 'tables.md').write_text(text, encoding='utf-8')
    except (OSError, ImportError) as error:
        print(f'error: {error}', file=sys.stderr)
        raise SystemExit(2) from error


if __name__ == '__main__':
    main()
