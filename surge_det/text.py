"""What keeps messages short."""

from collections.abc import Iterable

_NAMED = 5
_LONG = 300


def some(names: Iterable[object]) -> str:
    """Return the first few names, and how many more there are."""
    names = [str(name) for name in names]
    more = len(names) - _NAMED
    return ', '.join(names[:_NAMED]) + (f' and {more} more' * (more > 0))


def shortened(error: object) -> str:
    """Return a message on one line, cut where it gets long.

    Torch lists every key of a state dict that does not fit.
    """
    text = ' '.join(str(error).split())
    return text if len(text) <= _LONG else f'{text[:_LONG]} ...'
