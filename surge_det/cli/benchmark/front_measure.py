"""Accuracy, latency and bytes of detectors' files."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
import torch
from mmdet.registry import DATASETS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData

from surge_det.cli.plot_run import find_map
from surge_det.deploy.extra import require
from surge_det.deploy.onnx.detector import open_session

from .front_report import Point
from .int8 import quantized
from .measure import interleaved, timed

FLOAT, INT8 = 'float', 'int8'
# Images that activations' ranges are taken from, and that latency is of.
CALIBRATION, TIMED = 32, 16


def measure(cfg: Config, args: argparse.Namespace) -> list[Point]:
    """Measure all detectors, and the int8 twins of those without 1-bit.

    Raises:
        ImportError: If ``surge_runtime`` or ``onnx`` is missing.
        ValueError: If a file is no detector, or one of other classes.
    """
    # The metric prints a table for each file otherwise.
    MMLogger.get_current_instance().setLevel('WARNING')
    init_default_scope(cfg.get('default_scope') or 'mmdet')
    dataset = DATASETS.build(cfg.test_dataloader.dataset)
    training = DATASETS.build(cfg.train_dataloader.dataset)
    points: dict[str, Point] = {}
    sessions = {}
    for name, path in args.detectors:
        data = read_file(path, dataset.metainfo['classes'])
        twins = {name: data}
        if not is_1bit(data):
            if not name.startswith(FLOAT):
                raise ValueError(
                    f'{name!r}: {path} has no 1-bit layers, so its name has '
                    f'to begin with {FLOAT!r}'
                )
            images = (
                mmcv.imread(training.get_data_info(i)['img_path'])
                for i in range(min(CALIBRATION, len(training)))
            )
            make = partial(open_session, threads=args.threads)
            twin = name.replace(FLOAT, INT8, 1)
            twins[twin] = quantized(data, make, images)
        for each, content in twins.items():
            detector = open_session(content, args.threads)
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
    data, own = require('surge_runtime.model_file').read_model_file(path)
    if own != tuple(classes):
        raise ValueError(
            f'{path}: its classes are {list(own)}, those of the data '
            f'{list(classes)}'
        )
    return data


def is_1bit(data: bytes) -> bool:
    """Whether an ONNX model has 1-bit layers."""
    graph = require('onnx').load_from_string(data).graph
    return any(node.op_type == 'BinaryConv' for node in graph.node)


def detect(detector: Any, image: np.ndarray) -> list[np.ndarray]:
    """Boxes, scores and labels of an image, uint8 (H, W, 3)."""
    return detector.run(['boxes', 'scores', 'labels'], {'image': image})


def score(detector: Any, dataset: Any, cfg: Config) -> float:
    """MAP on a dataset by the config's metric."""
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
    found = find_map(metrics)
    if found is None:
        raise ValueError(f'test_evaluator: no mAP among {list(metrics)}')
    return float(found)
