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


def draw_difference(
    axes: Axes,
    height: float,
    differences: Sequence[float] | None,
    text: str | None,
    limit: float,
    each: bool = False,
) -> None:
    """Draw a mean paired difference with its 95 % interval.

    Args:
        axes: Where to draw.
        height: The place on the y axis.
        differences: To the baseline, for each seed; None for the baseline
            itself, which is a diamond at 0.
        text: Written above.
        limit: A mean beyond ± this value is an arrow at the edge, so that
            its interval does not squeeze all others into a line.
        each: Whether to draw a dot for each pair below.
    """
    at = 0.0
    if differences is None:
        axes.plot(at, height, 'D', color='0.4', markersize=5)
    else:
        mean, _, half = estimate(differences)
        at = min(max(mean, -limit), limit)
        if at != mean:
            axes.plot(at, height, '<' if at < 0 else '>', color='C0')
        else:
            style = dict(fmt='o', color='C0', capsize=3, markersize=5)
            half = None if math.isnan(half) else half
            axes.errorbar(mean, height, xerr=half, **style)
            if each:
                style = dict(color='C1', alpha=0.6, linewidth=0)
                heights = [height + 0.2] * len(differences)
                axes.plot(differences, heights, 'o', ms=4, mew=0, **style)
    if text is not None:
        axes.annotate(
            text,
            (at, height),
            xytext=(0, 5),
            textcoords='offset points',
            ha='center',
            fontsize=7,
        )
