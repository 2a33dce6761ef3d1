"""Draw the demo's detection dataset into DATA_ROOT/shapes."""

import argparse
import sys
import time

from surge_det.datasets.root import data_root
from surge_det.datasets.shapes import prepare_shapes


def parse_args(argv=None):
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        '--root',
        help='data folder; default: environment variable SURGE_DATA_ROOT, '
        'and without it data/',
    )
    parser.add_argument('--train', type=int, default=500, metavar='N')
    parser.add_argument('--test', type=int, default=80, metavar='N')
    parser.add_argument('--seed', type=int, default=0)
    return parser.parse_args(argv)


def _show_progress(done, total):
    # A terminal gets a counter, a log file ten lines.
    if sys.stdout.isatty():
        print(f'\r{done}/{total} images', end='', flush=True)
        if done == total:
            print()
    elif done * 10 // total > (done - 1) * 10 // total:
        print(f'{done}/{total} images', flush=True)


def main(argv=None):
    """Write the dataset, or say that it is there already."""
    args = parse_args(argv)
    start = time.perf_counter()
    try:
        folder, reused = prepare_shapes(
            args.root or data_root(),
            args.train,
            args.test,
            args.seed,
            on_image=_show_progress,
        )
    except (ValueError, OSError) as error:
        sys.exit(f'make_demo_data: {error}')
    what = f'{args.train} training and {args.test} test images in {folder}'
    if reused:
        print(f'{what}: already there, left as they are')
    else:
        print(f'{what}: drawn in {time.perf_counter() - start:.0f} s')


if __name__ == '__main__':
    main()
