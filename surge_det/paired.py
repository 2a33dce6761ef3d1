"""Statistics of methods whose runs are paired by their seeds.

``surge-det compare`` and ``examples/`` report with these. Needs scipy.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from scipy import stats

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Estimate(NamedTuple):
    """A mean over seeds.

    ``half_width`` is half of the mean's 95 % interval by Student's t. It and
    ``std`` are NaN for a single value.
    """

    mean: float
    std: float
    half_width: float


def estimate(values: Sequence[float]) -> Estimate:
    """Return mean, standard deviation and 95 % interval of the mean."""
    mean, count = statistics.mean(values), len(values)
    if count == 1:
        return Estimate(mean, math.nan, math.nan)
    std = statistics.stdev(values)
    factor = float(stats.t.ppf(0.975, count - 1))
    return Estimate(mean, std, factor * std / count**0.5)


def ratio(values: Sequence[float], baseline: Sequence[float]) -> Estimate:
    """Return the ratio of two sums of pairs, with its 95 % interval.

    The interval is that of the mean residual, values minus ratio times
    baseline, in units of the baseline's mean.
    """
    mean = statistics.mean(values) / statistics.mean(baseline)
    rest = [v - mean * b for v, b in zip(values, baseline, strict=True)]
    unit = abs(statistics.mean(baseline))
    _, std, half = estimate(rest)
    return Estimate(mean, std / unit, half / unit)


def paired_differences(
    values: Mapping[Hashable, float], baseline: Mapping[Hashable, float]
) -> list[float]:
    """Return value minus baseline for each seed that both have."""
    return [values[s] - baseline[s] for s in values if s in baseline]


def plus_minus(mean: float, spread: float, form: str = '.3f') -> str:
    """Write a mean with its spread, or alone where that is NaN."""
    text = f'{mean:{form}}'
    if math.isnan(spread):
        return text
    return f'{text} ± {spread:{form.removeprefix("+")}}'


def draw_differences(
    axes: Axes,
    differences: Mapping[str, Sequence[float] | None],
    limit: float,
    texts: Sequence[str] | None = None,
) -> None:
    """Draw mean paired differences with their 95 % intervals, one a row.

    Args:
        axes: Where to draw.
        differences: Those to the baseline, for each seed, by what names them
            on the y axis; None for the baseline itself, a diamond at 0. A
            row without any stays empty.
        limit: A mean beyond ± this value is an arrow at the edge, so that
            its interval does not squeeze all others into a line.
        texts: Written above each; without them the difference is, and a dot
            for each seed is drawn below.
    """
    axes.axvline(0, color='0.6', linewidth=1)
    for height, values in enumerate(differences.values()):
        at, text = 0.0, ''
        if values is None:
            axes.plot(at, height, 'D', color='0.4', markersize=5)
        elif values:
            mean, _, half = estimate(values)
            at = min(max(mean, -limit), limit)
            if at != mean:
                text = f'{mean:+.3f}'
                axes.plot(at, height, '<' if at < 0 else '>', color='C0')
            else:
                text = plus_minus(mean, half, '+.3f')
                half = None if math.isnan(half) else half
                style = dict(fmt='o', color='C0', capsize=3, markersize=5)
                axes.errorbar(mean, height, xerr=half, **style)
                if not texts:
                    heights = [height + 0.2] * len(values)
                    style = dict(color='C1', alpha=0.6, linewidth=0)
                    axes.plot(values, heights, 'o', ms=4, mew=0, **style)
        text = texts[height] if texts else text
        if text:
            axes.annotate(
                text,
                (at, height),
                xytext=(0, 5),
                textcoords='offset points',
                ha='center',
                fontsize=7,
            )
    axes.set_yticks(range(len(differences)), differences)
    axes.set_ylim(len(differences) - 0.4, -0.7)
    axes.set_xlim(-1.1 * limit, 1.1 * limit)
    axes.grid(axis='x', alpha=0.3)
