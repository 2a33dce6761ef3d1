"""What was measured of inference, and its tables, CSV and bar chart."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from .report import Panel, Table, ratio

TORCH, TORCH_1BIT = 'torch fp32', 'torch 1-bit'
FP32, INT8, ONE_BIT = 'OpenVINO fp32', 'OpenVINO int8', 'OpenVINO 1-bit'
# ONNX Runtime with this project's operators.
RUNTIME_FP32, RUNTIME = 'runtime fp32', 'runtime 1-bit'
CONTESTANTS = [
    TORCH,
    FP32,
    INT8,
    RUNTIME_FP32,
    TORCH_1BIT,
    ONE_BIT,
    RUNTIME,
]
# What the names of contestants that take both layouts end with.
DEFAULT, CHANNELS_LAST = '', ', channels_last'
# Channels of the layers that have a mean of their own: in narrower ones
# binarization takes the time.
WIDE = 128
BASES = FP32, INT8, ONE_BIT, TORCH
_FASTER = [f'{RUNTIME} faster than {base}' for base in BASES]


@dataclass
class Case:
    """One thing that all contestants compute, and how long they took.

    Args:
        level: layers, network or detector.
        name: Of the layer or the config.
        size: Rows and columns of the image.
        threads: Number of threads.
        channels: The smaller number of a layer's channels.
        seconds: Contestant -> seconds of its turns; in both layouts, where it
            takes both.
        counts: Contestant -> number of proposals, with two stages, and of
            boxes, where there are any.
    """

    level: str
    name: str
    size: tuple[int, int]
    threads: int
    channels: int = 0
    seconds: dict[str, list[float]] = field(default_factory=dict)
    counts: dict[str, list[int]] = field(default_factory=dict)

    @property
    def shape(self) -> str:
        """Size as text."""
        return 'x'.join(map(str, self.size))

    @property
    def title(self) -> str:
        """One line that says what is measured."""
        threads = f'{self.threads} thread{"s" * (self.threads > 1)}'
        return f'{self.level}, {self.name}, {self.shape}, {threads}'

    def best(self, contestant: str) -> str | None:
        """Return a contestant's name in its faster layout, if it took part."""
        names = [contestant + end for end in (DEFAULT, CHANNELS_LAST)]
        return min(
            (name for name in names if name in self.seconds),
            key=lambda name: statistics.median(self.seconds[name]),
            default=None,
        )

    def times_faster(self, base: str, mine: str = RUNTIME) -> float | None:
        """Median of the ratios of paired turns, the base's time by mine."""
        first, second = self.best(base), self.best(mine)
        if first is None or second is None:
            return None
        return ratio(self.seconds[first], self.seconds[second])


def _number(value: float | None) -> str:
    """Write a number with three digits."""
    if value is None:
        return '—'
    return f'{value:.0f}' if value >= 100 else f'{value:#.3g}'


def _time(case: Case, contestant: str) -> str:
    best = case.best(contestant)
    if best is None:
        return '—'
    milliseconds = statistics.median(case.seconds[best]) * 1000
    return _number(milliseconds) + ' (cl)' * best.endswith(CHANNELS_LAST)


def time_table(cases: Sequence[Case]) -> Table:
    """Make a table with a row for each case."""
    header = ['level', 'what', 'size', 'threads']
    header += [f'{name}, ms' for name in CONTESTANTS]
    rows = [
        [case.level, case.name, case.shape, case.threads]
        + [_time(case, name) for name in CONTESTANTS]
        + [_number(case.times_faster(base)) for base in BASES]
        for case in cases
    ]
    return Table(header + _FASTER, rows, 2)


def mean_table(cases: Sequence[Case]) -> Table:
    """Make a table of the layers' geometric means."""
    rows = []
    layers = [case for case in cases if case.level == 'layers']
    for place in dict.fromkeys((c.shape, c.threads) for c in layers):
        here = [c for c in layers if (c.shape, c.threads) == place]
        wide = [c for c in here if c.channels >= WIDE]
        for name, chosen in (('all', here), (f'≥ {WIDE} channels', wide)):
            ratios = ([c.times_faster(b) for c in chosen] for b in BASES)
            means = (
                None if None in found else statistics.geometric_mean(found)
                for found in ratios
            )
            row = [f'{name} ({len(chosen)})', *place, *map(_number, means)]
            rows.append(row)
    header = ['geometric mean of layers', 'size', 'threads']
    return Table(header + _FASTER, rows)


def count_table(cases: Sequence[Case]) -> Table:
    """Make a table of how many boxes there are."""
    rows = []
    for case in cases:
        if case.counts:
            found = (case.counts.get(name, ['—']) for name in CONTESTANTS)
            counts = [' / '.join(map(str, numbers)) for numbers in found]
            rows.append([case.name, case.shape, case.threads, *counts])
    header = ['proposals / boxes', 'size', 'threads', *CONTESTANTS]
    return Table(header, rows)


def size_table(sizes: Sequence[tuple[str, str, int, int]]) -> Table:
    """Make a table of bytes: config, of what, 1-bit, in the float twin."""
    rows = [
        [name, what, f'{mine:,}', f'{base:,}', f'1/{base / mine:.1f}']
        for name, what, mine, base in sizes
    ]
    header = ['config', 'bytes of', '1-bit', 'float twin', 'of it']
    return Table(header, rows, 2)


def share_table(
    header: Sequence[str], parts: Sequence[Sequence], total: Sequence[object]
) -> Table:
    """Make a table of what takes the time.

    Args:
        header: Titles of the columns before the times.
        parts: Cells of these columns, then seconds.
        total: Cells of these columns in the last row.
    """
    whole = sum(seconds for *_, seconds in parts)
    rows = [
        [*cells, _number(seconds * 1000), f'{seconds / whole:.1%}']
        for *cells, seconds in [*parts, [*total, whole]]
    ]
    return Table([*header, 'ms', 'share'], rows, len(header))


def turns(cases: Sequence[Case]) -> Table:
    """List every turn, for a CSV file."""
    rows = [
        [case.level, case.name, *case.size, case.threads]
        + [name, i, f'{value * 1000:.6g}']
        for case in cases
        for name, seconds in case.seconds.items()
        for i, value in enumerate(seconds)
    ]
    header = ['level', 'what', 'rows', 'columns', 'threads']
    return Table([*header, 'contestant', 'round', 'ms'], rows)


def panels(cases: Sequence[Case]) -> list[Panel]:
    """Show how many times faster than OpenVINO's float32 each is."""
    groups: dict[tuple[str, int], list[Case]] = {}
    for case in cases:
        groups.setdefault((case.level, case.threads), []).append(case)
    names = [
        name
        for name in CONTESTANTS
        if name != FP32 and any(case.best(name) for case in cases)
    ]
    return [
        Panel(
            f'{level}, threads: {threads}\ntimes faster than\n{FP32}',
            [f'{c.name.replace("_", " ")}\n{c.shape}' for c in group],
            {n: [c.times_faster(FP32, n) for c in group] for n in names},
        )
        for (level, threads), group in groups.items()
    ]
