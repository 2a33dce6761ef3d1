"""Accuracy against latency and bytes, of detectors that run alone.

Each DETECTOR is NAME=FILE, a file that `surge-det export --format onnx`
wrote. Names are a series and a point of it, such as "1-bit w64"; files of one
name are seeds, whose mAP is averaged. A file without 1-bit layers is measured
in int8 as well, as "int8" instead of the name's first word: quantized after
training with images of the config's training set.

mAP is that of the config's test set and metric. Latency is from a decoded
image to boxes, in ONNX Runtime; the detectors take turns on images of the
test set. SURGE_ISA=avx2 restricts the 1-bit kernels, but not ONNX Runtime's.

Example::

    surge-det benchmark front surge_faster_rcnn_r18_bccd \\
        "float w64=float.onnx" "1-bit w64=1bit.onnx" --out work_dirs/front
"""

from __future__ import annotations

import argparse
import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surge_det.cli.common import (
    add_cfg_options,
    add_config,
    existing_file,
    fail,
    load_config,
    positive_int,
)
from surge_det.paired import estimate, plus_minus

from . import arguments
from .report import Table, publish, pyplot

if TYPE_CHECKING:
    import numpy as np

INT8 = 'int8'
# Images that activations' ranges are taken from, and that latency is of.
CALIBRATION, TIMED = 32, 16


@dataclass
class Point:
    """A network with its seeds.

    Args:
        name: Series and point.
        bytes: Of the first seed's file.
        seconds: Of the first seed's turns.
        scores: MAP of each seed.
    """

    name: str
    bytes: int = 0
    seconds: list[float] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)

    @property
    def series(self) -> str:
        """What is drawn as one line."""
        return self.name.partition(' ')[0]

    @property
    def ms(self) -> float:
        """Median of the turns."""
        return statistics.median(self.seconds) * 1000


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
        points = measure(cfg, args)
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        fail(error)
    draw = partial(draw_front, points)
    parts = [table(points), notes(args)]
    publish(args, 'front', parts, records(points), draw)


def measure(cfg: Any, args: argparse.Namespace) -> list[Point]:
    """Measure all detectors, and the int8 twins of those without 1-bit.

    Raises:
        ImportError: If ``surge_runtime`` or ``onnx`` is missing.
        ValueError: If a file is no detector, or one of other classes.
    """
    import mmcv
    import torch
    from mmdet.registry import DATASETS

    from .int8 import quantized
    from .measure import interleaved, timed

    dataset = DATASETS.build(cfg.test_dataloader.dataset)
    training = DATASETS.build(cfg.train_dataloader.dataset)
    points: dict[str, Point] = {}
    sessions = {}
    for name, path in args.detectors:
        data = read_file(path, dataset.metainfo['classes'])
        twins = {name: data}
        if b'BinaryConv' not in data:
            images = (
                mmcv.imread(training.get_data_info(i)['img_path'])
                for i in range(min(CALIBRATION, len(training)))
            )
            make = partial(session, threads=args.threads)
            twin = ' '.join([INT8, *name.split(' ')[1:]])
            twins[twin] = quantized(data, make, images)
        for each, content in twins.items():
            detector = session(content, args.threads)
            point = points.setdefault(each, Point(each))
            point.scores.append(score(detector, dataset, cfg))
            print(f'{each}: {path.name}: mAP {point.scores[-1]:.4f}')
            if each not in sessions:
                sessions[each], point.bytes = detector, len(content)
    images = [
        mmcv.imread(dataset.get_data_info(i)['img_path'])
        for i in range(min(TIMED, len(dataset)))
    ]

    def turn(detector: Any) -> Any:
        turns = count()

        def take() -> float:
            image = images[next(turns) % len(images)]
            # Once without a clock: the caches are those of the one before.
            detect(detector, image)
            work = partial(detect, detector, image)
            return timed(work, torch.device('cpu'), args.cpu_time)

        return take

    turns = {name: turn(each) for name, each in sessions.items()}
    for name, taken in interleaved(turns, args, 'latency').items():
        points[name].seconds = taken
    return list(points.values())


def read_file(path: Path, classes: Sequence[str]) -> bytes:
    """Read and check a detector's file."""
    try:
        from surge_runtime.model_file import read_model_file
    except ImportError as error:
        raise ImportError(
            f'surge_runtime is needed here and cannot be imported ({error}). '
            'Install it with: pip install ./runtime'
        ) from error
    data, own = read_model_file(path)
    if own != tuple(classes):
        raise ValueError(
            f'{path}: its classes are {list(own)}, those of the data '
            f'{list(classes)}'
        )
    return data


