"""Let mmengine's and mmdet's registries find our parts when they are asked.

A registry of the toolbox imports its ``locations`` at its first lookup. Ours
are added to those, so that ``import surge_det`` itself imports no toolbox.
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


def install(module: ModuleType) -> None:
    """Add our locations to the registries of a module.

    Args:
        module: ``mmengine.registry.root`` or ``mmdet.registry``.
    """
    if find_spec('mmcv') is None or find_spec('mmdet') is None:
        return
    for name, location in LOCATIONS.items():
        registry = getattr(module, name)
        # Not `+=`: mmengine's registries share one list.
        if location not in registry._locations:
            registry._locations = [*registry._locations, location]
            # One that has imported its locations looks at them again.
            registry._imported = False
    _build_binarized(module.MODELS)


def _build_binarized(registry: Any) -> None:
    if not hasattr(registry.build_func, 'binarizes'):
        registry.build_func = _binarizing(registry.build_func)
    # A child has copied its parent's function when it was made.
    for child in registry.children.values():
        _build_binarized(child)


def _binarizing(build: Callable) -> Callable:
    @functools.wraps(build)
    def build_and_binarize(cfg: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(cfg, dict) or BINARIZE_CFG not in cfg:
            return build(cfg, *args, **kwargs)
        from surge_det.models.binarize_cfg import build_binarized

        return build_binarized(build, cfg, *args, **kwargs)

    build_and_binarize.binarizes = True
    return build_and_binarize
