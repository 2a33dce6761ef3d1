"""Let mmengine's registries, and their children, find our parts.

A registry of the toolbox imports its ``locations`` at its first lookup, and
looks at what its parent has without importing the parent's. Our locations are
added to both, so that ``import surge_det`` itself imports no toolbox.
"""

import functools
from collections.abc import Callable
from importlib.util import find_spec
from types import ModuleType
from typing import Any

# Registry: the module that has what is registered there.
LOCATIONS = {
    'MODELS': 'surge_det.models',
    'DATASETS': 'surge_det.datasets',
    'METRICS': 'surge_det.evaluation',
    'HOOKS': 'surge_det.engine',
    'OPTIM_WRAPPERS': 'surge_det.engine',
    'OPTIM_WRAPPER_CONSTRUCTORS': 'surge_det.engine',
}
BINARIZE_CFG = 'binarize_cfg'
DISTILL_CFG = 'distill_cfg'


def install(module: ModuleType) -> None:
    """Add our locations to the root registries and all below them.

    Args:
        module: ``mmengine.registry.root``.
    """
    if find_spec('mmcv') is None or find_spec('mmdet') is None:
        return
    for name, location in LOCATIONS.items():
        _add_location(getattr(module, name), location)
    _build_by_keys(module.MODELS)


def _add_location(registry: Any, location: str) -> None:
    from mmengine.config.utils import MODULE2PACKAGE

    if location in registry._locations:
        return
    if not registry._locations and registry.scope in MODULE2PACKAGE:
        # An older package: mmengine calls its register_all_modules, but only
        # as long as there is no location.
        return
    # Not `+=`: mmengine's registries share one list.
    registry._locations = [*registry._locations, location]
    # One that has imported its locations looks at them again.
    registry._imported = False
    add_child = registry._add_child

    def add_child_with_location(child: Any) -> None:
        add_child(child)
        _add_location(child, location)

    # Children that are made later, such as those of mmdet.registry.
    registry._add_child = add_child_with_location
    for child in registry.children.values():
        _add_location(child, location)


def _build_by_keys(registry: Any) -> None:
    if not hasattr(registry.build_func, 'knows_our_keys'):
        registry.build_func = _by_keys(registry.build_func)
    # A child has copied its parent's function when it was made.
    for child in registry.children.values():
        _build_by_keys(child)


def _by_keys(build: Callable) -> Callable:
    @functools.wraps(build)
    def build_by_keys(cfg: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(cfg, dict):
            return build(cfg, *args, **kwargs)
        # The teacher of a student that is binarized first.
        if DISTILL_CFG in cfg:
            from surge_det.models.distillation import build_distilled

            return build_distilled(build_by_keys, cfg, *args, **kwargs)
        if BINARIZE_CFG in cfg:
            from surge_det.models.binarize_cfg import build_binarized

            return build_binarized(build, cfg, *args, **kwargs)
        return build(cfg, *args, **kwargs)

    build_by_keys.knows_our_keys = True
    return build_by_keys
