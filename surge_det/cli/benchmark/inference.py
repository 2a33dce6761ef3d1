"""Time of a 1-bit detector on a CPU beside its float twin, and its bytes.

The contestants take turns: the float twin (the same detector with nothing
binarized) in torch and in OpenVINO, there in float32 and, where nncf is
installed, in int8; the 1-bit detector in torch and as `surge-det export
--format openvino` writes it. Torch, and every single layer, runs with maps
in the default and in the channels_last layout, and the faster one counts.

Levels:

- layers: the 3x3 convolutions of Faster R-CNN R18-FPN, one by one, with the
  binarization of their input (no CONFIG is needed for these);
- network: what runs once per image: backbone, neck and dense head;
- detector: from an image to boxes by mmdet's test_step: normalization,
  padding, networks, proposals, RoI extractor, decoding, NMS. Reading and
  resizing are not in it.

Before anything is timed, outputs are compared.

Example::

    surge-det benchmark inference configs/surge_ssd300_vgg16_voc.py \\
        configs/surge_faster_rcnn_r18_voc.py --threads 1 2 --out work_dirs/fast
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from surge_det.cli.common import (
    add_cfg_options,
    config_file,
    existing_file,
    fail,
    file_or_address,
    positive_int,
    read_config,
)

from . import arguments
from . import inference_report as report
from .inference_report import INT8, Case, Sizes
from .layers import FULL_SIZE, SHAPES
from .report import Table, draw_bars, publish

if TYPE_CHECKING:
    from mmengine.config import Config

    from .inference_measure import Detector

LEVELS = ['layers', 'network', 'detector']
DEFAULT_SIZES = [(240, 320), FULL_SIZE]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command line's arguments."""
    add = parser.add_argument
    add('configs', nargs='*', type=config_file, metavar='CONFIG')
    add(
        '--levels',
        nargs='+',
        choices=LEVELS,
        default=LEVELS,
        metavar='LEVEL',
        help=f'of {LEVELS}',
    )
    add(
        '--size',
        nargs=2,
        type=positive_int,
        action='append',
        metavar=('ROWS', 'COLUMNS'),
        help='of the images; may be repeated; default: 240 320 and 600 1000, '
        'or the one size that the config resizes all images to',
    )
    counts = dict(nargs='+', type=positive_int, metavar='NUMBER')
    add('--threads', default=[1], **counts)
    file = dict(type=file_or_address, metavar='FILE')
    add('--checkpoint', help="the CONFIG's; default: random weights", **file)
    add(
        '--float-checkpoint',
        help="the float twin's; default: latent weights of --checkpoint",
        **file,
    )
    add('--image', type=existing_file, help='default: noise')
    add('--no-int8', dest='int8', action='store_false', help='without int8')
    add(
        '--profile',
        action='store_true',
        help='say which operations of the 1-bit network, and with --levels '
        'detector which stages of the detector, take the time',
    )
    arguments.add(parser, 'cpu-time', 'out', rounds=7, warmup=2, device='cpu')
    add_cfg_options(parser)


def run(args: argparse.Namespace) -> None:
    """Measure, print and write."""
    cpus = os.cpu_count() or 1
    if hasattr(os, 'sched_getaffinity'):
        cpus = len(os.sched_getaffinity(0))
    threads = max(args.threads)
    if threads > cpus:
        fail(f'--threads {threads}: this process may use {cpus} CPUs')
    if not args.configs and (args.profile or args.levels != ['layers']):
        fail('CONFIG is missing: only --levels layers goes without')
    if args.checkpoint and len(args.configs) != 1:
        fail('--checkpoint: with one CONFIG only')
    if args.float_checkpoint and not args.checkpoint:
        fail('--float-checkpoint: with --checkpoint only')
    args.size = args.size and [tuple(size) for size in args.size]
    try:
        with tempfile.TemporaryDirectory() as folder:
            measure(args, Path(folder))
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        fail(error)


def measure(args: argparse.Namespace, folder: Path) -> None:
    """Measure and report; networks are written into ``folder``."""
    from mmengine.logging import MMLogger

    from surge_det.datasets import merge_options
    from surge_det.deploy.extra import require
    from surge_det.engine.apply_method import apply_method

    require('openvino')
    from .inference_measure import Detector, int8_problem

    problem = int8_problem() if args.int8 else '--no-int8'
    args.int8 = problem is None
    # Every initialized parameter is a line otherwise.
    MMLogger.get_current_instance().setLevel('WARNING')
    configs = {path: read_config(path) for path in args.configs}
    for path, cfg in configs.items():
        try:
            merge_options(cfg, args.cfg_options)
            # See now whether the float twin can be made.
            apply_method(cfg, 'float')
        except ValueError as error:
            raise ValueError(f'{path}: {error}') from error
    cases: list[Case] = []
    sizes: dict[str, Sizes] = {}
    profiles: list[str | Table] = []
    if 'layers' in args.levels:
        cases += layer_cases(args)
    for path, cfg in configs.items():
        name, places = path.stem, args.size or config_sizes(cfg)
        print(f'{name}: export', file=sys.stderr)
        checkpoints = args.checkpoint, args.float_checkpoint
        try:
            detector = Detector(
                cfg, folder, args.int8, places[0], *checkpoints
            )
            cases += detector_cases(name, detector, places, args)
        except (OSError, RuntimeError, ValueError) as error:
            raise RuntimeError(f'{path}: {error}') from error
        sizes[name] = detector.sizes()
        if args.profile:
            profiles += profile(name, detector, places, args)
    parts: list[str | Table] = [report.time_table(cases)]
    files = {'inference': report.turns(cases)}
    if 'layers' in args.levels:
        parts.append(report.mean_table(cases))
    if sizes:
        parts.append(report.size_table(sizes))
        files['sizes'] = report.layer_sizes(sizes)
    if 'detector' in args.levels:
        parts.append(report.count_table(cases))
    parts += [notes(args, problem), *profiles]
    draw = partial(draw_bars, report.panels(cases))
    publish(args, 'inference', parts, files, draw)


