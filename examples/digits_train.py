"""A small 1-bit CNN on handwritten digits: network and training loop.

``digits.py`` compares methods with it. Everything here works with torch and
``surge_det.core`` alone, and is meant to be copied from::

    real 3×3 convolution, 2×2 pool, BN -> N blocks at 4×4 -> average pool
    -> real linear layer
    block: x -> PReLU(x + BN(binary conv(x + shift)))
"""

from __future__ import annotations

import functools
import math
import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from digits_scalers import DEPTHS, SCALERS, SCHEDULES
from sklearn.datasets import load_digits
from torch import Tensor, nn

from surge_det.core import AGS, SURGEConv2d, binary_sign
from surge_det.core.fsg import FSG
from surge_det.core.layers import named_surge_layers
from surge_det.core.methods import method_cfg
from surge_det.core.progress import set_progress

TRAIN_IMAGES = 400
# A gradient in 36 blocks per layer: a token per weight takes seconds a step.
FSG_SETTINGS = {
    'slow': {
        'block_size': 64,
        'd_model': 8,
        'expand': 2,
        'independent': True,
    }
}
# FSG's fast networks with their nonlinearities, as FSG has them.
FAST_NETS = {'linear': None, 'tanh': 'tanh', 'relu': 'relu'}
# The least value of a setting.
LEAST = {'layers': 1, 'seed': 0, 'epochs': 1, 'batch': 2, 'clip_norm': 0}
LEAST |= {'aux_lr': 0, 'weight_lr': 0}


@dataclass(frozen=True)
class Run:
    """Everything that one training depends on.

    Attributes:
        method: A name that ``surge_det.core.methods.method_cfg`` takes.
        layers: Number of 1-bit convolutions.
        seed: Of split, initial weights and order of batches.
        eta: Base factor of AGS, a number or ``'auto'``; 0 without a replica.
        aux_lr: Learning rate of the replicas over that of the rest; 0
            freezes them.
        aux_init: Where a replica starts: ``'weight'``, a copy of the latent
            weights; ``'random'``, another draw from their distribution;
            ``'binary'``, the 1-bit weights with their scale; ``'zeros'``.
        scaler: ``'ags'``, the method itself, or one of the experiments in
            ``digits_scalers.py``.
        weight_lr: Learning rate of the latent weights over that of the rest;
            0 freezes them.
        fast_net: FSG's fast network, one of ``FAST_NETS``.
        fast_lr: Learning rate of that network.
        optimizer: ``'sgd'``, with momentum 0.9, or ``'adam'``.
        lr: The first learning rate; it falls to 0 along a cosine.
        epochs: Passes over the training images.
        batch: Images per step.
        clip_norm: Norm at which gradients are clipped; 0 for no clipping.
        width: Channels.

    Raises:
        ValueError: If a value is not allowed.
    """

    method: str
    layers: int
    seed: int
    eta: float | str = 0.1
    aux_lr: float = 1.0
    aux_init: str = 'weight'
    scaler: str = 'ags'
    optimizer: str = 'sgd'
    lr: float = 0.2
    epochs: int = 20
    batch: int = 50
    # Without it one run in fifteen with a replica diverges at the default
    # rate.
    clip_norm: float = 2.0
    width: int = 16
    weight_lr: float = 1.0
    fast_net: str = 'linear'
    fast_lr: float = 1e-2

    def __post_init__(self) -> None:
        """Check the values."""
        keywords = method_cfg(self.method)
        AGS(self.eta)
        for name, value in vars(self).items():
            allowed = None
            if name in CHOICES and value not in CHOICES[name]:
                allowed = f'one of {CHOICES[name]}'
            if name in LEAST and not LEAST[name] <= value < math.inf:
                allowed = f'at least {LEAST[name]}'
            if name in ('lr', 'fast_lr') and not 0 < value < math.inf:
                allowed = 'above 0'
            if name == 'batch' and value > TRAIN_IMAGES:
                allowed = f'at most {TRAIN_IMAGES}'
            composed = self.method.startswith('surge+')
            if name == 'scaler' and value == 'clipped' and composed:
                allowed = f'any other with {self.method}, for it is of STE'
            fixed = 'auto' not in (self.eta, keywords.get('eta'))
            if not fixed and value in (*SCHEDULES, *DEPTHS):
                allowed = 'any other where eta is auto'
            if allowed:
                raise ValueError(f'{name}={value!r} is not allowed: {allowed}')

    @property
    def uses_fsg(self) -> bool:
        """Whether the weights' gradients are FSG's."""
        return self.method.removeprefix('surge+') == 'fsg'


class Block(nn.Module):
    """Shift, 1-bit 3×3 convolution, BN, shortcut around them, PReLU.

    Args:
        width: C.
        keywords: Of the ``SURGEConv2d``.

    Shape:
        (N, C, H, W) to the same.
    """

    def __init__(self, width: int, keywords: dict[str, Any]) -> None:
        super().__init__()
        self.conv = SURGEConv2d(
            width, width, 3, padding=1, bias=False, shift=0.0, **keywords
        )
        self.bn = nn.BatchNorm2d(width)
        self.act = nn.PReLU(width)

    def forward(self, x: Tensor) -> Tensor:
        """Apply."""
        return self.act(x + self.bn(self.conv(x)))


