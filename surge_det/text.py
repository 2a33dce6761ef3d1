"""What keeps messages short, and on their lines."""

import reprlib
from collections.abc import Iterable

_NAMED = 5
_LONG = 300

_repr = reprlib.Repr()
_repr.maxdict = 8
_repr.maxstring = _repr.maxother = 80


def some(names: Iterable[object]) -> str:
    """Return the first few names, and how many more there are."""
    names = [str(name) for name in names]
    more = len(names) - _NAMED
    return ', '.join(names[:_NAMED]) + (f' and {more} more' * (more > 0))


def shortened(error: object) -> str:
    """Return a message on one line, cut where it gets long.

    Torch lists every key of a state dict that does not fit.
    """
    text = printable(' '.join(str(error).split())[: _LONG + 1])
    return text if len(text) <= _LONG else f'{text[:_LONG]} ...'


def brief(value: object) -> str:
    """Return a value's repr on one line, short whatever the value is.

    Lists in lists of a small file may be more text than fits into memory.
    """
    try:
        return shortened(_repr.repr(value))
    except ValueError:  # Python writes no number of so many digits.
        return f'a large {type(value).__name__}'


def printable(text: str) -> str:
    """Return a text with escapes for all that is no character to see.

    What files hold could clear a terminal otherwise. Ends of lines stay.
    """
    return ''.join(
        c if c.isprintable() or c == '\n' else repr(c)[1:-1] for c in text
    )
