"""The packages of the extra ``deploy``."""

from __future__ import annotations

import importlib
from types import ModuleType

EXTRA = 'pip install -e ".[deploy]"'


def require(name: str) -> ModuleType:
    """Import a package that only deployment needs.

    Args:
        name: Such as ``'openvino'``, or a submodule of one.

    Raises:
        ImportError: If it is not installed; says what to install.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition('.')[0]
        raise ImportError(
            f'{package} is needed here and cannot be imported ({error}). '
            f'Install it with: {EXTRA}'
        ) from error
