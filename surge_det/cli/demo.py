"""Draw a dataset, train a 1-bit detector on it, evaluate and show it.

What ``make demo`` runs. Each step is one of the project's own commands,
printed before it runs; a step whose result is there is not run again.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from surge_det.cli.common import folder
from surge_det.cli.plot_run import read_map
from surge_det.whole_files import newest_checkpoint

CONFIG = 'surge_faster_rcnn_r18_demo'

# What makes two runs the same training, whatever the folder they write to.
TRAINING_KEYS = (
    'model',
    'train_cfg',
    'train_dataloader',
    'optim_wrapper',
    'param_scheduler',
    'randomness',
)


def call(command: str, *args: object) -> None:
    """Run one of the commands and stop where it fails."""
    line = [command, *map(str, args)]
    print(f'\n$ surge-det {" ".join(line)}', flush=True)
    result = subprocess.run([sys.executable, '-m', 'surge_det', *line])
    if result.returncode:
        print(f'error: surge-det {command} failed', file=sys.stderr)
        raise SystemExit(result.returncode)


def last_checkpoint(config: Path, work_dir: Path, since: float) -> Path | None:
    """Return the last checkpoint of a training with this config.

    Args:
        config: The config's path.
        work_dir: Where a run with it may have been.
        since: Time of the dataset; what is older was trained on another.
    """
    from mmengine.config import Config

    from surge_det.deploy.config import read_config

    dumped, checkpoint = work_dir / config.name, None
    with suppress(ValueError):
        checkpoint, _ = newest_checkpoint(work_dir)
    if (
        not dumped.is_file()
        or checkpoint is None
        or checkpoint.stat().st_mtime < since
    ):
        return None
    cfg = Config.fromfile(config)
    try:
        # A config is a program, and the folder may be anybody's.
        old = read_config(dumped.read_text('utf-8'), dumped)
    except ValueError:
        return None
    same = all(old.get(key) == cfg.get(key) for key in TRAINING_KEYS)
    return checkpoint if same else None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        '--work-dir', type=folder, default=Path('work_dirs/demo')
    )


def run(args: argparse.Namespace) -> None:
    """Run the demo."""
    from mmengine.config import Config

    from surge_det.datasets import data_root
    from surge_det.shipped import shipped_config

    config, work_dir = shipped_config(CONFIG), args.work_dir
    print(
        'Draws a dataset, trains a 1-bit detector on it, evaluates it and '
        'draws what it finds: 4 minutes on two CPU cores with AVX-512, 5 '
        'with AVX2 alone (Zen 4). Pictures after each epoch: '
        f'{work_dir}/*/vis_data/vis_image',
        flush=True,
    )

    call('make-demo-data', '--root', data_root())
    manifest = Path(data_root(), 'shapes', 'manifest.json')
    since = manifest.stat().st_mtime

    # Boxes to look at while the training goes on.
    images = sorted(manifest.parent.glob('JPEGImages/test_*'))[:8]
    shipped = work_dir / 'shipped'
    options = ['--model', 'shapes', '--score-thr', '0.5', '--out', shipped]
    call('infer', *images, *options)

    epochs = Config.fromfile(config).train_cfg.max_epochs
    final = work_dir / f'epoch_{epochs}.pth'
    checkpoint = last_checkpoint(config, work_dir, since)
    if checkpoint == final:
        print(f'\nTrained already: {final}')
    else:
        resume = ['--resume'] if checkpoint else []
        call('train', config, '--work-dir', work_dir, *resume)

    predictions = work_dir / 'predictions.pkl'
    if (
        predictions.is_file()
        and predictions.stat().st_mtime > final.stat().st_mtime
        and read_map(work_dir / 'test') is not None
    ):
        print(f'Evaluated already: {predictions}')
    else:
        options = ['--work-dir', work_dir / 'test', '--out', predictions]
        call('test', config, final, *options)
    pictures = work_dir / 'detections'
    # Lower ones are often a second class of an object that has its box.
    options = ['--out', pictures, '--score-thr', '0.5']
    call('show-detections', config, predictions, *options)
    curve = work_dir / 'curve.png'
    call('plot-run', work_dir, '--out', curve)

    print(f'\nDetections beside ground truth: {pictures}')
    print(f'Loss and mAP over training:     {curve}')
    print(f'Checkpoint:                     {final}')
    print(f'mAP: {read_map(work_dir / "test"):.3f}')
