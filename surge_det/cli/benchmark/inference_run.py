"""All measurements of inference, and the report."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from functools import partial
from itertools import product
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.logging import MMLogger

from surge_det.cli.common import read_config
from surge_det.datasets.root import test_pipeline
from surge_det.deploy.comparison import check_input
from surge_det.deploy.extra import require
from surge_det.deploy.openvino.runtime import shared_core
from surge_det.engine.apply_method import apply_method
from surge_det.models.complexity import image_shape

from . import inference_report as report
from .inference_measure import (
    Detector,
    at_size,
    int8_problem,
    layer_runs,
    picture,
    take_turns,
)
from .inference_profile import profile_network, profile_stages
from .inference_report import INT8, Case
from .layers import FULL_SIZE, SHAPES
from .report import Table, draw_bars, publish

DEFAULT_SIZES = [(240, 320), FULL_SIZE]


def measure(args: argparse.Namespace, folder: Path) -> None:
    """Measure and report; networks are written into ``folder``."""
    problem = int8_problem() if args.int8 else '--no-int8'
    args.int8 = problem is None
    # Every initialized parameter is a line otherwise.
    MMLogger.get_current_instance().setLevel('WARNING')
    configs = {
        path: read_config(path, args.cfg_options) for path in args.configs
    }
    for path, cfg in configs.items():
        try:
            # See now whether the float twin can be made.
            apply_method(cfg, 'float')
        except ValueError as error:
            raise ValueError(f'{path}: {error}') from error
    cases: list[Case] = []
    sizes: list[tuple[str, str, int, int]] = []
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
        sizes += [(name, *size) for size in detector.sizes()]
        if args.profile:
            profiles += profile(name, detector, places, args)
    parts: list[str | Table] = [report.time_table(cases)]
    if 'layers' in args.levels:
        parts.append(report.mean_table(cases))
    if sizes:
        parts.append(report.size_table(sizes))
    if 'detector' in args.levels:
        parts.append(report.count_table(cases))
    parts += [notes(args, problem), *profiles]
    draw = partial(draw_bars, report.panels(cases))
    publish(args, 'inference', parts, report.turns(cases), draw)


def config_sizes(cfg: Config) -> list[tuple[int, int]]:
    """Rows and columns to run at: the config's if it has one for all."""
    one_for_all = any(
        step.type.endswith('Resize') and not step.get('keep_ratio')
        for step in test_pipeline(cfg)
    )
    return [image_shape(cfg)] if one_for_all else DEFAULT_SIZES


def layer_cases(args: argparse.Namespace) -> Iterator[Case]:
    """Measure the layers, one after the other."""
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
    device = shared_core().get_property('CPU', 'FULL_DEVICE_NAME')
    lines = [
        f'Milliseconds{" of CPU time" * args.cpu_time}: medians of '
        f'{args.rounds} interleaved rounds, batch 1. Faster: median of the '
        'ratios of paired turns. (cl): it was faster in channels_last.',
        f'{device}, torch {torch.__version__}, OpenVINO '
        f'{require("openvino").__version__}, ONNX Runtime '
        f'{require("onnxruntime").__version__}, 1-bit kernels for '
        f'{require("surge_runtime.library").kernel_path()}.',
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
