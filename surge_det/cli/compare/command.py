"""Train one detector by several methods and put their mAP side by side.

Each method is trained with each seed, as ``tools/train.py`` does it, and
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
run starts anew, because random states are not in a checkpoint and its figures
would not be those of a whole one; ``--resume`` goes on from its last
checkpoint all the same, for runs of days. Checkpoints may be deleted once
their run is finished and, where a rate is chosen, evaluated.

Example::

    python tools/compare.py configs/surge_faster_rcnn_r18_bccd.py \\
        --methods float ste reste fsg surge surge+reste \\
        --seeds 0 1 2 --jobs 2 --lr-grid 0.0005 0.001 0.002 \\
        --out work_dirs/compare_bccd
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

# First: closes the toolbox's gaps before anything of it is imported.
import surge_det  # noqa: F401

# isort: split
from surge_det.cli.common import add_cfg_options
from surge_det.cli.compare.choice import Contender, enter
from surge_det.cli.compare.pictures import draw_curves, draw_differences
from surge_det.cli.compare.plan import plan
from surge_det.cli.compare.report import grid_table, table, write_csv
from surge_det.cli.compare.runs import Evaluation, told
from surge_det.cli.compare.work import do_all, outlook
from surge_det.core.methods import METHODS
from surge_det.datasets import check_data


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog=__doc__.partition('\n')[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('configs', nargs='+', type=Path, metavar='CONFIG')
    parser.add_argument(
        '--methods',
        nargs='+',
        metavar='METHOD',
        help=f'of the one config: {", ".join(METHODS)}, and surge+METHOD',
    )
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    parser.add_argument('--jobs', type=int, default=1, help='runs at a time')
    parser.add_argument(
        '--baseline',
        metavar='METHOD',
        help='what the others are compared with; default: ste, or the first',
    )
    parser.add_argument(
        '--lr',
        nargs='+',
        default=[],
        metavar='METHOD=VALUE',
        help="learning rate, where it is not the config's",
    )
    parser.add_argument(
        '--lr-grid',
        nargs='+',
        type=float,
        default=[],
        metavar='RATE',
        help='choose the learning rate of each method that --lr does not fix '
        'from these, with the first seed',
    )
    parser.add_argument(
        '--lr-split',
        choices=['val', 'test'],
        help='of the data to choose learning rates on; default: val',
    )
    parser.add_argument(
        '--split',
        choices=['val', 'test'],
        help='of the data to evaluate on; default: the one that the config '
        'validates on',
    )
    parser.add_argument(
        '--resume',
        action='store_true',
        help='go on with half runs from their last checkpoint; other random '
        'numbers than in a whole run',
    )
    parser.add_argument(
        '--work-dir',
        type=Path,
        metavar='DIR',
        help='logs and checkpoints of the runs; default: as --out',
    )
    parser.add_argument(
        '--out',
        type=Path,
        default=Path('work_dirs/compare'),
        metavar='FOLDER',
        help='tables, CSV and pictures',
    )
    add_cfg_options(parser)
    args = parser.parse_args(argv)
    if args.jobs < 1:
        parser.error(f'--jobs {args.jobs}: at least 1')
    for config in args.configs:
        if not config.is_file():
            parser.error(f'config {str(config)!r} does not exist')
    if args.methods and len(args.configs) > 1:
        parser.error(
            f'--methods: one config, not {len(args.configs)}; without '
            '--methods the configs themselves are compared'
        )
    args.names = args.methods or [config.stem for config in args.configs]
    for option, values in (
        ('--methods' if args.methods else 'CONFIG', args.names),
        ('--seeds', args.seeds),
    ):
        if len(set(values)) < len(values):
            parser.error(f'{option}: one of {values} is given twice')
    if args.baseline is None:
        args.baseline = 'ste' if 'ste' in args.names else args.names[0]
    if args.baseline not in args.names:
        parser.error(f'--baseline {args.baseline!r}: one of {args.names}')
    rates = {}
    for item in args.lr:
        name, _, value = item.rpartition('=')
        try:
            rate = float(value)
        except ValueError:
            rate = math.nan
        if name not in args.names or not _rate(rate):
            parser.error(
                f'--lr {item!r}: METHOD=VALUE with a method of {args.names} '
                'and a number > 0'
            )
        rates[name] = rate
    args.lr = rates
    grid = args.lr_grid
    if grid and (
        len(set(grid)) < max(len(grid), 2) or not all(map(_rate, grid))
    ):
        parser.error(
            f'--lr-grid {grid}: two or more different numbers > 0 to choose '
            'from'
        )
    if args.lr_split and not grid:
        parser.error(f'--lr-split {args.lr_split}: only with --lr-grid')
    args.lr_grid = sorted(grid)
    args.lr_split = args.lr_split or 'val'
    return args


def _rate(value: float) -> bool:
    return 0 < value < math.inf


def write_report(
    contenders: Sequence[Contender], args: argparse.Namespace
) -> None:
    """Write tables, CSV and pictures of what is done so far."""
    head = 'method' if args.methods else 'config'
    text = table(contenders, args.seeds, args.baseline, head)
    (args.out / 'table.md').write_text(text + '\n')
    if any(each.evaluations for each in contenders):
        text = grid_table(contenders, args.lr_grid, head)
        (args.out / 'lr_grid.md').write_text(text + '\n')
    data = contenders[0].runs[0][0].cfg.val_dataloader.dataset
    split = args.split or Path(data.get('ann_file') or '').stem
    write_csv(contenders, args.seeds, args.out / 'runs.csv', split, head)
    draw_curves(contenders, args.out / 'map_over_epochs.png')
    draw_differences(contenders, args.baseline, args.out / 'differences.png')


def main(argv: list[str] | None = None) -> int:
    """Run the tool.

    Returns:
        The exit status: 1 if a run that is compared is missing, 2 if nothing
        could start, 130 after an interruption.
    """
    args = parse_args(argv)
    try:
        work_dir = args.work_dir or args.out
        contenders = enter(plan(args), args.seeds, work_dir, args.lr_split)
        kept = [task for each in contenders for task in each.load()]
        for task in kept:
            print(f'{told(task)} (kept)')
        for each in contenders:
            each.choose(print)
        for task in outlook(contenders):
            if task.open:
                evaluated = isinstance(task, Evaluation)
                modes = ('test',) if evaluated else ('train', 'val')
                check_data(task.cfg, modes)
    except (FileNotFoundError, ValueError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    args.out.mkdir(parents=True, exist_ok=True)

    def report() -> None:
        write_report(contenders, args)

    try:
        do_all(contenders, args.jobs, args.resume, report)
    except KeyboardInterrupt:
        tasks = outlook(contenders)
        done = sum(task.finished for task in tasks)
        print(
            f'\ninterrupted: {done} of {len(tasks)} runs are finished and '
            'kept; the same command does the rest'
        )
        return 130
    report()
    print(f'\n{(args.out / "table.md").read_text()}')
    if any(each.evaluations for each in contenders):
        print((args.out / 'lr_grid.md').read_text())
    print(f'Tables, runs.csv and pictures: {args.out}')
    missing = False
    for each in contenders:
        if each.failure:
            print(f'error: {each.name}: {each.failure}', file=sys.stderr)
        for run in each.compared:
            if run.failure:
                print(f'error: {told(run)}', file=sys.stderr)
        missing |= not all(run.finished for run in each.compared)
        missing |= bool(each.failure)
    return 1 if missing else 0


if __name__ == '__main__':
    sys.exit(main())
