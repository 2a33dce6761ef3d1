"""Evaluate a detector, as mmdet's ``tools/test.py`` does.

CHECKPOINT may be what ``surge-det export`` wrote: a packed file
(``.safetensors``), an ONNX file (``.onnx``) or an OpenVINO model (``.xml``);
or the name of a shipped model. The config says what the detector is, what it
is tested on, and how.

Example::

    surge-det test surge_faster_rcnn_r18_voc CHECKPOINT
"""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING

from surge_det.cli.common import (
    add_config,
    add_run_arguments,
    build_data,
    build_runner,
    fail,
    load_config,
    model_or_address,
    prepare_run,
)
from surge_det.whole_files import replacing

if TYPE_CHECKING:
    from mmengine.config import Config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add = parser.add_argument
    add_config(parser)
    add(
        'checkpoint',
        type=model_or_address,
        metavar='CHECKPOINT',
        help='checkpoint, packed file (.safetensors), ONNX file (.onnx), '
        'OpenVINO model (.xml) or the name of a shipped model',
    )
    add_run_arguments(parser)
    add('--out', help='write predictions to this .pkl file')
    add('--show', action='store_true', help='show pictures of detections')
    add(
        '--show-dir',
        help='write pictures of detections beside ground truth to '
        'WORK_DIR/TIMESTAMP/SHOW_DIR',
    )
    add('--wait-time', type=float, default=2, help='seconds for --show')
    add('--tta', action='store_true', help='test-time augmentation')


def apply_tta(cfg: Config) -> None:
    """Put mmdet's default test-time augmentation where the config has none."""
    from mmengine.config import ConfigDict

    from surge_det.datasets.root import test_datasets, test_pipeline

    cfg.setdefault(
        'tta_model',
        ConfigDict(
            type='DetTTAModel',
            tta_cfg=dict(
                nms=dict(type='nms', iou_threshold=0.5), max_per_img=100
            ),
        ),
    )
    if 'tta_pipeline' not in cfg:
        steps = deepcopy(test_pipeline(cfg))
        if not steps:
            fail('--tta: test_dataloader has no dataset with a pipeline')
        pack = steps.pop()
        # Detections are flipped back before they are scored; ground truth,
        # which mmdet's VOC metric takes from the samples, must not be flipped.
        truth = [step for step in steps if step.type == 'LoadAnnotations']
        if 'meta_keys' in pack:
            pack.meta_keys = (*pack.meta_keys, 'flip', 'flip_direction')
        augment = dict(
            type='TestTimeAug',
            transforms=[
                [
                    dict(type='RandomFlip', prob=1.0),
                    dict(type='RandomFlip', prob=0.0),
                ],
                *([step] for step in truth),
                [pack],
            ],
        )
        cfg.tta_pipeline = [s for s in steps if s not in truth] + [augment]
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)
    for dataset in test_datasets(cfg):
        dataset.pipeline = cfg.tta_pipeline


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    if args.out and not args.out.endswith(('.pkl', '.pickle')):
        fail(f'--out {args.out!r}: the name must end in .pkl')
    from mmdet.engine.hooks.utils import trigger_visualization_hook
    from mmdet.evaluation import DumpDetResults
    from mmengine.config import ConfigDict
    from mmengine.dist import is_main_process

    from surge_det.datasets.classes import ClassesError
    from surge_det.deploy import format_of
    from surge_det.deploy.loading import LoadError, as_model_cfg

    format = format_of(args.checkpoint)
    if format.cpu_only and args.launcher != 'none':
        fail(
            f'--launcher {args.launcher}: a model in the format '
            f'{format.name!r} is tested in one process'
        )
    if format.whole and args.tta:
        fail(
            f'--tta: a detector in the format {format.name!r} is whole, and '
            'nothing can be averaged in it'
        )
    cfg = format.adapted(load_config(args, ('test',)))
    prepare_run(args, cfg)
    cfg.model = ConfigDict(as_model_cfg(args.checkpoint, cfg))
    # What a config starts training from would be loaded over it.
    cfg.load_from, cfg.resume = None, False
    if args.show or args.show_dir:
        cfg = trigger_visualization_hook(cfg, args)
    if args.tta:
        apply_tta(cfg)
    try:
        runner = build_runner(cfg, args.verbose)
    except LoadError as error:
        fail(error)
    build_data(runner, 'test')
    writes = args.out and is_main_process()
    with replacing(Path(args.out)) if writes else nullcontext('.pkl') as out:
        if args.out:
            metric = DumpDetResults(out_file_path=str(out))
            runner.test_evaluator.metrics.append(metric)
        try:
            runner.test()
        except ClassesError as error:
            fail(error)
