"""Time and memory of a detector's training step, by several kinds of layers.

One config's detector trains on random images of its size with its 1-bit
convolutions as they are (*SURGE*), with the replica's products in bfloat16,
without replica, and replaced by float convolutions, *reference STE* and
*reference SURGE* (see reference.py beside this file). The contestants take
turns step by step. Everything else of the step is the config's: optimizer,
clipping, losses.

Example::

    python tools/benchmark_train.py configs/surge_faster_rcnn_r18_voc.py \\
        configs/surge_ssd300_vgg16_voc.py --batch 2 --out work_dirs/train
"""

from __future__ import annotations

import argparse
import copy
import csv
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

# First: closes the toolbox's gaps before anything of it is imported.
import surge_det  # noqa: F401

# isort: split
import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt
import torch
from mmdet.registry import MODELS
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from torch import nn

from surge_det.cli.benchmark import arguments
from surge_det.cli.benchmark.layer import FLOAT, REF_STE, REF_SURGE
from surge_det.cli.benchmark.measure import (
    MIB,
    interleaved,
    peak_bytes,
    ratio,
    timed,
)
from surge_det.cli.benchmark.reference import (
    ReferenceSTEConv2d,
    ReferenceSURGEConv2d,
    as_reference,
)
from surge_det.cli.common import fail, read_config
from surge_det.core import SURGEConv2d
from surge_det.core.layers import named_surge_layers

SURGE, NARROW, STE = 'SURGE', 'SURGE aux bf16', 'SURGE layers, STE'
_REFERENCES: dict[str, type[nn.Conv2d]] = {
    FLOAT: nn.Conv2d,
    REF_STE: ReferenceSTEConv2d,
    REF_SURGE: ReferenceSURGEConv2d,
}
CONTESTANTS = [FLOAT, REF_STE, REF_SURGE, SURGE, NARROW, STE]


def change_layers(model: nn.Module, contestant: str) -> None:
    """Make a detector's 1-bit convolutions those of a contestant.

    Raises:
        ValueError: If a layer has settings that the references lack.
    """
    for name, layer in list(named_surge_layers(model)):
        if contestant == NARROW:
            layer.aux_dtype = torch.bfloat16
        elif contestant == STE:
            layer.strip()
        if contestant not in _REFERENCES:
            continue
        if not isinstance(layer, SURGEConv2d) or layer.shift is not None:
            raise ValueError(
                f'{name} is {layer}: the references are convolutions without '
                'a shift of their own'
            )
        parent, _, child = name.rpartition('.')
        setattr(
            model.get_submodule(parent),
            child,
            as_reference(layer, _REFERENCES[contestant]),
        )


class Trainer:
    """A detector with a contestant's layers and its optimizer.

    Args:
        cfg: The config; not changed.
        contestant: One of ``CONTESTANTS``.
        batch: What ``train_step`` takes.
        args: The command line.
    """

    def __init__(
        self,
        cfg: Config,
        contestant: str,
        batch: dict,
        args: argparse.Namespace,
    ) -> None:
        self.device = torch.device(args.device)
        self.batch = batch
        torch.manual_seed(0)
        self.model = MODELS.build(cfg.model)
        self.model.init_weights()
        change_layers(self.model, contestant)
        self.model.to(self.device).train()
        if args.channels_last:
            self.model.to(memory_format=torch.channels_last)
        if args.dtype == 'bfloat16':
            self.model.to(torch.bfloat16)
            # Images become float32 there.
            self.model.data_preprocessor.register_forward_hook(_narrow_images)
        wrapper = copy.deepcopy(cfg.optim_wrapper)
        if contestant in (*_REFERENCES, STE):
            # No replica is left that these were about.
            for key in ('ags', 'constructor', 'paramwise_cfg'):
                wrapper.pop(key, None)
            wrapper.type = 'OptimWrapper'
        if args.dtype == 'autocast':
            # mmengine's own asks for a GPU.
            wrapper.type = 'AGSAmpOptimWrapper'
            wrapper.dtype = 'bfloat16'
        self.wrapper = build_optim_wrapper(self.model, wrapper)

    def step(self) -> float:
        """Take one step; returns its seconds."""
        batch = copy.deepcopy(self.batch)
        return timed(
            lambda: self.model.train_step(batch, self.wrapper), self.device
        )


def _narrow_images(module: nn.Module, args: tuple, data: dict) -> dict:
    return {**data, 'inputs': data['inputs'].to(torch.bfloat16)}


def image_size(cfg: Config) -> tuple[int, int]:
    """Rows and columns that the config's test images are resized to.

    Raises:
        ValueError: If its pipeline has no such size.
    """
    for step in cfg.test_dataloader.dataset.pipeline:
        if step.type.endswith('Resize') and 'scale' in step:
            return min(step.scale), max(step.scale)
    raise ValueError(
        'test_dataloader.dataset.pipeline has no Resize with a scale; give '
        '--size'
    )


def class_count(model_cfg: dict) -> int:
    """Return ``num_classes`` of a detector's heads."""
    head = model_cfg.get('roi_head') or model_cfg
    return head['bbox_head']['num_classes']


