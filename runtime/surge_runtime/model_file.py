"""Reads a detector's file and refuses what is not one.

The file is an ONNX model. Two entries of its metadata are ours:

- ``surge_runtime``: JSON with ``version`` and ``classes``;
- ``sha256``: the digest of all bytes before this entry, which is the last.

An ONNX model can name other files to be read and can hold loops and functions.
A detector needs none of it, so all of it is refused before the engine sees the
model. This needs a few fields only, which are found by walking over the
protobuf messages (numbers of fields: ``onnx.proto`` of ONNX 1.23).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

#: The version of the files that are read.
VERSION = 1

# The last entry as bytes: tag and length of the entry, its key, its value.
_TAIL = b'\x72\x4a\x0a\x06sha256\x12\x40'
_TAIL_SIZE = len(_TAIL) + 64

_DOMAINS = {b'', b'ai.onnx', b'surge'}

# Messages: what stands in which field. A text is why the field is refused, a
# name in angle brackets a message, which is walked in turn.
_MESSAGES = {
    '<model>': {
        7: '<graph>',
        8: '<opset>',
        14: '<metadata>',
        20: 'training information',
        25: 'functions',
    },
    '<graph>': {1: '<node>', 5: '<tensor>', 15: 'sparse tensors'},
    '<node>': {5: '<attribute>', 7: '<domain>'},
    '<opset>': {1: '<domain>'},
    '<attribute>': {
        3: '<integer>',
        8: '<integer>',
        5: '<tensor>',
        6: 'a graph within the graph',
        10: '<tensor>',
        11: 'a graph within the graph',
        22: 'sparse tensors',
        23: 'sparse tensors',
    },
    '<tensor>': {
        1: '<length>',
        13: 'values in another file',
        14: 'values in another file',
    },
}


class ModelFile(NamedTuple):
    """A file that was checked: its bytes, and the names of its classes."""

    data: bytes
    classes: tuple[str, ...]


def read_model_file(path: str | Path) -> ModelFile:
    """Read and check a detector's file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not a detector's file, or was changed. The
            message is one line that names the file.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f'model {str(path)!r} does not exist')
    data = Path(path).read_bytes()
    try:
        return ModelFile(data, _check(data))
    except ValueError as error:
        raise ValueError(f'model {str(path)!r}: {error}') from None


def _check(data: bytes) -> tuple[str, ...]:
    model = _Model(data)
    if b'surge_runtime' not in model.metadata:
        raise ValueError(
            'an ONNX file, but no detector of ours; surge-det export '
            '--format onnx writes them'
        )
    try:
        about = json.loads(model.metadata[b'surge_runtime'])
        version, classes = about['version'], about['classes']
        if not isinstance(version, int):
            raise TypeError
    except (ValueError, TypeError, KeyError, RecursionError):
        raise ValueError(
            'its metadata surge_runtime is no JSON with version and classes'
        ) from None
    if version != VERSION:
        raise ValueError(
            f'written for version {version}; this surge_runtime reads '
            f'version {VERSION}'
        )
    body, tail = data[:-_TAIL_SIZE], data[-_TAIL_SIZE:]
    if tail != _TAIL + hashlib.sha256(body).hexdigest().encode():
        raise ValueError('damaged or changed: its digest (sha256) differs')
    if not isinstance(classes, list) or not all(
        isinstance(name, str) and name.isprintable() for name in classes
    ):
        raise ValueError('its classes are no list of names')
    for count in model.num_classes:
        if count != len(classes):
            raise ValueError(
                f'it names {len(classes)} classes, and detects {count}'
            )
    return tuple(classes)


class _Model:
    """What is read of a model without the engine.

    Attributes:
        metadata: Values by keys.
        num_classes: What the attributes of this name say.

    Raises:
        ValueError: If it is no model, or holds what no detector of ours has.
    """

    def __init__(self, data: bytes) -> None:
        self.metadata: dict[bytes, bytes] = {}
        self.num_classes: set[int] = set()
        try:
            self._walk(data, 0, len(data), '<model>')
        except IndexError:
            raise ValueError('not an ONNX file, or cut off') from None

    def _walk(self, data: bytes, at: int, end: int, message: str) -> None:
        known = _MESSAGES[message]
        name = None
        for field, start, stop in _fields(data, at, end):
            what = known.get(field)
            if what is None:
                continue
            if what in _MESSAGES:
                self._walk(data, start, stop, what)
            elif what == '<metadata>':
                entry = _texts(data, start, stop)
                self.metadata[entry.get(1, b'')] = entry.get(2, b'')
            elif what == '<domain>':
                if data[start:stop] not in _DOMAINS:
                    domain = data[start:stop].decode(errors='backslashreplace')
                    raise ValueError(
                        'it needs operators that this build lacks, of domain '
                        f'{domain!r}'
                    )
            elif what == '<integer>':
                name = name or _texts(data, at, end).get(1)
                for value in _varints(data, start, stop):
                    self._integer(name, value)
            elif what == '<length>':
                # The engine's convolution reads beyond its memory then.
                if 0 in _varints(data, start, stop):
                    raise ValueError('it has constants without values')
            else:
                raise ValueError(f'it has {what}, as no detector of ours')

    def _integer(self, name: bytes | None, value: int) -> None:
        if name == b'num_classes':
            self.num_classes.add(value)
        # The engine's convolution writes beyond its memory then.
        if name == b'pads' and value >> 63:
            raise ValueError('it has negative pads')


def _texts(data: bytes, at: int, end: int) -> dict[int, bytes]:
    """Return a message's fields as bytes."""
    return {f: data[start:stop] for f, start, stop in _fields(data, at, end)}


def _fields(data: bytes, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield number, start and end of each field of a protobuf message.

    Raises:
        IndexError: If the bytes are no such message.
    """
    while at < end:
        tag, at = _varint(data, at)
        if not 8 <= tag < 1 << 32:
            raise IndexError
        start, kind = at, tag & 7
        if kind == 0:
            _, at = _varint(data, at)
        elif kind == 1:
            at += 8
        elif kind == 2:
            size, start = _varint(data, at)
            at = start + size
        elif kind == 5:
            at += 4
        else:
            raise IndexError
        if at > end:
            raise IndexError
        yield tag >> 3, start, at


def _varints(data: bytes, at: int, end: int) -> Iterator[int]:
    while at < end:
        value, at = _varint(data, at)
        yield value


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise IndexError
