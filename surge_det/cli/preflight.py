"""Show what every 1-bit layer sees and learns on one training image.

Ends with status 1 and names the layers if there are binarized layers whose
input never changes sign, that are never called, or that get no gradient
though they are not frozen. Example::

    surge-det preflight surge_retinanet_r50_coco
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator
from dataclasses import replace
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

    from surge_det.models.preflight import LayerReport

# Of the training set, where the first one leaves layers without gradient.
MOST_IMAGES = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add = parser.add_argument
    add_config(parser)
    add(
        '--image-index',
        type=int,
        default=0,
        help='which image of the training set (up to '
        f'{MOST_IMAGES} from there, if layers get no gradient from it)',
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

    from surge_det.deploy.trained import check_is_checkpoint
    from surge_det.text import shortened

    try:
        check_is_checkpoint(checkpoint)
        load_checkpoint(model, checkpoint, 'cpu', strict=True)
    except (EOFError, KeyError, OSError, RuntimeError, ValueError) as error:
        # Keys that do not fit, and files of another kind.
        fail(f'--checkpoint {checkpoint!r}: {shortened(error)}')


def load_batches(cfg: Config, index: int) -> Iterator[dict]:
    """Read images of the training set, from one on, through its pipeline."""
    from mmdet.registry import DATASETS
    from mmengine.dataset import pseudo_collate

    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    if not 0 <= index < len(dataset):
        fail(
            f'--image-index={index} is not allowed: the training set has '
            f'images 0 to {len(dataset) - 1}'
        )
    for i in range(index, min(index + MOST_IMAGES, len(dataset))):
        yield pseudo_collate([dataset[i]])


def look(model: nn.Module, batches: Iterator[dict]) -> list[LayerReport]:
    """Report on the first batch, and what others have of its gradients.

    A loss may leave out levels that have no object. So for layers without a
    gradient the following batches count, too.
    """
    from surge_det.models.preflight import preflight

    reports = preflight(model, next(batches))
    while any(report.gradient == 0 for report in reports):
        batch = next(batches, None)
        if batch is None:
            break
        reports = [
            replace(old, gradient=new.gradient) if old.gradient == 0 else old
            for old, new in zip(reports, preflight(model, batch))
        ]
    return reports


def show(reports: list[LayerReport]) -> None:
    """Print a line for each layer."""
    rows = []
    for report in reports:
        values = ('', '')
        if report.ran:
            values = (
                f'{report.negative:.1%}',
                f'{report.constant_channels:.1%}',
            )
        gradient = 'frozen'
        if report.gradient is not None:
            gradient = f'{report.gradient:.2g}'
        rows.append(
            (report.name, *values, gradient, '; '.join(faults(report)))
        )
    header = ('layer', 'inputs -1', 'channels of one sign', 'gradient', '')
    print_table(header, rows)


def faults(report: LayerReport) -> list[str]:
    """Say what is wrong with a layer."""
    if not report.ran:
        return ['never called']
    found = ['input never changes sign'] if report.constant else []
    if report.stuck:
        finite = report.gradient == 0
        found.append('no gradient' if finite else 'gradient not finite')
    return found


def run(args: argparse.Namespace) -> int:
    """Run the command: status 1 if there are layers that cannot work."""
    from mmengine.registry import init_default_scope
    from mmengine.runner import set_random_seed

    cfg = load_config(args, ('train',))
    init_default_scope(cfg.get('default_scope') or 'mmdet')
    set_random_seed(0)
    batches = load_batches(cfg, args.image_index)
    try:
        reports = look(build_model(cfg, args.checkpoint), batches)
    except ValueError as error:
        fail(error)
    show(reports)
    faulty = [report for report in reports if faults(report)]
    if not faulty:
        print(
            f'{len(reports)} binarized layers, all of them see both signs '
            'and get a gradient'
        )
        return 0
    print(f'{len(faulty)} of {len(reports)} binarized layers cannot work:')
    for report in faulty:
        print(f'  {report.name}: {"; ".join(faults(report))}')
    if any(report.blind for report in reports):
        print(
            'What never changes sign or is never called: exclude it, give it '
            'a shift that starts below 0, or take away the ReLU before it.'
        )
    if any(report.stuck for report in reports if report.ran):
        print(
            f'What has no gradient, on {MOST_IMAGES} images from '
            '--image-index on: see whether they have objects for it, and '
            'whether what follows starts at 0, such as the last norm of a '
            'block (zero_init_residual).'
        )
    return 1
