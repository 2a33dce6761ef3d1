"""The command ``surge-runtime``."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from .images import IMAGE_SUFFIXES

_VIDEO_SUFFIXES = (
    *('.mp4', '.avi', '.mov', '.mkv', '.webm', '.m4v', '.mpg', '.mpeg'),
)
_CAMERA = 'camera:'


class Source(NamedTuple):
    """An image, video or camera, and what its results are called."""

    name: str
    picture: Path
    results: Path
    stream: bool


def main(arguments: list[str] | None = None) -> None:
    """Run the command."""
    args = _parser().parse_args(arguments)
    try:
        failed = _run(args)
    except (ImportError, OSError, ValueError) as error:
        _fail(error)
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    if failed:
        _fail('\n'.join(failed))


def _fail(message: object) -> NoReturn:
    print(f'error: {message}', file=sys.stderr)
    raise SystemExit(2)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='surge-runtime',
        description='Detect objects in images and videos. OUT/vis gets '
        'pictures, OUT/preds the boxes as JSON: a file for an image, a line '
        'for a frame of a video.',
    )
    add = parser.add_argument
    add(
        'sources',
        nargs='+',
        metavar='SOURCE',
        help='image, folder of images, video file, or camera:0 for the '
        'first camera (Ctrl-C ends it)',
    )
    add(
        '--model',
        required=True,
        metavar='FILE',
        help='what surge-det export --format onnx wrote',
    )
    add('--out', type=Path, default=Path('detections'), help='folder to write')
    add(
        '--score-thr',
        type=_number(float, 'a number from 0 to 1', lambda n: 0 <= n <= 1),
        default=0.3,
        help='draw detections with a score above this (default: 0.3)',
    )
    add(
        '--threads',
        type=_number(int, 'a whole number of at least 1', lambda n: n >= 1),
        help='how many compute; default: as many as there are processors',
    )
    return parser


def _number(
    kind: Callable[[str], float], allowed: str, test: Callable[[Any], bool]
) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not test(value):
            raise argparse.ArgumentTypeError(
                f'{text!r} is not allowed: {allowed}'
            )
        return value

    return read


def find_sources(names: list[str], out: Path) -> list[Source]:
    """Return what is to be read, images of a folder sorted.

    Raises:
        FileNotFoundError: If a source is not there.
        ValueError: If a folder has no image, if two sources would write the
            same file, or if one would be overwritten.
    """
    found = []
    for name in names:
        path = Path(name)
        if path.is_dir():
            inside = sorted(
                str(p)
                for p in path.iterdir()
                if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file()
            )
            if not inside:
                raise ValueError(f'{name} has no images {IMAGE_SUFFIXES}')
            found += inside
        elif name.startswith(_CAMERA):
            if not name[len(_CAMERA) :].isdecimal():
                raise ValueError(f'{name!r} must be such as {_CAMERA}0')
            found.append(name)
        elif path.is_file():
            found.append(name)
        else:
            raise FileNotFoundError(f'{name!r} does not exist')
    sources = [_source(name, out) for name in found]
    names_of = Counter(source.results for source in sources)
    for path, count in names_of.items():
        if count > 1:
            same = [s.name for s in sources if s.results == path]
            raise ValueError(
                f'{", ".join(same)} have the same name, one would replace '
                f'the other as {path}; name one at a time'
            )
    inputs = {Path(source.name).resolve() for source in sources}
    for source in sources:
        for path in (source.picture, source.results):
            if path.resolve() in inputs:
                raise ValueError(
                    f'{path} is to be read, and would be overwritten; name '
                    'another folder with --out'
                )
    return sources


def _source(name: str, out: Path) -> Source:
    path = Path(name)
    stem, suffix = path.stem, path.suffix.lower()
    stream = suffix in _VIDEO_SUFFIXES
    if name.startswith(_CAMERA):
        stem, stream = name.replace(':', ''), True
    if stream:
        picture = f'{stem}.mp4'
    elif suffix in IMAGE_SUFFIXES and suffix != '.pgm':
        picture = path.name
    else:
        # A colour picture cannot be written as .pgm.
        picture = f'{stem}.png'
    results = f'{stem}.jsonl' if stream else f'{stem}.json'
    return Source(name, out / 'vis' / picture, out / 'preds' / results, stream)


def _run(args: argparse.Namespace) -> list[str]:
    """Run, and return what failed."""
    from .detector import Detector

    sources = find_sources(args.sources, args.out)
    if _any_stream(sources):
        _opencv()
    detector = Detector(args.model, args.threads)
    print(detector, flush=True)
    for name in ('vis', 'preds'):
        (args.out / name).mkdir(parents=True, exist_ok=True)
    total = '' if _any_stream(sources) else f' of {len(sources)}'
    counter = _Counter(detector, args.score_thr, total)
    failed = []
    for source in sources:
        try:
            (_stream if source.stream else _image)(source, counter)
        except ValueError as error:
            failed.append(str(error))
    counter.close()
    print(
        f'{counter.boxes} detections with score above {args.score_thr:g} in '
        f'{counter.images} image(s), {counter.milliseconds:.1f} ms each: '
        f'{args.out / "vis"}, {args.out / "preds"}'
    )
    if failed:
        failed.insert(0, f'{len(failed)} of {len(sources)} failed:')
    return failed


def _any_stream(sources: list[Source]) -> bool:
    return any(source.stream for source in sources)


class _Counter:
    """Detects in images; counts them and shows how far it has come."""

    def __init__(self, detector: Any, score_thr: float, total: str) -> None:
        self.detector, self.score_thr, self.total = detector, score_thr, total
        self.images = self.boxes = self.seconds = 0
        self.live = sys.stderr.isatty()

    @property
    def milliseconds(self) -> float:
        """Time of an image, from pixels to boxes."""
        return 1e3 * self.seconds / max(1, self.images)

    def __call__(self, name: str, pixels: Any) -> tuple[dict, Any]:
        """Return an image's results as for JSON, and its picture."""
        from .images import draw

        start = time.perf_counter()
        try:
            found = self.detector(pixels)
        except ValueError as error:
            raise ValueError(f'{name}: {error}') from None
        self.seconds += time.perf_counter() - start
        self.images += 1
        self.boxes += int((found.scores > self.score_thr).sum())
        if self.live:
            print(
                f'\r{self.images}{self.total} image(s), '
                f'{self.milliseconds:.1f} ms each ',
                end='',
                file=sys.stderr,
                flush=True,
            )
        # The layout of mmdet's inferencer, and the names of the classes.
        results = {
            'labels': found.labels.tolist(),
            'scores': found.scores.tolist(),
            'bboxes': found.boxes.tolist(),
            'names': found.names,
        }
        return results, draw(pixels, found, self.score_thr)

    def close(self) -> None:
        """End the line."""
        if self.live and self.images:
            print(file=sys.stderr)


