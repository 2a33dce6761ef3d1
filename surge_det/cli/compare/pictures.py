"""The results of a comparison as pictures."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.artist import setp
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy.optimize import isotonic_regression

from surge_det import paired
from surge_det.paired import estimate
from surge_det.whole_files import replacing

from .candidates import Candidate

# Dark enough for white paper, in an order that keeps neighbours apart.
_COLORS = (
    *('#1f77b4', '#d62728', '#2ca02c', '#9467bd', '#ff7f0e', '#17a2b8'),
    *('#8c564b', '#e377c2', '#6b6b6b', '#a8a800', '#000000', '#7cb518'),
)
_MARKERS = 'osD^vPX<>'
# Beyond this multiple of the usual extent a method is an arrow at the edge.
_FAR = 4.0


def draw_curves(candidates: Sequence[Candidate], path: Path) -> None:
    """Draw mAP over epochs: mean of the seeds, band of ± 1 std.

    Each curve has its name at its end. Where all have but one point, these
    stand side by side, with bars instead of bands.
    """
    results = {
        place: [*candidate.results.values()]
        for place, candidate in enumerate(candidates)
        if candidate.results
    }
    figure = Figure(
        figsize=(9, max(5.0, 1.6 + 0.36 * len(results))), layout='constrained'
    )
    axes = figure.subplots()
    axes.set_xlabel('epoch')
    every = {
        step
        for of_seeds in results.values()
        for result in of_seeds
        for step, _ in result.scores
    }
    single = len(every) == 1
    ends = []
    for place, of_seeds in results.items():
        curves = [dict(result.scores) for result in of_seeds]
        axes.set_xlabel(of_seeds[0].step_name)
        steps = sorted({step for curve in curves for step in curve})
        points = [estimate([c[s] for c in curves if s in c]) for s in steps]
        means, stds, _ = np.transpose(points)
        name = candidates[place].name
        color = _COLORS[place % len(_COLORS)]
        style = dict(
            marker=_MARKERS[place % len(_MARKERS)], markersize=5, color=color
        )
        text = f'{name} {means[-1]:.3f} (n={len(curves)})'
        if single:
            axes.set_xlabel(f'{of_seeds[0].step_name} {steps[0]}')
            axes.errorbar([text], means, stds, capsize=4, **style)
            continue
        stds = np.nan_to_num(stds)
        axes.plot(
            steps, means, linestyle='--' if name == 'float' else '-', **style
        )
        # Many bands over one another hide the curves.
        alpha = 0.15 if len(results) < 6 else 0.06
        axes.fill_between(
            steps, means - stds, means + stds, alpha=alpha, color=color, lw=0
        )
        ends.append((means[-1], steps[-1], text, color))
    if not single:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    elif len(results) > 4:
        setp(axes.get_xticklabels(), rotation=30, ha='right')
    what = 'bar' if single else 'band'
    axes.set_ylabel(f'mAP (mean; {what}: ± 1 std over seeds)')
    axes.grid(alpha=0.3)
    axes.spines[['top', 'right']].set_visible(False)
    axes.margins(x=0.3 / len(results) if single else 0.02)
    if ends:
        _label_ends(axes, ends)
    with replacing(path) as new:
        figure.savefig(new, dpi=130)


def _label_ends(axes: Axes, ends: list[tuple[float, int, str, str]]) -> None:
    """Write names beside the ends of curves, pushed apart where needed."""
    ends = sorted(ends)
    low, high = axes.get_ylim()
    least = (high - low) * min(0.045, 1 / len(ends))
    # Labels as close to their ends as `least` between two of them allows.
    offsets = least * (np.arange(len(ends)) + 0.5)
    free = [end for end, *_ in ends] - offsets
    bottoms = np.clip(
        isotonic_regression(free).x, low, high - least * len(ends)
    )
    for (end, step, text, color), place in zip(ends, bottoms + offsets):
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
    right = max(step for _, step, *_ in ends)
    axes.set_xlim(min(left, right - 0.5), right + 0.02 * (right - left))
    axes.set_ylim(low, high)


def draw_differences(
    candidates: Sequence[Candidate], baseline: str, path: Path
) -> None:
    """Draw the paired differences to the baseline.

    A dot for every pair, the mean with its 95 % interval (Student's t, two
    pairs or more). A mean far outside is an arrow at the edge; so that one
    does not squeeze the others, neither do intervals of two pairs, which
    may run over the edge.
    """
    base = next(c for c in candidates if c.name == baseline)
    rows, extents = {}, []
    for candidate in candidates:
        if candidate is base:
            rows[candidate.name] = None
            continue
        differences = candidate.differences(base)
        rows[f'{candidate.name} (n={len(differences)})'] = differences
        if differences:
            extents.append(max(map(abs, differences)))
        if len(differences) > 2:
            mean, _, half_width = estimate(differences)
            extents[-1] = max(extents[-1], abs(mean) + half_width)
    limit = 0.01
    if extents:
        far = _FAR * statistics.median(extents)
        limit = max(min(max(extents), far), limit)
    figure = Figure(
        figsize=(7, 1.3 + 0.42 * len(candidates)), layout='constrained'
    )
    axes = figure.subplots()
    paired.draw_differences(axes, rows, limit)
    axes.set_xlabel(
        f'mAP minus {baseline}: mean with 95 % interval; below, each seed',
        fontsize=8,
    )
    with replacing(path) as new:
        figure.savefig(new, dpi=130)
