"""Measure what compensation does to the loss, layer by layer.

For each layer with a replica: take the gradients at its input through the
1-bit operator, g_b, and through the replica, g_a, move the input along
-(g_b + λ·g_a), and see how far the loss of the 1-bit network really falls,
for steps of one length and η from 0 to 1. A ratio is that fall over the one
of g_b alone. Beside the picture goes a CSV with every batch.

Example::

    surge-det probe surge_faster_rcnn_r18_bccd CHECKPOINT
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from surge_det.cli.common import (
    add_cfg_options,
    add_config,
    existing_file,
    fail,
    load_config,
    number,
    table_and_picture,
    training_data,
)
from surge_det.cli.tables import print_table, write_csv
from surge_det.whole_files import replacing

if TYPE_CHECKING:
    from mmengine.config import Config
    from torch import nn
    from torch.utils.data import DataLoader

    from surge_det.core.probe import LayerProbe
    from surge_det.paired import Estimate

# The row of the sums.
ALL = 'all layers'
# So many layers are named in a line.
_NAMED = 5


class Row(NamedTuple):
    """What all batches together say of a layer.

    Args:
        fall: Mean fall of the loss by a step along ``g_b``.
        ratios: By η; ``None`` where the loss does not fall along ``g_b``.
        turned: Share of signs that the step along ``g_b`` turns.
        cosine: Between ``g_b`` and ``g_a``, mean of the batches.
        applications: Most of a batch.
    """

    fall: float
    ratios: dict[float, Estimate | None]
    turned: float
    cosine: float
    applications: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add = parser.add_argument
    add_config(parser)
    add(
        'checkpoint',
        type=existing_file,
        metavar='CHECKPOINT',
        help='checkpoint of a training with replicas',
    )
    add(
        '--batches',
        type=number(int, 'a whole number of at least 2', lambda n: n >= 2),
        default=4,
        metavar='N',
        help="of the config's training data (default: 4)",
    )
    add(
        '--step',
        type=number(
            float, 'a number above 0', lambda step: 0 < step < math.inf
        ),
        metavar='S',
        help="length of a step over the norm of the layer's input (default: "
        '0.1)',
    )
    add(
        '--out',
        type=Path,
        metavar='FILE_OR_FOLDER',
        help='names ending in .csv and .png, or else a folder; default: the '
        "checkpoint's",
    )
    add_cfg_options(parser)


def load_model(cfg: Config, checkpoint: Path) -> nn.Module:
    """Return the detector of a checkpoint of training, on the device.

    Raises:
        ValueError: If the file is no such checkpoint, or another model's.
    """
    from mmengine.device import get_device

    from surge_det.deploy import FORMATS, format_of

    if format_of(checkpoint) is not FORMATS['pth']:
        raise ValueError(
            f'{checkpoint}: an export has no replicas; give a checkpoint of '
            'a training'
        )
    model = FORMATS['pth'].load(checkpoint, cfg, replicas=True)
    return model.to(get_device())


def load_state(checkpoint: Path) -> tuple[int, dict[str, float]]:
    """Return the iteration of a checkpoint, and η of ``'auto'`` by layer.

    Raises:
        ValueError: If what stands there is something else.
    """
    import torch
    from mmengine.runner import CheckpointLoader

    from surge_det.core.ags import eta_of

    state = CheckpointLoader.load_checkpoint(
        str(checkpoint), 'cpu', logger='silent'
    )

    def at(*keys: str) -> Any:
        value = state
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        return value

    iteration = at('meta', 'iter')
    estimates = at('optimizer', 'ags', 'estimates') or {}
    try:
        return int(0 if iteration is None else iteration), {
            name: eta_of(torch.tensor(values, dtype=torch.double)).item()
            for name, values in estimates.items()
        }
    except (
        *(AttributeError, OverflowError, RuntimeError),
        *(TypeError, ValueError),
    ) as error:
        raise ValueError(
            f'{checkpoint}: meta.iter is no number, or the estimates of AGS '
            f'are no pairs of numbers: {error}'
        ) from error


def set_schedules(model: nn.Module, cfg: Config, done: int, each: int) -> None:
    """Set what changes over a run as it was at an iteration.

    Args:
        model: The detector.
        cfg: Its config.
        done: The iteration.
        each: How many an epoch has.
    """
    from surge_det.core import set_progress

    train_cfg = cfg.get('train_cfg') or {}
    length = train_cfg.get('max_iters')
    length = length or train_cfg.get('max_epochs', 0) * each
    if length:
        set_progress(model, min(done / length, 1.0))


def measure(
    model: nn.Module,
    loader: DataLoader,
    batches: int,
    options: Mapping[str, float],
) -> Iterator[dict[str, LayerProbe]]:
    """Probe a model on batches, one after the other."""
    from mmengine.runner import set_random_seed

    from surge_det.core.probe import probe
    from surge_det.models.held_loss import HeldLoss

    set_random_seed(0)
    for place, batch in enumerate(islice(loader, batches), 1):
        found = probe(model, HeldLoss(batch), **options)
        print(f'batch {place} of {batches}', flush=True)
        yield found


def summarize(probes: Sequence[dict[str, LayerProbe]]) -> dict[str, Row]:
    """Put batches together, and all layers in a row of their own.

    Args:
        probes: Of each batch, by layer.

    Returns:
        Rows by the layer's name, ``ALL`` last.

    Raises:
        ValueError: If no batch has a layer.
    """
    if not any(probes):
        raise ValueError(
            'no gradient reaches a layer with a replica: nothing can be '
            'measured'
        )
    names = list(dict.fromkeys(name for found in probes for name in found))
    # All layers of a batch count as one that falls by their sum.
    groups = {
        name: [[found[name]] for found in probes if name in found]
        for name in names
    }
    groups[ALL] = [[*found.values()] for found in probes if found]
    return {name: _row(group) for name, group in groups.items()}


def _row(group: list[list[LayerProbe]]) -> Row:
    from statistics import mean

    from surge_det.paired import ratio

    every = [layer for batch in group for layer in batch]
    falls = {
        eta: [sum(layer.decreases[eta] for layer in batch) for batch in group]
        for eta in every[0].decreases
    }
    fall = mean(falls[0.0])
    return Row(
        fall,
        {
            eta: ratio(of, falls[0.0]) if fall > 0 else None
            for eta, of in falls.items()
        },
        mean(layer.turned[0.0] for layer in every),
        mean(layer.cosine for layer in every),
        max(layer.applications for layer in every),
    )


def verdict(ratio: Estimate) -> int:
    """Say whether compensation helps, 1, hurts, -1, or neither, 0."""
    if ratio.mean - ratio.half_width > 1:
        return 1
    return -(ratio.mean + ratio.half_width < 1)


def conclusion(rows: Mapping[str, Row]) -> str:
    """Say in a line what the rows show."""
    *names, _ = rows
    together = {
        eta: ratio
        for eta, ratio in rows[ALL].ratios.items()
        if ratio and 0 < eta < math.inf
    }
    if not together:
        return 'a step along g_b does not lower the loss: nothing to compare'
    etas = sorted(together)
    hurts = [eta for eta in etas if verdict(together[eta]) < 0]
    helps = [eta for eta in etas if verdict(together[eta]) > 0]
    parts = []
    for word, found in (('helps', helps), ('hurts', hurts)):
        if found:
            parts.append(
                f'{word} at η = '
                + ', '.join(
                    f'{eta:g} ({_text(together[eta])})' for eta in found
                )
            )
    text = ' and '.join(parts) or (
        f'makes no difference up to η = {etas[-1]:g} that can be told from '
        'noise'
    )
    text = f'over all layers compensation {text}'
    listed = [('helps', 1, max(helps))] if helps else []
    listed.append(('hurts', -1, min(hurts, default=etas[-1])))
    for word, sign, eta in listed:
        found = [
            name
            for name in names
            if (ratio := rows[name].ratios[eta]) and verdict(ratio) == sign
        ]
        text += (
            f'; by itself it {word} at η = {eta:g} in {len(found)} of '
            f'{len(names)} layers'
        )
        if found:
            more = ', ...' * (len(found) > _NAMED)
            text += f' ({", ".join(found[:_NAMED])}{more})'
    return text


def _text(ratio: Estimate) -> str:
    return f'{ratio.mean:.3f} ± {ratio.half_width:.3f}'


def _title(eta: float) -> str:
    return 'g_a' if eta == math.inf else f'{eta:g}'


def show(rows: Mapping[str, Row], auto: Mapping[str, float]) -> None:
    """Print a line for each layer."""
    etas = [eta for eta in rows[ALL].ratios if eta]
    marks = {1: '+', -1: '-', 0: ' '}
    lines = []
    for name, row in rows.items():
        if name == ALL:
            lines.append(())
        ratios = [
            f'{ratio.mean:.2f}{marks[verdict(ratio)]}' if ratio else '? '
            for ratio in map(row.ratios.get, etas)
        ]
        times = f' x{row.applications}' * (
            row.applications > 1 and name != ALL
        )
        cells = [name + times, f'{row.cosine:+.2f}', f'{row.turned:.1%}']
        if auto:
            cells.append(f'{auto[name]:.3f}' if name in auto else '')
        lines.append((*cells, f'{row.fall:.4f}', *ratios))
    header = ['layer', 'cos', 'turned'] + ['η auto'] * bool(auto)
    titles = [f'{_title(eta)} ' for eta in etas]
    print_table((*header, 'fall', *titles), lines)
    print(
        'cos: of the angle between g_b and g_a; turned: share of signs that '
        'the step along\ng_b turns; fall: of the loss, by it; then the fall '
        'by η, over that one, with + and -\nwhere its 95 % interval over the '
        'batches is above and below 1'
    )


def write_steps(probes: Sequence[dict[str, LayerProbe]], path: Path) -> None:
    """Write every step that was taken."""
    header = ['batch', 'layer', 'applications', 'cosine', 'loss', 'eta']
    rows = [
        (
            *(batch, name, layer.applications),
            *(f'{layer.cosine:.5f}', f'{layer.loss:.7g}'),
            *(_title(eta), f'{layer.turned[eta]:.6f}', f'{decrease:.7g}'),
        )
        for batch, found in enumerate(probes)
        for name, layer in found.items()
        for eta, decrease in layer.decreases.items()
    ]
    write_csv(path, [*header, 'turned', 'decrease'], rows)


def draw(
    rows: Mapping[str, Row], auto: Mapping[str, float], title: str, path: Path
) -> None:
    """Draw ratios, layers by depth against η, and falls beside them."""
    import numpy as np
    from matplotlib.colors import CenteredNorm
    from matplotlib.figure import Figure

    etas = [eta for eta in rows[ALL].ratios if eta]
    places = np.arange(len(rows))
    values = np.array(
        [
            [
                ratio.mean if ratio else math.nan
                for ratio in map(row.ratios.get, etas)
            ]
            for row in rows.values()
        ]
    )
    fig = Figure(figsize=(10, 1.8 + 0.22 * len(rows)), layout='constrained')
    left, right = fig.subplots(1, 2, sharey=True, width_ratios=(4, 1))
    left.set_facecolor('0.85')
    image = left.imshow(
        values,
        cmap='RdBu',
        norm=CenteredNorm(1, 0.5),
        aspect='auto',
    )
    for y, row in enumerate(rows.values()):
        for x, eta in enumerate(etas):
            if ratio := row.ratios[eta]:
                left.text(
                    x,
                    y,
                    f'{ratio.mean:.2f}',
                    ha='center',
                    va='center',
                    fontsize=7,
                    fontweight='bold' if verdict(ratio) else None,
                    color='w' if abs(ratio.mean - 1) > 0.35 else 'k',
                )
    finite = [eta for eta in etas if eta < math.inf]
    at = [(x, y) for y, x in enumerate(map(auto.get, rows)) if x is not None]
    if at:
        # η = 0 would be a column left of the first.
        columns = np.interp(
            [x for x, _ in at], [0, *finite], range(-1, len(finite))
        )
        left.plot(
            columns.clip(-0.5),
            [y + 0.28 for _, y in at],
            '^',
            ms=4,
            color='k',
            clip_on=False,
            label="η = 'auto' of the checkpoint",
        )
        left.legend(
            loc='lower right', bbox_to_anchor=(1, 1), fontsize=7, frameon=False
        )
    left.set_xticks(range(len(etas)), [_title(eta) for eta in etas])
    left.set_yticks(places, rows, fontsize=7)
    left.axhline(len(rows) - 1.5, color='k', lw=1)
    left.set_xlabel('η, and the replica alone')
    left.set_title('fall of the loss over that along g_b', fontsize=9)
    fig.colorbar(
        image, ax=left, location='bottom', extend='both', aspect=50, pad=0.01
    )
    # The sum of all would leave nothing of the others.
    falls = [row.fall for name, row in rows.items() if name != ALL]
    right.barh(places[:-1], falls, color='0.5')
    right.set_title('fall along g_b', fontsize=9)
    right.spines[['top', 'right']].set_visible(False)
    fig.suptitle(title)
    with replacing(path) as new:
        fig.savefig(new, dpi=110)


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    from surge_det.core.layers import named_surge_layers

    cfg = load_config(args, ('train',))
    if not cfg.get('train_dataloader'):
        fail(f'{args.config}: has no train_dataloader to take batches from')
    options = {} if args.step is None else {'step': args.step}
    try:
        model = load_model(cfg, args.checkpoint)
        iteration, auto = load_state(args.checkpoint)
        loader = training_data(cfg)
        if len(loader) < args.batches:
            fail(
                f'--batches {args.batches}: the training data are '
                f'{len(loader)} batches'
            )
        set_schedules(model, cfg, iteration, len(loader))
        probes = list(measure(model, loader, args.batches, options))
        rows = summarize(probes)
    except (FileNotFoundError, ValueError) as error:
        fail(error)
    print()
    show(rows, auto)
    print()
    unreached = [
        name
        for name, layer in named_surge_layers(model)
        if layer.ags is not None and name not in rows
    ]
    if unreached:
        print(f'no gradient reaches {", ".join(unreached)}')
    flat = [name for name, row in rows.items() if not row.ratios[0.0]]
    if flat:
        print(f'a step along g_b does not lower the loss: {", ".join(flat)}')
    print(conclusion(rows))
    out = args.out or args.checkpoint.parent
    stem = f'{args.checkpoint.stem}_probe'
    table, picture = table_and_picture(out, stem)
    write_steps(probes, table)
    draw(rows, auto, f'{args.config.stem}, {args.checkpoint.name}', picture)
    print(f'Written: {table}, {picture}')