def build(run: Run) -> nn.Module:
    """Build the network of a run: (N, 1, 8, 8) to (N, 10).

    The initial weights depend on seed, layers and width only.

    Raises:
        ValueError: If the method is unknown.
    """
    keywords = method_cfg(run.method)
    if keywords['compensate']:
        keywords.setdefault('eta', run.eta)
    # No method draws random numbers from the global generator, so all of
    # them start from the same weights.
    torch.manual_seed(run.seed)
    model = nn.Sequential(
        nn.Conv2d(1, run.width, 3, padding=1, bias=False),
        # At 8×8 pixels a run would cost more than twice as much.
        nn.AvgPool2d(2),
        nn.BatchNorm2d(run.width),
        *(Block(run.width, keywords) for _ in range(run.layers)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(run.width, 10),
    )
    for depth, (_, layer) in enumerate(named_surge_layers(model)):
        if not layer.compensate:
            continue
        if run.aux_init != 'weight':
            _start_replica(layer, run.aux_init)
        if run.scaler in SCALERS:
            layer.ags = SCALERS[run.scaler](keywords['eta'])
        if run.scaler in DEPTHS:
            layer.ags.eta *= DEPTHS[run.scaler](depth / run.layers)
    return model


@torch.no_grad()
def _start_replica(layer: SURGEConv2d, how: str) -> None:
    other = torch.zeros_like(layer.weight)
    if how == 'random':
        # As nn.Conv2d draws its weights.
        nn.init.kaiming_uniform_(other, a=math.sqrt(5))
    elif how == 'binary':
        scale = layer.weight.abs().mean((1, 2, 3), keepdim=True)
        other = scale * binary_sign(layer.weight)
    layer.begin_training()
    layer.aux_weight.copy_(other)


CHOICES = {
    'aux_init': ('weight', 'random', 'binary', 'zeros'),
    'scaler': ('ags', *SCALERS, *SCHEDULES, *DEPTHS),
    'fast_net': tuple(FAST_NETS),
    'optimizer': ('sgd', 'adam'),
}


@functools.cache
def _images() -> tuple[Tensor, Tensor]:
    images, labels = load_digits(return_X_y=True)
    images = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8)
    return images, torch.tensor(labels)


def train(run: Run) -> dict[str, Any]:
    """Train and test.

    Returns:
        ``accuracy`` on the test images, 0 to 1; ``loss``, the mean over the
        last epoch; ``seconds`` of CPU time.
    """
    start = time.process_time()
    generator = torch.Generator().manual_seed(run.seed)
    images, labels = _images()
    order = torch.randperm(len(images), generator=generator)
    ours, others = order[:TRAIN_IMAGES], order[TRAIN_IMAGES:]
    images = (images - images[ours].mean()) / images[ours].std()

    model = build(run)
    aux, main = [], []
    for name, param in model.named_parameters():
        (aux if name.endswith('aux_weight') else main).append(param)
    layers = [layer for _, layer in named_surge_layers(model)]
    latent = [layer.weight for layer in layers]
    known = {id(param) for param in latent}
    groups = [
        {'params': [p for p in main if id(p) not in known], 'lr': run.lr},
        {'params': latent, 'lr': run.lr * run.weight_lr},
        {'params': aux, 'lr': run.lr * run.aux_lr},
    ]
    groups = [group for group in groups if group['params']]
    if run.optimizer == 'sgd':
        optimizer = torch.optim.SGD(groups, momentum=0.9)
    else:
        optimizer = torch.optim.Adam(groups, fused=True)
    steps = run.epochs * math.ceil(TRAIN_IMAGES / run.batch)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    # Apart, so that replicas, and gradients that FSG generates, of whatever
    # size, take nothing from the rest.
    clipped = [main, aux]
    fsg = None
    if run.uses_fsg:
        clipped = [[p for p in main if id(p) not in known], latent, aux]
        fsg = FSG(
            model,
            fast={'nonlinearity': FAST_NETS[run.fast_net]},
            fast_lr=run.fast_lr,
            **FSG_SETTINGS,
        )
    step = 0
    for _ in range(run.epochs):
        losses = []
        shuffled = ours[torch.randperm(TRAIN_IMAGES, generator=generator)]
        for batch in shuffled.split(run.batch):
            set_progress(model, step / steps)
            if run.scaler in SCHEDULES:
                for layer in layers:
                    factor = SCHEDULES[run.scaler](step / steps)
                    layer.ags.eta = factor * run.eta
            if fsg is not None:
                fsg.begin(optimizer)
            loss = F.cross_entropy(model(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            if fsg is not None:
                fsg.finish()
            for params in clipped:
                if run.clip_norm and params:
                    nn.utils.clip_grad_norm_(params, run.clip_norm)
            optimizer.step()
            cosine.step()
            step += 1
            losses.append(loss.item())

    model.eval()
    set_progress(model, 1.0)
    with torch.no_grad():
        right = model(images[others]).argmax(1) == labels[others]
    return {
        'accuracy': right.float().mean().item(),
        'loss': statistics.mean(losses),
        'seconds': time.process_time() - start,
    }
