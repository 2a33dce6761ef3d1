"""Accuracy against latency and bytes, of detectors that run alone.

Each DETECTOR is NAME=FILE, a file that `surge-det export --format onnx`
wrote. A name is that of a series, then, after the last space, its point:
"1-bit w64", "float, 12 epochs w32". Files of one name are seeds, whose mAP is
averaged. A file without 1-bit layers is measured in int8 as well, with "int8"
for "float" in its name: quantized after training with images of the config's
training set.

mAP is that of the config's test set and metric. Latency is from a decoded
image to boxes, in ONNX Runtime; the detectors take turns on images of the
test set. SURGE_ISA=avx2 restricts the 1-bit kernels, but not ONNX Runtime's.

Example::

    surge-det benchmark front surge_faster_rcnn_r18_bccd \\
        "float w64=float.onnx" "1-bit w64=1bit.onnx" --out work_dirs/front
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from surge_det.cli.common import (
    add_cfg_options,
    add_config,
    existing_file,
    fail,
    load_config,
    positive_int,
)

from . import arguments
from .report import publish


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command line's arguments."""
    add_config(parser)
    parser.add_argument(
        'detectors', nargs='+', type=_named_file, metavar='DETECTOR'
    )
    parser.add_argument(
        '--threads', type=positive_int, default=1, help='default: 1'
    )
    arguments.add(parser, 'cpu-time', 'out', rounds=32, warmup=2, device='cpu')
    add_cfg_options(parser)


def _named_file(text: str) -> tuple[str, Path]:
    name, _, file = text.rpartition('=')
    if not name:
        raise argparse.ArgumentTypeError(f'{text!r} is not NAME=FILE')
    return name, existing_file(file)


def run(args: argparse.Namespace) -> None:
    """Measure, print and write."""
    cfg = load_config(args, ('train', 'test'))
    try:
        from . import front_report as report
        from .front_measure import measure

        points = measure(cfg, args)
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        fail(error)
    draw = partial(report.draw, points)
    parts = [report.table(points), report.notes(args)]
    publish(args, 'front', parts, report.records(points), draw)
