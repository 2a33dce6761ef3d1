"""What came out of a comparison, as tables."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Sequence
from pathlib import Path

from scipy import stats

from .choice import Contender
from .runs import Evaluation, Run


def half_width(values: Sequence[float]) -> float:
    """Half of the mean's 95 % interval, by Student's t; two values or more."""
    error = statistics.stdev(values) / len(values) ** 0.5
    return float(stats.t.ppf(0.975, len(values) - 1)) * error


def differences(contender: Contender, base: Contender) -> list[float]:
    """MAP minus the baseline's, for each seed that both have."""
    theirs = {r.seed: r.score for r in base.compared if r.finished}
    return [
        r.score - theirs[r.seed]
        for r in contender.compared
        if r.finished and r.seed in theirs
    ]


def table(
    contenders: Sequence[Contender],
    seeds: Sequence[int],
    baseline: str,
    head: str,
) -> str:
    """Make a Markdown table with a row for each method (or config).

    mAP of each seed, mean ± standard deviation, mean paired difference to
    the baseline ± half of its 95 % interval (Student's t) over the seeds that
    both have, seconds per iteration (median), peak memory of the process and
    on the GPU (largest), minutes (median).
    """
    results = {
        c.name: {r.seed: r.result for r in c.compared if r.result}
        for c in contenders
    }
    base = next(c for c in contenders if c.name == baseline)
    seeds = sorted(seeds)
    on_cuda = any(
        result.cuda_memory
        for mine in results.values()
        for result in mine.values()
    )
    titles = [
        head,
        'lr',
        *(f'seed {s}' for s in seeds),
        'mean ± std',
        f'minus {baseline}',
        's/iter',
        'memory, MiB',
        *(['GPU, MiB'] if on_cuda else []),
        'minutes',
    ]
    lines = [_row(titles), '|---' * len(titles) + '|']
    for contender in contenders:
        mine = results[contender.name]
        finals = [result.final for result in mine.values()]
        mean = difference = '—'
        costs = ['—'] * (4 if on_cuda else 3)
        if finals:
            mean = f'{statistics.mean(finals):.3f}'
            costs = [
                f'{statistics.median(r.iteration for r in mine.values()):.3f}',
                f'{max(r.memory for r in mine.values()):.0f}',
                f'{statistics.median(r.minutes for r in mine.values()):.1f}',
            ]
            if on_cuda:
                cuda = max(r.cuda_memory or 0 for r in mine.values())
                costs.insert(2, f'{cuda:.0f}')
        if len(finals) > 1:
            mean += f' ± {statistics.stdev(finals):.3f}'
        pairs = differences(contender, base)
        if pairs and contender is not base:
            difference = f'{statistics.mean(pairs):+.3f}'
            if len(pairs) > 1:
                difference += f' ± {half_width(pairs):.3f}'
        compared = contender.compared
        rate = compared[0].entry.lr if compared else None
        cells = [
            contender.name,
            '—' if rate is None else f'{rate:g}',
            *(f'{mine[s].final:.3f}' if s in mine else '—' for s in seeds),
            mean,
            difference,
            *costs,
        ]
        lines.append(_row(cells))
    return '\n'.join(lines)


