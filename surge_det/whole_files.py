"""Files that are whole or not there, and what is read of others."""

from __future__ import annotations

import io
import json
import os
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# MS-DOS's mark of a folder.
_FOLDER = 0x10
# What torch takes a file for a zip by.
ZIP = b'PK\x03\x04'


@contextmanager
def replacing(path: Path, sync: bool = True) -> Iterator[Path]:
    """Give a name to write to; what is written there becomes ``path``.

    So that an interruption leaves no half of a file under its name, and what
    was there until the new file is whole.

    Args:
        path: The file.
        sync: Whether to wait until it is on the disk: for one of many
            pictures that takes too long.

    Raises:
        OSError: If it cannot be written; names ``path``. One of another file
            is raised as it is.
    """
    # With its suffix: some libraries choose by it what they write.
    new = path.with_name(f'{path.stem}.part{path.suffix}')
    try:
        yield new
        if sync:
            with new.open('rb') as file:
                os.fsync(file.fileno())
        os.replace(new, path)
    except OSError as error:
        # Not one of what else is done inside.
        if error.errno is None or error.filename not in (None, str(new)):
            raise
        # A full disk's error names no file.
        raise type(error)(error.errno, error.strerror, str(path)) from error
    finally:
        new.unlink(missing_ok=True)


def read_json(path: Path) -> Any:
    """Read a JSON file, of whatever origin.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is none; names ``path``.
    """
    try:
        return json.loads(path.read_bytes())
    except (RecursionError, ValueError) as error:
        raise ValueError(f'{path}: no JSON: {error}') from error


def save(value: object, path: Path) -> None:
    """Write as ``torch.save`` does, whole or not at all.

    Raises:
        OSError: If it cannot be written; torch itself tells neither the file
            nor that a disk is full.
    """
    import torch

    buffer = io.BytesIO()
    torch.save(value, buffer)
    with replacing(path) as new:
        new.write_bytes(buffer.getbuffer())


def newest_checkpoint(folder: Path) -> tuple[Path | None, list[str]]:
    """Find what a training goes on from.

    Looks at the files themselves: the pointer ``last_checkpoint`` may be
    older than the newest of them, or gone. What is older than the file that
    it names may be of an earlier training in the same folder.

    Args:
        folder: Work folder of a training.

    Returns:
        The checkpoint of most epochs or iterations that is whole, if there is
        one, and why each later one is not. Those older than the pointer's
        come last.

    Raises:
        ValueError: If there are checkpoints, and none of them is whole.
    """
    # Those of mmengine's names; best_* have no optimizer to go on with. Of a
    # folder with both kinds, one is of an earlier training.
    steps = {
        path: (path.stat().st_mtime, int(found[2]))
        for path in folder.glob('*.pth')
        if (found := re.fullmatch(r'(epoch|iter)_(\d+)\.pth', path.name))
    }
    pointer = folder / 'last_checkpoint'
    # Its name alone: the folder may have been moved.
    text = pointer.read_text() if pointer.is_file() else ''
    since = steps.get(folder / Path(text).name, (0,))[0]
    mixed = len({path.name[0] for path in steps}) > 1
    steps = {
        path: (time >= since, time if mixed else 0, step)
        for path, (time, step) in steps.items()
    }
    broken = []
    for path in sorted(steps, key=steps.__getitem__, reverse=True):
        if reason := fault(path):
            broken.append(f'{path}: {reason}')
        else:
            return path, broken
    if broken:
        raise ValueError(
            'no checkpoint is whole, so training cannot go on: '
            + '; '.join(broken)
        )
    return None, []


def fault(path: Path) -> str | None:
    """Say why a checkpoint is not whole; each byte has its checksum.

    Takes 0.8 s a gigabyte.
    """
    try:
        with zipfile.ZipFile(path) as file:
            # Torch compresses nothing; so no small file becomes a large one.
            # What is marked as a folder it does not read, and goes on with
            # whatever is in memory.
            entries = file.infolist()
            if sum(entry.file_size for entry in entries) > (
                path.stat().st_size
            ) or any(
                entry.compress_size != entry.file_size
                or entry.external_attr & _FOLDER
                or entry.is_dir()
                for entry in entries
            ):
                return 'damaged, or no archive of torch'
            damaged = file.testzip()
    # A damaged archive leads to whatever comes.
    except Exception as error:
        return f'half a file, or none of torch ({error})'
    return f'damaged in {damaged}' if damaged else None
