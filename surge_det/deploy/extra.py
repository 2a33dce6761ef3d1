"""The packages of the extra ``deploy``."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

EXTRA = 'pip install -e ".[deploy]"'


def require(name: str) -> ModuleType:
    """Import a package that only deployment needs.

    OpenVINO's telemetry stays out of a process that first imports it here.

    Args:
        name: Such as ``'openvino'``, or a submodule of one.

    Raises:
        ImportError: If it is not installed; says what to install.
    """
    try:
        with _without_telemetry():
            return importlib.import_module(name)
    except ImportError as error:
        package = name.partition('.')[0]
        raise ImportError(
            f'{package} is needed here and cannot be imported ({error}). '
            f'Install it with: {EXTRA}'
        ) from error


_TELEMETRY = 'openvino_telemetry'


@contextmanager
def _without_telemetry() -> Iterator[None]:
    """Let imports go as if OpenVINO's telemetry were not installed.

    OpenVINO takes that as a no. With it, unasked, each import and conversion
    sends events to Google Analytics, in processes that are forked, from
    threads, off one that may hold gigabytes and locks.
    """
    if _TELEMETRY in sys.modules:
        # Whoever has imported it wants it.
        yield
        return
    sys.modules[_TELEMETRY] = None
    try:
        yield
    finally:
        del sys.modules[_TELEMETRY]