def grid_table(
    contenders: Sequence[Contender], grid: Sequence[float], head: str
) -> str:
    """Make a Markdown table of the learning rates that were tried.

    Args:
        contenders: All that is compared; one of them at least chooses.
        grid: The rates.
        head: Title of the first column.
    """
    rates = sorted(grid)
    tuned = [c for c in contenders if c.evaluations]
    lines = [
        _row([head, *(f'{rate:g}' for rate in rates)]),
        '|---' * (1 + len(rates)) + '|',
    ]
    for contender in tuned:
        cells = {e.entry.lr: _tried(e) for e in contender.evaluations}
        if contender.compared:
            chosen = contender.compared[0].entry.lr
            cells[chosen] = f'**{cells[chosen]}**'
            if contender.at_edge:
                cells[chosen] += ' (edge)'
        lines.append(_row([contender.name, *(cells[r] for r in rates)]))
    first = tuned[0].evaluations[0]
    data = first.cfg.test_dataloader.dataset.get('ann_file')
    text = (
        f'mAP on {data} after the last epoch, seed {first.run.seed}, for '
        'each learning rate. Bold: chosen, and used for all seeds; of equal '
        'ones the smallest is. (edge): no larger, or no smaller, rate was '
        'evaluated, and the best may lie there.'
    )
    fixed = [
        f'{c.name} {c.runs[0][0].entry.lr:g}'
        for c in contenders
        if not c.evaluations
    ]
    if fixed:
        text += f' Not chosen but given: {", ".join(fixed)}.'
    return '\n'.join([*lines, '', text])


def _tried(evaluation: Evaluation) -> str:
    if evaluation.finished:
        return f'{evaluation.score:.3f}'
    failed = evaluation.failure or evaluation.run.failure
    return 'failed' if failed else 'open'


def write_csv(
    contenders: Sequence[Contender],
    seeds: Sequence[int],
    path: Path,
    split: str,
    head: str,
) -> None:
    """Write a row for each run; its curve is in the columns at the end.

    ``role`` is 'compared', or 'lr grid' for a run with a rate that is not
    (or not yet) the chosen one. ``mAP`` is on ``split``, ``lr_split_mAP`` on
    the split that rates are chosen on.
    """
    rows = [row for c in contenders for row in _rows_of(c, seeds)]
    results = [run.result for run, *_ in rows if run and run.result]
    steps = sorted({step for r in results for step, _ in r.scores})
    step_name = min({r.step_name for r in results} or {'epoch'})
    with open(path, 'w', newline='') as file:
        writer = csv.writer(file)
        titles = [head, 'role', 'seed', 'lr', 'split', 'status', 'mAP']
        titles += ['lr_split_mAP', 's_per_iter', 'memory_mib']
        titles += ['cuda_memory_mib', 'minutes', 'resumed']
        titles += [f'mAP_{step_name}_{step}' for step in steps]
        writer.writerow(titles)
        for run, evaluation, name, role, seed, status in rows:
            lr = run.entry.lr if run else ''
            row = [name, role, seed, lr, split, status]
            result = run.result if run else None
            if result is None:
                writer.writerow(row + [''] * (len(titles) - len(row)))
                continue
            scores = dict(result.scores)
            tried = evaluation is not None and evaluation.finished
            row += [f'{result.final:.4f}']
            row += [f'{evaluation.score:.4f}' if tried else '']
            row += [f'{result.iteration:.4f}', f'{result.memory:.0f}']
            row += [result.cuda_memory, f'{result.minutes:.2f}']
            row += [int(result.resumed)]
            row += [f'{scores[s]:.4f}' if s in scores else '' for s in steps]
            writer.writerow(row)


def _rows_of(
    contender: Contender, seeds: Sequence[int]
) -> list[tuple[Run | None, Evaluation | None, str, str, int, str]]:
    """Run, its evaluation, name, role, seed, status, for each row."""
    evaluations = {id(e.run): e for e in contender.evaluations}
    rows = []

    def add(run: Run, role: str) -> None:
        status = 'failed' if run.failure else 'open'
        rows.append(
            (
                run,
                evaluations.get(id(run)),
                contender.name,
                role,
                run.seed,
                'done' if run.finished else status,
            )
        )

    for run in sorted(contender.compared, key=lambda run: run.seed):
        add(run, 'compared')
    if not contender.compared:
        status = 'failed' if contender.failure else 'open'
        for seed in sorted(seeds):
            rows.append((None, None, contender.name, 'compared', seed, status))
    for run in contender.trials:
        if run not in contender.compared:
            add(run, 'lr grid')
    return rows


def _row(cells: Sequence[str]) -> str:
    return f'| {" | ".join(cells)} |'
