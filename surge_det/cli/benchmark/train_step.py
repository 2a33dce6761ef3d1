"""Training steps of a detector with one or another kind of layers."""

from __future__ import annotations

import argparse
import copy
import resource
import sys
from collections.abc import Callable, Sequence
from itertools import cycle, islice
from pathlib import Path

import torch
from mmdet.registry import MODELS
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from torch import nn

from surge_det.cli.common import read_config, training_data
from surge_det.core import SURGEConv2d
from surge_det.core.layers import named_surge_layers
from surge_det.models.complexity import image_shape

from .measure import interleaved, peak_mib, timed
from .reference import REFERENCES, copy_as
from .train import NARROW, STE

# Batches of --data that are taken in turn.
BATCHES = 4
# A config's name and a contestant -> seconds of its steps, and MiB of one
# at its peak.
Taken = dict[tuple[str, str], tuple[list[float], 'float | None']]


def measure(
    paths: Sequence[Path], contestants: Sequence[str], args: argparse.Namespace
) -> tuple[Taken, float]:
    """Let configs and contestants take turns, step by step.

    Returns:
        What each took, and the largest size of this process in MiB.

    Raises:
        OSError: If the training images cannot be read.
        ValueError: If a config does not fit.
    """
    cfgs = {path.stem: read_train_config(path) for path in paths}
    make = training_batches if args.data else random_batches
    batches = make(next(iter(cfgs.values())), args)
    trainers = {
        (name, contestant): Trainer(cfg, contestant, batches, args)
        for name, cfg in cfgs.items()
        for contestant in contestants
    }
    turns = {key: trainer.step for key, trainer in trainers.items()}
    seconds = interleaved(turns, args, ', '.join(cfgs))
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    process_peak = size / 2 ** (20 if sys.platform == 'darwin' else 10)
    taken = {
        key: (seconds[key], peak_mib(trainer.step, trainer.device))
        for key, trainer in trainers.items()
    }
    return taken, process_peak


def read_train_config(path: Path) -> Config:
    """Read a config, without weights that may be for download.

    Raises:
        ValueError: If it cannot be read.
    """
    # Every initialized parameter is a line otherwise.
    MMLogger.get_current_instance().setLevel('WARNING')
    cfg = read_config(path)
    init_default_scope(cfg.get('default_scope') or 'mmdet')
    cfg.model.get('backbone', {}).pop('init_cfg', None)
    return cfg


def random_batches(
    cfg: Config, args: argparse.Namespace, seed: int = 0
) -> list[dict]:
    """Make a batch of noise with eight boxes an image.

    Raises:
        ValueError: If neither ``--size`` nor the config says how large.
    """
    size = args.size or image_shape(cfg)
    head = cfg.model.get('roi_head') or cfg.model
    torch.manual_seed(seed)
    batch = demo_mm_inputs(
        batch_size=args.batch,
        image_shapes=[(3, *size)] * args.batch,
        num_items=[8] * args.batch,
        num_classes=head['bbox_head']['num_classes'],
        device=args.device,
    )
    return [batch]


def training_batches(cfg: Config, args: argparse.Namespace) -> list[dict]:
    """Read the first batches of a config's training images."""
    return list(islice(training_data(cfg), BATCHES))


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
        elif contestant in REFERENCES:
            if not isinstance(layer, SURGEConv2d) or layer.shift is not None:
                raise ValueError(
                    f'{name} is {layer}: the references are convolutions '
                    'without a shift of their own'
                )
            parent, _, child = name.rpartition('.')
            copied = copy_as(layer, REFERENCES[contestant])
            setattr(model.get_submodule(parent), child, copied)


class Trainer:
    """A detector with a contestant's layers, and its optimizer.

    Args:
        cfg: The config; not changed.
        contestant: One of ``CONTESTANTS``, or ``AS_IS``.
        batches: What ``train_step`` takes, in turn.
        args: The command line.
        wrap: Makes the model a replica of a group of processes.
    """

    def __init__(
        self,
        cfg: Config,
        contestant: str,
        batches: Sequence[dict],
        args: argparse.Namespace,
        wrap: Callable[[nn.Module], nn.Module] = lambda model: model,
    ) -> None:
        self.device = torch.device(args.device)
        self.cpu_time = args.cpu_time
        self.batches = cycle(batches)
        torch.manual_seed(0)
        model = MODELS.build(cfg.model)
        model.init_weights()
        change_layers(model, contestant)
        model.to(self.device).train()
        if args.channels_last:
            model.to(memory_format=torch.channels_last)
        self.model = wrap(model)
        wrapper = copy.deepcopy(cfg.optim_wrapper)
        if contestant in (*REFERENCES, STE):
            # No replica is left that these were about.
            for key in ('ags', 'fsg', 'constructor', 'paramwise_cfg'):
                wrapper.pop(key, None)
            wrapper.type = 'OptimWrapper'
        if args.dtype == 'autocast':
            # mmengine's own asks for a GPU.
            kind = 'FSG' if wrapper.type.startswith('FSG') else 'AGS'
            wrapper.type = f'{kind}AmpOptimWrapper'
            wrapper.dtype = 'bfloat16'
        self.wrapper = build_optim_wrapper(self.model, wrapper)
        # Schedules go by the number of steps.
        steps = args.warmup + args.rounds
        self.wrapper.initialize_count_status(self.model, 0, steps)

    def step(self) -> float:
        """Take one step; returns its seconds."""
        batch = copy.deepcopy(next(self.batches))
        return timed(
            lambda: self.model.train_step(batch, self.wrapper),
            self.device,
            self.cpu_time,
        )
