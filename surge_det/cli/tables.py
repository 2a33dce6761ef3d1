"""Tables of results, for a file and for the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def markdown_table(
    header: Sequence[object],
    rows: Iterable[Sequence[object]],
    align: Sequence[str] | None = None,
) -> str:
    """Make a Markdown table.

    Args:
        header: The titles of the columns.
        rows: The cells of each row, as many as titles.
        align: ``'left'``, ``'right'`` or ``'center'`` for each column;
            default: none.
    """
    marks = {'left': ':--', 'right': '--:', 'center': ':-:'}
    rule = [marks[side] for side in align] if align else ['---'] * len(header)
    lines = [' | '.join(map(str, cells)) for cells in (header, *rows)]
    lines = [f'| {line} |' for line in lines]
    return '\n'.join([lines[0], f'|{"|".join(rule)}|', *lines[1:]])


def print_table(
    header: Sequence[object],
    rows: Iterable[Sequence[object]],
    title: str | None = None,
) -> None:
    """Print a table to the terminal; all columns but the first at the right.

    Args:
        header: The titles of the columns.
        rows: The cells of each row, as many as titles.
        title: A line above the table.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify='left', box=box.SIMPLE)
    for place, text in enumerate(header):
        side = 'right' if place else 'left'
        table.add_column(str(text), justify=side, overflow='fold')
    for row in rows:
        table.add_row(*map(str, row))
    console = Console(markup=False, highlight=False)
    # A file or a pipe has no width that lines would have to fit in.
    if not console.is_terminal:
        console.width = 10_000
    console.print(table)
