"""Time of a 1-bit detector on a CPU beside its float twin, and its bytes.

The contestants take turns: the float twin (the same detector with nothing
binarized) in torch and in OpenVINO, there in float32 and, where nncf is
installed, in int8; the 1-bit detector in torch and as `tools/export.py
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

    python tools/benchmark_inference.py configs/surge_ssd300_vgg16_voc.py \\
        configs/surge_faster_rcnn_r18_voc.py --threads 1 2 --out work_dirs/fast
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

# First: closes the toolbox's gaps before anything of it is imported.
import surge_det  # noqa: F401

# isort: split
import mmcv
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from torch import Tensor

from surge_det.cli.benchmark import arguments
from surge_det.cli.benchmark.inference_measure import (
    FULL_SIZE,
    INT8,
    Case,
    Detector,
    Runs,
    at_size,
    int8_problem,
    layer_runs,
    profile,
    profile_stages,
)
from surge_det.cli.benchmark.inference_report import (
    Sizes,
    count_table,
    draw,
    mean_table,
    profile_table,
    size_table,
    stage_table,
    table,
    write_csv,
    write_sizes,
)
from surge_det.cli.benchmark.layers import SHAPES
from surge_det.cli.common import (
    add_cfg_options,
    fail,
    parse_cfg_options,
    read_config,
)
from surge_det.datasets import merge_options
from surge_det.deploy.extra import require
from surge_det.deploy.openvino.runtime import shared_core
from surge_det.deploy.openvino.self_check import check_input
from surge_det.engine.apply_method import apply_method

LEVELS = ['layers', 'network', 'detector']
DEFAULT_SIZES = [(240, 320), FULL_SIZE]


def one_bit_config(path: Path, args: argparse.Namespace) -> Config:
    """Read a config.

    Raises:
        ValueError: If that fails, or there is nothing 1-bit in it; names it.
    """
    cfg = read_config(path)
    try:
        merge_options(cfg, parse_cfg_options(args.cfg_options or []))
        # What the twin is made by.
        apply_method(cfg, 'float')
    except ValueError as error:
        raise ValueError(f'{path}: {error}') from error
    return cfg


def config_sizes(cfg: Config) -> list[tuple[int, int]]:
    """Rows and columns to run at: the config's if it has one for all."""
    for step in cfg.test_dataloader.dataset.pipeline:
        if step.type.endswith('Resize') and not step.get('keep_ratio'):
            columns, rows = step['scale']
            return [(rows, columns)]
    return DEFAULT_SIZES


class Progress:
    """A line on stderr.

    Args:
        total: Number of rounds that a case takes.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.done = 0
        self.title = ''

    def start(self, title: str) -> None:
        """Begin with the next case."""
        self.title, self.done = title, 0
        self._show('getting ready')

    def tick(self) -> None:
        """Count a round."""
        self.done += 1
        self._show(f'round {self.done} of {self.total}')

    def _show(self, text: str) -> None:
        line = f'{self.title}: {text}'
        print(f'\r{line:<78}', end='', file=sys.stderr, flush=True)


def measure_layers(
    args: argparse.Namespace, progress: Progress
) -> Iterator[Case]:
    """Measure the layers, one after the other."""
    for threads in args.threads:
        torch.set_num_threads(threads)
        for size in args.size or DEFAULT_SIZES:
            for shape in SHAPES:
                if shape.kernel != 3:
                    continue
                channels = min(shape.c_in, shape.c_out)
                case = Case('layers', shape.name, size, threads, channels)
                progress.start(case.title)
                runs = layer_runs(at_size(shape, size), threads, args.int8)
                measure(case, runs, args, progress)
                yield case


def measure_config(
    path: Path,
    detector: Detector,
    sizes: Sequence[tuple[int, int]],
    args: argparse.Namespace,
    progress: Progress,
) -> Iterator[Case]:
    """Measure a config's dense network and detector."""
    for threads in args.threads:
        torch.set_num_threads(threads)
        for size in sizes:
            for level in args.levels:
                if level == 'layers':
                    continue
                case = Case(level, path.stem, size, threads)
                progress.start(case.title)
                if level == 'network':
                    runs = detector.network_runs(size, threads)
                else:
                    image = picture(args.image, size)
                    runs, case.counts = detector.detector_runs(image, threads)
                measure(case, runs, args, progress)
                yield case


def measure(
    case: Case, runs: Runs, args: argparse.Namespace, progress: Progress
) -> None:
    """Let the contestants of a case take turns."""
    clock = time.process_time if args.cpu_time else time.perf_counter
    case.measure(runs, args.rounds, args.warmup, progress.tick, clock)


def picture(path: Path | None, size: tuple[int, int]) -> Tensor:
    """Return an image file in a size, or noise: (3, H, W), uint8, BGR."""
    if path is None:
        generator = torch.Generator().manual_seed(0)
        return torch.randint(0, 256, (3, *size), generator=generator).byte()
    image = mmcv.imread(path)
    if image is None:
        raise ValueError(f'--image {str(path)!r}: no image')
    image = mmcv.imresize(image, size[::-1])
    return torch.from_numpy(image).permute(2, 0, 1).contiguous()


