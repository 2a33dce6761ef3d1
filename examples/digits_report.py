"""Table, CSV and picture of the comparison that ``digits.py`` runs."""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from digits_train import Run
from scipy import stats

from surge_det.core.methods import method_cfg

# What a label may show, by the methods that have it.
REPLICA_SETTINGS = ('eta', 'aux_lr', 'aux_init', 'scaler')
FAST_NET_SETTINGS = ('fast_net', 'fast_lr')
SETTINGS = (*REPLICA_SETTINGS, *FAST_NET_SETTINGS, 'weight_lr', 'lr')

# Percent points that the picture reaches to.
SHOWN = 12.0


def label(run: Run, shown: Iterable[str]) -> str:
    """Name a run's method with those of its settings that are shown."""
    parts = [f'{n}={getattr(run, n)}' for n in shown if _has(run, n)]
    return ' '.join([run.method, *parts])


def shown_settings(runs: Sequence[Run]) -> list[str]:
    """List what tells the runs apart or is not the default."""
    return [
        name
        for name in SETTINGS
        if {getattr(r, name) for r in runs if _has(r, name)}
        - {getattr(Run, name)}
    ]


def _has(run: Run, name: str) -> bool:
    if name in REPLICA_SETTINGS:
        return method_cfg(run.method)['compensate']
    return run.uses_fsg if name in FAST_NET_SETTINGS else True


def diverged(result: dict[str, Any]) -> bool:
    """Tell whether a run ended worse than guessing one of ten digits."""
    # NaN is no number below.
    return not result['loss'] < math.log(10)


@dataclass(frozen=True)
class Row:
    """One method on one depth.

    Attributes:
        label: The method with its settings.
        layers: Number of 1-bit layers.
        seeds: How many.
        mean: Mean accuracy, percent.
        std: Standard deviation over the seeds, percent.
        difference: Mean paired difference to the baseline, percent points;
            ``None`` for the baseline.
        half: Half the width of its 95 % interval (Student's t).
        diverged: How many runs ended worse than guessing; they count.
        seconds: Mean CPU time of a run.
    """

    label: str
    layers: int
    seeds: int
    mean: float
    std: float
    difference: float | None
    half: float
    diverged: int
    seconds: float


def summarize(
    runs: Sequence[Run], results: dict[Run, dict[str, Any]], baseline: str
) -> list[Row]:
    """Make one row per method, settings and depth.

    Args:
        runs: All with results, the same seeds for each method.
        results: By run.
        baseline: A method among them; of several settings the first counts.
            A run is compared with its run at the same learning rate, and
            where the baseline has one rate only, with that.
    """
    shown = shown_settings(runs)
    accuracy = {r: 100 * results[r]['accuracy'] for r in runs}
    first = next(_settings(r) for r in runs if r.method == baseline)
    base = {
        (r.layers, r.seed, r.lr): accuracy[r]
        for r in runs
        if (r.method, _settings(r)) == (baseline, first)
    }
    rates: dict[int, set[float]] = {}
    for layers, _, lr in base:
        rates.setdefault(layers, set()).add(lr)

    def minus_base(run: Run) -> float:
        lr = run.lr
        if len(rates[run.layers]) == 1:
            (lr,) = rates[run.layers]
        return accuracy[run] - base[run.layers, run.seed, lr]

    groups: dict[tuple[int, str], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.layers, label(run, shown)), []).append(run)
    rows = []
    for (layers, name), mine in groups.items():
        mean, std, _ = interval([accuracy[r] for r in mine])
        difference, half = None, math.nan
        if (mine[0].method, _settings(mine[0])) != (baseline, first):
            difference, _, half = interval([minus_base(r) for r in mine])
        rows.append(
            Row(
                name,
                layers,
                len(mine),
                mean,
                std,
                difference,
                half,
                sum(diverged(results[r]) for r in mine),
                statistics.mean(results[r]['seconds'] for r in mine),
            )
        )
    return rows


def _settings(run: Run) -> tuple[Any, ...]:
    return tuple(getattr(run, name) for name in SETTINGS if name != 'lr')


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return mean, standard deviation, half of the 95 % interval."""
    mean = statistics.mean(values)
    if len(values) == 1:
        return mean, math.nan, math.nan
    std = statistics.stdev(values)
    factor = stats.t.ppf(0.975, len(values) - 1)
    return mean, std, factor * std / len(values) ** 0.5


def table(rows: Sequence[Row], baseline: str) -> str:
    """Make a Markdown table."""
    lines = [
        f'| method | 1-bit layers | seeds | accuracy % | minus {baseline} '
        '| diverged | CPU s |',
        '|---|---|---|---|---|---|---|',
    ]
    for row in rows:
        difference = '—'
        if row.difference is not None:
            difference = f'{row.difference:+.2f} ± {row.half:.2f}'
        lines.append(
            f'| {row.label} | {row.layers} | {row.seeds} '
            f'| {row.mean:.2f} ± {row.std:.2f} | {difference} '
            f'| {row.diverged} | {row.seconds:.1f} |'
        )
    return '\n'.join(lines)


def write_csv(
    runs: Sequence[Run], results: dict[Run, dict[str, Any]], path: Path
) -> None:
    """Write one line per run."""
    with open(path, 'w', newline='') as file:
        writer = csv.writer(file, lineterminator='\n')
        names = [field.name for field in fields(Run)]
        writer.writerow([*names, 'accuracy', 'loss', 'seconds'])
        for run in runs:
            result = results[run]
            writer.writerow(
                [
                    *asdict(run).values(),
                    f'{result["accuracy"]:.4f}',
                    f'{result["loss"]:.4f}',
                    f'{result["seconds"]:.2f}',
                ]
            )


def draw(rows: Sequence[Row], baseline: str, path: Path) -> None:
    """Draw the differences to the baseline with their intervals.

    One of more than ``SHOWN`` points is an arrow at the edge.
    """
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    depths = list(dict.fromkeys(row.layers for row in rows))
    names = list(dict.fromkeys(row.label for row in rows))
    figure, columns = plt.subplots(
        1,
        len(depths),
        figsize=(1.5 + 4 * len(depths), 1.2 + 0.32 * len(names)),
        layout='constrained',
        sharey=True,
        squeeze=False,
    )
    for axes, depth in zip(columns[0], depths):
        axes.axvline(0, color='0.6', linewidth=1)
        for row in rows:
            if row.layers != depth:
                continue
            place = names.index(row.label)
            at = min(max(row.difference or 0.0, -SHOWN), SHOWN)
            if row.difference is None:
                axes.plot(at, place, 'D', color='0.4', markersize=5)
            elif at != row.difference:
                # Its interval would squeeze all others into a line.
                axes.plot(at, place, '<' if at < 0 else '>', color='C0')
            else:
                half = 0.0 if math.isnan(row.half) else row.half
                axes.errorbar(
                    at, place, xerr=half, fmt='o', color='C0', capsize=3
                )
            axes.annotate(
                f'{row.mean:.1f}',
                (at, place),
                xytext=(0, 5),
                textcoords='offset points',
                ha='center',
                fontsize=7,
            )
        axes.set_title(f'{depth} binary layers', fontsize=10)
        axes.set_xlabel(
            f'accuracy minus {baseline}, points (95 % interval); number: '
            'accuracy %',
            fontsize=8,
        )
        axes.grid(axis='x', alpha=0.3)
        axes.set_xlim(-SHOWN - 1, SHOWN + 1)
    columns[0][0].set_yticks(range(len(names)), names)
    columns[0][0].set_ylim(len(names) - 0.5, -0.7)
    figure.savefig(path, dpi=130)
    plt.close(figure)
