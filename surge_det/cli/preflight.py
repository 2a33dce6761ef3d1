"""Show what every sign of a 1-bit detector sees on one training image.

Ends with status 1 and names the layers if there are binarized layers whose
input never changes sign, or that are never called. Example::

    surge-det preflight surge_retinanet_r50_coco
"""

from __future__ import annotations

import argparse
import logging
from typing import TYPE_CHECKING

from surge_det.cli.common import (
    add_cfg_options,
    add_config,
    fail,
    load_config,
    loading_weights,
)
from surge_det.cli.tables import print_table

if TYPE_CHECKING:
    from mmengine.config import Config
    from torch import nn

    from surge_det.models.preflight import SignReport


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add = parser.add_argument
    add_config(parser)
    add(
        '--image-index',
        type=int,
        default=0,
        help='which image of the training set',
    )
    add(
        '--checkpoint',
        help='weights to look at, every key of which must fit; without it, '
        'those that training starts from',
    )
    add_cfg_options(parser)


def build_model(cfg: Config, checkpoint: str | None) -> nn.Module:
    """Build the model as training starts it, or with a checkpoint."""
    from mmdet.registry import MODELS
    from mmengine.logging import MMLogger

    model = MODELS.build(cfg.model)
    # The answer is the table, not a line for each initialized parameter.
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        if checkpoint is None:
            with loading_weights(cfg):
                model.init_weights()
        else:
            _load(model, checkpoint)
    finally:
        logger.setLevel(level)
    return model


def _load(model: nn.Module, checkpoint: str) -> None:
    from mmengine.runner import load_checkpoint

    from surge_det.deploy.trained import check_is_checkpoint, shortened

    try:
        check_is_checkpoint(checkpoint)
        load_checkpoint(model, checkpoint, 'cpu', strict=True)
    except (EOFError, KeyError, OSError, RuntimeError, ValueError) as error:
        # Keys that do not fit, and files of another kind.
        fail(f'--checkpoint {checkpoint!r}: {shortened(error)}')


def load_batch(cfg: Config, index: int) -> dict:
    """Read one image of the training set through its pipeline."""
    from mmdet.registry import DATASETS
    from mmengine.dataset import pseudo_collate

    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    if not 0 <= index < len(dataset):
        fail(
            f'--image-index={index} is not allowed: the training set has '
            f'images 0 to {len(dataset) - 1}'
        )
    return pseudo_collate([dataset[index]])


def show(reports: list[SignReport]) -> None:
    """Print a line for each layer."""
    rows = []
    for report in reports:
        values = ('', '', 'never called')
        if report.ran:
            values = (
                f'{report.negative:.1%}',
                f'{report.constant_channels:.1%}',
                'never changes sign' if report.constant else '',
            )
        rows.append((report.name, *values))
    header = ('layer', 'inputs -1', 'channels of one sign', '')
    print_table(header, rows)


def run(args: argparse.Namespace) -> int:
    """Run the command: status 1 if there are layers that cannot work."""
    from mmengine.registry import init_default_scope
    from mmengine.runner import set_random_seed

    from surge_det.models.preflight import preflight

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