def profile_config(
    name: str,
    detector: Detector,
    sizes: Sequence[tuple[int, int]],
    args: argparse.Namespace,
) -> Iterator[str]:
    """Write where the time of a config's 1-bit network and detector goes."""
    for threads in args.threads:
        for size in sizes:
            network = detector.network(threads)
            x = check_input((1, 3, *size))
            found = profile(network, x, args.rounds)
            case = Case('profile of the 1-bit network', name, size, threads)
            yield f'{case.title}:\n\n{profile_table(found)}'
            if 'detector' not in args.levels:
                continue
            torch.set_num_threads(threads)
            image = picture(args.image, size)
            stages = profile_stages(
                detector.exported(threads), image, args.rounds
            )
            case.level = 'profile of the 1-bit detector'
            yield f'{case.title}:\n\n{stage_table(stages)}'


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


# The command line


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = arguments.parser_of(__doc__)
    add = parser.add_argument
    add('configs', nargs='*', type=Path, metavar='CONFIG')
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
        type=int,
        action='append',
        metavar=('ROWS', 'COLUMNS'),
        help='of the images; may be repeated; default: 240 320 and 600 1000, '
        'or the one size that the config resizes all images to',
    )
    add('--threads', nargs='+', type=int, default=[1], metavar='NUMBER')
    add('--checkpoint', help="the CONFIG's; default: random weights")
    add(
        '--float-checkpoint',
        help="the float twin's; default: latent weights of --checkpoint",
    )
    add('--image', type=Path, help='for --levels detector; default: noise')
    add('--no-int8', dest='int8', action='store_false', help='without int8')
    add(
        '--profile',
        action='store_true',
        help='say which operations of the 1-bit network, and with --levels '
        'detector which stages of the detector, take the time',
    )
    arguments.add_cpu_time_argument(parser)
    arguments.add_turn_arguments(parser, rounds=7, warmup=2)
    arguments.add_out_argument(parser)
    add_cfg_options(parser)
    args = parser.parse_args(argv)
    arguments.check(parser, args)
    cpus = _cpus()
    for number in args.threads:
        if number > cpus:
            parser.error(
                f'--threads {number}: this process may use {cpus} CPUs'
            )
    for size in args.size or []:
        if min(size) < 1:
            parser.error(f'--size {size[0]} {size[1]}: at least 1')
    args.size = args.size and [tuple(size) for size in args.size]
    for path in [*args.configs, args.image]:
        if path is not None and not path.is_file():
            what = 'image' if path is args.image else 'config'
            parser.error(f'{what} {str(path)!r} does not exist')
    for name in ('checkpoint', 'float_checkpoint'):
        path = getattr(args, name)
        if path and '://' not in path and not Path(path).is_file():
            parser.error(
                f'--{name.replace("_", "-")} {path!r}: there is no such file'
            )
    if not args.configs and (args.profile or args.levels != ['layers']):
        parser.error('CONFIG is missing: only --levels layers goes without')
    if args.checkpoint and len(args.configs) != 1:
        parser.error('--checkpoint: with one CONFIG only')
    if args.float_checkpoint and not args.checkpoint:
        parser.error('--float-checkpoint: with --checkpoint only')
    return args


def _cpus() -> int:
    if hasattr(os, 'sched_getaffinity'):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark."""
    args = parse_args(argv)
    try:
        require('openvino')
        with tempfile.TemporaryDirectory() as folder:
            run(args, Path(folder))
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        print(file=sys.stderr)
        fail(error)


def run(args: argparse.Namespace, folder: Path) -> None:
    """Measure and report; networks are written into ``folder``."""
    problem = int8_problem() if args.int8 else '--no-int8'
    args.int8 = problem is None
    # Every initialized parameter is a line otherwise.
    MMLogger.get_current_instance().setLevel('WARNING')
    progress = Progress(args.warmup + args.rounds)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
    configs = {path: one_bit_config(path, args) for path in args.configs}
    cases: list[Case] = []
    sizes: dict[str, Sizes] = {}
    profiles: list[str] = []
    if 'layers' in args.levels:
        cases += measure_layers(args, progress)
    for path, cfg in configs.items():
        places = args.size or config_sizes(cfg)
        progress.start(f'{path.stem}, export')
        checkpoints = args.checkpoint, args.float_checkpoint
        try:
            detector = Detector(
                cfg, folder, args.int8, places[0], *checkpoints
            )
            cases += measure_config(path, detector, places, args, progress)
        except (OSError, RuntimeError, ValueError) as error:
            raise RuntimeError(f'{path}: {error}') from error
        sizes[path.stem] = Sizes(
            detector.layer_sizes(), *detector.file_sizes()
        )
        if args.profile:
            profiles += profile_config(path.stem, detector, places, args)
    print(file=sys.stderr)
    texts = [table(cases)]
    if 'layers' in args.levels:
        texts.append(mean_table(cases))
    if sizes:
        texts.append(size_table(sizes))
    if 'detector' in args.levels:
        texts.append(count_table(cases))
    texts += [notes(args, problem), *profiles]
    text = '\n\n'.join(texts)
    print(text)
    if args.out:
        (args.out / 'inference.md').write_text(text + '\n')
        write_csv(cases, args.out / 'inference.csv')
        draw(cases, args.out / 'inference.png')
        if sizes:
            write_sizes(sizes, args.out / 'sizes.csv')
        print(f'Tables, CSV and inference.png: {args.out}')


if __name__ == '__main__':
    main()
