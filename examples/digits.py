"""Compare methods on handwritten digits: a test bed that answers in minutes.

A small 1-bit CNN on scikit-learn's digits (8×8 pixels, 400 training images,
1397 test images)::

    real 3×3 convolution, 2×2 pool, BN -> N blocks at 4×4 -> average pool
    -> real linear layer
    block: x -> PReLU(x + BN(binary conv(x + shift)))

Runs of one seed are paired: the same 400 images, initial weights and order
of batches, whatever the method. Finished runs are kept in ``--out``, so an
interrupted comparison goes on where it stopped.

Settings with several values are crossed; a method's label says where it
stands if there is a choice or if the value is not the default.

Example::

    python examples/digits.py --methods float ste surge surge+approxsign \\
        --eta 0.1 0.2 1 --layers 8 12 --seeds 30 --jobs 2 \\
        --out work_dirs/digits
"""

from __future__ import annotations

import argparse
import csv
import functools
import itertools
import json
import math
import multiprocessing
import signal
import statistics
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from scipy import stats
from sklearn.datasets import load_digits
from torch import Tensor, nn

from surge_det.core import SURGEConv2d, binary_sign
from surge_det.core.fsg import FSG
from surge_det.core.layers import named_surge_layers
from surge_det.core.methods import method_cfg
from surge_det.core.progress import set_progress

TRAIN_IMAGES = 400
# A gradient in 36 blocks per layer: a token per weight takes seconds a step.
FSG_SETTINGS = {
    'slow': {
        'block_size': 64,
        'd_model': 8,
        'expand': 2,
        'independent': True,
    }
}
# Without it one run in fifteen with a replica diverges at the default rate.
CLIP_NORM = 2.0
# Percent points that the picture reaches to.
SHOWN = 12.0
AUX_INITS = ('weight', 'random', 'binary')
OPTIMIZERS = ('sgd', 'adam')


@dataclass(frozen=True)
class Run:
    """Everything that one training depends on.

    Attributes:
        method: A name that ``surge_det.core.methods.method_cfg`` takes.
        layers: Number of 1-bit convolutions.
        seed: Of split, initial weights and order of batches.
        eta: Base factor of AGS; 0 without a replica.
        aux_lr: Learning rate of the replicas over that of the rest; 0
            freezes them.
        aux_init: Where a replica starts: ``'weight'``, a copy of the latent
            weights; ``'random'``, another draw from their distribution;
            ``'binary'``, the 1-bit weights with their scale.
        optimizer: ``'sgd'``, with momentum 0.9, or ``'adam'``.
        lr: The first learning rate; it falls to 0 along a cosine.
        epochs: Passes over the training images.
        batch: Images per step.
        width: Channels.
    """

    method: str
    layers: int
    seed: int
    eta: float = 0.2
    aux_lr: float = 1.0
    aux_init: str = 'weight'
    optimizer: str = 'sgd'
    lr: float = 0.2
    epochs: int = 20
    batch: int = 50
    width: int = 16


class Block(nn.Module):
    """Shift, 1-bit 3×3 convolution, BN, shortcut around them, PReLU.

    Args:
        width: C.
        keywords: Of the ``SURGEConv2d``.

    Shape:
        (N, C, H, W) to the same.
    """

    def __init__(self, width: int, keywords: dict[str, Any]) -> None:
        super().__init__()
        self.conv = SURGEConv2d(
            width, width, 3, padding=1, bias=False, shift=0.0, **keywords
        )
        self.bn = nn.BatchNorm2d(width)
        self.act = nn.PReLU(width)

    def forward(self, x: Tensor) -> Tensor:
        """Apply."""
        return self.act(x + self.bn(self.conv(x)))


def build(run: Run) -> nn.Module:
    """Build the network of a run: (N, 1, 8, 8) to (N, 10).

    The initial weights depend on seed, layers and width only.

    Raises:
        ValueError: If the method is unknown.
    """
    keywords = method_cfg(run.method)
    if keywords['compensate']:
        keywords['eta'] = run.eta
    # No method draws random numbers from the global generator, so all of
    # them start from the same weights.
    torch.manual_seed(run.seed)
    model = _network(run, keywords)
    for _, layer in named_surge_layers(model):
        if layer.compensate and run.aux_init != 'weight':
            _start_replica(layer, run.aux_init)
    return model


