"""Draw what each 1-bit layer did in a training, and say what looks wrong."""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from surge_det.cli.common import fail
from surge_det.cli.plot_run import read_records
from surge_det.whole_files import replacing

# Iteration -> value, by the layer.
Series = dict[str, dict[int, float]]

# Drawn over a logarithmic scale of colours, or from 0 to 1.
_LOGARITHMIC = {'scale', 'norm_b', 'norm_a'}
_SHARES = {'clipped', 'flipped', 'outside'}
_SIGNED = {'cosine', 'missed'}
_CLIPPED = 0.9


@cache
def _titles() -> dict[str, str]:
    # Not at the top: it imports torch.
    from surge_det.core.figures import FIGURES

    return {
        **{key: f'{sign}: {text}' for key, (sign, text) in FIGURES.items()},
        'slope': 'largest slope of each PReLU',
    }


def read_figures(work_dir: str | Path) -> dict[str, Series]:
    """Read what ``AGSHook`` logged in ``work_dir``, with what it resumed.

    A later run replaces what earlier ones logged from its own first
    iteration on.

    Args:
        work_dir: As given to ``surge-det train``.

    Returns:
        Of each of ``FIGURES`` and ``slope``, layers in the model's order;
        last those that the fullest log does not name.

    Raises:
        FileNotFoundError: If there is nothing of a 1-bit layer in it.
        ValueError: If a log is malformed.
    """
    rows: dict[int, dict[str, float]] = {}
    for path in sorted(Path(work_dir).glob('*/vis_data/scalars.json')):
        own = {
            row['step']: row
            for row in read_records(path)
            if any(key.startswith('ags/') for key in row)
        }
        if own:
            first = min(own)
            rows = {step: r for step, r in rows.items() if step < first} | own
    found: dict[str, Series] = {}
    rows = dict(sorted(rows.items()))
    # A layer that the first log does not name may be the model's first.
    fullest = sorted(rows.values(), key=len, reverse=True)
    for key in dict.fromkeys(key for row in fullest for key in row):
        _, figure, name = [*key.split('/', 2), '', ''][:3]
        if key.startswith('ags/') and figure in _titles():
            found.setdefault(figure, {})[name] = {
                step: row[key] for step, row in rows.items() if key in row
            }
    if not found.keys() - {'slope'}:
        raise FileNotFoundError(
            f'{work_dir} has no log of 1-bit layers: looked for '
            '*/vis_data/scalars.json of a training with AGSHook'
        )
    return found


