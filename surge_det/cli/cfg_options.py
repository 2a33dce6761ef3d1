"""The values of ``--cfg-options``."""

from __future__ import annotations

import argparse
import re
from contextlib import suppress
from itertools import accumulate
from typing import Any


def setting(text: str) -> tuple[str, Any]:
    """Type of an argument ``KEY=VALUE``; returns key and value.

    Values are read as mmengine's ``DictAction`` reads them, except that it
    takes out every blank, also of a path or a name.
    """
    key, equals, value = text.partition('=')
    if not key or not equals or ' ' in key:
        raise argparse.ArgumentTypeError(
            f'{text!r} is not KEY=VALUE; one with spaces needs quotes: '
            '"KEY=VALUE"'
        )
    try:
        return key, _value(value)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f'{text!r}: {error}') from None


def _value(text: str) -> Any:
    """Read a number, True, False, None, text, or a list of these.

    Raises:
        ValueError: If it would be taken for another than what was meant.
    """
    text = text.strip().strip('\'"')
    inner = text.strip()
    if re.fullmatch(r'\{.*\}|dict\(.*\)', inner, re.DOTALL):
        raise ValueError(
            f'{inner} is a dict; give each key of it as KEY.SUBKEY=VALUE'
        )
    enclosed = inner[:1] + inner[-1:] in ('()', '[]')
    if (enclosed or ',' in inner) and any(
        inner.count(left) != inner.count(right) for left, right in ('()', '[]')
    ):
        raise ValueError(f'brackets of {inner} do not match')
    # Not "(1,2),(3,4)", whose ends belong to two pairs.
    enclosed = enclosed and all(list(accumulate(map(_step, inner)))[:-1])
    if enclosed:
        parts = _split(inner[1:-1])
        for part in map(str.strip, parts):
            if part[:1] in ('"', "'") and part[-1] != part[0]:
                raise ValueError(
                    f'{part} has one quote; a comma within quotes cannot be '
                    'given here, but in a config file'
                )
    else:
        parts = _split(inner)
        if len(parts) == 1:
            return _scalar(text)
    if not parts[-1].strip():
        del parts[-1]
    values = [_value(part) for part in parts]
    return tuple(values) if enclosed and inner[0] == '(' else values


def _step(character: str) -> int:
    return (character in '([') - (character in ')]')


def _split(text: str) -> list[str]:
    """Split at the commas that are in no brackets."""
    parts, depth = [''], 0
    for character in text:
        depth += _step(character)
        if character == ',' and not depth:
            parts.append('')
        else:
            parts[-1] += character
    return parts


def _scalar(text: str) -> Any:
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    known = {'true': True, 'false': False}
    return None if text == 'None' else known.get(text.lower(), text)
