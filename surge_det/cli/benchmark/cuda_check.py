"""Whether all works on a GPU as on a CPU, and what training costs there."""

from __future__ import annotations

import copy
import traceback
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from datetime import date
from functools import partial
from statistics import median
from typing import NamedTuple

import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from torch import Tensor, nn

from surge_det.cli.common import config_file, fail
from surge_det.cli.tables import markdown_table
from surge_det.core import SURGEConv2d, SURGELinear
from surge_det.core.bits import (
    pack_codes,
    pack_signs,
    unpack_codes,
    unpack_signs,
)
from surge_det.core.fsg import FSG
from surge_det.core.layers import SURGELayer, named_surge_layers
from surge_det.engine.apply_method import apply_method
from surge_det.engine.hooks.seed_hook import seed_all
from surge_det.engine.optim import AGSAmpOptimWrapper, AGSOptimWrapper

from .contestants import Bench
from .layers import SHAPES, ratio_table
from .measure import interleaved, peak_mib
from .report import number, ratio
from .train import AS_IS
from .train_step import Trainer, random_batches, read_train_config

COMMAND = 'surge-det benchmark --cuda-check'
CONFIG = 'surge_faster_rcnn_r18_voc'
METHODS = ['float', 'ste', 'surge', 'surge_auto']
# Of the detector's layers, those that costs are measured of.
LAYERS = ['layer1', 'layer3', 'fpn3']
# Allowed distance of a gradient from float64's, by its largest value.
_FLOAT32, _NARROW = 1e-4, 2e-2
# What a gradient scaler begins with, and one that never is too large.
_SCALE, _MODEST = 2.0**16, 2.0**10
# Steps in which a scaler has found a scale.
_STEPS = 12


class Row(NamedTuple):
    """What a check found, what is allowed, and whether it is that."""

    check: str
    found: str
    allowed: str
    passed: bool


def _below(check: str, value: float, limit: float) -> Row:
    return Row(check, f'{value:.1e}', f'≤ {limit:.0e}', value <= limit)


def _is(check: str, value: object, wanted: object = True) -> Row:
    return Row(check, str(value), str(wanted), value == wanted)


@contextmanager
def _full_float32() -> Iterator[None]:
    """Convolve without TF32, which rounds as float16 does."""
    found = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = found


def _cases() -> Iterator[tuple[str, SURGELayer, Tensor, Tensor]]:
    """Yield a name, a layer in training, its input, a gradient."""
    plain = 16, 24, 3, 1, 1
    for name, make in {
        'conv': partial(SURGEConv2d, *plain, eta=0.3),
        'conv, eta auto': partial(SURGEConv2d, *plain, eta='auto'),
        'conv, stride 2, groups, padded by +1': partial(
            SURGEConv2d, 16, 24, 3, 2, 1, groups=2, pad_value=1, eta=0.3
        ),
        'conv 1x1, no replica': partial(
            SURGEConv2d, 16, 24, 1, compensate=False
        ),
        'conv, ReSTE, auto': partial(
            SURGEConv2d,
            *plain,
            activation_estimator=dict(type='ReSTE'),
            eta='auto',
        ),
        'conv, ApproxSign, ReCU': partial(
            SURGEConv2d,
            *plain,
            activation_estimator=dict(type='ApproxSign'),
            weight_binarizer=dict(type='ReCU'),
        ),
        'conv, leaky STE, IR-Net': partial(
            SURGEConv2d,
            *plain,
            activation_estimator=dict(type='STE', leak=0.1),
            weight_binarizer=dict(type='IRNet'),
        ),
        'linear': partial(SURGELinear, 64, 32, eta=0.3),
    }.items():
        torch.manual_seed(0)
        layer = make()
        layer.begin_training()
        conv = isinstance(layer, nn.Conv2d)
        x = torch.randn((2, 16, 30, 34) if conv else (50, 64))
        # As small as those of a detector's losses.
        yield name, layer, x, torch.randn_like(layer(x)).mul_(1e-3)


def _apply(
    layer: SURGELayer,
    x: Tensor,
    grad: Tensor,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    narrow: torch.dtype | None = None,
    layout: torch.memory_format = torch.preserve_format,
    scale: float = 1.0,
) -> tuple[list[Tensor], SURGELayer, Tensor]:
    """Run a copy of a layer forward and backward.

    Returns:
        Output and gradients on the CPU in float64, the copy, its output.
    """
    layer = copy.deepcopy(layer).to(device, dtype, memory_format=layout)
    x = x.detach().to(device, dtype, memory_format=layout).requires_grad_()
    with torch.autocast(device.type, narrow) if narrow else nullcontext():
        out = layer(x)
    out.backward(grad.to(out) * scale)
    tensors = [x.grad, *(p.grad for p in layer.parameters())]
    tensors = [out, *(t / scale for t in tensors)]
    return [t.detach().double().cpu() for t in tensors], layer, out


