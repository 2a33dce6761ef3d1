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

    surge-det benchmark inference surge_ssd300_vgg16_voc \\
        surge_faster_rcnn_r18_voc --threads 1 2 --out work_dirs/fast
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

from surge_det.cli.common import (
    add_cfg_options,
    config_file,
    existing_file,
    fail,
    file_or_address,
    positive_int,
)

from . import arguments

LEVELS = ['layers', 'network', 'detector']


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
        from surge_det.deploy.extra import require

        for package in ('openvino', 'onnx', 'surge_runtime'):
            require(package)
        from .inference_run import measure

        with tempfile.TemporaryDirectory() as folder:
            measure(args, Path(folder))
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        fail(error)
