"""What was measured of a front: table, CSV and picture."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from surge_det.paired import estimate, plus_minus

from .report import Table


@dataclass
class Point:
    """A network with its seeds.

    Args:
        name: Series and point.
        bytes: Of the first seed's file.
        seconds: Of the first seed's turns.
        scores: MAP of each seed.
    """

    name: str
    bytes: int = 0
    seconds: list[float] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)

    @property
    def series(self) -> str:
        """What is drawn as one line."""
        return self.name.rpartition(' ')[0]

    @property
    def ms(self) -> float:
        """Median of the turns."""
        return statistics.median(self.seconds) * 1000


def _ordered(points: Iterable[Point]) -> list[Point]:
    return sorted(points, key=lambda point: (point.series, point.ms))


def table(points: Sequence[Point]) -> Table:
    """Make a table with a row for each point."""
    rows = []
    for point in _ordered(points):
        mean, std, _ = estimate(point.scores)
        size = f'{point.bytes / 1e6:.2f}'
        times = [f'{point.ms:.2f}', size, len(point.scores)]
        rows.append([point.name, plus_minus(mean, std), *times])
    return Table(['detector', 'mAP', 'ms', 'MB', 'seeds'], rows)


def records(points: Sequence[Point]) -> Table:
    """List each seed, for a CSV file."""
    rows = [
        [point.name, i, f'{score:.4f}', f'{point.ms:.4f}', point.bytes]
        for point in points
        for i, score in enumerate(point.scores)
    ]
    return Table(['detector', 'file', 'mAP', 'ms', 'bytes'], rows)


def notes(args: argparse.Namespace) -> str:
    """Say what a reader of the table has to know."""
    import onnxruntime
    from surge_runtime.library import kernel_path

    return (
        f'From image to boxes, milliseconds{" of CPU time" * args.cpu_time}: '
        f'medians of {args.rounds} interleaved rounds. Threads: '
        f'{args.threads}; ONNX Runtime {onnxruntime.__version__}, 1-bit '
        f'kernels {kernel_path()}. mAP ± standard deviation over seeds.'
    )


def draw(points: Sequence[Point], path: Path) -> None:
    """Draw mAP against latency and against bytes."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    figure = Figure(figsize=(9, 3.8), layout='constrained')
    axes = figure.subplots(1, 2, sharey=True)
    titles = 'image to boxes, ms', 'file, MB'
    for ax, title in zip(axes, titles):
        for series in dict.fromkeys(point.series for point in points):
            own = [p for p in _ordered(points) if p.series == series]
            xs = [p.ms if ax is axes[0] else p.bytes / 1e6 for p in own]
            means, stds, _ = zip(*(estimate(p.scores) for p in own))
            bars = [0 if std != std else std for std in stds]
            ax.errorbar(xs, means, bars, fmt='o-', capsize=3, label=series)
            for p, x, mean in zip(own, xs, means):
                text = p.name.rpartition(' ')[2]
                place = dict(xytext=(4, 5), textcoords='offset points')
                ax.annotate(text, (x, mean), fontsize='small', **place)
        ax.set_xscale('log')
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_major_formatter('{x:g}')
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.margins(0.12)
        ax.set_xlabel(title)
        ax.grid(alpha=0.3, which='both')
    axes[0].set_ylabel('mAP')
    axes[0].legend(fontsize='small')
    figure.savefig(path, dpi=120)