def _distance(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """Return the largest difference, by each tensor's largest value."""
    return max(
        float((a - b).abs().max() / b.abs().max())
        for a, b in zip(found, wanted, strict=True)
    )


def _formula(layer: SURGELayer, x: Tensor, grad: Tensor) -> list[Tensor]:
    return _apply(layer, x, grad, torch.device('cpu'), torch.float64)[0]


def _narrow(device: torch.device) -> torch.dtype:
    # What `train --amp` computes in.
    return torch.bfloat16 if device.type == 'cpu' else torch.float16


def gradients(device: torch.device) -> Iterator[Row]:
    """Compare output and gradients with those of the CPU in float64."""
    for name, layer, x, grad in _cases():
        with _full_float32():
            found = _apply(layer, x, grad, device)[0]
        distance = _distance(found, _formula(layer, x, grad))
        yield _below(f'float32: {name}', distance, _FLOAT32)


def narrow_gradients(device: torch.device) -> Iterator[Row]:
    """The same under autocast, with gradients a scaler has multiplied."""
    narrow = _narrow(device)
    for name, layer, x, grad in _cases():
        found, scaled, _ = _apply(
            layer, x, grad, device, narrow=narrow, scale=_SCALE
        )
        distance = _distance(found, _formula(layer, x, grad))
        yield _below(f'{str(narrow)[6:]}: {name}', distance, _NARROW)
        if layer.ags is None:
            continue
        _, plain, _ = _apply(layer, x, grad, device)
        change = scaled.ags.last_scale / plain.ags.last_scale - 1
        yield _below(
            f'λ in {str(narrow)[6:]}, scaled: {name}',
            abs(float(change)),
            _NARROW,
        )


def channels_last(device: torch.device) -> Iterator[Row]:
    """Compare both memory formats."""
    for name, layer, x, grad in _cases():
        if x.dim() < 4:
            continue
        with _full_float32():
            one = _apply(layer, x, grad, device)[0]
            other, _, out = _apply(
                layer, x, grad, device, layout=torch.channels_last
            )
        yield _below(f'channels_last: {name}', _distance(other, one), _FLOAT32)
        yield _is(
            f'channels_last comes out: {name}',
            out.is_contiguous(memory_format=torch.channels_last),
        )


def _net(device: torch.device) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3),
        nn.BatchNorm2d(16),
        SURGEConv2d(16, 16, 3, eta='auto'),
        nn.Flatten(),
        SURGELinear(16 * 12 * 12, 8, eta=0.3),
    )
    return net.to(device)


