"""Whether images load, and in the size that their boxes are annotated for."""

from __future__ import annotations

import functools
import logging
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import mmcv
import numpy as np
from mmcv.image import io as mmcv_io
from mmcv.transforms import LoadImageFromFile
from mmengine.logging import print_log
from PIL import ExifTags, Image

# How many images a dataset looks at when it is loaded.
SAMPLE = 64
# Of images with more than 8 bits a colour, how many are decoded, and how
# bright one has to be as it is loaded: 12 bits in 16 make 15 of 255.
DECODED = 8
DARK = 32

_NAMED = 10
# Backends that turn a JPEG by its EXIF; formats that all of them read, and
# whose header says their size.
_TURNING = ('cv2', 'pillow')
_PLAIN = ('PNG', 'BMP', 'WEBP', 'TIFF', 'PPM')


class Header(NamedTuple):
    """What of an image is known without its pixels.

    Attributes:
        width: Pixels, as the image is loaded.
        height: Pixels, as the image is loaded.
        turned: Whether EXIF says that the camera was turned, so that boxes
            may be annotated in another frame than the loaded one.
        deep: Whether a colour has more than 8 bits.
    """

    width: int
    height: int
    turned: bool
    deep: bool


class Loader(NamedTuple):
    """How a pipeline reads images: arguments of ``LoadImageFromFile``."""

    color_type: str = 'color'
    backend: str | None = None

    @classmethod
    def of(cls, dataset: Any) -> Loader | None:
        """Return how the pipeline of a dataset reads images.

        None where it does so by something else than ``LoadImageFromFile``:
        nobody knows then what the files are.
        """
        transforms = getattr(dataset.pipeline, 'transforms', ())
        for transform in transforms:
            if type(transform) is LoadImageFromFile:
                return cls(transform.color_type, transform.imdecode_backend)
        return None if transforms else cls()

    def resolved(self) -> Loader:
        """Return the same with mmcv's present backend in place of None."""
        return self._replace(backend=self.backend or mmcv_io.imread_backend)

    def load(self, path: str) -> np.ndarray:
        """Load an image, (H, W, 3) or (H, W), BGR.

        Raises:
            ValueError: If it cannot be read as an image.
        """
        try:
            image = mmcv.imread(
                path, flag=self.color_type, backend=self.backend
            )
        except Exception as error:
            # Each backend has errors of its own, without the file's name.
            reason = ' '.join(str(error).split())
            raise ValueError(
                f'{path} cannot be read as an image: {reason}'
            ) from error
        if image is None:
            raise ValueError(f'{path} cannot be read as an image')
        return image


def read_header(path: str, loader: Loader) -> Header:
    """Read the header of an image, once in a process while it is unchanged.

    Args:
        path: A local file.
        loader: How the image is going to be loaded: that decides whether
            EXIF turns it.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is empty or no image.
    """
    try:
        stat = os.stat(path)
    except FileNotFoundError:
        raise FileNotFoundError(f'no image at {path}') from None
    return _read_header(
        path, stat.st_size, stat.st_mtime_ns, loader.resolved()
    )


# As many as a process has of small datasets; of large ones, a part.
@functools.lru_cache(maxsize=100_000)
def _read_header(path: str, size: int, mtime: int, loader: Loader) -> Header:
    if size == 0:
        raise ValueError(f'image {path} is empty')
    try:
        with warnings.catch_warnings():
            # Of an image so large that it might be an attack.
            warnings.simplefilter('ignore')
            with Image.open(path) as image:
                form, (width, height) = image.format, image.size
                orientation = _orientation(image, loader.backend)
                deep = _is_deep(image)
    except Exception:
        # OpenCV reads formats that Pillow does not.
        form, orientation, deep = None, 1, False
    if form in ('JPEG', 'MPO'):
        turns = loader.color_type in ('color', 'grayscale')
        if orientation > 4 and turns and loader.backend in _TURNING:
            width, height = height, width
    elif form not in _PLAIN or orientation > 1:
        # Whether EXIF turns these depends on OpenCV's version.
        height, width = loader.load(path).shape[:2]
        if form not in _PLAIN:
            raw = Loader('unchanged', loader.backend).load(path)
            deep = raw.dtype != np.uint8
    return Header(width, height, orientation > 1, deep)