def _image(source: Source, counter: _Counter) -> None:
    from .images import to_array

    results, picture = counter(source.name, to_array(source.name))
    with _replacing(source.results) as new:
        new.write_text(json.dumps(results))
    with _replacing(source.picture) as new:
        picture.save(new, quality=95)


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Give a name to write to, so that no half of a file gets its own."""
    new = path.with_name(f'{path.stem}.part{path.suffix}')
    try:
        yield new
        os.replace(new, path)
    except OSError as error:
        # A full disk's error names no file.
        raise type(error)(error.errno, error.strerror, str(path)) from error
    finally:
        new.unlink(missing_ok=True)


def _opencv() -> Any:
    try:
        import cv2
    except ImportError:
        raise ImportError(
            "videos and cameras need OpenCV: pip install 'surge_runtime"
            "[video]'"
        ) from None
    return cv2


def _stream(source: Source, counter: _Counter) -> None:
    import numpy as np

    cv2 = _opencv()
    camera = source.name.startswith(_CAMERA)
    name = int(source.name[len(_CAMERA) :]) if camera else source.name
    capture, writer = cv2.VideoCapture(name), cv2.VideoWriter()
    first = counter.images
    try:
        with open(source.results, 'w', encoding='utf-8') as lines:
            for frame in _frames(capture):
                results, picture = counter(source.name, frame)
                print(json.dumps(results), file=lines, flush=camera)
                if not writer.isOpened() and not writer.open(
                    str(source.picture),
                    cv2.VideoWriter_fourcc(*'mp4v'),
                    capture.get(cv2.CAP_PROP_FPS) or 25,
                    picture.size,
                ):
                    raise OSError(f'{source.picture} cannot be written')
                writer.write(np.ascontiguousarray(picture)[..., ::-1])
    except KeyboardInterrupt:
        # The usual end of a camera.
        if not camera:
            raise
    finally:
        stated = capture.get(cv2.CAP_PROP_FRAME_COUNT)
        capture.release()
        writer.release()
    count = counter.images - first
    if not count:
        raise ValueError(f'{source.name}: no frame can be read')
    # Some files state a count that is estimated.
    if not camera and count < 0.98 * stated:
        raise ValueError(
            f'{source.name}: only {count} of {stated:.0f} frames can be read'
        )


def _frames(capture: Any) -> Iterator[Any]:
    while True:
        there, frame = capture.read()
        if not there:
            return
        yield frame
