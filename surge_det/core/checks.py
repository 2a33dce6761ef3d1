"""Checks of arguments, with one form of message for all of them.

Each takes the argument's name and its value, and raises a ``ValueError`` with
both and with what is allowed. The name may begin with what the argument
belongs to, as in ``'ags: eta'``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import fields
from typing import Any, NoReturn


def refuse(name: str, value: Any, allowed: str) -> NoReturn:
    """Raise the error for a value; ``allowed`` says in words what is."""
    raise ValueError(f'{name}={value!r} is not allowed: {allowed}')


def is_number(value: Any) -> bool:
    """Whether a value is a finite int or float, and no bool."""
    return (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and math.isfinite(value)
    )


def is_integer(value: Any) -> bool:
    """Whether a value is an int, and no bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def number(
    name: str,
    value: Any,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    or_none: bool = False,
) -> float | None:
    """Return a finite number as float.

    Args:
        name: The argument.
        value: What was given.
        low: The smallest number allowed.
        high: The largest number allowed; only with ``low``.
        above: What the number must exceed; instead of ``low``.
        or_none: Whether ``None`` is allowed too.
    """
    if value is None and or_none:
        return None
    allowed = 'a finite number'
    if high is not None:
        allowed = f'a number in [{low}, {high}]'
    elif low is not None:
        allowed += f' >= {low}'
    elif above is not None:
        allowed += f' > {above}'
    if (
        not is_number(value)
        or (low is not None and value < low)
        or (high is not None and value > high)
        or (above is not None and value <= above)
    ):
        refuse(name, value, 'None or ' * or_none + allowed)
    return float(value)


def integer(
    name: str, value: Any, low: int, or_none: bool = False
) -> int | None:
    """Return an integer that is at least ``low``, or ``None`` if allowed."""
    if value is None and or_none:
        return None
    if not is_integer(value) or value < low:
        refuse(name, value, 'None or ' * or_none + f'an integer >= {low}')
    return value


def integers(low: int, **arguments: Any) -> None:
    """Check arguments that are an int each, at least ``low``."""
    for name, value in arguments.items():
        integer(name, value, low)


def pairs(low: int, **arguments: Any) -> None:
    """Check arguments that are an int, or a pair of them, at least ``low``."""
    for name, value in arguments.items():
        values = value if isinstance(value, (tuple, list)) else (value, value)
        if len(values) != 2 or not all(
            is_integer(v) and v >= low for v in values
        ):
            refuse(name, value, f'an integer >= {low}, or a pair of them')


def boolean(name: str, value: Any) -> bool:
    """Return a bool."""
    if not isinstance(value, bool):
        refuse(name, value, 'True or False')
    return value


def one_of(name: str, value: Any, allowed: Iterable[Any]) -> Any:
    """Return a value that is in ``allowed``."""
    allowed = list(allowed)
    if value not in allowed:
        refuse(name, value, f'one of {allowed}')
    return value


def from_settings(cls: type, settings: dict[str, Any], name: str) -> Any:
    """Build a dataclass from a dict of its fields, as a config has it.

    Raises:
        ValueError: If there is no such field, or the class refuses a value.
    """
    allowed = [field.name for field in fields(cls)]
    unknown = sorted(settings.keys() - set(allowed))
    if unknown:
        raise ValueError(f'{name}: unknown {unknown}; allowed are {allowed}')
    return cls(**settings)
