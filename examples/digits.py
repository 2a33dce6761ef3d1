"""Compare methods on handwritten digits: a test bed that answers in minutes.

A small 1-bit CNN (``digits_train.py``) on scikit-learn's digits (8×8 pixels,
400 training images, 1397 test images).

Runs of one seed are paired: the same 400 images, initial weights and order
of batches, whatever the method. Finished runs are kept in ``--out``, so an
interrupted comparison goes on where it stopped; ``runs.csv`` has all runs
that were ever finished there.

Settings with several values are crossed; a method's label says where it
stands if there is a choice or if the value is not the default.

With ``--lr-grid`` each method gets a learning rate of its own: the one with
the best mean accuracy over tuning seeds, which are not among those reported
(but draw from the same images). Where that is at an edge of the grid, the
grid is widened for that method.

Example::

    python examples/digits.py --methods float ste surge surge+approxsign \\
        --lr-grid 0.1 0.2 0.4 0.8 --tune-seeds 8 --layers 8 12 --seeds 30 \\
        --jobs 2 --out work_dirs/digits
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import signal
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, astuple, fields, replace
from pathlib import Path
from typing import Any

import torch
from digits_report import (
    diverged,
    draw,
    has_setting,
    label,
    shown_settings,
    summarize,
    table,
    write_csv,
)
from digits_train import (
    CHOICES,
    Run,
    train,
)

from surge_det.cli.tables import markdown_table

# The first seed that rates are chosen on.
TUNE_FROM = 1000
# How often a grid of rates is widened.
WIDEN = 3


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
                # A file from before a setting came up was at its default.
                run = Run(**{n: record[n] for n in names & {*record}})
                self.results[run] = {
                    key: float(record[key])
                    for key in ('accuracy', 'loss', 'seconds')
                }
            except (ValueError, KeyError, TypeError) as error:
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
    shown = shown_settings(runs)
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
    context = multiprocessing.get_context('spawn')
    pool = ProcessPoolExecutor(jobs, context, _begin_worker)
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


# Settings that may have several values, with their help.
CROSSED = {
    'weight_lr': "factor on the latent weights' learning rate; 0 freezes them",
    'eta': 'base factor of AGS, or auto',
    'aux_lr': "factor on the replicas' learning rate; 0 freezes them",
    'aux_init': 'where the replicas start',
    'scaler': 'ags: SURGE; clipped (compensate only where STE clips), '
    'direction, length (take only that from SURGE), per_sample, per_channel '
    '(norms), smoothed, warmup, decay (lambda), early, late (layers that are '
    'compensated): experiments',
    'fast_net': "FSG's fast network; linear: as published",
    'fast_lr': "learning rate of FSG's fast network",
}
# Settings that all runs share.
SHARED = {
    'optimizer': 'sgd with momentum, or adam',
    'epochs': 'passes over the training images',
    'batch': 'images per step',
    'clip_norm': 'norm at which gradients are clipped; 0: no clipping',
}


def _eta(text: str) -> float | str:
    return text if text == 'auto' else float(text)


def _order(run: Run) -> list[tuple[bool, Any]]:
    # An eta may be a word.
    return [(isinstance(value, str), value) for value in astuple(run)]


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line and check it."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add('--methods', nargs='+', default=['float', 'ste', 'surge'])
    add(
        '--baseline',
        help='one of the methods, at the first value of each setting '
        '(default: ste, or the first)',
    )
    add('--layers', nargs='+', type=int, default=[8], help='1-bit layers')
    add(
        '--seeds',
        nargs='+',
        type=int,
        default=[5],
        help='one number: how many, from 0; several: which',
    )
    for name, text in (CROSSED | SHARED).items():
        default = getattr(Run, name)
        if name in CHOICES:
            text += f'; one of {", ".join(CHOICES[name])}'
        kind = _eta if name == 'eta' else type(default)
        settings = dict(type=kind, default=default, help=text)
        if name in CROSSED:
            settings.update(nargs='+', default=[default])
        add('--' + name.replace('_', '-'), **settings)
    rate = parser.add_mutually_exclusive_group()
    rate.add_argument('--lr', nargs='+', type=float, default=[Run.lr])
    rate.add_argument(
        '--lr-grid',
        nargs='+',
        type=float,
        help='choose a learning rate for each method from these, on the '
        'tuning seeds and the first of --layers',
    )
    add(
        '--tune-seeds',
        type=int,
        default=8,
        help=f'how many seeds, from {TUNE_FROM}, --lr-grid is tried on',
    )
    add('--jobs', type=int, default=1, help='processes')
    add(
        '--out',
        type=Path,
        help='folder for finished runs, tables, CSV and picture',
    )
    args = parser.parse_args(argv)
    if args.baseline is None:
        args.baseline = 'ste' if 'ste' in args.methods else args.methods[0]
    if args.baseline not in args.methods:
        parser.error(
            f'--baseline {args.baseline}: one of {args.methods} is allowed'
        )
    if len(args.seeds) == 1:
        args.seeds = list(range(args.seeds[0]))
    for flag, value in (
        ('--seeds', len(args.seeds)),
        ('--tune-seeds', args.tune_seeds),
        ('--jobs', args.jobs),
    ):
        if value < 1:
            parser.error(f'{flag} {value}: at least 1')
    args.tune_seeds = range(TUNE_FROM, TUNE_FROM + args.tune_seeds)
    if args.lr_grid:
        if len(set(args.lr_grid)) < 2:
            parser.error(f'--lr-grid {args.lr_grid}: two different rates')
        both = sorted({*args.seeds} & {*args.tune_seeds})
        if both:
            parser.error(f'--seeds {both}: rates are chosen on these')
    try:
        # A run refuses values that are not allowed.
        for run in plan(args):
            for lr in args.lr_grid or ():
                replace(run, lr=lr)
    except ValueError as error:
        parser.error(str(error))
    return args


def variants(args: argparse.Namespace) -> list[Run]:
    """List each method with each of its settings, as a run of seed 0."""
    runs = []
    for method in args.methods:
        plain = Run(method, args.layers[0], 0, eta=0.0, aux_lr=0.0)
        for name in ('optimizer', 'epochs', 'batch', 'clip_norm'):
            plain = replace(plain, **{name: getattr(args, name)})
        names = [name for name in CROSSED if has_setting(plain, name)]
        values = itertools.product(*(getattr(args, name) for name in names))
        runs += [replace(plain, **dict(zip(names, each))) for each in values]
    return list(dict.fromkeys(runs))


def plan(
    args: argparse.Namespace, rates: dict[Run, float] | None = None
) -> list[Run]:
    """List the runs, all methods of a seed beside each other in time.

    Args:
        args: The command line.
        rates: One for each of the variants; ``None`` for all of ``--lr``.
    """
    return list(
        dict.fromkeys(
            replace(variant, seed=seed, layers=layers, lr=lr)
            for seed, layers, variant in itertools.product(
                args.seeds, args.layers, variants(args)
            )
            for lr in ([rates[variant]] if rates else args.lr)
        )
    )


def tune(
    args: argparse.Namespace, store: Store
) -> tuple[dict[Run, float], str]:
    """Choose a learning rate for each of the variants from ``--lr-grid``.

    A grid with the best rate at an edge is widened there, by the step
    between its outermost values, up to ``WIDEN`` times.

    Returns:
        What ``choose_rates`` returns.
    """
    grids = {run: sorted(set(args.lr_grid)) for run in variants(args)}
    for _ in range(1 + WIDEN):
        trials = [
            replace(variant, seed=seed, lr=lr)
            for seed, variant in itertools.product(args.tune_seeds, grids)
            for lr in grids[variant]
        ]
        train_all(trials, store, args.jobs)
        rates, text = choose_rates(trials, store.results)
        edges = False
        for variant, best in rates.items():
            grid = grids[variant]
            # The two outermost values, the outer one first.
            for outer, inner in (grid[:2], grid[:-3:-1]):
                if best == outer:
                    edges = True
                    grid.append(float(f'{outer * outer / inner:.4g}'))
            grid.sort()
        if not edges:
            break
    return rates, text


def choose_rates(
    runs: Sequence[Run], results: dict[Run, dict[str, Any]]
) -> tuple[dict[Run, float], str]:
    """Choose a learning rate for each method.

    The one with the highest mean accuracy over the seeds, the lower of
    equals; diverged runs count.

    Args:
        runs: The same seeds at each rate of a method.
        results: By run.

    Returns:
        The rate of each of the ``variants``; a Markdown table of mean
        accuracy in percent, the choice in bold, ``!`` for each diverged run.
    """
    shown = [name for name in shown_settings(runs) if name != 'lr']
    columns = sorted({run.lr for run in runs})
    groups: dict[Run, dict[float, list[dict[str, Any]]]] = {}
    for run in runs:
        cells = groups.setdefault(replace(run, seed=0, lr=Run.lr), {})
        cells.setdefault(run.lr, []).append(results[run])
    rates = {}
    lines = []
    for variant, cells in groups.items():
        means = {
            lr: statistics.mean(result['accuracy'] for result in cells[lr])
            for lr in sorted(cells)
        }
        best = max(means, key=means.get)
        rates[variant] = best
        name = label(variant, shown)
        if best in (min(means), max(means)):
            name += ' (best at an edge)'
        line = [name]
        for lr in columns:
            text = f'{100 * means[lr]:.1f}' if lr in means else ''
            text = f'**{text}**' if lr == best else text
            lost = sum(diverged(result) for result in cells.get(lr, ()))
            line.append(text + '!' * lost)
        lines.append(line)
    header = ['method', *(f'{lr:g}' for lr in columns)]
    return rates, markdown_table(header, lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    args = parse_args(argv)
    try:
        if args.out is not None:
            args.out.mkdir(parents=True, exist_ok=True)
        store = Store(args.out and args.out / 'runs.jsonl')
    except (OSError, ValueError) as error:
        print(f'error: {error}', file=sys.stderr)
        raise SystemExit(2) from error
    rates, tuning = None, None
    try:
        if args.lr_grid:
            rates, tuning = tune(args, store)
            print(f'{tuning}\n', flush=True)
        runs = plan(args, rates)
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
        if tuning is not None:
            (args.out / 'rates.md').write_text(tuning + '\n', encoding='utf-8')
        kept = sorted(store.results, key=_order)
        write_csv(kept, store.results, args.out / 'runs.csv')
        draw(rows, args.baseline, args.out / 'differences.png')


if __name__ == '__main__':
    main()
