"""Draw the loss and the mAP of a training run, from mmengine's own log."""

import argparse
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from surge_det.cli.common import fail
from surge_det.whole_files import read_json, replacing

MAP = r'(bbox_)?mAP'
_MAP = re.compile(rf'(^|/)({MAP})$')
_LOSS_COLOR, _MAP_COLOR = '#2a5d9f', '#c2571a'


class Curves(NamedTuple):
    """What a run logged.

    ``losses`` are (iteration, total loss), ``scores`` (step, mAP) in the
    order of steps; ``step_name`` is 'epoch' or 'iteration'.
    """

    losses: list[tuple[int, float]]
    scores: list[tuple[int, float]]
    step_name: str


def read_records(path: Path) -> list[dict]:
    """Read a log of one JSON object a line, but for half of a last one.

    Raises:
        ValueError: If another line is none; names file and line.
    """
    records = []
    lines = path.read_text(encoding='utf-8').splitlines()
    for number, line in enumerate(lines, 1):
        try:
            records.append(_record(json.loads(line)))
        except (RecursionError, ValueError) as error:
            # A killed run leaves half a last line.
            if number < len(lines):
                raise ValueError(
                    f'{path}, line {number}: not a log record ({error})'
                ) from error
    return records


def _record(record: Any) -> dict:
    used = ('loss', 'iter', 'epoch', 'step')
    if not isinstance(record, dict) or not all(
        isinstance(record.get(key, 0), int | float) for key in used
    ):
        raise ValueError(f'{", ".join(used)} must be numbers of an object')
    return record


def find_map(metrics: Mapping[str, Any]) -> float | None:
    """Return the mAP among metrics, if it is there."""
    return next((v for key, v in metrics.items() if _MAP.search(key)), None)


def read_map(work_dir: Path) -> float | None:
    """Return the mAP that the last evaluation in ``work_dir`` logged."""
    # mmengine's logger hook writes it to TIMESTAMP/TIMESTAMP.json.
    for path in sorted(work_dir.glob('*/*.json'), reverse=True):
        if (found := find_map(read_json(path))) is not None:
            return found
    return None


def read_curves(work_dir: str | Path, score: str = MAP) -> Curves:
    """Read the log of the run in ``work_dir``, with what it resumed.

    Every run writes a folder named by its start time. A later run replaces
    what earlier ones logged from its own first iteration on: a resumed run
    continues the curve, a run from scratch starts a new one.

    Args:
        work_dir: As given to ``surge-det train``.
        score: Pattern of the figure's name, without what stands before its
            slash.

    Raises:
        FileNotFoundError: if there is no log of a training run, or no such
            figure in it although one was asked for.
        ValueError: if a log is malformed.
    """
    name = re.compile(rf'(^|/)({score})$')
    known = set()
    paths = sorted(Path(work_dir).glob('*/vis_data/scalars.json'))
    losses: list[tuple[int, float]] = []
    scores: list[tuple[int, float]] = []
    step_name = 'epoch'
    for path in paths:
        records = read_records(path)
        trained = [r for r in records if 'loss' in r and 'iter' in r]
        # A resumed run may begin with the validation that was not finished.
        starts = [
            r['step']
            for r in records
            # A test has none.
            if any(map(name.search, r)) and r['step']
        ][:1]
        for first in trained[:1]:
            step_name = 'epoch' if 'epoch' in first else 'iteration'
            starts.append(first.get('epoch', first['iter']))
            losses = [p for p in losses if p[0] < first['iter']]
        if not starts:
            continue
        scores = [p for p in scores if p[0] < min(starts)]
        losses += [(r['iter'], r['loss']) for r in trained]
        for record in records:
            for key, value in record.items():
                if 'loss' not in record and not key.startswith('ags/'):
                    known.add(key.rpartition('/')[2])
                if name.search(key) and isinstance(value, int | float):
                    scores.append((record.get('step', 0), value))
                    break
    if not losses:
        raise FileNotFoundError(
            f'no log of a training run in {work_dir}: looked for '
            '*/vis_data/scalars.json, which surge-det train writes there '
            f'({len(paths)} found, none of them with a loss)'
        )
    if score != MAP and not scores:
        raise FileNotFoundError(
            f'{work_dir} has logged no {score!r}; it has '
            f'{sorted(known - {"step"})}'
        )
    return Curves(losses, scores, step_name)


