"""Images as the detector takes them, and pictures of what it found."""

from __future__ import annotations

import colorsys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

    from .detector import Detections

#: Endings of the images that are looked for in a folder: mmdet's list.
IMAGE_SUFFIXES = (
    *('.jpg', '.jpeg', '.png', '.ppm', '.bmp', '.pgm', '.tif', '.tiff'),
    '.webp',
)
# What Pillow may take a file for. Some of its other formats run programs.
_FORMATS = ('JPEG', 'PNG', 'PPM', 'BMP', 'TIFF', 'WEBP')
# Pillow's own limit: a larger image may be a decompression bomb.
_MAX_PIXELS = 89_478_485
_GRAY16 = ('I;16', 'I;16B', 'I;16L', 'I;16N')
_COLORS = ('1', 'L', 'LA', 'P', 'PA', 'RGB', 'RGBA', 'RGBX', 'CMYK', 'YCbCr')


def to_array(image: str | Path | Image | np.ndarray) -> np.ndarray:
    """Return an image's pixels as OpenCV and mmdet have them.

    Args:
        image: A file, a Pillow image, or an array that is returned as it is:
            uint8 (H, W, 3) with channels blue, green, red.

    Returns:
        np.ndarray: uint8 (H, W, 3), BGR, turned as the image's EXIF data say.
        The same as ``cv2.imread`` gives for JPEG (except CMYK), PNG and BMP
        files, but a file that is cut off is an error.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no image, or too large.
        TypeError: If the argument is none of the three.
    """
    if isinstance(image, np.ndarray):
        if (
            image.dtype != np.uint8
            or image.ndim != 3
            or image.shape[2] != 3
            or not image.size
        ):
            raise ValueError(
                'an image array must be uint8 (H, W, 3) in BGR, not '
                f'{image.dtype} {image.shape}'
            )
        return np.ascontiguousarray(image)
    if hasattr(image, 'getexif'):
        return _pixels(image)
    if not isinstance(image, (str, Path)):
        raise TypeError(
            'image must be a path, a Pillow image or a uint8 array (H, W, 3) '
            f'in BGR, not {type(image).__name__}'
        )
    if not Path(image).is_file():
        raise FileNotFoundError(f'image {str(image)!r} does not exist')
    from PIL import Image

    try:
        with warnings.catch_warnings():
            # Its warnings are of size, and of metadata that are not used.
            warnings.simplefilter('ignore')
            with Image.open(image, formats=_FORMATS) as opened:
                return _pixels(opened)
    except Image.UnidentifiedImageError:
        why = f'not an image of {", ".join(_FORMATS)}'
    # Plugins raise errors of many types for broken files.
    except Exception as error:
        why = f'cannot be read: {error}'
    raise ValueError(f'image {str(image)!r}: {why}')


def _pixels(image: Image) -> np.ndarray:
    from PIL import ImageOps

    if image.width * image.height > _MAX_PIXELS:
        raise ValueError(
            f'{image.width} x {image.height} pixels; at most '
            f'{_MAX_PIXELS:,} are read'
        )
    image = ImageOps.exif_transpose(image)
    if image.mode in _GRAY16:
        gray = (np.asarray(image) >> 8).astype(np.uint8)
        return np.repeat(gray[..., None], 3, axis=2)
    if image.mode not in _COLORS:
        raise ValueError(f'pixels of kind {image.mode!r} are not read')
    return np.ascontiguousarray(np.asarray(image.convert('RGB'))[..., ::-1])


def draw(image: np.ndarray, detections: Detections, score_thr: float) -> Image:
    """Return a picture of an image with boxes and names of classes.

    Args:
        image: uint8 (H, W, 3), BGR.
        detections: Boxes in the image's pixels.
        score_thr: Detections with a score above this are drawn.
    """
    from PIL import Image, ImageDraw, ImageFont

    picture = Image.fromarray(np.ascontiguousarray(image[..., ::-1]))
    pen = ImageDraw.Draw(picture)
    size = max(10, min(picture.size) // 40)
    font = ImageFont.load_default(size)
    # The surest last, on top.
    for i in np.argsort(detections.scores, kind='stable'):
        score, label = detections.scores[i], detections.labels[i]
        if not score > score_thr:
            continue
        box = np.clip(detections.boxes[i], 0, picture.size * 2).tolist()
        color, ink = _colors(int(label))
        pen.rectangle(box, outline=color, width=max(2, size // 8))
        # The name stands on the box, or in it at the image's upper edge.
        text = f'{detections.classes[label]} {score:.2f}'
        _, top, right, bottom = pen.textbbox((0, 0), text, font)
        x = max(0, min(box[0], picture.width - right))
        y = box[1] - bottom - 2 if box[1] > bottom + 2 else box[1]
        pen.rectangle((x, y, x + right, y + bottom + 2), fill=color)
        pen.text((x, y), text, ink, font)
    return picture


def _colors(label: int) -> tuple[tuple[int, ...], str]:
    """Return a class's colour and that of text on it."""
    # Steps of the golden ratio keep neighbouring classes apart.
    rgb = colorsys.hsv_to_rgb(label * 0.618034 % 1, 0.85, 0.95)
    luma = 0.3 * rgb[0] + 0.6 * rgb[1] + 0.1 * rgb[2]
    return tuple(round(255 * c) for c in rgb), 'black' if (
        luma > 0.5
    ) else 'white'
