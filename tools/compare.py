"""Train several configs with the same seeds and put their mAP side by side.

Runs of one seed are paired: twin configs start from the same weights and see
the images in the same order. Each run is one ``tools/train.py``; finished
runs are kept, so an interrupted comparison goes on where it stopped. The
figure of a run is the mAP of its last epoch.

Example::

    python tools/compare.py configs/ste_faster_rcnn_r18_bccd.py \\
        configs/surge_faster_rcnn_r18_bccd.py \\
        configs/float_faster_rcnn_r18_bccd.py \\
        --seeds 0 1 2 3 4 --jobs 2 --out work_dirs/compare_bccd
"""

from __future__ import annotations

import argparse
import csv
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt
from matplotlib.ticker import MaxNLocator
from mmengine.config import Config
from plot_run import read_curves
from scipy import stats

TOOLS = Path(__file__).resolve().parent


class Run(NamedTuple):
    """One training run: mAP by epoch and minutes of wall time."""

    config: str
    seed: int
    scores: list[tuple[int, float]]
    minutes: float

    @property
    def final(self) -> float:
        """The mAP of the last epoch."""
        return self.scores[-1][1]


def run_one(
    config: Path,
    text: str,
    seed: int,
    out: Path,
    threads: int,
    options: Sequence[str],
) -> Run:
    """Train one config with one seed, unless that was done before.

    Args:
        config: The config's path.
        text: What it says; a finished run with another text is no such run.
        seed: Of the run.
        out: Folder of the whole comparison.
        threads: CPU threads of the run.
        options: ``--cfg-options`` of the run.

    Raises:
        RuntimeError: If the training fails; the message names its log.
    """
    folder = out / config.stem / f'seed{seed}'
    done = folder / 'minutes.txt'
    settings = '\n'.join([text, *options])
    kept = folder / 'settings.txt'
    if done.is_file() and kept.read_text() != settings:
        raise RuntimeError(
            f'{folder} holds a run with other settings (compare {kept}); '
            'give another --out, or delete the folder'
        )
    if not done.is_file():
        # Random states are not in a checkpoint, so half a run is repeated.
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        log = folder / 'train.log'
        command = [
            sys.executable,
            str(TOOLS / 'train.py'),
            str(config),
            '--work-dir',
            str(folder),
            '--cfg-options',
            f'randomness.seed={seed}',
            *options,
        ]
        env = dict(os.environ)
        env['OMP_NUM_THREADS'] = env['MKL_NUM_THREADS'] = str(threads)
        start = time.monotonic()
        with open(log, 'w') as file:
            result = subprocess.run(
                command, env=env, stdout=file, stderr=subprocess.STDOUT
            )
        if result.returncode:
            tail = '\n'.join(log.read_text().splitlines()[-5:])
            raise RuntimeError(f'training failed, see {log}:\n{tail}')
        kept.write_text(settings)
        done.write_text(f'{(time.monotonic() - start) / 60:.2f}\n')
    scores = read_curves(folder).scores
    if not scores:
        raise RuntimeError(f'{folder}: no mAP was logged')
    return Run(config.stem, seed, scores, float(done.read_text()))


def table(runs: Sequence[Run], names: Sequence[str]) -> str:
    """Make a Markdown table: each seed, mean ± standard deviation.

    The last column is the mean paired difference to the first config with
    its 95 % interval (Student's t).
    """
    by_name = {n: {r.seed: r for r in runs if r.config == n} for n in names}
    seeds = sorted({run.seed for run in runs})
    lines = [
        '| config | '
        + ' | '.join(f'seed {s}' for s in seeds)
        + f' | mean ± std | minutes | minus {names[0]} |',
        '|---' * (len(seeds) + 4) + '|',
    ]
    for name in names:
        mine = by_name[name]
        finals = [mine[s].final for s in seeds]
        spread = statistics.stdev(finals) if len(finals) > 1 else float('nan')
        minutes = statistics.median(mine[s].minutes for s in seeds)
        if name == names[0]:
            difference = '—'
        else:
            pairs = [mine[s].final - by_name[names[0]][s].final for s in seeds]
            difference = f'{statistics.mean(pairs):+.3f}'
            if len(pairs) > 1:
                error = statistics.stdev(pairs) / len(pairs) ** 0.5
                half = stats.t.ppf(0.975, len(pairs) - 1) * error
                difference += f' ± {half:.3f}'
        lines.append(
            f'| {name} | '
            + ' | '.join(f'{f:.3f}' for f in finals)
            + f' | {statistics.mean(finals):.3f} ± {spread:.3f} '
            f'| {minutes:.1f} | {difference} |'
        )
    return '\n'.join(lines)