@torch.no_grad()
def _start_replica(layer: SURGEConv2d, how: str) -> None:
    if how == 'random':
        other = torch.empty_like(layer.weight)
        # As nn.Conv2d draws its weights.
        nn.init.kaiming_uniform_(other, a=math.sqrt(5))
    else:
        scale = layer.weight.abs().mean((1, 2, 3), keepdim=True)
        other = scale * binary_sign(layer.weight)
    layer.aux_weight.copy_(other)


def _network(run: Run, keywords: dict[str, Any]) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, run.width, 3, padding=1, bias=False),
        # At 8×8 pixels a run would cost more than twice as much.
        nn.AvgPool2d(2),
        nn.BatchNorm2d(run.width),
        *(Block(run.width, keywords) for _ in range(run.layers)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(run.width, 10),
    )


@functools.cache
def _images() -> tuple[Tensor, Tensor]:
    images, labels = load_digits(return_X_y=True)
    images = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8)
    return images, torch.tensor(labels)


def train(run: Run) -> dict[str, Any]:
    """Train and test.

    Returns:
        ``accuracy`` on the test images, 0 to 1; ``loss``, the mean over the
        last epoch; ``seconds`` of CPU time.
    """
    start = time.process_time()
    generator = torch.Generator().manual_seed(run.seed)
    images, labels = _images()
    order = torch.randperm(len(images), generator=generator)
    ours, others = order[:TRAIN_IMAGES], order[TRAIN_IMAGES:]
    images = (images - images[ours].mean()) / images[ours].std()

    model = build(run)
    aux, rest = [], []
    for name, param in model.named_parameters():
        (aux if name.endswith('aux_weight') else rest).append(param)
    groups = [
        {'params': rest, 'lr': run.lr},
        {'params': aux, 'lr': run.lr * run.aux_lr},
    ]
    groups = [group for group in groups if group['params']]
    if run.optimizer == 'sgd':
        optimizer = torch.optim.SGD(groups, momentum=0.9)
    else:
        optimizer = torch.optim.Adam(groups, fused=True)
    steps = run.epochs * math.ceil(TRAIN_IMAGES / run.batch)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    fsg = None
    if run.method.removeprefix('surge+') == 'fsg':
        fsg = FSG(model, **FSG_SETTINGS)
    step = 0
    for _ in range(run.epochs):
        losses = []
        shuffled = ours[torch.randperm(TRAIN_IMAGES, generator=generator)]
        for batch in shuffled.split(run.batch):
            set_progress(model, step / steps)
            if fsg is not None:
                fsg.begin(optimizer)
            loss = F.cross_entropy(model(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            if fsg is not None:
                fsg.finish()
            for group in groups:
                # Apart, so that replicas take nothing from the rest.
                nn.utils.clip_grad_norm_(group['params'], CLIP_NORM)
            optimizer.step()
            cosine.step()
            step += 1
            losses.append(loss.item())

    model.eval()
    set_progress(model, 1.0)
    with torch.no_grad():
        right = model(images[others]).argmax(1) == labels[others]
    return {
        'accuracy': right.float().mean().item(),
        'loss': statistics.mean(losses),
        'seconds': time.process_time() - start,
    }


class Store:
    """Finished runs in a file of one JSON object a line.

    Args:
        path: The file; ``None`` keeps nothing.

    Raises:
        ValueError: If a line but the last, which an interruption may have
            cut, is no finished run.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.results: dict[Run, dict[str, Any]] = {}
        if path is None or not path.exists():
            return
        lines = path.read_text().splitlines(keepends=True)
        if lines and not lines[-1].endswith('\n'):
            lines.pop()
            path.write_text(''.join(lines))
        names = {field.name for field in fields(Run)}
        for number, line in enumerate(lines, 1):
            try:
                record = json.loads(line)
                run = Run(**{name: record.pop(name) for name in names})
                self.results[run] = {
                    key: float(record[key])
                    for key in ('accuracy', 'loss', 'seconds')
                }
            except (
                ValueError,
                KeyError,
                TypeError,
                AttributeError,
            ) as error:
                raise ValueError(
                    f'{path}, line {number}: not a run of this program '
                    f'({error!r}); give another --out, or delete the file'
                ) from error

    def add(self, run: Run, result: dict[str, Any]) -> None:
        """Keep a finished run."""
        self.results[run] = result
        if self.path is not None:
            with open(self.path, 'a') as file:
                file.write(json.dumps({**asdict(run), **result}) + '\n')


def train_all(runs: Sequence[Run], store: Store, jobs: int) -> None:
    """Train what the store does not have, and show how it goes on."""
    missing = [run for run in runs if run not in store.results]
    done = len(runs) - len(missing)
    if done:
        print(f'{done} of {len(runs)} runs are there already', flush=True)
    start = time.monotonic()
    shown = _shown(runs)
    for number, (run, result) in enumerate(_finished(missing, jobs), 1):
        store.add(run, result)
        left = (time.monotonic() - start) / number * (len(missing) - number)
        print(
            f'[{done + number}/{len(runs)}] {label(run, shown)} '
            f'layers={run.layers} seed={run.seed}: accuracy '
            f'{result["accuracy"]:.4f}, about {left / 60:.1f} min left',
            flush=True,
        )


def _finished(
    runs: Sequence[Run], jobs: int
) -> Iterator[tuple[Run, dict[str, Any]]]:
    if jobs == 1 or not runs:
        _one_thread()
        yield from ((run, train(run)) for run in runs)
        return
    # Spawned: a fork would inherit torch's threads.
    pool = ProcessPoolExecutor(
        min(jobs, len(runs)),
        multiprocessing.get_context('spawn'),
        _begin_worker,
    )
    try:
        futures = {pool.submit(train, run): run for run in runs}
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _begin_worker() -> None:
    # Ctrl-C reaches every process; the first one ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _one_thread()


def _one_thread() -> None:
    # The tensors are too small for more; and sums do not depend on it.
    torch.set_num_threads(1)


def label(run: Run, shown: Iterable[str]) -> str:
    """Name a run's method with those of its settings that are shown."""
    parts = [f'{n}={getattr(run, n)}' for n in shown if _has(run, n)]
    return ' '.join([run.method, *parts])


@dataclass(frozen=True)
class Row:
    """One method on one depth.

    Attributes:
        label: The method with its settings.
        layers: Number of 1-bit layers.
        seeds: How many.
        mean: Mean accuracy, percent.
        std: Standard deviation over the seeds, percent.
        difference: Mean paired difference to the baseline, percent points;
            ``None`` for the baseline.
        half: Half the width of its 95 % interval (Student's t).
        diverged: How many runs ended worse than guessing; they count.
        seconds: Mean CPU time of a run.
    """

    label: str
    layers: int
    seeds: int
    mean: float
    std: float
    difference: float | None
    half: float
    diverged: int
    seconds: float


def summarize(
    runs: Sequence[Run], results: dict[Run, dict[str, Any]], baseline: str
) -> list[Row]:
    """Make one row per method, settings and depth.

    Args:
        runs: All with results, the same seeds for each method.
        results: By run.
        baseline: A method among them. Its run with the same learning rate
            is what a run is compared with.
    """
    shown = _shown(runs)
    accuracy = {r: 100 * results[r]['accuracy'] for r in runs}
    base = {
        (r.layers, r.lr, r.seed): accuracy[r]
        for r in runs
        if r.method == baseline
    }
    groups: dict[tuple[int, str], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.layers, label(run, shown)), []).append(run)
    rows = []
    for (layers, name), mine in groups.items():
        mean, std, _ = _interval([accuracy[r] for r in mine])
        difference, half = None, math.nan
        if mine[0].method != baseline:
            difference, _, half = _interval(
                [accuracy[r] - base[layers, r.lr, r.seed] for r in mine]
            )
        seconds = statistics.mean(results[r]['seconds'] for r in mine)
        # NaN is no number below.
        diverged = sum(not results[r]['loss'] < math.log(10) for r in mine)
        rows.append(
            Row(
                name,
                layers,
                len(mine),
                mean,
                std,
                difference,
                half,
                diverged,
                seconds,
            )
        )
    return rows


def _shown(runs: Sequence[Run]) -> list[str]:
    return [
        name
        for name in ('eta', 'aux_lr', 'aux_init', 'lr')
        if {getattr(r, name) for r in runs if _has(r, name)}
        - {getattr(Run, name)}
    ]


def _has(run: Run, name: str) -> bool:
    return name == 'lr' or method_cfg(run.method)['compensate']


def _interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return mean, standard deviation, half of the 95 % interval."""
    mean = statistics.mean(values)
    if len(values) == 1:
        return mean, math.nan, math.nan
    std = statistics.stdev(values)
    factor = stats.t.ppf(0.975, len(values) - 1)
    return mean, std, factor * std / len(values) ** 0.5


def table(rows: Sequence[Row], baseline: str) -> str:
    """Make a Markdown table."""
    lines = [
        f'| method | 1-bit layers | seeds | accuracy % | minus {baseline} '
        '| diverged | CPU s |',
        '|---|---|---|---|---|---|---|',
    ]
    for row in rows:
        difference = '—'
        if row.difference is not None:
            difference = f'{row.difference:+.2f} ± {row.half:.2f}'
        lines.append(
            f'| {row.label} | {row.layers} | {row.seeds} '
            f'| {row.mean:.2f} ± {row.std:.2f} | {difference} '
            f'| {row.diverged} | {row.seconds:.1f} |'
        )
    return '\n'.join(lines)


def write_csv(
    runs: Sequence[Run], results: dict[Run, dict[str, Any]], path: Path
) -> None:
    """Write one line per run."""
    with open(path, 'w', newline='') as file:
        writer = csv.writer(file, lineterminator='\n')
        names = [field.name for field in fields(Run)]
        writer.writerow([*names, 'accuracy', 'loss', 'seconds'])
        for run in runs:
            result = results[run]
            writer.writerow(
                [
                    *asdict(run).values(),
                    f'{result["accuracy"]:.4f}',
                    f'{result["loss"]:.4f}',
                    f'{result["seconds"]:.2f}',
                ]
            )


def draw(rows: Sequence[Row], baseline: str, path: Path) -> None:
    """Draw the differences to the baseline with their intervals.

    One of more than ``SHOWN`` points is an arrow at the edge.
    """
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    depths = list(dict.fromkeys(row.layers for row in rows))
    names = list(dict.fromkeys(row.label for row in rows))
    figure, columns = plt.subplots(
        1,
        len(depths),
        figsize=(1.5 + 4 * len(depths), 1.2 + 0.32 * len(names)),
        layout='constrained',
        sharey=True,
        squeeze=False,
    )
    for axes, depth in zip(columns[0], depths):
        axes.axvline(0, color='0.6', linewidth=1)
        for row in rows:
            if row.layers != depth:
                continue
            place = names.index(row.label)
            at = min(max(row.difference or 0.0, -SHOWN), SHOWN)
            if row.difference is None:
                axes.plot(at, place, 'D', color='0.4', markersize=5)
            elif at != row.difference:
                # Its interval would squeeze all others into a line.
                axes.plot(at, place, '<' if at < 0 else '>', color='C0')
            else:
                half = 0.0 if math.isnan(row.half) else row.half
                axes.errorbar(
                    at, place, xerr=half, fmt='o', color='C0', capsize=3
                )
            axes.annotate(
                f'{row.mean:.1f}',
                (at, place),
                xytext=(0, 5),
                textcoords='offset points',
                ha='center',
                fontsize=7,
            )
        axes.set_title(f'{depth} binary layers', fontsize=10)
        axes.set_xlabel(
            f'accuracy minus {baseline}, points (95 % interval); number: '
            'accuracy %',
            fontsize=8,
        )
        axes.grid(axis='x', alpha=0.3)
        axes.set_xlim(-SHOWN - 1, SHOWN + 1)
    columns[0][0].set_yticks(range(len(names)), names)
    columns[0][0].set_ylim(len(names) - 0.5, -0.7)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line and check it."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add('--methods', nargs='+', default=['float', 'ste', 'surge'])
    add('--baseline', default='ste', help='one of the methods')
    add('--layers', nargs='+', type=int, default=[8], help='1-bit layers')
    add(
        '--seeds',
        nargs='+',
        type=int,
        default=[5],
        help='one number: how many, from 0; several: which',
    )
    add('--eta', nargs='+', type=float, default=[Run.eta])
    add(
        '--aux-lr',
        nargs='+',
        type=float,
        default=[Run.aux_lr],
        help="factor on the replicas' learning rate; 0 freezes them",
    )
    add(
        '--aux-init',
        nargs='+',
        choices=AUX_INITS,
        default=[Run.aux_init],
        help='where the replicas start',
    )
    add('--optimizer', choices=OPTIMIZERS, default=Run.optimizer)
    add('--lr', nargs='+', type=float, default=[Run.lr])
    add('--epochs', type=int, default=Run.epochs)
    add('--batch', type=int, default=Run.batch)
    add('--jobs', type=int, default=1, help='processes')
    add(
        '--out',
        type=Path,
        help='folder for finished runs, table, CSV and picture',
    )
    args = parser.parse_args(argv)
    for name in args.methods:
        try:
            method_cfg(name)
        except ValueError as error:
            parser.error(f'--methods: {error}')
    if args.baseline not in args.methods:
        parser.error(
            f'--baseline {args.baseline}: one of {args.methods} is allowed'
        )
    if method_cfg(args.baseline)['compensate'] and (
        len(args.eta) * len(args.aux_lr) * len(args.aux_init) > 1
    ):
        parser.error(
            f'--baseline {args.baseline} has a replica: one value each of '
            '--eta, --aux-lr and --aux-init is allowed then'
        )
    for flag, values, low in (
        ('--layers', args.layers, 1),
        ('--epochs', [args.epochs], 1),
        ('--jobs', [args.jobs], 1),
        ('--seeds', args.seeds, 0 if len(args.seeds) > 1 else 1),
        ('--eta', args.eta, 0),
        ('--aux-lr', args.aux_lr, 0),
    ):
        for value in values:
            if not low <= value < math.inf:
                parser.error(f'{flag} {value}: a number >= {low} is allowed')
    if not 2 <= args.batch <= TRAIN_IMAGES:
        parser.error(
            f'--batch {args.batch}: 2 to {TRAIN_IMAGES} images are allowed'
        )
    for value in args.lr:
        if not 0 < value < math.inf:
            parser.error(f'--lr {value}: a number > 0 is allowed')
    if len(args.seeds) == 1:
        args.seeds = list(range(args.seeds[0]))
    return args


def plan(args: argparse.Namespace) -> list[Run]:
    """List the runs, all methods of a seed beside each other in time."""
    runs = []
    for seed, layers, method, lr in itertools.product(
        args.seeds, args.layers, args.methods, args.lr
    ):
        replica = [(0.0, 0.0, 'weight')]
        if method_cfg(method)['compensate']:
            replica = itertools.product(args.eta, args.aux_lr, args.aux_init)
        runs += [
            Run(
                method,
                layers,
                seed,
                *r,
                args.optimizer,
                lr,
                args.epochs,
                args.batch,
            )
            for r in replica
        ]
    return list(dict.fromkeys(runs))


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    args = parse_args(argv)
    runs = plan(args)
    try:
        if args.out is not None:
            args.out.mkdir(parents=True, exist_ok=True)
        store = Store(args.out and args.out / 'runs.jsonl')
    except (OSError, ValueError) as error:
        print(f'error: {error}', file=sys.stderr)
        raise SystemExit(2) from error
    try:
        train_all(runs, store, args.jobs)
    except ImportError as error:
        print(f'error: {error}', file=sys.stderr)
        raise SystemExit(2) from error
    except KeyboardInterrupt:
        kept = '; the same command goes on' if args.out is not None else ''
        print(f'interrupted{kept}', file=sys.stderr)
        raise SystemExit(130) from None
    order = sorted(runs, key=lambda run: args.layers.index(run.layers))
    rows = summarize(order, store.results, args.baseline)
    text = table(rows, args.baseline)
    print(text)
    if args.out is not None:
        (args.out / 'table.md').write_text(text + '\n', encoding='utf-8')
        write_csv(order, store.results, args.out / 'runs.csv')
        draw(rows, args.baseline, args.out / 'differences.png')


if __name__ == '__main__':
    main()
