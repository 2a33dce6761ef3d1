"""What a training step costs under DDP, beside processes on their own.

Every process has the detector twice: by itself, and as a replica of a
DistributedDataParallel group. All processes take a step of the one at the same
time, then of the other, in turns; same images, same batch per process, one
thread each. The ratio tells what the group costs.

Example::

    python -m torch.distributed.run --standalone --nproc_per_node 2 -m \\
        surge_det benchmark ddp surge_faster_rcnn_r18_bccd
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

from surge_det.cli.common import config_file, fail

from . import arguments
from .report import ratio
from .train import AS_IS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command line's arguments."""
    parser.add_argument('config', type=config_file)
    arguments.add(parser, 'size', 'batch', rounds=10, warmup=2)
    parser.set_defaults(device='cpu', dtype='float32', channels_last=False)
    parser.set_defaults(threads=1, cpu_time=False, out=None)


def run(args: argparse.Namespace) -> None:
    """Measure in one of the processes; the first one prints."""
    import torch
    import torch.distributed as dist
    from mmengine.model import MMDistributedDataParallel

    from .measure import interleaved
    from .train_step import Trainer, random_batches, read_train_config

    if not dist.is_torchelastic_launched():
        fail('start it by python -m torch.distributed.run')
    dist.init_process_group('gloo')
    try:
        cfg = read_train_config(args.config)
        batches = random_batches(cfg, args, dist.get_rank())
    except ValueError as error:
        fail(error)

    def wrapped(model: torch.nn.Module) -> torch.nn.Module:
        return MMDistributedDataParallel(
            model, device_ids=None, broadcast_buffers=False
        )

    def step_of(trainer: Trainer) -> Callable[[], float]:
        def step() -> float:
            torch.manual_seed(0)
            # All start at once.
            dist.barrier()
            return trainer.step()

        return step

    steps = {
        'alone': step_of(Trainer(cfg, AS_IS, batches, args)),
        'ddp': step_of(Trainer(cfg, AS_IS, batches, args, wrapped)),
    }
    seconds = interleaved(steps, args)
    gathered = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, seconds)
    if dist.get_rank() == 0:
        # A round is as slow as the slowest process.
        alone, ddp = (
            [max(turns) for turns in zip(*(g[name] for g in gathered))]
            for name in steps
        )
        print(
            f'{args.config.stem}, {len(gathered)} processes, batch '
            f'{args.batch} each: alone {statistics.median(alone):.4g} s, DDP '
            f'{statistics.median(ddp):.4g} s a step, ratio '
            f'{ratio(ddp, alone):.2f} (median of {args.rounds} pairs)',
            flush=True,
        )
