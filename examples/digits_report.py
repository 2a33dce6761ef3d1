"""Table, CSV and picture of the comparison that ``digits.py`` runs."""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from digits_train import Run

from surge_det.cli.tables import markdown_table
from surge_det.core.methods import method_cfg
from surge_det.paired import (
    draw_differences,
    estimate,
    paired_differences,
    plus_minus,
)

# What a label may show, by the methods that have it.
REPLICA_SETTINGS = ('eta', 'aux_lr', 'aux_init', 'scaler')
FAST_NET_SETTINGS = ('fast_net', 'fast_lr')
SETTINGS = (*REPLICA_SETTINGS, *FAST_NET_SETTINGS, 'weight_lr', 'lr')

# Percent points that the picture reaches to.
SHOWN = 12.0


def has_setting(run: Run, name: str) -> bool:
    """Tell whether the method of a run has one of the ``SETTINGS``."""
    if name in REPLICA_SETTINGS:
        keywords = method_cfg(run.method)
        # A method may set eta itself.
        return keywords['compensate'] and name not in keywords
    return run.uses_fsg if name in FAST_NET_SETTINGS else True


def label(run: Run, shown: Iterable[str]) -> str:
    """Name a run's method with those of its settings that are shown."""
    parts = [f'{n}={getattr(run, n)}' for n in shown if has_setting(run, n)]
    return ' '.join([run.method, *parts])


def shown_settings(runs: Sequence[Run]) -> list[str]:
    """List what tells the runs apart or is not the default."""
    return [
        name
        for name in SETTINGS
        if {getattr(run, name) for run in runs if has_setting(run, name)}
        - {getattr(Run, name)}
    ]


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
        accuracies: Of each seed, percent.
        differences: Paired ones to the baseline, percent points; ``None``
            for the baseline.
        diverged: How many runs ended worse than guessing; they count.
        seconds: Mean CPU time of a run.
    """

    label: str
    layers: int
    accuracies: list[float]
    differences: list[float] | None
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
    groups: dict[tuple[int, str], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.layers, label(run, shown)), []).append(run)

    def method(run: Run) -> Run:
        return replace(run, layers=1, seed=0, lr=1.0)

    first = next(method(run) for run in runs if run.method == baseline)
    # Accuracies of the baseline by depth, rate and seed.
    base: dict[int, dict[float, dict[int, float]]] = {}
    for mine in groups.values():
        if method(mine[0]) == first:
            rates = base.setdefault(mine[0].layers, {})
            rates[mine[0].lr] = _accuracies(mine, results)
    rows = []
    for (layers, name), mine in groups.items():
        accuracies = _accuracies(mine, results)
        differences = None
        if method(mine[0]) != first:
            rates = base[layers]
            lr = mine[0].lr if len(rates) > 1 else next(iter(rates))
            differences = paired_differences(accuracies, rates[lr])
        lost = sum(diverged(results[run]) for run in mine)
        seconds = statistics.mean(results[run]['seconds'] for run in mine)
        accuracies = [*accuracies.values()]
        rows.append(Row(name, layers, accuracies, differences, lost, seconds))
    return rows


def _accuracies(
    runs: Sequence[Run], results: dict[Run, dict[str, Any]]
) -> dict[int, float]:
    return {run.seed: 100 * results[run]['accuracy'] for run in runs}


def table(rows: Sequence[Row], baseline: str) -> str:
    """Make a Markdown table."""
    header = ['method', '1-bit layers', 'seeds', 'accuracy %']
    header += [f'minus {baseline}', 'diverged', 'CPU s']
    lines = []
    for row in rows:
        mean, std, _ = estimate(row.accuracies)
        line = [row.label, row.layers, len(row.accuracies)]
        line += [plus_minus(mean, std, '.2f'), '—']
        if row.differences is not None:
            mean, _, half_width = estimate(row.differences)
            line[-1] = plus_minus(mean, half_width, '+.2f')
        lines.append([*line, row.diverged, f'{row.seconds:.1f}'])
    return markdown_table(header, lines)


def write_csv(
    runs: Sequence[Run], results: dict[Run, dict[str, Any]], path: Path
) -> None:
    """Write one line per run."""
    digits = {'accuracy': 4, 'loss': 4, 'seconds': 2}
    with open(path, 'w', newline='') as file:
        writer = csv.writer(file, lineterminator='\n')
        writer.writerow([*(field.name for field in fields(Run)), *digits])
        for run in runs:
            figures = [f'{results[run][k]:.{n}f}' for k, n in digits.items()]
            writer.writerow([*asdict(run).values(), *figures])


def draw(rows: Sequence[Row], baseline: str, path: Path) -> None:
    """Draw the differences to the baseline with their intervals.

    One of more than ``SHOWN`` points is an arrow at the edge.
    """
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    depths = list(dict.fromkeys(row.layers for row in rows))
    labels = list(dict.fromkeys(row.label for row in rows))
    figure, columns = plt.subplots(
        1,
        len(depths),
        figsize=(1.5 + 4 * len(depths), 1.2 + 0.32 * len(labels)),
        layout='constrained',
        sharey=True,
        squeeze=False,
    )
    for axes, depth in zip(columns[0], depths):
        # A label of another depth is an empty row: the panels share an axis.
        differences = dict.fromkeys(labels, [])
        texts = dict.fromkeys(labels, '')
        for row in rows:
            if row.layers == depth:
                differences[row.label] = row.differences
                mean = statistics.mean(row.accuracies)
                texts[row.label] = f'{mean:.1f}'
        draw_differences(axes, differences, SHOWN, [*texts.values()])
        axes.set_title(f'{depth} binary layers', fontsize=10)
        axes.set_xlabel(
            f'accuracy minus {baseline}, points (95 % interval); number: '
            'accuracy %',
            fontsize=8,
        )
    figure.savefig(path, dpi=130)
    plt.close(figure)
