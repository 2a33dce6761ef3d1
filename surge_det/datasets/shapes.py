"""A small detection dataset that is drawn instead of downloaded.

Textured shapes on textured, cluttered backgrounds. Fills and backgrounds come
from one distribution of colours, so no threshold on colour finds an object.
Each class has its own pattern, which clutter has as well, and objects have a
dark or a light rim: what tells them is outline and texture.

Every quantity is an integer and every random number comes from the bit stream
of ``numpy.random.RandomState``, which NumPy froze: the same parameters give
the same pixels on every machine.
"""

import json
import os
import shutil
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from surge_det.whole_files import read_json

CLASSES = ('circle', 'square', 'triangle', 'star', 'ring')
# Of each class, in their order; clutter has any of them.
PATTERNS = ('dots', 'checker', 'stripes', 'plain', 'noise')
BACKGROUND_PATTERNS = ('plain', 'noise', 'dots')
SPLITS = ('train', 'test')
FOLDER = 'shapes'
# Part of the manifest: raise it with every change to what is drawn, so that
# datasets drawn by an older version are not taken for current ones.
VERSION = 1

WIDTH, HEIGHT = 192, 128
MAX_OBJECTS = 5
# Circumscribed radii in pixels: sizes vary by a factor of three.
RADII = (12, 14, 17, 20, 24, 28, 32, 36)
MIN_VISIBLE_PERCENT = 60
# Least distance (summed over three channels of 0..255) between the mean
# colours of a fill and of the band around it; below it nobody sees the shape.
MIN_CONTRAST = 120


class Instance(NamedTuple):
    """One object of a scene.

    ``label`` indexes ``CLASSES``; ``box`` is (x1, y1, x2, y2) in pixels,
    0-based, both corners inclusive, around the visible part; ``visible`` is
    that part's share of the shape's area: the rest is covered, or outside the
    image.
    """

    label: int
    box: tuple[int, int, int, int]
    visible: float


class Scene(NamedTuple):
    """A drawn image and its truth.

    ``image`` is (HEIGHT, WIDTH, 3) uint8, BGR; ``owner`` is (HEIGHT, WIDTH)
    int16, the index into ``instances`` of the object seen at each pixel, or
    -1 for the background.
    """

    image: np.ndarray
    owner: np.ndarray
    instances: list[Instance]


class _Dice:
    """Integers from NumPy's frozen stream, of one width on every platform."""

    def __init__(self, *key: int) -> None:
        bits = np.random.MT19937(np.random.SeedSequence(key))
        self.state = np.random.RandomState(bits)

    def many(self, low: int, high: int, size) -> np.ndarray:
        return self.state.randint(low, high + 1, size, dtype=np.int64)

    def one(self, low: int, high: int) -> int:
        return int(self.many(low, high, 1)[0])

    def pick(self, options):
        return options[self.one(0, len(options) - 1)]


