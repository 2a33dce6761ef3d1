"""What a training step costs under DDP, beside processes on their own.

Every process has the detector twice: by itself, and as a replica of a
DistributedDataParallel group. All processes take a step of the one at the same
time, then of the other, in turns; same images, same batch per process, one
thread each. The ratio tells what the group costs.

Example::

    python -m torch.distributed.run --standalone --nproc_per_node 2 \\
        tools/benchmark_ddp.py configs/surge_faster_rcnn_r18_bccd.py
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path

# First: closes the toolbox's gaps before anything of it is imported.
import surge_det  # noqa: F401

# isort: split
import torch
import torch.distributed as dist
from mmdet.registry import MODELS
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope

from surge_det.cli.benchmark import arguments
from surge_det.cli.benchmark.measure import interleaved, ratio, timed
from surge_det.cli.benchmark.train import class_count, image_size
from surge_det.cli.common import fail, read_config
from surge_det.cli.main import leave


def build(cfg: Config, wrap: bool, batch: dict) -> Callable[[], float]:
    """Make a detector and return what takes a step and its seconds.

    Args:
        cfg: The config.
        wrap: Whether it joins the group.
        batch: What ``train_step`` takes.
    """
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    model.train()
    if wrap:
        model = MMDistributedDataParallel(
            model, device_ids=None, broadcast_buffers=False
        )
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    device = torch.device('cpu')

    def step() -> float:
        torch.manual_seed(0)
        # All start at once.
        dist.barrier()
        return timed(lambda: model.train_step(batch, wrapper), device)

    return step


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = arguments.parser_of(__doc__)
    add = parser.add_argument
    add('config', type=Path)
    add('--size', nargs=2, type=int, metavar=('ROWS', 'COLUMNS'))
    add('--batch', type=int, default=2, help='of each process')
    arguments.add_turn_arguments(parser, rounds=10, warmup=2)
    args = parser.parse_args(argv)
    arguments.check(parser, args)
    if not args.config.is_file():
        parser.error(f'config {str(args.config)!r} does not exist')
    return args


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark in one of the processes."""
    args = parse_args(argv)
    if not dist.is_torchelastic_launched():
        fail('start it by python -m torch.distributed.run')
    torch.set_num_threads(1)
    dist.init_process_group('gloo')
    MMLogger.get_current_instance().setLevel('WARNING')
    try:
        cfg = read_config(args.config)
    except ValueError as error:
        fail(error)
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    cfg.model.get('backbone', {}).pop('init_cfg', None)
    torch.manual_seed(dist.get_rank())
    batch = demo_mm_inputs(
        batch_size=args.batch,
        image_shapes=[(3, *(args.size or image_size(cfg)))] * args.batch,
        num_items=[8] * args.batch,
        num_classes=class_count(cfg.model),
    )
    steps = {
        'alone': build(cfg, False, batch),
        'ddp': build(cfg, True, batch),
    }
    seconds = interleaved(steps, args.rounds, args.warmup)
    gathered = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, seconds)
    if dist.get_rank() == 0:
        # A round is as slow as the slowest process.
        alone, ddp = (
            [max(turns) for turns in zip(*(g[name] for g in gathered))]
            for name in steps
        )
        print(
            f'{args.config.stem}, {dist.get_world_size()} processes, batch '
            f'{args.batch} each: alone {statistics.median(alone):.3f} s, DDP '
            f'{statistics.median(ddp):.3f} s a step, ratio '
            f'{ratio(ddp, alone):.2f} (median of {args.rounds} pairs)',
            flush=True,
        )
    leave()


if __name__ == '__main__':
    main()
