"""Serve ``mmcv._ext`` where mmcv came without its compiled extension.

``mmcv.ops`` imports ``mmcv._ext`` and asks it, at import, for every op it
wraps. A finder at the end of ``sys.meta_path`` answers only when Python has
found no such module, so a compiled extension always wins, mmcv is not
imported any earlier than it would be, and the order of imports is free.
"""

import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec

_EXT = 'mmcv._ext'

ABSENT = 'mmcv is not installed'
COMPILED = 'mmcv compiled ops'
STAND_IN = 'torchvision stand-in'
MISSING = 'none'


class _ExtFinder(MetaPathFinder, Loader):
    """Finder and loader of the stand-in for ``mmcv._ext``."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname != _EXT:
            return None
        return ModuleSpec(fullname, self, origin=__name__)

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        from surge_det.compat import torchvision_ops

        vars(module).update(torchvision_ops.SERVED)
        module.__getattr__ = torchvision_ops.unsupported_op


def install() -> None:
    """Let ``import mmcv._ext`` fall back to torchvision and torch.

    Idempotent, imports neither mmcv nor torch, and changes nothing where
    mmcv has compiled ops.
    """
    if not any(isinstance(f, _ExtFinder) for f in sys.meta_path):
        sys.meta_path.append(_ExtFinder())


def ops_source() -> str:
    """Tell where ``mmcv.ops`` gets its kernels from, without importing mmcv.

    Returns:
        str: ``'mmcv compiled ops'``, ``'torchvision stand-in'``, ``'none'``
        (mmcv without compiled ops and nothing to stand in for them) or
        ``'mmcv is not installed'``.
    """
    mmcv = find_spec('mmcv')
    if mmcv is None:
        return ABSENT
    if PathFinder.find_spec(_EXT, mmcv.submodule_search_locations):
        return COMPILED
    if find_spec('torchvision') is None or not any(
        isinstance(f, _ExtFinder) for f in sys.meta_path
    ):
        return MISSING
    return STAND_IN
