"""Train one detector by several methods and put their mAP side by side.

Each method is trained with each seed, as ``surge-det train`` does it, and
evaluated by the validation of its last epoch. Runs of one seed are paired:
they start from the same weights and see the images in the same order. Given
several configs and no ``--methods``, the configs are what is compared.

With ``--lr-grid`` each method's learning rate is chosen: the first seed is
trained with every rate, its last checkpoint is evaluated on ``--lr-split``,
and the best rate there is used for all seeds. The comparison itself reports
on the split that the config validates on (or ``--split``), which must be
another.

A finished run is kept, recognised by the whole text of its config (method,
seed, learning rate and ``--cfg-options`` included), so an interrupted
comparison goes on where it stopped and one folder can hold several. A half
run starts anew; with ``--resume`` it goes on from its last checkpoint, to the
same mAP (but where SURGESeedHook says otherwise) and with times of both
parts. Checkpoints may be deleted once their run is finished and, where a rate
is chosen, evaluated.

Example::

    surge-det compare surge_faster_rcnn_r18_bccd \\
        --methods float ste reste fsg surge surge+reste \\
        --seeds 0 1 2 --jobs 2 --lr-grid 0.0005 0.001 0.002 \\
        --out work_dirs/compare_bccd
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from surge_det.cli.common import (
    add_cfg_options,
    config_file,
    fail,
    folder,
    number,
    positive_int,
    print_error,
)
from surge_det.whole_files import replacing

if TYPE_CHECKING:
    from surge_det.cli.compare.candidates import Candidate


_rate = number(float, 'a number > 0', lambda n: 0 < n < math.inf)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add = parser.add_argument
    add('configs', nargs='+', type=config_file, metavar='CONFIG')
    add(
        '--methods',
        nargs='+',
        metavar='METHOD',
        help='of the one config, such as float, ste, surge, surge+reste; a '
        'wrong name lists all',
    )
    add('--seeds', nargs='+', type=int, default=[0, 1, 2])
    add('--jobs', type=positive_int, default=1, help='runs at a time')
    add(
        '--baseline',
        metavar='METHOD',
        help='what the others are compared with; default: ste, or the first',
    )
    add(
        '--lr',
        nargs='+',
        type=_method_rate,
        default=[],
        metavar='METHOD=VALUE',
        help="learning rate, where it is not the config's",
    )
    add(
        '--lr-grid',
        nargs='+',
        type=_rate,
        default=[],
        metavar='RATE',
        help='choose the learning rate of each method that --lr does not fix '
        'from these, with the first seed',
    )
    add(
        '--lr-split',
        choices=['val', 'test'],
        help='of the data to choose learning rates on; default: val',
    )
    add(
        '--split',
        choices=['val', 'test'],
        help='of the data to evaluate on; default: the one that the config '
        'validates on',
    )
    add(
        '--resume',
        action='store_true',
        help='go on with half runs from their last checkpoint',
    )
    add(
        '--work-dir',
        type=folder,
        metavar='DIR',
        help='logs and checkpoints of the runs; default: as --out',
    )
    add(
        '--out',
        type=folder,
        default=Path('work_dirs/compare'),
        metavar='FOLDER',
        help='tables, CSV and pictures',
    )
    add_cfg_options(parser)


def _method_rate(text: str) -> tuple[str, float]:
    method, _, rate = text.rpartition('=')
    if not method:
        raise argparse.ArgumentTypeError(f'{text!r} is not METHOD=VALUE')
    return method, _rate(rate)


def check(args: argparse.Namespace) -> None:
    """Check the arguments as a whole and fill in defaults."""
    args.lr, args.lr_grid = dict(args.lr), sorted(args.lr_grid)
    if args.methods and len(args.configs) > 1:
        fail(
            f'--methods: one config, not {len(args.configs)}; without '
            '--methods the configs themselves are compared'
        )
    names = args.methods or [config.stem for config in args.configs]
    if args.baseline is None:
        args.baseline = 'ste' if 'ste' in names else names[0]
    for option, values in (
        ('--methods' if args.methods else 'CONFIG', names),
        ('--seeds', args.seeds),
        ('--lr-grid', args.lr_grid),
    ):
        if len(set(values)) < len(values):
            fail(f'{option}: one of {values} is given twice')
    for option, given in (('--baseline', [args.baseline]), ('--lr', args.lr)):
        for name in given:
            if name not in names:
                fail(f'{option} {name!r}: one of {names}')
    if len(args.lr_grid) == 1:
        fail(f'--lr-grid {args.lr_grid[0]}: two or more rates to choose from')
    if args.lr_split and not args.lr_grid:
        fail(f'--lr-split {args.lr_split}: only with --lr-grid')
    args.lr_split = args.lr_split or 'val'


def write_report(
    candidates: Sequence[Candidate], args: argparse.Namespace
) -> None:
    """Write tables, CSV and pictures of what is done so far."""
    from surge_det.cli.compare import pictures, report

    head = 'method' if args.methods else 'config'
    text = report.table(candidates, args.seeds, args.baseline, head)
    with replacing(args.out / 'table.md') as new:
        new.write_text(text + '\n')
    if any(each.evaluations for each in candidates):
        text = report.grid_table(candidates, args.lr_grid, head)
        with replacing(args.out / 'lr_grid.md') as new:
            new.write_text(text + '\n')
    data = candidates[0].runs[0][0].cfg.val_dataloader.dataset
    split = args.split or Path(data.get('ann_file') or '').stem
    file = args.out / 'runs.csv'
    report.write_runs(candidates, args.seeds, file, split, head)
    pictures.draw_curves(candidates, args.out / 'map_over_epochs.png')
    file = args.out / 'differences.png'
    pictures.draw_differences(candidates, args.baseline, file)


def run(args: argparse.Namespace) -> int:
    """Run the command.

    Returns:
        The exit status: 1 if a run that is compared is missing, 130 after an
        interruption.
    """
    check(args)

    from surge_det.cli.compare.candidates import (
        expected_tasks,
        make_candidates,
    )
    from surge_det.cli.compare.runs import Run, describe
    from surge_det.cli.compare.scheduler import run_all
    from surge_det.datasets import check_data

    try:
        candidates = make_candidates(args)
        for each in candidates:
            each.load()
        for each in candidates:
            each.choose()
        for task in expected_tasks(candidates):
            if task.open:
                modes = (
                    ('train', 'val') if isinstance(task, Run) else ('test',)
                )
                check_data(task.cfg, modes)
    except (FileNotFoundError, ValueError) as error:
        fail(error)
    args.out.mkdir(parents=True, exist_ok=True)

    def report() -> None:
        write_report(candidates, args)

    try:
        run_all(candidates, args.jobs, args.resume, report)
    except KeyboardInterrupt:
        tasks = expected_tasks(candidates)
        done = sum(task.result is not None for task in tasks)
        print(
            f'\ninterrupted: {done} of {len(tasks)} runs are finished and '
            'kept; the same command does the rest'
        )
        return 130
    report()
    print(f'\n{(args.out / "table.md").read_text()}')
    if any(each.evaluations for each in candidates):
        print((args.out / 'lr_grid.md').read_text())
    print(f'Tables, runs.csv and pictures: {args.out}')
    failures = [
        f'{each.name}: {each.failure}' for each in candidates if each.failure
    ]
    compared = [run for each in candidates for run in each.compared]
    failures += [describe(run) for run in compared if run.failure]
    for failure in failures:
        print_error(failure)
    return 1 if failures else 0
