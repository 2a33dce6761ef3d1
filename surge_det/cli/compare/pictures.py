"""What came out of a comparison, as pictures."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt
from matplotlib.ticker import MaxNLocator

from .choice import Contender
from .report import differences, half_width

# Dark enough for white paper, in an order that keeps neighbours apart.
_COLORS = (
    '#1f77b4',
    '#d62728',
    '#2ca02c',
    '#9467bd',
    '#ff7f0e',
    '#17a2b8',
    '#8c564b',
    '#e377c2',
    '#6b6b6b',
    '#a8a800',
    '#000000',
    '#7cb518',
)
_MARKERS = 'osD^vPX<>'
# Beyond this multiple of the usual extent a method is an arrow at the edge.
_FAR = 4.0


def draw_curves(contenders: Sequence[Contender], path: Path) -> None:
    """Draw mAP over epochs: mean of the seeds, band of ± 1 std.

    Each curve has its name at its end.
    """
    curves = {}
    step_name = 'epoch'
    for place, contender in enumerate(contenders):
        results = [r.result for r in contender.compared if r.result]
        if results:
            step_name = results[0].step_name
            curves[place] = [dict(result.scores) for result in results]
    figure, axes = plt.subplots(
        figsize=(9, max(5.0, 1.6 + 0.36 * len(curves))), layout='constrained'
    )
    ends = []
    for place, of_seeds in curves.items():
        steps = sorted({step for curve in of_seeds for step in curve})
        columns = [[c[s] for c in of_seeds if s in c] for s in steps]
        means = [statistics.mean(column) for column in columns]
        spreads = [statistics.stdev(c) if len(c) > 1 else 0 for c in columns]
        name = contenders[place].name
        color = _COLORS[place % len(_COLORS)]
        axes.plot(
            steps,
            means,
            marker=_MARKERS[place % len(_MARKERS)],
            markersize=5,
            color=color,
            linestyle='--' if name == 'float' else '-',
        )
        axes.fill_between(
            steps,
            [m - s for m, s in zip(means, spreads)],
            [m + s for m, s in zip(means, spreads)],
            # Many bands over one another hide the curves.
            alpha=0.15 if len(curves) < 6 else 0.06,
            color=color,
            linewidth=0,
        )
        text = f'{name} {means[-1]:.3f} (n={len(of_seeds)})'
        ends.append((means[-1], steps[-1], text, color))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlabel(step_name)
    axes.set_ylabel('mAP (mean; band: ± 1 std over seeds)')
    axes.grid(alpha=0.3)
    axes.spines[['top', 'right']].set_visible(False)
    axes.margins(x=0.02)
    if ends:
        _label_ends(axes, ends)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _label_ends(
    axes: plt.Axes, ends: list[tuple[float, int, str, str]]
) -> None:
    """Write names beside the ends of curves, pushed apart where needed."""
    ends = sorted(ends)
    low, high = axes.get_ylim()
    least = (high - low) * min(0.045, 1 / len(ends))
    # Groups of labels that touch stand around the mean of their ends.
    groups: list[list[float]] = []
    for end, *_ in ends:
        groups.append([end])
        while len(groups) > 1 and (
            _span(groups[-1], least, low, high)[0]
            < _span(groups[-2], least, low, high)[1]
        ):
            last = groups.pop()
            groups[-1] += last
    places = []
    for group in groups:
        bottom, _ = _span(group, least, low, high)
        places += [bottom + (i + 0.5) * least for i in range(len(group))]
    right = max(step for _, step, *_ in ends)
    for (end, step, text, color), place in zip(ends, places):
        axes.annotate(
            text,
            (step, end),
            # Right of the axes, at a height in data.
            xytext=(1.03, place),
            textcoords=axes.get_yaxis_transform(),
            color=color,
            fontsize='small',
            va='center',
            annotation_clip=False,
            arrowprops=dict(
                arrowstyle='-', color=color, linewidth=0.7, relpos=(0, 0.5)
            ),
        )
    left, _ = axes.get_xlim()
    axes.set_xlim(min(left, right - 0.5), right + 0.02 * (right - left))
    axes.set_ylim(low, high)


def _span(
    group: Sequence[float], least: float, low: float, high: float
) -> tuple[float, float]:
    size = least * len(group)
    bottom = statistics.mean(group) - size / 2
    bottom = min(max(bottom, low), high - size)
    return bottom, bottom + size


def draw_differences(
    contenders: Sequence[Contender], baseline: str, path: Path
) -> None:
    """Draw the paired differences to the baseline.

    A dot for every pair, the mean with its 95 % interval (Student's t, two
    pairs or more). A mean far outside is an arrow at the edge; so that one
    does not squeeze the others, neither do intervals of two pairs, which
    may run over the edge.
    """
    base = next(c for c in contenders if c.name == baseline)
    pairs = {c.name: differences(c, base) for c in contenders if c is not base}
    extents = []
    for values in pairs.values():
        if values:
            reach = max(map(abs, values))
            if len(values) > 2:
                half = half_width(values)
                reach = max(reach, abs(statistics.mean(values)) + half)
            extents.append(reach)
    limit = 0.01
    if extents:
        limit = max(
            min(max(extents), _FAR * statistics.median(extents)), limit
        )
    figure, axes = plt.subplots(
        figsize=(7, 1.3 + 0.42 * len(contenders)), layout='constrained'
    )
    axes.axvline(0, color='0.6', linewidth=1)
    for place, contender in enumerate(contenders):
        if contender is base:
            axes.plot(0, place, 'D', color='0.4', markersize=5)
            continue
        values = pairs[contender.name]
        if not values:
            continue
        mean = statistics.mean(values)
        at = min(max(mean, -limit), limit)
        text = f'{mean:+.3f}'
        if at != mean:
            axes.plot(at, place, '<' if at < 0 else '>', color='C0')
        else:
            half = half_width(values) if len(values) > 1 else 0
            text += f' ± {half:.3f}' if len(values) > 1 else ''
            axes.plot(
                values,
                [place + 0.2] * len(values),
                'o',
                color='C1',
                alpha=0.6,
                markersize=4,
                markeredgewidth=0,
            )
            axes.errorbar(
                mean,
                place,
                xerr=half or None,
                fmt='o',
                color='C0',
                capsize=3,
                markersize=5,
            )
        axes.annotate(
            text,
            (at, place),
            xytext=(0, 5),
            textcoords='offset points',
            ha='center',
            fontsize=7,
        )
    names = [
        f'{c.name} (n={len(pairs[c.name])})' if c is not base else c.name
        for c in contenders
    ]
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.7)
    axes.set_xlim(-1.1 * limit, 1.1 * limit)
    axes.set_xlabel(
        f'mAP minus {baseline}: mean with 95 % interval; below, each seed',
        fontsize=8,
    )
    axes.grid(axis='x', alpha=0.3)
    figure.savefig(path, dpi=130)
    plt.close(figure)
