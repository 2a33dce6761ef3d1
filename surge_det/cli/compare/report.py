"""The results of a comparison as tables."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from surge_det.cli.tables import markdown_table, write_csv
from surge_det.datasets.root import test_datasets
from surge_det.paired import estimate, plus_minus

from .candidates import Candidate
from .runs import Evaluation, Run


def table(
    candidates: Sequence[Candidate],
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
    base = next(c for c in candidates if c.name == baseline)
    titles = [head, 'lr', *(f'seed {seed}' for seed in sorted(seeds))]
    titles += ['mean ± std', f'minus {baseline}', 's/iter', 'memory, MiB']
    if any(r.cuda_memory for c in candidates for r in c.results.values()):
        titles.append('GPU, MiB')
    titles.append('minutes')
    rows = []
    for candidate in candidates:
        row = dict.fromkeys(titles, '—')
        row[head] = candidate.name
        if candidate.compared and candidate.compared[0].lr is not None:
            row['lr'] = f'{candidate.compared[0].lr:g}'
        results = candidate.results.values()
        for seed, result in candidate.results.items():
            row[f'seed {seed}'] = f'{result.mAP:.3f}'
        if results:
            mean, std, _ = estimate([r.mAP for r in results])
            row['mean ± std'] = plus_minus(mean, std)
            seconds = statistics.median(r.iteration for r in results)
            row['s/iter'] = f'{seconds:.3f}'
            row['memory, MiB'] = f'{max(r.memory for r in results):.0f}'
            minutes = statistics.median(r.minutes for r in results)
            row['minutes'] = f'{minutes:.1f}'
            if 'GPU, MiB' in row:
                cuda = max(r.cuda_memory or 0 for r in results)
                row['GPU, MiB'] = f'{cuda:.0f}'
        differences = candidate.differences(base)
        if differences and candidate is not base:
            mean, _, half_width = estimate(differences)
            row[f'minus {baseline}'] = plus_minus(mean, half_width, '+.3f')
        rows.append(row.values())
    return markdown_table(titles, rows)


def grid_table(
    candidates: Sequence[Candidate], grid: Sequence[float], head: str
) -> str:
    """Make a Markdown table of the learning rates that were tried.

    Args:
        candidates: All that is compared; one of them at least chooses.
        grid: The rates.
        head: Title of the first column.
    """
    rates = sorted(grid)
    tuned = [c for c in candidates if c.evaluations]
    rows = []
    for candidate in tuned:
        cells = {e.run.lr: _score(e) for e in candidate.evaluations}
        if candidate.compared:
            chosen = candidate.compared[0].lr
            cells[chosen] = f'**{cells[chosen]}**'
            if candidate.at_edge:
                cells[chosen] += ' (edge)'
        rows.append([candidate.name, *(cells[rate] for rate in rates)])
    text = markdown_table([head, *(f'{rate:g}' for rate in rates)], rows)
    first = tuned[0].evaluations[0]
    data = test_datasets(first.cfg)[0].get('ann_file')
    text += (
        f'\n\nmAP on {data} after the last epoch, seed {first.run.seed}, for '
        'each learning rate. Bold: chosen, and used for all seeds; of equal '
        'ones the smallest is. (edge): no larger, or no smaller, rate was '
        'evaluated, and the best may lie there.'
    )
    fixed = [
        f'{c.name} {c.runs[0][0].lr:g}' for c in candidates if c not in tuned
    ]
    if fixed:
        text += f' Not chosen but given: {", ".join(fixed)}.'
    return text


def _score(evaluation: Evaluation) -> str:
    if evaluation.result:
        return f'{evaluation.result.mAP:.3f}'
    return 'failed' if evaluation.failed else 'open'


def write_runs(
    candidates: Sequence[Candidate],
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
    runs = [r for c in candidates for r in (*c.compared, *c.trials)]
    results = [run.result for run in runs if run.result]
    step_name = min({r.step_name for r in results} or {'epoch'})
    steps = sorted({step for r in results for step, _ in r.scores})
    rows = []
    for candidate in candidates:
        known = {head: candidate.name, 'split': split}
        scores = {
            id(e.run): f'{e.result.mAP:.4f}'
            for e in candidate.evaluations
            if e.result
        }
        compared = sorted(candidate.compared, key=lambda run: run.seed)
        if not compared:
            status = 'failed' if candidate.failure else 'open'
            rows += [
                known | dict(role='compared', seed=seed, status=status)
                for seed in sorted(seeds)
            ]
        others = [run for run in candidate.trials if run not in compared]
        for run in [*compared, *others]:
            row = known | _run_columns(run)
            row['role'] = 'compared' if run in compared else 'lr grid'
            if run.result:
                row['lr_split_mAP'] = scores.get(id(run), '')
                for step, score in run.result.scores:
                    row[f'mAP_{step_name}_{step}'] = f'{score:.4f}'
            rows.append(row)
    titles = [head, 'role', 'seed', 'lr', 'split', 'status', 'mAP']
    titles += ['lr_split_mAP', 's_per_iter', 'memory_mib', 'cuda_memory_mib']
    titles += ['minutes', 'resumed']
    titles += [f'mAP_{step_name}_{step}' for step in steps]
    write_csv(path, titles, [[row.get(t, '') for t in titles] for row in rows])


def _run_columns(run: Run) -> dict[str, object]:
    row = dict(seed=run.seed, lr=run.lr)
    if run.result is None:
        return row | dict(status='failed' if run.failure else 'open')
    result = run.result
    return row | dict(
        status='done',
        mAP=f'{result.mAP:.4f}',
        s_per_iter=f'{result.iteration:.4f}',
        memory_mib=f'{result.memory:.0f}',
        cuda_memory_mib=result.cuda_memory,
        minutes=f'{result.minutes:.2f}',
        resumed=int(result.resumed),
    )
