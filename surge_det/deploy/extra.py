"""The packages of the extra ``deploy``."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

EXTRA = 'pip install "surge_det[deploy]"'
# Packages that are not in it.
REMEDIES = {'surge_runtime': 'pip install ./runtime (in a clone)'}
_TELEMETRY = 'openvino_telemetry'


def require(name: str) -> ModuleType:
    """Import a package that only deployment needs.

    OpenVINO's telemetry stays out of a process that first imports it here.

    Args:
        name: Such as ``'openvino'``, or a submodule of one.

    Raises:
        ImportError: If it is not installed; says what to install.
    """
    # OpenVINO takes a telemetry that is not installed as a no. With it,
    # unasked, each import and conversion sends events to Google Analytics, in
    # processes that are forked, from threads, off one that may hold gigabytes
    # and locks. Whoever has imported it wants it.
    hidden = _TELEMETRY not in sys.modules
    if hidden:
        sys.modules[_TELEMETRY] = None
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition('.')[0]
        remedy = REMEDIES.get(package, EXTRA)
        raise ImportError(
            f'{package} is needed here and cannot be imported ({error}). '
            f'Install it with: {remedy}'
        ) from error
    finally:
        if hidden:
            del sys.modules[_TELEMETRY]