def _is_deep(image: Image.Image) -> bool:
    stored = image.tile[0][3] if image.tile else ''
    if image.format == 'PPM' and isinstance(stored, tuple):
        # With the highest value, where that is not 255.
        return stored[1] > 255
    # Pillow's mode is I;16 for grey of 16 bits, but RGB for colours.
    return image.mode[0] in 'IF' or ';16' in str(stored)


def _orientation(image: Image.Image, backend: str) -> int:
    tag = ExifTags.Base.Orientation
    if image.format == 'TIFF' or backend == 'pillow':
        return image.getexif().get(tag, 1)
    # Image.getexif() decodes a PNG without EXIF, and takes XMP as well.
    exif = Image.Exif()
    exif.load(image.info.get('exif', b''))
    return exif.get(tag, 1)


def image_faults(
    infos: Sequence[Mapping],
    loader: Loader,
    track: Callable[[Sequence], Iterable] = iter,
) -> list[str]:
    """Return what is wrong with images of a dataset, by their headers.

    An image must be there, be an image, and be loaded in the size that its
    annotation has. Of images with more than 8 bits a colour, which
    are loaded by their upper 8 bits, some are decoded: if all are black or
    nearly so, that is a fault.

    Args:
        infos: What ``get_data_info`` of mmdet's datasets returns: dicts with
            ``img_path`` and, if sizes are annotated, ``width``, ``height``.
        loader: How the images are going to be loaded.
        track: Shows a progress bar while it hands out the ``infos``.

    Returns:
        A line for each fault.
    """
    faults, deep = [], []
    for info in track(infos):
        path = info['img_path']
        try:
            header = read_header(path, loader)
        except (OSError, ValueError) as error:
            faults.append(str(error))
            continue
        fault = size_fault(info, header.width, header.height)
        if fault:
            turned = ' (its EXIF says that it is turned)' * header.turned
            faults.append(fault + turned)
        elif header.deep:
            deep.append(path)
    faults += _deep_faults(deep, loader)
    return faults


def size_fault(info: Mapping, width: int, height: int) -> str | None:
    """Say that an image has another size than its annotation, if so."""
    told = info.get('width', width), info.get('height', height)
    if told == (width, height):
        return None
    return (
        f'{info["img_path"]} is loaded as {width}x{height}, but its '
        f'annotation is for {told[0]}x{told[1]}: boxes may be elsewhere '
        '(a size that the annotation does not tell is read from the image)'
    )


def _deep_faults(paths: Sequence[str], loader: Loader) -> list[str]:
    if loader.color_type == 'unchanged':
        # Loaded with all their bits: to scale them is the config's work.
        return []
    brightest = {}
    for path in _spread(paths, DECODED):
        try:
            brightest[path] = loader.load(path).max()
            raw = Loader('unchanged', loader.backend).load(path)
        except ValueError as error:
            return [str(error)]
        if loader.resolved().backend == 'pillow' and raw.ndim == 2:
            return [
                f'{path} has {raw.dtype.itemsize * 8} bits: Pillow cuts its '
                "grey values off at 255; imdecode_backend='cv2' scales them"
            ]
    dark = [path for path, value in brightest.items() if value < DARK]
    if not dark:
        return []
    message = (
        f'{dark[0]} has more than 8 bits a colour, of which the upper 8 are '
        f'loaded: its brightest value is {brightest[dark[0]]} of 255'
    )
    if len(dark) == len(brightest):
        return [f'{message}; stretch the values, or store 8 bits']
    print_log(message, logger='current', level=logging.WARNING)
    return []