def _smooth_noise(dice: _Dice, height: int, width: int) -> np.ndarray:
    """Bilinear noise in 0..255 over cells of 8 to 20 pixels."""
    cell = dice.one(8, 20)
    grid = dice.many(0, 255, (height // cell + 2, width // cell + 2))
    ys, xs = np.arange(height), np.arange(width)
    y0, fy = ys // cell, (ys % cell)[:, None]
    x0, fx = xs // cell, (xs % cell)[None]
    top = grid[y0][:, x0] * (cell - fx) + grid[y0][:, x0 + 1] * fx
    bottom = grid[y0 + 1][:, x0] * (cell - fx) + grid[y0 + 1][:, x0 + 1] * fx
    return (top * (cell - fy) + bottom * fy) // (cell * cell)


def _texture(
    dice: _Dice, height: int, width: int, pattern: str | None
) -> np.ndarray:
    """Two colours mixed by a pattern (None: any), plus grain; (H, W, 3)."""
    first = dice.many(30, 225, 3)
    offset = dice.many(20, 60, 3) * (2 * dice.many(0, 1, 3) - 1)
    ys, xs = np.mgrid[:height, :width]
    xs = xs + dice.one(0, 63)
    ys = ys + dice.one(0, 63)
    period = dice.one(4, 12)
    kind = pattern or dice.pick(PATTERNS)
    if kind == 'plain':
        mix = np.zeros((height, width), np.int64)
    elif kind == 'stripes':
        dx, dy = dice.pick(((4, 0), (0, 4), (3, 3), (3, -3), (4, 2), (2, -4)))
        mix = (xs * dx + ys * dy) // (2 * period) % 2 * 255
    elif kind == 'checker':
        mix = (xs // period + ys // period) % 2 * 255
    elif kind == 'dots':
        dx, dy = 2 * (xs % period) - period, 2 * (ys % period) - period
        mix = (2 * (dx * dx + dy * dy) <= period * period) * 255
    else:
        mix = _smooth_noise(dice, height, width)
    grain = dice.many(-12, 12, (height, width, 3))
    return np.clip(first + mix[..., None] * offset // 255 + grain, 0, 255)


def _paint(
    canvas: np.ndarray,
    mask: np.ndarray,
    dice: _Dice,
    unlike: np.ndarray | None = None,
    pattern: str | None = None,
) -> None:
    """Give ``canvas`` a new texture where ``mask`` is set.

    The texture's mean colour keeps ``MIN_CONTRAST`` from ``unlike`` (3,).
    """
    ys, xs = np.nonzero(mask)
    if not len(ys):
        return
    y, x = ys.min(), xs.min()
    while True:
        texture = _texture(dice, ys.max() - y + 1, xs.max() - x + 1, pattern)
        colours = texture[ys - y, xs - x]
        mean = colours.sum(0) // len(colours)
        if unlike is None or abs(mean - unlike).sum() >= MIN_CONTRAST:
            break
    canvas[mask] = colours


def _background(dice: _Dice) -> np.ndarray:
    """Regions of different texture, with blobs and lines scattered on it."""
    canvas = _texture(dice, HEIGHT, WIDTH, dice.pick(BACKGROUND_PATTERNS))
    ys, xs = np.mgrid[:HEIGHT, :WIDTH]
    for _ in range(dice.one(1, 2)):
        x, y = dice.one(0, WIDTH), dice.one(0, HEIGHT)
        nx, ny = dice.one(-9, 9), dice.one(-9, 9)
        side = (xs - x) * nx + (ys - y) * ny > 0
        pattern = dice.pick(BACKGROUND_PATTERNS)
        _paint(canvas, side, dice, pattern=pattern)
    # Crooked chains of small discs: as textured and as closed as the objects,
    # and of no class.
    for _ in range(dice.one(2, 4)):
        mask = np.zeros((HEIGHT, WIDTH), bool)
        x, y = dice.one(0, WIDTH), dice.one(0, HEIGHT)
        for _ in range(dice.one(3, 6)):
            radius = dice.one(2, 6)
            mask |= (xs - x) ** 2 + (ys - y) ** 2 <= radius * radius
            x, y = x + dice.one(-8, 8), y + dice.one(-8, 8)
        _paint(canvas, mask, dice)
    for _ in range(dice.one(2, 5)):
        # Not cv2.line, which draws other pixels in other OpenCV versions.
        x, y = xs - dice.one(0, WIDTH), ys - dice.one(0, HEIGHT)
        dx, dy = dice.pick(((7, 1), (5, 5), (1, 7), (6, -4), (4, -6)))
        along, across = x * dx + y * dy, x * dy - y * dx
        mask = (abs(along) < dice.one(60, 350)) & (
            abs(across) <= dice.one(4, 9)
        )
        _paint(canvas, mask, dice)
    return canvas


def _outline(dice: _Dice, name: str, radius: int) -> np.ndarray:
    """Mask (2 * radius + 1 squared) of one shape, turned at random."""
    # A rational turn, (p + iq)^2: cosine c/n and sine s/n without a float.
    p, q = dice.pick(
        ((1, 0), (12, 1), (8, 1), (6, 1), (5, 1), (4, 1), (10, 3), (3, 1))
        + ((8, 3), (5, 2), (9, 4), (2, 1), (7, 4), (5, 3), (3, 2), (1, 1))
    )
    c, s, n = p * p - q * q, 2 * p * q, p * p + q * q
    for _ in range(dice.one(0, 3)):
        c, s = -s, c
    ys, xs = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    u, v, size = c * xs + s * ys, c * ys - s * xs, n * radius
    if name == 'circle':
        return u * u + v * v <= size * size
    if name == 'ring':
        squared = u * u + v * v
        return (squared <= size * size) & (100 * squared > 30 * size * size)
    if name == 'square':
        return 100 * np.maximum(abs(u), abs(v)) <= 70 * size
    if name == 'triangle':
        normals = ((0, 1000), (866, -500), (-866, -500))
        inside = [nu * u + nv * v <= 500 * size for nu, nv in normals]
        return np.logical_and.reduce(inside)
    # A star: each of its points lies beyond at most one side of the pentagon
    # in its middle (inradius cos(72 degrees) of the star's radius).
    normals = ((0, 1000), (951, 309), (588, -809), (-588, -809), (-951, 309))
    inside = [nu * u + nv * v <= 309 * size for nu, nv in normals]
    return np.sum(inside, 0) >= 4


def _grown(mask: np.ndarray, steps: int) -> np.ndarray:
    """Pixels within ``steps`` of ``mask``, along rows and columns."""
    grown = np.pad(mask, steps)
    for _ in range(steps):
        core = grown.copy()
        grown[1:] |= core[:-1]
        grown[:-1] |= core[1:]
        grown[:, 1:] |= core[:, :-1]
        grown[:, :-1] |= core[:, 1:]
    return grown[steps:-steps, steps:-steps]


def _placed(outline: np.ndarray, x: int, y: int) -> np.ndarray:
    """``outline`` centred at (x, y) on a mask of the image's size."""
    radius = outline.shape[0] // 2
    page = np.zeros((HEIGHT + 2 * radius, WIDTH + 2 * radius), bool)
    page[y : y + 2 * radius + 1, x : x + 2 * radius + 1] = outline
    return page[radius : radius + HEIGHT, radius : radius + WIDTH]


def _fits(
    mask: np.ndarray, area: int, owner: np.ndarray, areas: list[int]
) -> bool:
    """Whether every object stays recognisable once ``mask`` is drawn."""
    if 100 * mask.sum() < MIN_VISIBLE_PERCENT * area:
        return False
    for index, full in enumerate(areas):
        seen = owner == index
        if not (mask & ~seen).any():
            return False  # A shape inside a shape could be taken for a ring.
        if 100 * (seen & ~mask).sum() < MIN_VISIBLE_PERCENT * full:
            return False
    return True


def draw_scene(seed: int, split: str, index: int) -> Scene:
    """Draw image ``index`` of ``split``; a pure function of its arguments.

    Raises:
        ValueError: if ``split`` is not in ``SPLITS``, or ``seed`` or
            ``index`` is negative.
    """
    if split not in SPLITS:
        raise ValueError(f'split={split!r} must be one of {SPLITS}')
    if seed < 0 or index < 0:
        raise ValueError(
            f'seed={seed!r} and index={index!r} must not be negative'
        )
    dice = _Dice(seed, SPLITS.index(split), index)
    canvas = _background(dice)
    owner = np.full((HEIGHT, WIDTH), -1, np.int16)
    labels: list[int] = []
    areas: list[int] = []
    for number in range(dice.one(1, MAX_OBJECTS)):
        # The first object's class follows the index: no class can be absent.
        drawn = dice.one(0, len(CLASSES) - 1)
        label = drawn if number else index % len(CLASSES)
        radius = dice.pick(RADII)
        outline = _outline(dice, CLASSES[label], radius)
        area = int(outline.sum())
        edge = 7 * radius // 10
        for _ in range(30):
            x = dice.one(edge, WIDTH - 1 - edge)
            y = dice.one(edge, HEIGHT - 1 - edge)
            mask = _placed(outline, x, y)
            if _fits(mask, area, owner, areas):
                break
        else:
            continue
        band = canvas[_grown(mask, 3) & ~mask]
        around = band.sum(0) // len(band)
        _paint(canvas, mask, dice, around, PATTERNS[label])
        # Half of the rims are dark, half are light.
        canvas[mask & _grown(~mask, 2)] = dice.pick((25, 230))
        owner[mask] = len(labels)
        labels.append(label)
        areas.append(area)
    instances = []
    for index_, label in enumerate(labels):
        ys, xs = np.nonzero(owner == index_)
        box = (int(xs.min()), int(ys.min()), int(xs.max()), int(ys.max()))
        instances.append(Instance(label, box, len(xs) / areas[index_]))
    return Scene(canvas.astype(np.uint8), owner, instances)


def _annotation(name: str, instances: list[Instance]) -> bytes:
    root = ET.Element('annotation')
    ET.SubElement(root, 'folder').text = 'JPEGImages'
    ET.SubElement(root, 'filename').text = f'{name}.jpg'
    size = ET.SubElement(root, 'size')
    for tag, value in (('width', WIDTH), ('height', HEIGHT), ('depth', 3)):
        ET.SubElement(size, tag).text = str(value)
    for instance in instances:
        item = ET.SubElement(root, 'object')
        ET.SubElement(item, 'name').text = CLASSES[instance.label]
        ET.SubElement(item, 'truncated').text = str(int(instance.visible < 1))
        ET.SubElement(item, 'difficult').text = '0'
        box = ET.SubElement(item, 'bndbox')
        # VOC counts pixels from 1.
        for tag, value in zip(('xmin', 'ymin', 'xmax', 'ymax'), instance.box):
            ET.SubElement(box, tag).text = str(value + 1)
    ET.indent(root)
    return ET.tostring(root) + b'\n'


def _manifest(counts: dict[str, int], seed: int) -> dict:
    return dict(
        made_by='tools/make_demo_data.py',
        version=VERSION,
        seed=seed,
        counts=counts,
        size=[WIDTH, HEIGHT],
        classes=list(CLASSES),
    )


def _names(split: str, count: int) -> list[str]:
    return [f'{split}_{index:05d}' for index in range(count)]


def _read_manifest(folder: Path) -> dict | None:
    try:
        return read_json(folder / 'manifest.json')
    except (FileNotFoundError, ValueError):
        return None


def _is_complete(folder: Path, manifest: dict) -> bool:
    if _read_manifest(folder) != manifest:
        return False
    wanted = []
    for split, count in manifest['counts'].items():
        wanted.append(folder / 'ImageSets' / 'Main' / f'{split}.txt')
        for name in _names(split, count):
            wanted.append(folder / 'JPEGImages' / f'{name}.jpg')
            wanted.append(folder / 'Annotations' / f'{name}.xml')
    return all(path.is_file() and path.stat().st_size for path in wanted)


def prepare_shapes(
    root: str | os.PathLike,
    train: int = 500,
    test: int = 80,
    seed: int = 0,
    on_image: Callable[[int, int], None] | None = None,
) -> tuple[Path, bool]:
    """Make sure that ``root/shapes`` holds the dataset, in Pascal VOC format.

    A complete dataset of the same parameters is left as it is; any other that
    this function wrote is replaced as a whole.

    Args:
        root: The data folder; made where it does not exist.
        train: Number of training images.
        test: Number of test images.
        seed: Images of different seeds, or splits, have nothing in common.
        on_image: Called with (images written, images in all).

    Returns:
        The dataset's folder, and whether it was there already.

    Raises:
        ValueError: for fewer images in a split than there are classes, or a
            negative seed.
        FileExistsError: if ``root/shapes`` holds something else.
    """
    counts = dict(train=train, test=test)
    for name, count in counts.items():
        if count < len(CLASSES):
            raise ValueError(
                f'{name}={count} must be at least {len(CLASSES)}, so that '
                'the split can show every class'
            )
    if seed < 0:
        raise ValueError(f'seed={seed} must not be negative')
    folder = Path(root) / FOLDER
    manifest = _manifest(counts, seed)
    if _is_complete(folder, manifest):
        return folder, True
    old = _read_manifest(folder) or {}
    if folder.exists() and old.get('made_by') != manifest['made_by']:
        raise FileExistsError(
            f'{folder} exists and was not made by {manifest["made_by"]}: '
            'move it away, or choose another --root'
        )

    # Drawn beside it and renamed: an interrupted run leaves no half dataset.
    draft = folder.with_name(f'{FOLDER}.draft')
    shutil.rmtree(draft, ignore_errors=True)
    for part in ('JPEGImages', 'Annotations', 'ImageSets/Main'):
        (draft / part).mkdir(parents=True)
    done = 0
    for split, count in counts.items():
        names = _names(split, count)
        for index, name in enumerate(names):
            scene = draw_scene(seed, split, index)
            ok, data = cv2.imencode(
                '.jpg', scene.image, [cv2.IMWRITE_JPEG_QUALITY, 95]
            )
            if not ok:
                raise RuntimeError('OpenCV could not encode a JPEG image')
            (draft / 'JPEGImages' / f'{name}.jpg').write_bytes(data.tobytes())
            (draft / 'Annotations' / f'{name}.xml').write_bytes(
                _annotation(name, scene.instances)
            )
            done += 1
            if on_image is not None:
                on_image(done, sum(counts.values()))
        text = ''.join(f'{name}\n' for name in names)
        (draft / 'ImageSets' / 'Main' / f'{split}.txt').write_text(text)
    (draft / 'manifest.json').write_text(json.dumps(manifest, indent=1) + '\n')
    if folder.exists():
        shutil.rmtree(folder)
    draft.rename(folder)
    return folder, False