def draw(runs: Sequence[Run], names: Sequence[str], path: Path) -> None:
    """Draw mAP over epochs: mean of the seeds, band from min to max."""
    figure, axes = plt.subplots(figsize=(7, 4.5), layout='constrained')
    for name in names:
        mine = [dict(run.scores) for run in runs if run.config == name]
        epochs = sorted(mine[0])
        columns = [[run[e] for run in mine if e in run] for e in epochs]
        (line,) = axes.plot(
            epochs,
            [statistics.mean(c) for c in columns],
            marker='o',
            markersize=4,
            label=f'{name} (n={len(mine)})',
        )
        axes.fill_between(
            epochs,
            [min(c) for c in columns],
            [max(c) for c in columns],
            alpha=0.18,
            color=line.get_color(),
            linewidth=0,
        )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel('epoch')
    axes.set_ylabel('mAP (mean; band: min to max over seeds)')
    axes.grid(alpha=0.3)
    axes.legend(loc='lower right', frameon=False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('configs', nargs='+', type=Path)
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    parser.add_argument('--jobs', type=int, default=1, help='runs at a time')
    parser.add_argument(
        '--out', type=Path, default=Path('work_dirs/compare'), metavar='DIR'
    )
    parser.add_argument(
        '--cfg-options', nargs='+', default=[], help='passed to every run'
    )
    args = parser.parse_args(argv)
    if args.jobs < 1:
        parser.error(f'--jobs {args.jobs}: at least 1')
    for config in args.configs:
        if not config.is_file():
            parser.error(f'config {str(config)!r} does not exist')
    return args


def main(argv: list[str] | None = None) -> None:
    """Run the tool."""
    args = parse_args(argv)
    threads = max((os.cpu_count() or 1) // args.jobs, 1)
    # Seed by seed, so that pairs are complete early.
    wanted = [(c, s) for s in args.seeds for c in args.configs]
    # Here, because mmengine's reader of configs is not for several threads.
    texts = {c: Config.fromfile(c).pretty_text for c in args.configs}
    runs = []
    with ThreadPoolExecutor(args.jobs) as pool:
        futures = [
            pool.submit(
                run_one, c, texts[c], s, args.out, threads, args.cfg_options
            )
            for c, s in wanted
        ]
        try:
            for future in as_completed(futures):
                run = future.result()
                runs.append(run)
                print(
                    f'[{len(runs)}/{len(wanted)}] {run.config} seed '
                    f'{run.seed}: mAP {run.final:.3f}, {run.minutes:.1f} min',
                    flush=True,
                )
        except RuntimeError as error:
            pool.shutdown(cancel_futures=True)
            raise SystemExit(f'error: {error}') from None
    names = [config.stem for config in args.configs]
    text = table(runs, names)
    (args.out / 'table.md').write_text(text + '\n')
    with open(args.out / 'runs.csv', 'w', newline='') as file:
        writer = csv.writer(file)
        writer.writerow(['config', 'seed', 'epoch', 'mAP', 'minutes'])
        for run in sorted(runs, key=lambda r: (names.index(r.config), r.seed)):
            for epoch, score in run.scores:
                writer.writerow(
                    [run.config, run.seed, epoch, f'{score:.4f}', run.minutes]
                )
    draw(runs, names, args.out / 'map_over_epochs.png')
    print(f'\n{text}\n\nTable, runs.csv and picture: {args.out}')


if __name__ == '__main__':
    main()