def _spread(items: Sequence, count: int) -> Sequence:
    """At most so many of the items, evenly over all of them."""
    return items[:: max(1, -(-len(items) // count))]


class CheckedImages:
    """Mixin of mmdet's datasets, whose images are checked.

    A sample of them when the dataset is loaded: its ``load_data_list`` calls
    :meth:`check_sample`. And each one when it is used: an error names its
    file, and one of another size than its annotation is an error.

    Attributes:
        track: Set by ``surge-det check-data`` before the dataset is loaded:
            shows a progress bar over what it is given.
    """

    track: Callable[[Sequence], Iterable] | None = None

    def check_sample(self, infos: Sequence[Mapping]) -> None:
        """Check some images, evenly over the dataset; all, with ``track``.

        Args:
            infos: As :func:`image_faults` takes them.

        Raises:
            ValueError: If something is wrong with any.
        """
        loader = Loader.of(self)
        if loader is None or not is_local(self):
            return
        sample = infos if self.track else _spread(infos, SAMPLE)
        faults = image_faults(sample, loader, self.track or iter)
        if faults:
            lines = self.first_lines(faults)
            if not self.track:
                lines = (
                    f'{self.ann_file}: {len(faults)} fault(s) in '
                    f'{len(sample)} of {len(infos)} images:\n{lines}'
                )
            raise ValueError(lines)

    def size_of_image(self, path: str) -> tuple[int, int]:
        """Return width and height of an image whose annotation has none.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is no image, or if EXIF turns it: nobody knows
                then in which frame its boxes are.
        """
        header = read_header(path, Loader.of(self) or Loader())
        if header.turned:
            raise ValueError(
                f'EXIF turns {path}, and its annotation has no size: whether '
                'the boxes are in the image as it is loaded, '
                f'{header.width}x{header.height}, must be told'
            )
        return header.width, header.height

    def first_lines(self, faults: Sequence[object]) -> str:
        """Return the first faults, one a line; all, with ``track``."""
        shown = len(faults) if self.track else _NAMED
        lines = list(map(str, faults[:shown]))
        if len(faults) > shown:
            lines.append(
                f'and {len(faults) - shown} more; `surge-det check-data` '
                'tells all'
            )
        return '\n'.join(lines)

    def filter_data(self) -> list[dict]:
        """Leave out what ``filter_cfg`` does not want.

        Raises:
            ValueError: If no image is left.
        """
        kept = super().filter_data()
        if not kept:
            raise ValueError(
                f'{self.ann_file}: filter_cfg={self.filter_cfg} leaves none '
                f'of {len(self.data_list)} images'
            )
        return kept

    def prepare_data(self, idx: int) -> Any:
        """Return an item, through the pipeline.

        Raises:
            RuntimeError: If the pipeline fails; it names the image.
            ValueError: If the image has another size than its annotation.
        """
        info = self.get_data_info(idx)
        told = {key: info[key] for key in ('img_path', 'width', 'height')}
        try:
            item = self.pipeline(info)
        except Exception as error:
            raise RuntimeError(
                f'image {told["img_path"]}: {type(error).__name__}: {error}'
            ) from error
        # The pipeline writes into `info`, and keeps the size as loaded.
        if 'ori_shape' in info:
            height, width = info['ori_shape'][:2]
            fault = size_fault(told, width, height)
            if fault:
                raise ValueError(fault)
        return item


def is_local(dataset: Any) -> bool:
    """Return whether images and annotations of a dataset are local files."""
    readers = [dataset, *getattr(dataset.pipeline, 'transforms', ())]
    paths = [dataset.ann_file, *dataset.data_prefix.values()]
    backends = [
        getattr(reader, key, None)
        for reader in readers
        for key in ('backend_args', 'file_client_args')
    ]
    return all(
        args is None or args.get('backend') == 'local' for args in backends
    ) and not any('://' in str(path) for path in paths)
