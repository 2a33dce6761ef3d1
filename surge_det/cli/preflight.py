"""Show what every sign of a 1-bit detector sees on one training image.

Ends with status 1 and names the layers if there are binarized layers whose
input never changes sign, or that are never called. Example::

    python tools/preflight.py configs/surge_retinanet_r50_coco.py
"""

from __future__ import annotations

import argparse
import logging

# First: closes the toolbox's gaps before anything of it is imported.
import surge_det  # noqa: F401

# isort: split
from mmdet.registry import DATASETS, MODELS
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from mmengine.runner import load_checkpoint, set_random_seed
from torch import nn

from surge_det.cli.common import add_cfg_options, fail, load_config
from surge_det.deploy.trained import check_is_checkpoint, shortened
from surge_det.models.preflight import SignReport, preflight


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description='Look at what the signs of a 1-bit detector see'
    )
    parser.add_argument('config', help='train config file path')
    parser.add_argument(
        '--image-index',
        type=int,
        default=0,
        help='which image of the training set',
    )
    parser.add_argument(
        '--checkpoint',
        help='weights to look at, every key of which must fit; without it, '
        'those that training starts from',
    )
    add_cfg_options(parser)
    parser.set_defaults(launcher='none', work_dir=None, local_rank=0)
    return parser.parse_args(argv)


def build_model(cfg: Config, checkpoint: str | None) -> nn.Module:
    """Build the model as training starts it, or with a checkpoint."""
    model = MODELS.build(cfg.model)
    # The answer is the table, not a line for each initialized parameter.
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        if checkpoint is None:
            model.init_weights()
        else:
            check_is_checkpoint(checkpoint)
            load_checkpoint(model, checkpoint, 'cpu', strict=True)
    except (EOFError, KeyError, OSError, RuntimeError, ValueError) as error:
        # Downloads, keys that do not fit, and files of another kind.
        if checkpoint is not None:
            fail(f'--checkpoint {checkpoint!r}: {shortened(error)}')
        fail(
            f'cannot load the pretrained weights of the config: {error}. '
            '--checkpoint names a file, --cfg-options '
            'model.backbone.init_cfg=None starts from scratch'
        )
    finally:
        logger.setLevel(level)
    return model


def load_batch(cfg: Config, index: int) -> dict:
    """Read one image of the training set through its pipeline."""
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    if not 0 <= index < len(dataset):
        fail(
            f'--image-index={index} is not allowed: the training set has '
            f'images 0 to {len(dataset) - 1}'
        )
    return pseudo_collate([dataset[index]])


def show(reports: list[SignReport]) -> None:
    """Print one line per layer."""
    width = max(len(report.name) for report in reports)
    print(f'{"layer":{width}}  inputs -1  channels of one sign')
    for report in reports:
        values = 'never called'
        if report.ran:
            values = (
                f'{report.negative:9.1%}  {report.constant_channels:20.1%}'
                + ('  <- never changes sign' if report.constant else '')
            )
        print(f'{report.name:{width}}  {values}')


def main(argv: list[str] | None = None) -> int:
    """Run the tool; return the exit status."""
    args = parse_args(argv)
    cfg = load_config(args, ('train',))
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    set_random_seed(0)
    batch = load_batch(cfg, args.image_index)
    try:
        reports = preflight(build_model(cfg, args.checkpoint), batch)
    except ValueError as error:
        fail(error)
    show(reports)
    blind = [report for report in reports if report.blind]
    if not blind:
        print(f'{len(reports)} binarized layers, all of them see both signs')
        return 0
    print(
        f'{len(blind)} of {len(reports)} binarized layers cannot work: '
        'exclude them, give them a shift that starts below 0, or take away '
        'the ReLU before them:'
    )
    for report in blind:
        why = 'input never changes sign' if report.ran else 'never called'
        print(f'  {report.name}: {why}')
    return 1


if __name__ == '__main__':
    raise SystemExit(main())
