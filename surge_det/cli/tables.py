"""Tables on the terminal, by rich, in Markdown and in CSV."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from surge_det.whole_files import replacing


def print_table(
    header: Sequence[str], rows: Iterable[Sequence[object]], left: int = 1
) -> None:
    """Print a table, as wide as it is where the output is no terminal.

    Args:
        header: Titles of the columns.
        rows: Their cells; an empty row is a line between parts.
        left: How many columns are aligned left; the others are numbers.
    """
    from rich import box
    from rich.console import Console
    from rich.measure import Measurement
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for i, title in enumerate(header):
        justify = 'left' if i < left else 'right'
        table.add_column(Text(title), justify=justify, overflow='fold')
    for row in rows:
        if row:
            table.add_row(*(Text(str(cell)) for cell in row))
        else:
            table.add_section()
    console = Console()
    # Not console.is_terminal, which FORCE_COLOR=1 makes true.
    if not sys.stdout.isatty():
        unlimited = console.options.update(width=10_000)
        console.width = Measurement.get(console, unlimited, table).maximum
    console.print(table)


def markdown_table(
    header: Sequence[object], rows: Iterable[Sequence[object]]
) -> str:
    """Return a table in Markdown, without a newline at its end.

    Args:
        header: Titles of the columns.
        rows: Their cells.
    """
    lines = [f'| {" | ".join(map(str, cells))} |' for cells in (header, *rows)]
    lines.insert(1, '|---' * len(header) + '|')
    return '\n'.join(lines)


def write_csv(
    path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]
) -> None:
    """Write a table as a CSV file, in UTF-8.

    Args:
        path: The file.
        header: Titles of the columns.
        rows: Their cells.
    """
    with (
        replacing(path) as new,
        open(new, 'w', newline='', encoding='utf-8') as file,
    ):
        csv.writer(file).writerows([header, *rows])
