"""Draw the demo's detection dataset into DATA_ROOT/shapes."""

from __future__ import annotations

import argparse
import time

from surge_det.cli.common import fail


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add = parser.add_argument
    add(
        '--root',
        help='data folder; default: environment variable SURGE_DATA_ROOT, '
        'and without it data/',
    )
    add('--train', type=int, default=500, metavar='N', help='training images')
    add('--test', type=int, default=80, metavar='N', help='test images')
    add('--seed', type=int, default=0)


def run(args: argparse.Namespace) -> None:
    """Write the dataset, or say that it is there already."""
    from rich.progress import Progress

    from surge_det.datasets.root import data_root
    from surge_det.datasets.shapes import prepare_shapes

    start = time.perf_counter()
    try:
        with Progress() as progress:
            task = progress.add_task('drawing', total=args.train + args.test)
            folder, reused = prepare_shapes(
                args.root or data_root(),
                args.train,
                args.test,
                args.seed,
                on_image=lambda done, _: progress.update(task, completed=done),
            )
            if reused:
                progress.remove_task(task)
    except (ValueError, OSError) as error:
        fail(error)
    what = f'{args.train} training and {args.test} test images in {folder}'
    if reused:
        print(f'{what}: already there, left as they are')
    else:
        print(f'{what}: drawn in {time.perf_counter() - start:.0f} s')