def measure(
    path: Path, args: argparse.Namespace
) -> dict[str, tuple[list[float], float | None]]:
    """Measure all contestants on one config.

    Returns:
        Contestant -> seconds of its steps, and MiB of one at its peak.
    """
    cfg = read_config(path)
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    # Weights don't matter here, and may be for download.
    cfg.model.get('backbone', {}).pop('init_cfg', None)
    size = args.size or image_size(cfg)
    torch.manual_seed(0)
    batch = demo_mm_inputs(
        batch_size=args.batch,
        image_shapes=[(3, *size)] * args.batch,
        num_items=[8] * args.batch,
        num_classes=class_count(cfg.model),
        device=args.device,
    )
    trainers = {c: Trainer(cfg, c, batch, args) for c in args.contestants}
    done = 0

    def tick() -> None:
        nonlocal done
        done += 1
        print(
            f'\r{path.stem}: round {done} of {args.warmup + args.rounds}   ',
            end='',
            file=sys.stderr,
            flush=True,
        )

    turns: dict[str, Callable[[], float]] = {
        name: trainer.step for name, trainer in trainers.items()
    }
    seconds = interleaved(turns, args.rounds, args.warmup, tick)
    print(file=sys.stderr)
    results = {}
    for name, trainer in trainers.items():
        peak = peak_bytes(trainer.step, trainer.device)
        results[name] = seconds[name], None if peak is None else peak / MIB
    return results


Results = dict[str, dict[str, tuple[list[float], float | None]]]


def table(results: Results, base: str) -> str:
    """Make a Markdown table with a row for each config and contestant."""
    lines = [
        f'| config | layers | s / step | / {base} | peak, MiB | / {base} |',
        '|---' * 6 + '|',
    ]
    for config, measured in results.items():
        base_seconds, base_peak = measured[base]
        for name, (seconds, peak) in measured.items():
            memory = ['—', '—']
            if peak is not None:
                memory = [f'{peak:.0f}', f'{peak / base_peak:.2f}']
            cells = [
                config,
                name,
                f'{statistics.median(seconds):.3f}',
                f'{ratio(seconds, base_seconds):.2f}',
                *memory,
            ]
            lines.append(f'| {" | ".join(cells)} |')
    return '\n'.join(lines)


def write_csv(results: Results, path: Path) -> None:
    """Write a row for each step."""
    with open(path, 'w', newline='') as file:
        writer = csv.writer(file)
        writer.writerow(['config', 'layers', 'round', 's', 'peak_mib'])
        for config, measured in results.items():
            for name, (seconds, peak) in measured.items():
                for i, value in enumerate(seconds):
                    shown = '' if peak is None else f'{peak:.1f}'
                    writer.writerow([config, name, i, f'{value:.4f}', shown])


def draw(results: Results, base: str, path: Path) -> None:
    """Draw time and peak memory relative to the base, by config."""
    figure, axes = plt.subplots(
        1, 2, figsize=(10, 4.5), layout='constrained', sharey=True
    )
    names = list(next(iter(results.values())))
    width = 0.8 / len(names)
    for i, name in enumerate(names):
        times, peaks = [], []
        for measured in results.values():
            seconds, peak = measured[name]
            base_seconds, base_peak = measured[base]
            times.append(ratio(seconds, base_seconds))
            peaks.append(0 if peak is None else peak / base_peak)
        places = [j + (i + 0.5) * width - 0.4 for j in range(len(results))]
        for ax, heights in zip(axes, (times, peaks)):
            ax.bar(places, heights, width, color=f'C{i}', label=name)
    for ax, title in zip(axes, ('time of a step', 'peak memory of a step')):
        ax.axhline(1, color='black', linewidth=0.8)
        ax.set_xticks(
            range(len(results)),
            [name.replace('_', ' ') for name in results],
            fontsize='small',
        )
        ax.set_title(f'{title} / {base}', fontsize='medium')
        ax.grid(axis='y', alpha=0.3)
    axes[0].set_ylim(top=axes[0].get_ylim()[1] * 1.25)
    axes[0].legend(ncols=2, fontsize='small', loc='upper left')
    figure.savefig(path, dpi=120)
    plt.close(figure)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = arguments.parser_of(__doc__)
    add = parser.add_argument
    add('configs', nargs='+', type=Path, metavar='CONFIG')
    add(
        '--contestants',
        nargs='+',
        choices=CONTESTANTS,
        default=CONTESTANTS,
        metavar='NAME',
        help=f'of {CONTESTANTS}; ratios are to {REF_STE!r}, or the first',
    )
    add(
        '--size',
        nargs=2,
        type=int,
        metavar=('ROWS', 'COLUMNS'),
        help="of the images; default: the config's",
    )
    add('--batch', type=int, default=2)
    arguments.add_machine_arguments(parser)
    arguments.add_turn_arguments(parser, rounds=5, warmup=2)
    arguments.add_out_argument(parser)
    args = parser.parse_args(argv)
    arguments.check(parser, args)
    for path in args.configs:
        if not path.is_file():
            parser.error(f'config {str(path)!r} does not exist')
    return args


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark."""
    args = parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    # Every initialized parameter is a line otherwise.
    MMLogger.get_current_instance().setLevel('WARNING')
    base = REF_STE if REF_STE in args.contestants else args.contestants[0]
    results: Results = {}
    for path in args.configs:
        try:
            results[path.stem] = measure(path, args)
        except ValueError as error:
            fail(f'{path}: {error}')
    text = (
        f'{table(results, base)}\n\n'
        f'batch {args.batch}, {arguments.conditions(args)}'
    )
    print(text)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / 'train.md').write_text(text + '\n')
        write_csv(results, args.out / 'train.csv')
        draw(results, base, args.out / 'train.png')
        print(f'Table, train.csv and train.png: {args.out}')


if __name__ == '__main__':
    main()
