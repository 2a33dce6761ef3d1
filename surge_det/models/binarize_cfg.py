"""The config key ``binarize_cfg``: binarizes whatever mmengine builds.

A module's dict may carry it anywhere, the whole model's or one part's::

    model = dict(binarize_cfg=dict(exclude=['neck.*']))

Its keywords are those of
:func:`surge_det.models.detector_policy.binarize_detector`; ``None`` leaves
the module as it is. What a part's own key says holds for that part, whatever
the whole model's key says.

A norm that would start with a scale of 0 (``zero_init_residual``) starts at 1
in what has a 1-bit layer, for that 0 stops the layer's gradient. The keyword
``last_norm`` is another start, 0 for the stock one. What is loaded, by an
``init_cfg`` or from a checkpoint, comes after that and stays.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

from mmcv.cnn.bricks import wrappers
from mmdet.models.dense_heads.tood_head import TaskDecomposition
from mmengine.logging import print_log
from mmengine.model import BaseModule, ConstantInit
from torch import nn

from surge_det.compat.registration import BINARIZE_CFG as KEY
from surge_det.core import checks
from surge_det.core.binarize import (
    HAS_OWN_CONVERSION,
    Conversion,
    add_equivalent,
    add_functional,
)
from surge_det.core.layers import SURGELayer, named_surge_layers

from .detector_policy import binarize_detector, is_norm

add_equivalent(wrappers.Conv2d)
add_equivalent(wrappers.Linear)
add_functional(TaskDecomposition)


def build_binarized(
    build: Callable, cfg: dict, *args: Any, **kwargs: Any
) -> nn.Module:
    """Build a module whose config has the key, and binarize it.

    Args:
        build: What the registry builds without the key with.
        cfg: Of the module; not changed.
        args: For ``build``.
        kwargs: For ``build``.

    Raises:
        ValueError: If the key's value is not allowed.
    """
    cfg = cfg.copy()
    settings = cfg.pop(KEY)
    module = build(cfg, *args, **kwargs)
    if settings is not None:
        _convert(module, settings, cfg.get('type'))
    # What a part says of itself holds, also for the whole model's key.
    setattr(module, HAS_OWN_CONVERSION, True)
    return module


def _convert(module: nn.Module, settings: Any, kind: Any) -> None:
    name = kind if isinstance(kind, str) else type(module).__name__
    try:
        if not isinstance(settings, dict):
            raise ValueError('None or a dict is allowed')
        settings = dict(settings)
        start = settings.pop('last_norm', 1.0)
        checks.number('last_norm', start, low=0)
        conversion = binarize_detector(module, **settings)
        changed = _start_norms(module, start) if start else []
    except (TypeError, ValueError) as error:
        raise ValueError(f'{name}: {KEY}={settings!r}: {error}') from error
    _report(name, conversion)
    if changed:
        print_log(
            f'{KEY}: {name}: scales that would start at 0, which stops the '
            f'gradient of 1-bit layers, start at {start:g} where no weights '
            f'are loaded: {", ".join(changed)}',
            logger='current',
        )
    _warn_of_frozen(name, module, conversion)


def _report(name: str, conversion: Conversion) -> None:
    kept: dict[str, list[str]] = {}
    for layer, reason in conversion.kept.items():
        kept.setdefault(reason, []).append(layer)
    lines = [
        f'{KEY}: {name} has {len(conversion.binarized)} 1-bit layers, '
        f'{len(conversion.kept)} real ones; {len(conversion.activations)} '
        'ReLUs replaced. Real:'
    ]
    lines += [f'  {reason}: {", ".join(kept[reason])}' for reason in kept]
    print_log('\n'.join(lines), logger='current')


def _start_norms(module: nn.Module, start: float) -> list[str]:
    """Let norms start at another scale than 0; return their names."""
    changed = []
    for part_name, part in module.named_modules():
        if not any(isinstance(m, SURGELayer) for m in part.modules()):
            continue
        for override in _zeroed_norms(part):
            override.update(type='Constant', val=start)
            changed.append(f'{part_name}.{override["name"]}'.lstrip('.'))
        # Read after construction by backbones that initialize themselves.
        if getattr(part, 'zero_init_residual', False) and (
            type(part).init_weights is not BaseModule.init_weights
        ):
            if start != 1:
                checks.refuse(
                    'last_norm',
                    start,
                    f'0 or 1, for {type(part).__name__} initializes itself',
                )
            part.zero_init_residual = False
            changed.append(f'last norms of {part_name or "all"} blocks')
    return changed


def _zeroed_norms(part: nn.Module) -> Iterator[dict]:
    """Yield the overrides in an ``init_cfg`` that set a norm's scale to 0."""
    for cfg in _as_list(getattr(part, 'init_cfg', None)):
        for override in _as_list(cfg.get('override')):
            settings = override if 'type' in override else cfg
            if (
                settings.get('type') in ('Constant', ConstantInit)
                and settings.get('val') == 0
                and is_norm(getattr(part, override.get('name', ''), None))
            ):
                yield override


def _as_list(value: Any) -> list:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def _warn_of_frozen(
    name: str, module: nn.Module, conversion: Conversion
) -> None:
    new = set(conversion.binarized)
    frozen = [
        layer_name
        for layer_name, layer in named_surge_layers(module)
        if layer_name in new and not layer.weight.requires_grad
    ]
    if frozen:
        print_log(
            f'{KEY}: {name}: these 1-bit layers are frozen, so they keep '
            'weights that were trained as float ones, and ruin what follows: '
            f'{", ".join(frozen)}. Train them (frozen_stages=0 or -1) or '
            'exclude them.',
            logger='current',
            level=logging.WARNING,
        )