def session(data: bytes, threads: int = 1) -> Any:
    """Make a session of ONNX Runtime as ``surge_runtime.Detector`` does."""
    import onnxruntime
    from surge_runtime.library import library_path

    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(library_path())
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(
        data, options, providers=['CPUExecutionProvider']
    )


def detect(detector: Any, image: np.ndarray) -> list[np.ndarray]:
    """Boxes, scores and labels of an image, uint8 (H, W, 3)."""
    return detector.run(['boxes', 'scores', 'labels'], {'image': image})


def score(detector: Any, dataset: Any, cfg: Any) -> float:
    """MAP on a dataset by the config's metric."""
    import mmcv
    import torch
    from mmdet.structures import DetDataSample
    from mmengine.evaluator import Evaluator
    from mmengine.structures import InstanceData

    from surge_det.cli.plot_run import MAP

    evaluator = Evaluator(cfg.test_evaluator)
    evaluator.dataset_meta = dataset.metainfo
    for i in range(len(dataset)):
        sample: DetDataSample = dataset[i]['data_samples']
        found = detect(detector, mmcv.imread(sample.img_path))
        values = map(torch.from_numpy, found)
        names = ('bboxes', 'scores', 'labels')
        sample.pred_instances = InstanceData(**dict(zip(names, values)))
        evaluator.process([sample])
    metrics = evaluator.evaluate(len(dataset))
    known = re.compile(rf'(^|/)({MAP})$')
    values = [value for key, value in metrics.items() if known.search(key)]
    if not values:
        raise ValueError(f'test_evaluator: no mAP among {list(metrics)}')
    return float(values[0])


def _ordered(points: Iterable[Point]) -> list[Point]:
    return sorted(points, key=lambda point: (point.series, point.ms))


def table(points: Sequence[Point]) -> Table:
    """Make a table with a row for each point."""
    rows = []
    for point in _ordered(points):
        mean, std, _ = estimate(point.scores)
        size = f'{point.bytes / 1e6:.2f}'
        times = [f'{point.ms:.2f}', size, len(point.scores)]
        rows.append([point.name, plus_minus(mean, std), *times])
    return Table(['detector', 'mAP', 'ms', 'MB', 'seeds'], rows)


def records(points: Sequence[Point]) -> Table:
    """List each seed, for a CSV file."""
    rows = [
        [point.name, i, f'{score:.4f}', f'{point.ms:.4f}', point.bytes]
        for point in points
        for i, score in enumerate(point.scores)
    ]
    return Table(['detector', 'file', 'mAP', 'ms', 'bytes'], rows)


def notes(args: argparse.Namespace) -> str:
    """Say what a reader of the table has to know."""
    import onnxruntime
    from surge_runtime.library import kernel_path

    return (
        f'From image to boxes, milliseconds{" of CPU time" * args.cpu_time}: '
        f'medians of {args.rounds} interleaved rounds. Threads: '
        f'{args.threads}; ONNX Runtime {onnxruntime.__version__}, 1-bit '
        f'kernels {kernel_path()}. mAP ± standard deviation over seeds.'
    )


def draw_front(points: Sequence[Point], path: Path) -> None:
    """Draw mAP against latency and against bytes."""
    plt = pyplot()
    figure, axes = plt.subplots(
        1, 2, sharey=True, figsize=(9, 3.8), layout='constrained'
    )
    titles = 'image to boxes, ms', 'file, MB'
    for ax, title in zip(axes, titles):
        for series in dict.fromkeys(point.series for point in points):
            own = [p for p in _ordered(points) if p.series == series]
            xs = [p.ms if ax is axes[0] else p.bytes / 1e6 for p in own]
            means, stds, _ = zip(*(estimate(p.scores) for p in own))
            bars = [0 if std != std else std for std in stds]
            ax.errorbar(xs, means, bars, fmt='o-', capsize=3, label=series)
            for p, x, mean in zip(own, xs, means):
                text = p.name.removeprefix(series).strip()
                place = dict(xytext=(4, 5), textcoords='offset points')
                ax.annotate(text, (x, mean), fontsize='small', **place)
        ax.set_xscale('log')
        ax.set_xlabel(title)
        ax.grid(alpha=0.3, which='both')
    axes[0].set_ylabel('mAP')
    axes[0].legend(fontsize='small')
    figure.savefig(path, dpi=120)
    plt.close(figure)