def config_sizes(cfg: Config) -> list[tuple[int, int]]:
    """Rows and columns to run at: the config's if it has one for all."""
    for step in cfg.test_dataloader.dataset.pipeline:
        if step.type.endswith('Resize') and not step.get('keep_ratio'):
            columns, rows = step['scale']
            return [(rows, columns)]
    return DEFAULT_SIZES


def layer_cases(args: argparse.Namespace) -> Iterator[Case]:
    """Measure the layers, one after the other."""
    import torch

    from .inference_measure import at_size, layer_runs, take_turns

    shapes = [shape for shape in SHAPES if shape.kernel == 3]
    for threads, size, shape in product(
        args.threads, args.size or DEFAULT_SIZES, shapes
    ):
        torch.set_num_threads(threads)
        channels = min(shape.c_in, shape.c_out)
        case = Case('layers', shape.name, size, threads, channels)
        runs = layer_runs(at_size(shape, size), threads, args.int8)
        yield take_turns(case, runs, args)


def detector_cases(
    name: str,
    detector: Detector,
    sizes: list[tuple[int, int]],
    args: argparse.Namespace,
) -> Iterator[Case]:
    """Measure a config's dense network and detector."""
    import torch

    from .inference_measure import picture, take_turns

    for threads, size in product(args.threads, sizes):
        torch.set_num_threads(threads)
        if 'network' in args.levels:
            case = Case('network', name, size, threads)
            runs = detector.network_runs(size, threads)
            yield take_turns(case, runs, args)
        if 'detector' in args.levels:
            data = picture(args.image, size)
            runs, counts = detector.detector_runs(data, threads)
            case = Case('detector', name, size, threads, counts=counts)
            yield take_turns(case, runs, args)


def profile(
    name: str,
    detector: Detector,
    sizes: list[tuple[int, int]],
    args: argparse.Namespace,
) -> Iterator[str | Table]:
    """Say where the time of a config's 1-bit network and detector goes."""
    import torch

    from surge_det.deploy.openvino.self_check import check_input

    from .inference_measure import picture
    from .inference_profile import profile_network, profile_stages

    for threads, size in product(args.threads, sizes):
        torch.set_num_threads(threads)
        network, x = detector.network(threads), check_input((1, 3, *size))
        found = profile_network(network, x, args.rounds)
        case = Case('profile of the 1-bit network', name, size, threads)
        yield f'{case.title}:'
        number = sum(count for *_, count, _ in found)
        header = ['operation', 'executed by', 'number']
        yield report.share_table(header, found, ['all', '', number])
        if 'detector' in args.levels:
            model, data = detector.exported(threads), picture(args.image, size)
            stages = profile_stages(model, data, args.rounds)
            case.level = 'profile of the 1-bit detector'
            yield f'{case.title}:'
            yield report.share_table(['stage'], stages, ['all'])


def notes(args: argparse.Namespace, problem: str | None) -> str:
    """Say what a reader of the tables has to know.

    Args:
        args: The command line.
        problem: Why there is no int8 twin.
    """
    import torch

    from surge_det.deploy.extra import require
    from surge_det.deploy.openvino.runtime import shared_core

    device = shared_core().get_property('CPU', 'FULL_DEVICE_NAME')
    lines = [
        f'Milliseconds{" of CPU time" * args.cpu_time}: medians of '
        f'{args.rounds} interleaved rounds, batch 1. Faster: median of the '
        'ratios of paired turns. (cl): it was faster in channels_last.',
        f'{device}, torch {torch.__version__}, OpenVINO '
        f'{require("openvino").__version__}.',
    ]
    if problem:
        lines.append(f'No {INT8}: {problem}.')
    if 'detector' in args.levels:
        weights = 'of a checkpoint' if args.checkpoint else 'random'
        image = args.image.name if args.image else 'noise'
        lines.append(
            'The time from image to boxes depends on the number of proposals '
            'and boxes, and these on weights and image. Here weights are '
            f'{weights}, the image is {image}.'
        )
        if args.checkpoint and not args.float_checkpoint:
            lines.append(
                "The float twin has the 1-bit detector's latent weights, with "
                'which it finds other proposals and boxes, if any: '
                '--float-checkpoint gives it trained ones.'
            )
    return '\n'.join(f'- {line}' for line in lines)
