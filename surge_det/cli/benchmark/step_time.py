"""Time training steps of several configs against one another.

One process, one thread, the same batches; the configs take turns step by
step, so that whatever else the machine does meets all of them. The unit is
CPU time. With a single config the peak memory printed is that config's.

Example::

    python tools/step_time.py configs/ste_faster_rcnn_r18_bccd.py \\
        configs/fsg_faster_rcnn_r18_bccd.py --steps 10
"""

from __future__ import annotations

import argparse
import copy
import resource
import statistics
import sys
import time
from pathlib import Path

# First: closes the toolbox's gaps before anything of it is imported.
import surge_det  # noqa: F401

# isort: split
import torch
from mmdet.registry import MODELS
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

from surge_det.cli.common import fail, read_config


class Trainer:
    """A model and its optimizer, ready to step.

    Args:
        path: The config.
        max_iters: Iterations that schedules are told the run has.
    """

    def __init__(self, path: str, max_iters: int) -> None:
        self.name = Path(path).stem
        self.cfg = read_config(path)
        init_default_scope(self.cfg.get('default_scope', 'mmdet'))
        torch.manual_seed(0)
        self.model = MODELS.build(self.cfg.model)
        self.model.init_weights()
        self.model.train()
        self.wrapper = build_optim_wrapper(self.model, self.cfg.optim_wrapper)
        self.wrapper.initialize_count_status(self.model, 0, max_iters)

    def step(self, batch: dict) -> float:
        """Take one step; returns its CPU time in seconds."""
        batch = copy.deepcopy(batch)
        start = time.process_time()
        self.model.train_step(batch, self.wrapper)
        return time.process_time() - start


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description='Time training steps')
    parser.add_argument(
        'configs', nargs='+', help='train configs; the first is the reference'
    )
    parser.add_argument('--steps', type=int, default=10)
    parser.add_argument(
        '--warmup',
        type=int,
        default=6,
        help='steps that are not counted; FSG does all its work from the '
        'sixth on',
    )
    args = parser.parse_args(argv)
    for name, low in (('steps', 1), ('warmup', 0)):
        if getattr(args, name) < low:
            fail(f'--{name} {getattr(args, name)}: at least {low} is allowed')
    for config in args.configs:
        if not Path(config).is_file():
            fail(f'config {config!r} does not exist')
    return args


def peak_mebibytes() -> float:
    """Return the largest resident size this process has had."""
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size / 2 ** (20 if sys.platform == 'darwin' else 10)


def main(argv: list[str] | None = None) -> None:
    """Run the tool."""
    args = parse_args(argv)
    torch.set_num_threads(1)
    count = args.warmup + args.steps
    try:
        trainers = [Trainer(config, count) for config in args.configs]
    except ValueError as error:
        fail(error)
    loader_cfg = copy.deepcopy(trainers[0].cfg.train_dataloader)
    loader_cfg.update(num_workers=0, persistent_workers=False)
    loader = Runner.build_dataloader(loader_cfg, seed=0)
    batches = [batch for batch, _ in zip(loader, range(4))]
    seconds = [[] for _ in trainers]
    for index in range(count):
        for trainer, found in zip(trainers, seconds):
            found.append(trainer.step(batches[index % len(batches)]))
    reference = seconds[0][args.warmup :]
    for trainer, found in zip(trainers, seconds):
        found = found[args.warmup :]
        ratio = statistics.median(a / b for a, b in zip(found, reference))
        print(
            f'{trainer.name}: {statistics.median(found):.3f} s a step, '
            f'{ratio:.2f} of {trainers[0].name}'
        )
    print(f'peak memory of this process: {peak_mebibytes():.0f} MiB')


if __name__ == '__main__':
    main()
