"""What an export would write, layer by layer, before it writes anything."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from surge_det.core.binarizers import Binarizer
from surge_det.core.layers import SURGEConv2d, SURGELayer, SURGELinear
from surge_det.deploy.norms import folded

FORMATS = ('pth', 'packed', 'openvino')


class ExportError(ValueError):
    """A model, or a layer of it, cannot be exported as asked."""


_KINDS = {
    (True, True): '1-bit',
    (True, False): 'weights 1-bit',
    (False, True): 'activations 1-bit',
    (False, False): 'real',
}


def arithmetic(model: nn.Module) -> dict[str, str]:
    """Say how layers compute, as far as their parameters do not tell.

    Args:
        model: A detector.

    Returns:
        What each binarized layer binarizes, and how, by its name: two models
        of the same parameters that differ here give different outputs.
    """
    found = {}
    for name, layer in model.named_modules():
        if not isinstance(layer, SURGELayer):
            continue
        weights, activations = layer.binarize_weight, layer.binarize_activation
        if not (weights or activations):
            continue
        words = [_KINDS[weights, activations]]
        if weights:
            words.append(type(layer.weight_binarizer).__name__)
        if activations and isinstance(layer, SURGEConv2d) and any(layer.pads):
            words.append(f'pad_value={layer.pad_value:g}')
        found[name] = ', '.join(words)
    return found


@dataclass(frozen=True)
class Row:
    """One module that has values of its own.

    Args:
        name: Its name in the model; of several, the first.
        kind: ``'1-bit'``, ``'weights 1-bit'``, ``'activations 1-bit'`` or
            ``'real'``.
        bits: Of weights and activations as the file's engine has them,
            such as ``'1/1'``; empty where nothing is multiplied.
        operation: What computes it.
        bytes: Of its values in the file.
        float_bytes: Of its parameters in the float twin: the same layer at
            32 bit, without replica and scale.
        problem: Why it cannot be exported, and what to do about it.
    """

    name: str
    kind: str
    bits: str
    operation: str
    bytes: int
    float_bytes: int
    problem: tuple[str, str] | None = None

    @property
    def part(self) -> str:
        """First component of the name: backbone, neck, bbox_head, ..."""
        return self.name.split('.')[0]


def plan_export(model: nn.Module, format: str) -> list[Row]:
    """List what would be exported.

    The bytes are those of the values, without names and without the
    network's description. For OpenVINO they are an estimate: shift, scale and
    norm of a layer merge.

    Args:
        model: A detector; not changed.
        format: One of ``FORMATS``.

    Returns:
        A row for each module that has parameters, or buffers that a state
        dict holds, in the model's order.

    Raises:
        ValueError: If there is no such format.
    """
    if format not in FORMATS:
        raise ValueError(
            f'format={format!r} is not allowed: one of {list(FORMATS)}'
        )
    rows = []
    if format == 'openvino':
        from surge_det.deploy.openvino.rules import detector_problem

        problem = detector_problem(model)
        if problem:
            kind = type(model).__name__
            rows = [Row('(detector)', 'real', '', kind, 0, 0, problem)]
    seen: set[int] = set()
    for name, module in model.named_modules():
        if isinstance(module, Binarizer):
            # Its layer stores what it makes.
            continue
        values = {
            key: value
            for key, value in _own_values(module)
            if id(value) not in seen
        }
        seen |= {id(value) for value in values.values()}
        if values:
            rows.append(_row(name or '(model)', module, values, format))
    return rows


def check(rows: Sequence[Row]) -> None:
    """See that everything can be exported.

    Raises:
        ExportError: If something cannot: name, reason and remedy of each.
    """
    problems = [row for row in rows if row.problem]
    if problems:
        lines = [
            f'  {row.name} ({row.kind}): {row.problem[0]}; remedy: '
            f'{row.problem[1]}'
            for row in problems
        ]
        raise ExportError(
            f'{len(problems)} of {len(rows)} layers cannot be exported, and '
            'nothing was written:\n' + '\n'.join(lines)
        )


def _own_values(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, value in module.named_parameters(recurse=False):
        if not (isinstance(module, SURGELayer) and name == 'aux_weight'):
            yield name, value
    for name, value in module.named_buffers(recurse=False):
        if name not in module._non_persistent_buffers_set:
            yield name, value


def _row(
    name: str, module: nn.Module, values: dict[str, Tensor], format: str
) -> Row:
    kind, bits = 'real', ''
    if isinstance(module, SURGELayer):
        one = module.binarize_weight, module.binarize_activation
        kind = _KINDS[one]
        bits = '/'.join('1' if binary else '32' for binary in one)
    elif isinstance(module, (_ConvNd, nn.Linear)):
        bits = '32/32'
    operation, problem = _operation(module), _problem(module, values, format)
    if format == 'openvino':
        from surge_det.deploy.openvino import rules

        operation = rules.operation(module)
        if isinstance(module, SURGELayer):
            # It is the whole layer or nothing.
            bits = '1/1' if rules.is_packed(module) else '32/32'
        problem = problem or rules.problem(name, module)
    parameters = [v for v in values.values() if isinstance(v, nn.Parameter)]
    return Row(
        name,
        kind,
        bits,
        operation,
        _bytes(module, values, format),
        4 * sum(p.numel() for p in parameters if not is_lazy(p)),
        problem,
    )


def _operation(module: nn.Module) -> str:
    suffix = ''
    if isinstance(module, SURGELayer):
        suffix = ' on scaled signs' if module.binarize_weight else ''
        suffix = suffix or ' on signs' * module.binarize_activation
    if isinstance(module, _ConvNd):
        return f'conv{module.weight.dim() - 2}d{suffix}'
    if isinstance(module, nn.Linear):
        return f'linear{suffix}'
    return type(module).__name__


def _bytes(module: nn.Module, values: dict[str, Tensor], format: str) -> int:
    if any(is_lazy(value) for value in values.values()):
        return 0
    sizes = {
        key: value.numel() * value.element_size()
        for key, value in values.items()
    }
    if format == 'pth':
        return sum(sizes.values())
    packed = isinstance(module, SURGELayer) and module.binarize_weight
    if format == 'openvino':
        from surge_det.deploy.openvino.rules import is_packed

        packed = is_packed(module)
    if packed:
        weight = module.weight
        # Whole bytes for each output channel, and its scale.
        channel = -(-weight[0].numel() // 8) + weight.element_size()
        sizes['weight'] = channel * len(weight)
    if isinstance(module, _BatchNorm):
        # Counts training steps.
        sizes.pop('num_batches_tracked', None)
        if format == 'openvino' or folded(module) is not None:
            sizes.pop('running_mean', None)
            sizes.pop('running_var', None)
    return sum(sizes.values())


def _problem(
    module: nn.Module, values: dict[str, Tensor], format: str
) -> tuple[str, str] | None:
    """Say what stands against a module in every format, or this one."""
    if any(is_lazy(value) for value in values.values()):
        return (
            'its shape is not known before it has run',
            'make it without lazy modules',
        )
    for key, value in values.items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            return (
                f'{key} has values that are not finite numbers',
                'export a checkpoint from before the training went wrong',
            )
    if format == 'pth':
        return None
    if parametrize.is_parametrized(module):
        return (
            'its weight is computed from other parameters',
            'torch.nn.utils.parametrize.remove_parametrizations before',
        )
    for cls in (SURGEConv2d, SURGELinear):
        if isinstance(module, cls) and type(module).forward is not cls.forward:
            return (
                f'{type(module).__name__} has a forward of its own',
                f'use {cls.__name__}, or --format pth',
            )
    return None
