"""What benchmarks print and write: tables, CSV, bar charts."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from surge_det.cli.tables import markdown_table, print_table, write_csv
from surge_det.whole_files import replacing


class Table(NamedTuple):
    """Titles of columns, rows, and how many columns are text."""

    header: Sequence[str]
    rows: Sequence[Sequence[object]]
    left: int = 1


class Panel(NamedTuple):
    """A bar chart of ratios.

    Args:
        title: What is drawn; on the left.
        groups: Names of the groups of bars.
        bars: Name -> its bar's height in each group, ``None`` for no bar.
    """

    title: str
    groups: Sequence[str]
    bars: Mapping[str, Sequence[float | None]]


def ratio(mine: Iterable[float], base: Iterable[float]) -> float:
    """Median of the ratios of paired turns."""
    return statistics.median(a / b for a, b in zip(mine, base, strict=True))


def number(value: float | None, form: str, missing: str = '—') -> str:
    """Write a number, if it is one."""
    return missing if value is None else format(value, form)


def publish(
    args: argparse.Namespace,
    name: str,
    parts: Sequence[Table | str],
    records: Table,
    draw: Callable[[Path], None],
) -> None:
    """Print a report, and write it where ``--out`` says.

    Args:
        args: The command line.
        name: Of the files.
        parts: Tables and paragraphs of the report.
        records: What the CSV file holds.
        draw: Draws the picture.
    """
    texts = []
    for part in parts:
        if isinstance(part, str):
            print(part)
            texts.append(part)
        else:
            print_table(*part)
            texts.append(markdown_table(part.header, part.rows))
        print()
    if not args.out:
        return
    with replacing(args.out / f'{name}.md') as new:
        new.write_text('\n\n'.join(texts) + '\n', encoding='utf-8')
    write_csv(args.out / f'{name}.csv', records.header, records.rows)
    with replacing(args.out / f'{name}.png') as new:
        draw(new)
    print(f'Tables, CSV and picture: {args.out}')


def draw_bars(panels: Sequence[Panel], path: Path) -> None:
    """Draw groups of bars, one panel below the other."""
    from matplotlib.figure import Figure

    most = max(len(panel.groups) for panel in panels)
    figure = Figure(
        figsize=(max(6, 2 + 0.8 * most), 3.4 * len(panels)),
        layout='constrained',
    )
    axes = figure.subplots(len(panels), squeeze=False)
    for ax, panel in zip(axes[:, 0], panels):
        width = 0.8 / len(panel.bars)
        for i, (name, heights) in enumerate(panel.bars.items()):
            places = [j + (i + 0.5) * width - 0.4 for j in range(len(heights))]
            ax.bar(places, [h or 0 for h in heights], width, label=name)
        ax.axhline(1, color='black', linewidth=0.8)
        ax.set_xticks(range(len(panel.groups)), panel.groups, fontsize='small')
        ax.set_ylabel(panel.title)
        ax.grid(axis='y', alpha=0.3)
    axes[0, 0].legend(ncols=3, fontsize='small', loc='upper left')
    axes[0, 0].set_ylim(top=axes[0, 0].get_ylim()[1] * 1.25)
    figure.savefig(path, dpi=120)