def findings(figures: dict[str, Series]) -> Iterator[str]:
    """Say what looks wrong, with the likely cause.

    Args:
        figures: What :func:`read_figures` returns.
    """
    from surge_det.core.figures import GROWTH

    logged = {
        key: {name: [*s.values()] for name, s in series.items()}
        for key, series in figures.items()
    }
    # What is left of λ without η; 0 or infinite where a gradient is 0.
    logged['ratio'] = {
        name: [
            b / a if a else math.inf
            for b, a in zip(norms, logged.get('norm_a', {}).get(name, []))
        ]
        for name, norms in logged.get('norm_b', {}).items()
    }

    def told(figure: str, is_wrong, text: str) -> Iterator[str]:
        series = logged.get(figure, {})
        wrong = [name for name, values in series.items() if is_wrong(values)]
        if wrong:
            shown = ', '.join(wrong[:5]) + ', ...' * (len(wrong) > 5)
            yield f'{text}, in {len(wrong)} of {len(series)}: {shown}'

    def stuck(values):
        # Once may be chance.
        return len(values) > 1 and {*values[-2:]} <= {0, math.inf}

    def grown(values):
        # 0 may be chance too, or a part that begins at 0.
        values = [value for value in values if 0 < value < math.inf]
        first = values[: max(len(values) // 4, 1)]
        return values and values[-1] >= GROWTH * statistics.median(first)

    yield from told(
        'ratio',
        stuck,
        'no gradient arrives (‖g_b‖ or ‖g_a‖ is 0), so λ says nothing: what '
        'follows may start at 0 (zero_init_residual) or be frozen, or the '
        'replica be 0; see `surge-det preflight`',
    )
    yield from told(
        'ratio',
        grown,
        'λ / η has grown a hundredfold: the replica goes to 0, or the '
        'learning rate is too high',
    )
    yield from told(
        'scale',
        lambda values: not all(map(math.isfinite, values)),
        'λ was not finite: in a step that mixed precision skips; else the '
        'learning rate is too high, or an image holds such numbers',
    )
    yield from told(
        'clipped',
        lambda values: values[-1] > _CLIPPED,
        'the estimator clips nearly the whole input, so almost no '
        'gradient passes, except through a replica; where mAP is low, try a '
        'norm before the sign (`norm_cfg` of SURGEFPN) or a wider window',
    )
    yield from told(
        'norm_b',
        grown,
        '‖g_b‖ has grown a hundredfold: layers after this one clip nearly '
        'all of their input, or the learning rate is too high',
    )
    yield from told(
        'flipped',
        lambda values: len(values) > 1 and not any(values),
        'no weight has changed its sign: the learning rate of the latent '
        'weights is too small, or they are frozen',
    )
    yield from told(
        'slope',
        grown,
        'a slope of a PReLU has grown a hundredfold: the learning rate is too '
        'high, or clipping leaves it out',
    )


def draw(figures: dict[str, Series], out: Path, title: str) -> None:
    """Draw a sheet: a panel for each figure, layers by depth over time."""
    import numpy as np
    from matplotlib.colors import LogNorm, Normalize
    from matplotlib.figure import Figure

    shown = [figure for figure in _titles() if figure in figures]
    rows = math.ceil(len(shown) / 2)
    most = max(map(len, figures.values()))
    fig = Figure(
        figsize=(15, rows * (1.3 + 0.13 * most)), dpi=100, layout='constrained'
    )
    axes = fig.subplots(rows, 2)
    for axis, figure in zip(axes.flat, shown):
        series = figures[figure]
        steps = sorted({step for s in series.values() for step in s})
        values = np.array(
            [[s.get(x, math.nan) for x in steps] for s in series.values()]
        )
        norm, colours = Normalize(), 'viridis'
        positive = values[np.isfinite(values) & (values > 0)]
        if figure in _LOGARITHMIC and positive.size:
            norm = LogNorm(positive.min(), max(positive.max(), 1e-30))
        elif figure in _SHARES:
            norm = Normalize(0, 1 if figure != 'flipped' else None)
        elif figure in _SIGNED:
            finite = np.abs(values[np.isfinite(values)])
            end = finite.max(initial=1e-6)
            norm, colours = Normalize(-end, end), 'coolwarm'
        # A column reaches from the log before to its own.
        edges = [0, *steps] if steps[0] > 0 else [-1, *steps]
        # What is not known, or is 0 on a logarithmic scale, stays grey.
        axis.set_facecolor('0.85')
        image = axis.pcolormesh(
            edges, range(len(series) + 1), values, norm=norm, cmap=colours
        )
        fig.colorbar(image, ax=axis, pad=0.01)
        axis.invert_yaxis()
        axis.set_yticks(np.arange(len(series)) + 0.5, series, fontsize=6)
        axis.set_title(_titles()[figure], fontsize=10)
        axis.set_xlabel('iteration', fontsize=8)
    for axis in axes.flat[len(shown) :]:
        axis.axis('off')
    fig.suptitle(title)
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as new:
        fig.savefig(new)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add = parser.add_argument
    add('work_dir', metavar='WORK_DIR', help="the training's folder")
    add('--out', type=Path, help='default: WORK_DIR/ags.png')


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    work_dir = Path(args.work_dir)
    out = args.out or work_dir / 'ags.png'
    try:
        figures = read_figures(work_dir)
        draw(figures, out, work_dir.resolve().name)
    except (OSError, ValueError) as error:
        fail(error)
    for text in [*findings(figures)] or ['nothing looks wrong']:
        print(text)
    layers = {
        name for key in figures if key != 'slope' for name in figures[key]
    }
    print(f'what {len(layers)} layers did: {out}')
