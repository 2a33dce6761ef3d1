"""What the measurements of inference say: tables, CSV, bar chart."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt

from surge_det.deploy import Row

from .inference_measure import CONTESTANTS, FP32, TORCH, Case, Operation
from .measure import geometric_mean

# Layers whose mean is told apart: in narrower ones binarization takes the
# time.
WIDE = 128
BASES = FP32, TORCH
_FASTER = [f'1-bit faster than {base}' for base in BASES]


class Sizes(NamedTuple):
    """Bytes of a detector: its 1-bit layers, all files, and the twin's."""

    layers: list[Row]
    files: int
    float_files: int


def _number(value: float | None) -> str:
    """Write a number with three digits."""
    if value is None:
        return '—'
    return f'{value:.0f}' if value >= 100 else f'{value:#.3g}'


def _markdown(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    rows = [header, ['---'] * len(header), *rows]
    return '\n'.join(f'| {" | ".join(map(str, row))} |' for row in rows)


def _time(case: Case, contestant: str) -> str:
    best = case.best(contestant)
    if best is None:
        return '—'
    layout, seconds = best
    last = ' (cl)' * (layout == 'channels_last')
    return _number(statistics.median(seconds) * 1000) + last


def table(cases: Sequence[Case]) -> str:
    """Make a Markdown table with a row for each case."""
    return _markdown(
        ['level', 'what', 'size', 'threads']
        + [f'{name}, ms' for name in CONTESTANTS]
        + _FASTER,
        [
            [case.level, case.name, case.shape, case.threads]
            + [_time(case, name) for name in CONTESTANTS]
            + [_number(case.times_faster(base)) for base in BASES]
            for case in cases
        ],
    )


def mean_table(cases: Sequence[Case]) -> str:
    """Make a Markdown table of the layers' geometric means."""
    rows = []
    layers = [case for case in cases if case.level == 'layers']
    for place in dict.fromkeys((c.shape, c.threads) for c in layers):
        here = [c for c in layers if (c.shape, c.threads) == place]
        wide = [c for c in here if c.channels >= WIDE]
        for name, chosen in (('all', here), (f'≥ {WIDE} channels', wide)):
            means = [
                _number(geometric_mean(c.times_faster(b) for c in chosen))
                for b in BASES
            ]
            rows.append([f'{name} ({len(chosen)})', *place, *means])
    return _markdown(
        ['geometric mean of layers', 'size', 'threads', *_FASTER], rows
    )


def count_table(cases: Sequence[Case]) -> str:
    """Make a Markdown table of how many boxes there are."""
    return _markdown(
        ['proposals / boxes', 'size', 'threads', *CONTESTANTS],
        [
            [case.name, case.shape, case.threads]
            + [
                ' / '.join(map(str, case.counts.get(name, ['—'])))
                for name in CONTESTANTS
            ]
            for case in cases
            if case.counts
        ],
    )


def size_table(sizes: dict[str, Sizes]) -> str:
    """Make a Markdown table of bytes."""
    rows = []
    for name, one in sizes.items():
        for what, mine, base in (
            (
                f'{len(one.layers)} 1-bit layers, values',
                sum(row.bytes for row in one.layers),
                sum(row.float_bytes for row in one.layers),
            ),
            ('all files for OpenVINO', one.files, one.float_files),
        ):
            share = f'1/{base / mine:.1f}'
            rows.append([name, what, f'{mine:,}', f'{base:,}', share])
    return _markdown(
        ['config', 'bytes of', '1-bit', 'float twin', 'of it'], rows
    )


def profile_table(operations: Sequence[Operation]) -> str:
    """Make a Markdown table of where the time goes."""
    total = sum(one.seconds for one in operations)
    count = sum(one.count for one in operations)
    return _markdown(
        ['operation', 'executed by', 'number', 'ms', 'share'],
        [
            [one.kind, one.execution, one.count]
            + [_number(one.seconds * 1000), f'{one.seconds / total:.1%}']
            for one in [*operations, Operation('all', '', count, total)]
        ],
    )


def stage_table(stages: Sequence[tuple[str, float]]) -> str:
    """Make a Markdown table of what takes the time from image to boxes."""
    total = sum(seconds for _, seconds in stages)
    return _markdown(
        ['stage', 'ms', 'share'],
        [
            [name, _number(seconds * 1000), f'{seconds / total:.1%}']
            for name, seconds in [*stages, ('all', total)]
        ],
    )


def write_csv(cases: Sequence[Case], path: Path) -> None:
    """Write a row for each turn."""
    header = ['level', 'what', 'rows', 'columns', 'threads']
    header += ['contestant', 'round', 'ms']
    _write(
        path,
        header,
        [
            [case.level, case.name, *case.size, case.threads]
            + [name, i, f'{value * 1000:.4f}']
            for case in cases
            for name, seconds in case.seconds.items()
            for i, value in enumerate(seconds)
        ],
    )


def write_sizes(sizes: dict[str, Sizes], path: Path) -> None:
    """Write a row for each 1-bit layer."""
    _write(
        path,
        ['config', 'layer', 'bytes', 'float bytes'],
        [
            [name, row.name, row.bytes, row.float_bytes]
            for name, one in sizes.items()
            for row in one.layers
        ],
    )


def _write(
    path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]
) -> None:
    with open(path, 'w', newline='') as file:
        csv.writer(file).writerows([header, *rows])


def draw(cases: Sequence[Case], path: Path) -> None:
    """Draw how many times faster than OpenVINO's float32 each is."""
    groups: dict[tuple[str, int], list[Case]] = {}
    for case in cases:
        groups.setdefault((case.level, case.threads), []).append(case)
    names = [
        name
        for name in CONTESTANTS
        if name != FP32 and any(case.best(name) for case in cases)
    ]
    width = 0.8 / len(names)
    most = max(map(len, groups.values()))
    figure, axes = plt.subplots(
        len(groups),
        1,
        figsize=(max(6, 2 + 0.7 * most), 3.2 * len(groups)),
        layout='constrained',
        squeeze=False,
    )
    for ax, ((level, threads), group) in zip(axes[:, 0], groups.items()):
        for i, name in enumerate(names):
            ax.bar(
                [j + (i + 0.5) * width - 0.4 for j in range(len(group))],
                [case.times_faster(FP32, name) or 0 for case in group],
                width,
                label=name,
                color=f'C{i}',
            )
        labels = [
            f'{case.name.replace("_", " ")}\n{case.shape}' for case in group
        ]
        ax.axhline(1, color='black', linewidth=0.8)
        ax.set_xticks(range(len(group)), labels, fontsize='x-small')
        ax.set_title(f'{level}, threads: {threads}', fontsize='medium')
        ax.set_ylabel(f'times faster than\n{FP32}')
        ax.grid(axis='y', alpha=0.3)
    axes[0, 0].legend(fontsize='small')
    figure.savefig(path, dpi=120)
    plt.close(figure)