def _images(device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(4, 3, 16, 16, generator=generator).to(device)


def _step(wrapper: AGSOptimWrapper, net: nn.Module, x: Tensor) -> None:
    with wrapper.optim_context(net):
        loss = net(x).square().mean()
    wrapper.update_params(loss)


def scaler(device: torch.device) -> Iterator[Row]:
    """Train with a gradient scaler that once has too large a scale."""
    for fused in (False, True):
        name = f'scaler, {"fused" if fused else "plain"} optimizer: '
        net, x = _net(device), _images(device)
        wrapper = AGSAmpOptimWrapper(
            optimizer=torch.optim.SGD(
                net.parameters(), 0.01, momentum=0.9, fused=fused
            )
        )
        wrapper.loss_scaler = torch.amp.GradScaler(device.type, _MODEST)
        _step(wrapper, net, x)
        wrapper.loss_scaler.update(2.0**127)
        before = [*copy.deepcopy(list(net.parameters())), net[2].ags.estimate]
        _step(wrapper, net, 1e4 * x)
        after = [*net.parameters(), net[2].ags.estimate]
        yield _is(
            f'{name}a step is skipped, the scale halved',
            wrapper.loss_scaler.get_scale() == 2.0**126,
        )
        yield _is(
            f'{name}weights and estimates are as before',
            all(map(torch.equal, before, after)),
        )
        wrapper.loss_scaler.update(_MODEST)
        _step(wrapper, net, x)
        after = list(net.parameters())
        yield _is(
            f'{name}the next step moves all weights',
            not any(map(torch.equal, before, after)),
        )
        finite = all(bool(p.isfinite().all()) for p in after)
        yield _is(f'{name}weights are finite', finite)


@contextmanager
def waiting_forbidden(device: torch.device) -> Iterator[None]:
    """Make it an error of torch's to wait for a GPU."""
    if device.type != 'cuda':
        yield
        return
    torch.cuda.set_sync_debug_mode('error')
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode('default')


def waiting(device: torch.device) -> Iterator[Row]:
    """Train where it is an error to wait for the GPU."""
    net, x = _net(device), _images(device)
    wrapper = AGSOptimWrapper(optimizer=torch.optim.SGD(net.parameters(), 0.1))
    _step(wrapper, net, x)
    with waiting_forbidden(device):
        for _ in range(2):
            _step(wrapper, net, x)
    yield _is('a step waits for nothing', True)


def bits(device: torch.device) -> Iterator[Row]:
    """Pack and unpack signs as on the CPU."""
    torch.manual_seed(0)
    codes = torch.randint(4, (3, 5, 7, 3), dtype=torch.uint8)
    weight = torch.randn(5, 3, 3, 3)
    packed = pack_codes(codes.to(device)), pack_signs(weight.to(device))
    yield _is(
        'bits are those of the CPU',
        torch.equal(packed[0].cpu(), pack_codes(codes))
        and torch.equal(packed[1].cpu(), pack_signs(weight)),
    )
    back = unpack_codes(packed[0], codes.shape)
    last = codes.to(device).contiguous(memory_format=torch.channels_last)
    also = unpack_codes(pack_codes(last, True), codes.shape, True)
    signs = unpack_signs(packed[1], weight.shape)
    yield _is(
        'bits are unpacked',
        torch.equal(back.cpu(), codes)
        and torch.equal(also.cpu(), codes)
        and torch.equal(signs.cpu() > 0, weight > 0),
    )


def random_numbers(device: torch.device) -> Iterator[Row]:
    """Draw on the device by the place in a training."""
    drawn = []
    for iteration in (0, 1, 0):
        seed_all('iteration', 0, 0, iteration)
        drawn.append(torch.randn(9, device=device))
    yield _is(
        'random numbers are those of the iteration',
        [torch.equal(drawn[0], other) for other in drawn[1:]],
        [False, True],
    )


def fsg(device: torch.device) -> Iterator[Row]:
    """Three updates of FSG, in float64, as on the CPU."""
    weights = []
    for where in (torch.device('cpu'), device):
        torch.manual_seed(0)
        net = nn.Sequential(SURGELinear(40, 24), SURGELinear(24, 3))
        net.to(where, torch.float64)
        x = torch.randn(6, 40, dtype=torch.float64).to(where)
        for nonlinearity in (None, 'relu'):
            torch.manual_seed(0)
            method = FSG(
                net,
                fast=dict(nonlinearity=nonlinearity),
                slow=dict(
                    block_size=16, d_model=4, expand=2, independent=True
                ),
            )
            optimizer = torch.optim.SGD(net.parameters(), 0.1)
            for _ in range(3):
                method.begin(optimizer)
                net(x).square().mean().backward()
                method.finish()
                optimizer.step()
                optimizer.zero_grad()
        weights.append([p.detach().cpu() for p in net.parameters()])
    yield _below('FSG: weights', _distance(*reversed(weights)), 1e-6)


def detector(
    device: torch.device, size: tuple[int, int] = (256, 384)
) -> Iterator[Row]:
    """Train a detector until all layers move, as `train --amp` too."""
    cfg = apply_method(_config(), 'surge_auto')
    for dtype in ('float32', 'autocast'):
        trainer = _trainer(cfg, _arguments(device, dtype, size))
        layers = [layer for _, layer in named_surge_layers(trainer.model)]
        before = [layer.weight.detach().clone() for layer in layers]
        for _ in range(_STEPS):
            trainer.step()
            moved = sum(
                not torch.equal(old, layer.weight)
                for old, layer in zip(before, layers)
            )
            # A scaler may skip the first steps.
            if moved:
                break
        yield _is(
            f'detector, {dtype}: 1-bit layers that moved', moved, len(layers)
        )
        finite = [bool(p.isfinite().all()) for p in trainer.model.parameters()]
        yield _is(f'detector, {dtype}: weights are finite', all(finite))


CHECKS = [gradients, narrow_gradients, channels_last, scaler, waiting, bits]
CHECKS += [random_numbers, fsg, detector]


def run_checks(
    device: torch.device,
    checks: Sequence[Callable[[torch.device], Iterator[Row]]] = CHECKS,
) -> list[Row]:
    """Run all checks; one that ends in an error is a row, too."""
    rows = []
    for check in checks:
        try:
            rows += check(device)
        except Exception as error:  # what a GPU does is not known yet
            name = check.__name__.replace('_', ' ')
            rows.append(Row(name, _told(error), 'no error', False))
    return rows


def _told(error: Exception) -> str:
    traceback.print_exception(error)
    text = str(error).partition('\n')[0].replace('|', '/')
    return f'{type(error).__name__}: {text}'


def _config() -> Config:
    cfg = read_train_config(config_file(CONFIG))
    # The float twin has nothing that AGS could do, on purpose.
    MMLogger.get_current_instance().setLevel('ERROR')
    return cfg


def _arguments(
    device: torch.device,
    dtype: str,
    size: tuple[int, int] | None = None,
    rounds: int = 10,
) -> Namespace:
    return Namespace(
        device=str(device),
        dtype=dtype,
        size=size,
        rounds=rounds,
        warmup=min(rounds, 3),
        batch=2,
        channels_last=False,
        cpu_time=False,
    )


def _trainer(cfg: Config, args: Namespace) -> Trainer:
    trainer = Trainer(cfg, AS_IS, random_batches(cfg, args), args)
    if args.dtype == 'autocast':
        trainer.wrapper.cast_dtype = _narrow(trainer.device)
    return trainer


def layer_costs(
    device: torch.device, shrink: int = 1, rounds: int = 20
) -> Iterator[str]:
    """Compare layers as `surge-det benchmark layers` does; Markdown."""
    for dtype in ('float32', 'autocast'):
        args = _arguments(device, dtype, rounds=rounds)
        results = {}
        for shape in SHAPES:
            if shape.name in LAYERS:
                bench = Bench(shape.shrunk(shrink), args.batch, args)
                results[shape.name] = bench.measure(f'{shape.name}, {dtype}')
        table = ratio_table(results)
        yield f'{dtype}{" (bfloat16)" * (dtype == "autocast")}:'
        yield markdown_table(table.header, table.rows)


def step_costs(
    device: torch.device,
    size: tuple[int, int] | None = None,
    rounds: int = 10,
) -> Iterator[str]:
    """Compare a detector's training steps by method; Markdown."""
    cfg = _config()
    rows = []
    for dtype in ('float32', 'autocast'):
        args = _arguments(device, dtype, size, rounds)
        trainers = {
            method: _trainer(apply_method(cfg, method), args)
            for method in METHODS
        }
        taken = interleaved(
            {name: trainer.step for name, trainer in trainers.items()},
            args,
            f'R18, {dtype}',
        )
        peaks = {
            name: peak_mib(trainer.step, device)
            for name, trainer in trainers.items()
        }
        for name in METHODS:
            rows.append([dtype, name, f'{median(taken[name]) * 1000:.1f}'])
            rows[-1] += [
                f'{ratio(taken[name], taken[base]):.2f}'
                for base in ('float', 'ste')
            ]
            rows[-1].append(number(peaks[name], '.0f'))
            both = peaks[name] and peaks['ste']
            rows[-1].append(
                f'{peaks[name] / peaks["ste"]:.2f}' if both else '—'
            )
        del trainers
    header = ['type', 'method', 'ms / step', '/ float', '/ ste']
    yield markdown_table(header + ['peak, MiB', '/ ste'], rows)


def report(
    device: torch.device,
    rows: Sequence[Row],
    costs: Mapping[str, Callable[[torch.device], Iterator[str]]],
) -> tuple[str, bool]:
    """Measure costs and write the report.

    Args:
        device: What was checked.
        rows: What the checks found.
        costs: What measures, under what stands above it.

    Returns:
        The report in Markdown, and whether all is as it should be.
    """
    machine = 'CPU'
    if device.type == 'cuda':
        machine = (
            f'{torch.cuda.get_device_name(device)}, CUDA '
            f'{torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}'
        )
    passed = sum(row.passed for row in rows)
    cells = [
        [row.check, row.found, row.allowed, 'yes' if row.passed else '**no**']
        for row in rows
    ]
    parts = [
        f'## {machine}',
        f'Date: {date.today()}; torch {torch.__version__}. Command: '
        f'`{COMMAND}`.',
        f'### Checks: {passed} of {len(rows)} passed',
        'Distances are from the same layer in float64 on the CPU, by the '
        'largest value of each output and gradient.',
        markdown_table(['check', 'found', 'allowed', 'passed'], cells),
        '### Cost of training',
    ]
    good = passed == len(rows)
    for text, measure in costs.items():
        parts.append(text)
        try:
            parts += measure(device)
        except Exception as error:  # such as too little memory
            parts.append(f'**Not measured**: {_told(error)}')
            good = False
    return '\n\n'.join(parts), good


COSTS = {
    f'Layers {", ".join(LAYERS)} of Faster R-CNN R18 at 1000×600, batch 2; '
    'times are medians of paired turns.': layer_costs,
    f'Training step of {CONFIG}, two images of noise at 1000×600; float32 '
    "convolves in TF32 where the GPU can (torch's default), autocast is in "
    'float16, with a scaler, as `train --amp`.': step_costs,
}


def run() -> int:
    """Check, measure and print.

    Returns:
        The exit status: 1 if a check fails, or something is not measured.
    """
    if not torch.cuda.is_available():
        fail(
            '--cuda-check: needs a CUDA GPU, and torch '
            f'{torch.__version__} sees none'
        )
    device = torch.device('cuda', torch.cuda.current_device())
    text, good = report(device, run_checks(device), COSTS)
    print(text)
    return int(not good)