def smoothed(values: Sequence[float], weight: float) -> list[float]:
    """Exponential mean of ``values``, unbiased at its start.

    Not-a-numbers are passed over. ``weight`` in [0, 1) is that of the past.
    """
    result, total, norm = [], 0.0, 0.0
    for value in values:
        if math.isfinite(value):
            total = weight * total + (1 - weight) * value
            norm = weight * norm + (1 - weight)
        result.append(total / norm if norm else math.nan)
    return result


def plot_run(
    work_dir: str | Path,
    out: str | Path | None = None,
    score: str | None = None,
) -> Path:
    """Draw loss over iterations, and mAP over epochs where there is one.

    Args:
        work_dir: As given to ``surge-det train``.
        out: The picture; ``work_dir/curves.png`` by default.
        score: Another figure than mAP, such as ``'bbox_mAP_50'``.

    Returns:
        The picture's path.

    Raises:
        FileNotFoundError, ValueError: as ``read_curves``.
    """
    from matplotlib.figure import Figure

    work_dir = Path(work_dir)
    curves = read_curves(work_dir, re.escape(score) if score else MAP)
    title = score or 'mAP'
    out = Path(out) if out else work_dir / 'curves.png'
    panels = 2 if curves.scores else 1
    fig = Figure(figsize=(5.2 * panels, 3.6), dpi=120)
    axes = fig.subplots(1, panels, squeeze=False)
    axis = axes[0, 0]
    steps, values = zip(*curves.losses)
    # The mean spans a twentieth of the run.
    weight = 1 - 1 / max(2, len(values) / 20)
    axis.plot(steps, values, color=_LOSS_COLOR, alpha=0.3, lw=0.8)
    axis.plot(steps, smoothed(values, weight), color=_LOSS_COLOR, lw=1.8)
    finite = [v for v in values if math.isfinite(v)]
    axis.set(title='training loss', xlabel='iteration', ylabel='loss')
    if finite:
        # One early spike of many values must not flatten the rest.
        high = sorted(finite)[math.ceil(0.99 * (len(finite) - 1))]
        axis.set_ylim(0, 1.1 * high if high > 0 else None)
    if curves.scores:
        axis = axes[0, 1]
        steps, values = zip(*curves.scores)
        axis.plot(steps, values, color=_MAP_COLOR, marker='o', ms=4, lw=1.8)
        axis.annotate(
            f'{values[-1]:.3f}',
            (steps[-1], values[-1]),
            xytext=(0, 7),
            textcoords='offset points',
            ha='center',
        )
        axis.set(title=title, xlabel=curves.step_name, ylabel=title)
        # Of 1, or of a hundred, as accuracies are.
        axis.set_ylim(0, 1.08 * max(1, *filter(math.isfinite, values)))
        axis.xaxis.get_major_locator().set_params(integer=True)
    for axis in axes[0]:
        axis.grid(alpha=0.25)
        axis.spines[['top', 'right']].set_visible(False)
        axis.margins(x=0.04)
    fig.suptitle(work_dir.resolve().name)
    fig.tight_layout()
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as new:
        fig.savefig(new)
    return out


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add = parser.add_argument
    add('work_dir', metavar='WORK_DIR', help="the training's folder")
    add('--out', help='default: WORK_DIR/curves.png')
    add('--score', help='the figure to draw; default: mAP; e.g. bbox_mAP_50')


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    try:
        picture = plot_run(args.work_dir, args.out, args.score)
    except (OSError, ValueError) as error:
        fail(error)
    print(f'loss and {args.score or "mAP"}: {picture}')
