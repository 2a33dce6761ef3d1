"""A method of the field as a change to a config."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from mmdet.registry import MODELS
from mmengine.config import Config, ConfigDict

import surge_det.models  # noqa: F401  # registers what is looked up
from surge_det.core import checks
from surge_det.core.fsg import FSGConfig
from surge_det.core.layers import SURGELayer
from surge_det.core.methods import METHODS, method_cfg
from surge_det.datasets.root import class_of

# The config decides what a layer binarizes at all (as in the first of two
# steps), unless the method is about that.
_BINARIZES = ('binarize_weight', 'binarize_activation')
_DECIDED = {key for keywords in METHODS.values() for key in keywords}
# A config's `eta` is for all methods with a replica but the one that sets it.
_DECIDED -= {*_BINARIZES, 'eta'}

# Wrappers without FSG -> their twins with it.
_FSG_TWINS = {
    'OptimWrapper': 'FSGOptimWrapper',
    'AGSOptimWrapper': 'FSGOptimWrapper',
    'AmpOptimWrapper': 'FSGAmpOptimWrapper',
    'AGSAmpOptimWrapper': 'FSGAmpOptimWrapper',
}
_WITHOUT_FSG = {
    'FSGOptimWrapper': 'AGSOptimWrapper',
    'FSGAmpOptimWrapper': 'AGSAmpOptimWrapper',
}
# Blocks, because one token per weight is too much for a detector.
_FSG_SLOW = {'block_size': 1024, 'd_model': 8, 'expand': 2}
_FSG_SLOW['independent'] = True


def _use_fsg(cfg: Config) -> None:
    wrapper = cfg.optim_wrapper
    kind = wrapper.get('type', 'OptimWrapper')
    if kind not in _FSG_TWINS and kind not in _WITHOUT_FSG:
        raise ValueError(
            f"method 'fsg': optim_wrapper.type={kind!r} has no twin with "
            f'FSG; allowed are {[*_FSG_TWINS, *_WITHOUT_FSG]}'
        )
    wrapper.type = _FSG_TWINS.get(kind, kind)
    own = dict(wrapper.get('fsg') or {})
    # A config with `slow` says itself how weights become tokens.
    if 'slow' not in own:
        own = {'history_dtype': 'bfloat16', 'slow': dict(_FSG_SLOW), **own}
    checks.from_settings(FSGConfig, own, 'fsg')
    wrapper.fsg = own


def _remove_fsg(cfg: Config) -> None:
    wrapper = cfg.get('optim_wrapper') or {}
    if wrapper.get('type') in _WITHOUT_FSG:
        wrapper.type = _WITHOUT_FSG[wrapper.type]
    wrapper.pop('fsg', None)


# With the teacher that the config names.
_DISTILLED = '+kd'


def apply_method(cfg: Config, name: str) -> Config:
    """Return a config that trains the same detector by another method.

    The method's keywords (:func:`surge_det.core.methods.method_cfg`) replace
    those of the config in every ``conv_cfg``, ``linear_cfg`` or other dict
    whose type is ``SURGEConv2d`` or ``SURGELinear``, in the ``conv_cfg``
    that a part of this package such as ``SURGEResNet`` has by default, and
    in the ``layer_cfg`` of every ``binarize_cfg``. Other keywords of the
    layers (``eta``, ``shift``) stay, and so do ``binarize_weight`` and
    ``binarize_activation`` for all methods but ``'float'``, which drops
    ``pad_value`` besides. ``'surge_auto'`` sets ``eta``, and takes it out of
    the ``ags`` of the optimizer wrapper; ``overrides`` there stay.
    ``'fsg'`` takes ``FSGOptimWrapper`` as well, with blocks of 1024 weights
    where the config's ``fsg`` has no ``slow``.
    ``SURGEProgressHook`` is added where there is none.

    ``NAME+kd`` learns from the teacher of the config's ``distill_cfg``, all
    others learn without one.

    Args:
        cfg: A whole config; it is not changed.
        name: As :func:`surge_det.core.methods.method_cfg` takes it, or with
            ``'+kd'`` behind it.

    Raises:
        ValueError: If there is no such method, the model has no place for
            it or no ``distill_cfg`` where one is needed, the config binarizes
            nothing in one of the places, a ``binarize_cfg`` has ``overrides``
            of what a method decides, the optimizer wrapper has no twin that
            the method needs, or a setting of FSG is out of range.
        ImportError: For ``'fsg'`` without mambapy.
    """
    keywords = method_cfg(name.removesuffix(_DISTILLED))
    cfg = copy.deepcopy(cfg)
    if not name.endswith(_DISTILLED):
        (cfg.get('model') or {}).pop('distill_cfg', None)
    elif not (cfg.get('model') or {}).get('distill_cfg'):
        raise ValueError(
            f'method {name!r}: the config names no teacher; give it '
            'model.distill_cfg'
        )
    places = list(_places(cfg.get('model'), 'model'))
    if not places:
        raise ValueError(
            f'method {name!r}: the config has no 1-bit layers to give it to: '
            'neither a conv_cfg or linear_cfg of type SURGEConv2d or '
            'SURGELinear nor a part such as SURGEResNet nor a binarize_cfg in '
            'its model'
        )
    for where, place in places:
        _replace(place, keywords, where, name)
    if 'eta' in keywords:
        ((cfg.get('optim_wrapper') or {}).get('ags') or {}).pop('eta', None)
    if name.removeprefix('surge+').removesuffix(_DISTILLED) == 'fsg':
        _use_fsg(cfg)
    else:
        _remove_fsg(cfg)
    hooks = cfg.get('custom_hooks') or []
    if not any(h.get('type') == 'SURGEProgressHook' for h in hooks):
        cfg.custom_hooks = [*hooks, ConfigDict(type='SURGEProgressHook')]
    return cfg


def _places(node: Any, where: str) -> Iterator[tuple[str, ConfigDict]]:
    """Yield the keywords of layers, each with its name in the config."""
    if isinstance(node, (list, tuple)):
        for i, item in enumerate(node):
            yield from _places(item, f'{where}.{i}')
    if not isinstance(node, dict):
        return
    cls = class_of(MODELS, node.get('type'))
    if cls is not None and issubclass(cls, SURGELayer):
        yield where, node
        return
    default = getattr(cls, 'default_conv_cfg', None)
    if default and not node.get('conv_cfg'):
        node.conv_cfg = ConfigDict(default)
    for key in list(node):
        inner = f'{where}.{key}'
        if key != 'binarize_cfg':
            yield from _places(node[key], inner)
            continue
        if (settings := node[key]) is None:
            continue
        for pattern, override in (settings.get('overrides') or {}).items():
            if decided := sorted(_DECIDED & set(override)):
                raise ValueError(
                    f'{inner}.overrides[{pattern!r}] sets {decided}, which '
                    'the method decides for all layers'
                )
        if not settings.get('layer_cfg'):
            settings.layer_cfg = ConfigDict()
        yield f'{inner}.layer_cfg', settings.layer_cfg


def _replace(
    place: ConfigDict, keywords: dict[str, Any], where: str, name: str
) -> None:
    to_float = not any(keywords.get(key, True) for key in _BINARIZES)
    if not to_float and not any(place.get(key, True) for key in _BINARIZES):
        raise ValueError(
            f'method {name!r}: {where} binarizes neither weights nor '
            'activations; give a config that is 1-bit'
        )
    for key in _DECIDED:
        place.pop(key, None)
    if to_float:
        # It pads a binarized input.
        place.pop('pad_value', None)
    place.update(copy.deepcopy(keywords))
