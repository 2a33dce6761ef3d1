"""COCO annotation files, checked while they are indexed."""

from __future__ import annotations

import difflib
import gc
import json
import logging
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from mmdet.datasets.api_wrappers import COCO
from mmengine.logging import print_log

from surge_det.datasets.dropped import DroppedBoxes
from surge_det.text import brief, some

# Pixels. Nobody's image has as many on a side.
_FAR = 1e7
# Of the boxes: what may be odd before it is taken for a mistake in all.
_FEW = 0.05


@contextmanager
def _no_garbage() -> Iterator[None]:
    """Let Python not look for garbage where there is none.

    It does whenever objects have become many; while a large file is read,
    that takes longer than all checks.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def nearest(name: str, names: Iterable[str]) -> str | None:
    """Return the one of ``names`` that is written most like ``name``."""
    plain = {other.strip().casefold(): other for other in names}
    # So near that it is hardly another word: cats, not car, for cat.
    near = difflib.get_close_matches(
        name.strip().casefold(), plain, n=1, cutoff=0.8
    )
    return plain[near[0]] if near else None


class CheckedCOCO(COCO):
    """mmdet's ``COCO`` for files as people have them.

    What has one meaning only is put right: ids that are texts of whole
    numbers, boxes of such texts, an absent ``iscrowd`` or ``area`` (width
    times height; so is one of 0), backslashes in ``file_name``. Boxes that
    cannot be used are left out and counted in ``dropped``: of unknown images
    and categories, without area, outside their image. Anything else that is
    not COCO's format is refused. Annotations are numbered anew, from 1:
    COCO's evaluation takes an object with id 0 for one that is not found.

    Args:
        annotation_file: A file on this machine.
        name: What messages call it; itself by default.
        size_of: Returns width and height of an image, given ``file_name``;
            called where the file does not tell them. Without it they are
            None there, and none of the image's boxes is outside.

    Attributes:
        dropped (DroppedBoxes): What was left out.
        has_annotations (bool): False for a file of images to predict on.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: The message names the file, and the id.
    """

    def __init__(
        self,
        annotation_file: str,
        name: str | None = None,
        size_of: Callable[[str], tuple[int, int]] | None = None,
    ) -> None:
        super().__init__()
        self._size_of = size_of
        self.name = str(name or annotation_file)
        self.dropped = DroppedBoxes(self.name)
        with _no_garbage():
            self.dataset = self._read(annotation_file)
            self.createIndex()
        self.img_ann_map, self.cat_img_map = self.imgToAnns, self.catToImgs

    def _read(self, annotation_file: str) -> Any:
        try:
            # With or without the mark that Windows' editors write.
            with open(annotation_file, encoding='utf-8-sig') as file:
                return json.load(file)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f'no annotation file at {self.name}: check data_root, '
                'ann_file and the environment variable SURGE_DATA_ROOT'
            ) from error
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f'{self.name} is no JSON file: {error}'
            ) from error

    def createIndex(self) -> None:  # noqa: N802, the name is pycocotools'
        """Check and index what was read, in one pass."""
        if not isinstance(self.dataset, dict):
            self._refuse_format(
                f'it holds a {type(self.dataset).__name__}, not an object '
                'with `images`, `annotations` and `categories`'
            )
        self.has_annotations = bool(self.dataset.get('annotations'))
        self._index_categories()
        self._index_images()
        self._index_annotations()

    def get_cat_ids(
        self,
        cat_names: Sequence[str] = (),
        sup_names: Sequence[str] = (),
        cat_ids: Sequence[int] = (),
    ) -> list[int]:
        """Return the ids of the categories, in the order of ``cat_names``.

        Without names, as mmdet's does.

        Raises:
            ValueError: For a name that the file lacks or has twice.
        """
        if not cat_names:
            return super().get_cat_ids([], list(sup_names), list(cat_ids))
        ids = defaultdict(list)
        for key, category in self.cats.items():
            ids[category['name']].append(key)
        absent = [name for name in cat_names if name not in ids]
        if absent:
            spare = ids.keys() - set(cat_names)
            near = [
                f'{name!r} is near {other!r}'
                for name in absent
                if (other := nearest(name, spare))
            ]
            raise ValueError(
                f'{self.name}: no category is named {some(map(repr, absent))}'
                f', as metainfo.classes of the config has it'
                + (f'; {some(near)}' if near else '')
                + f'; the file has {some(map(repr, ids))}'
            )
        for name in cat_names:
            if len(ids[name]) > 1:
                found = ' and '.join(
                    f'{key} ({len(self.catToImgs[key])} boxes)'
                    for key in ids[name]
                )
                raise ValueError(
                    f'{self.name}: the categories {found} are all named '
                    f'{name!r}; metainfo.classes cannot tell them apart: '
                    'rename one, or delete it'
                )
        return [ids[name][0] for name in cat_names]

    def add_absent(self, names: Sequence[str]) -> None:
        """Add categories without boxes for names that the file lacks.

        Of a small validation set some tools write the categories that occur
        in it. Nothing is added where all are absent, or where one is written
        almost as a category is; :meth:`get_cat_ids` then refuses them.
        """
        present = {category['name'] for category in self.cats.values()}
        absent = [name for name in names if name not in present]
        spare = present - set(names)
        if (
            not absent
            or len(absent) == len(names)
            or any(nearest(name, spare) for name in absent)
        ):
            return
        print_log(
            f'{self.name}: no category is named {some(map(repr, absent))}: '
            'taken as classes without a box here',
            logger='current',
            level=logging.WARNING,
        )
        for key, name in enumerate(absent, max(self.cats) + 1):
            self.cats[key] = dict(id=key, name=name)
            self.dataset['categories'].append(self.cats[key])

    def fill_masks(self) -> None:
        """Take its box as the mask of each object that has none.

        A polygon of less than three points is none: mmdet would leave the
        object out of training, box and all.
        """
        without = 0
        for ann in self.anns.values():
            if not _is_mask(ann.get('segmentation')):
                x, y, w, h = ann['bbox']
                ann['segmentation'] = [
                    [x, y, x + w, y, x + w, y + h, x, y + h]
                ]
                without += 1
        if without:
            print_log(
                f'{self.name}: {without} of {len(self.anns)} boxes have no '
                'usable segmentation; the box is taken as the mask',
                logger='current',
                level=logging.WARNING,
            )

    # ---------------------------------------------------------- categories

    def _index_categories(self) -> None:
        for entry in self._entries('categories'):
            where = f'{self.name}: category {brief(entry)}'
            key = entry['id'] = _joined(entry.get('id'))
            if not isinstance(key, int):
                raise ValueError(f'{where}: its id must be a whole number')
            if not isinstance(entry.get('name'), str):
                raise ValueError(f'{where}: its name must be a text')
            if key in self.cats:
                raise ValueError(
                    f'{self.name}: category id {key} is of '
                    f'{self.cats[key]["name"]!r} and of {entry["name"]!r}'
                )
            self.cats[key] = entry

    # -------------------------------------------------------------- images

    def _index_images(self) -> None:
        entries = self._entries('images')
        keys = [_joined(entry.get('id')) for entry in entries]
        # Numbers among texts are texts too: ids are compared and sorted.
        self._id_type = str if any(isinstance(k, str) for k in keys) else int
        files: dict[str, Any] = {}
        for key, entry in zip(keys, entries):
            where = f'{self.name}: image {brief(entry)}'
            if key is None:
                raise ValueError(
                    f'{where}: its id must be a whole number or a text'
                )
            key = entry['id'] = self._id_type(key)
            file = entry.get('file_name')
            if not file or not isinstance(file, str):
                raise ValueError(f'{where}: its file_name must be a text')
            if '://' in file:
                # It would be fetched.
                raise ValueError(
                    f'{where}: its file_name is an address; the name of a '
                    'file is allowed'
                )
            file = entry['file_name'] = file.replace('\\', '/')
            if key in self.imgs:
                raise ValueError(
                    f'{self.name}: image id {key!r} is of '
                    f'{self.imgs[key]["file_name"]} and of {file}'
                )
            if file in files:
                raise ValueError(
                    f'{self.name}: {file} is the image of two ids, '
                    f'{files[file]!r} and {key!r}'
                )
            files[file] = key
            width, height = (
                self._side(entry, side, where) for side in ('width', 'height')
            )
            if not width or not height:
                width, height = (
                    self._size_of(file) if self._size_of else (None, None)
                )
            entry['width'], entry['height'] = width, height
            self.imgs[key] = entry

    def _side(self, image: dict, key: str, where: str) -> int | None:
        value = image.get(key)
        if type(value) is int and 0 < value <= _FAR:
            return value
        if value in (None, ''):
            return None
        number = _number(value)
        if not (0 <= number <= _FAR and number == int(number)):
            raise ValueError(
                f'{where}: its {key} must be a whole number of pixels'
            )
        return int(number) or None

    # --------------------------------------------------------- annotations

    def _index_annotations(self) -> None:
        entries = self.dataset.setdefault('annotations', [])
        if not isinstance(entries, list):
            self._refuse_format('`annotations` is not a list')
        self._no_area: Counter = Counter()
        imgs, cats, id_type = self.imgs, self.cats, self._id_type
        kept, keys = [], []
        normalized, beyond = [], Counter()
        for number, ann in enumerate(entries):
            # The usual case, in as few steps as there can be.
            try:
                image_id, category_id = ann['image_id'], ann['category_id']
                x, y, w, h = ann['bbox']
                ann.setdefault('iscrowd', 0)
                usual = (
                    type(image_id) is id_type
                    and type(category_id) is int
                    and -_FAR <= x <= _FAR
                    and -_FAR <= y <= _FAR
                    and 0 <= w <= _FAR
                    and 0 <= h <= _FAR
                    and 0 < ann['area'] < math.inf
                    and ann['iscrowd'] in (0, 1)
                    and 'ignore' not in ann
                )
            except (AttributeError, KeyError, TypeError, ValueError):
                usual = False
            if not usual:
                self._mend(ann, number)
                image_id, category_id = ann['image_id'], ann['category_id']
                x, y, w, h = ann['bbox']
            keys.append(ann.get('id'))
            image = imgs.get(image_id)
            if image is None:
                self.dropped.add('of unknown images', f'image_id {image_id!r}')
                continue
            right, bottom = x + w, y + h
            width, height = image['width'], image['height']
            if category_id not in cats:
                self.dropped.add(
                    'of unknown categories',
                    f'category_id {category_id!r} in {image["file_name"]}',
                )
                continue
            if not (w and h):
                self.dropped.add('without area', image['file_name'])
                continue
            if width and (
                right <= 0 or bottom <= 0 or x >= width or y >= height
            ):
                self.dropped.add('outside the image', image['file_name'])
                continue
            if right <= 1 and bottom <= 1 and x >= 0 and y >= 0:
                normalized.append((ann, image))
            elif width and (right > width + 1 or bottom > height + 1):
                beyond[image['file_name']] += 1
            kept.append(ann)
            ann['id'] = len(kept)
            self.imgToAnns[image_id].append(ann)
            self.catToImgs[category_id].append(image_id)
        self.dataset['annotations'] = kept
        self.anns = {ann['id']: ann for ann in kept}
        self._check_ids(keys)
        self._check_normalized(normalized)
        self._tell(beyond)

    def _mend(self, ann: Any, number: int) -> None:
        """Put right an annotation that is not as usual, or refuse it."""

        def refuse(reason: str) -> NoReturn:
            raise ValueError(
                f'{self.name}: annotations[{number}], {brief(ann)}: {reason}'
            )

        if not isinstance(ann, dict):
            refuse('must be an object')
        for key in ('image_id', 'category_id', 'bbox'):
            if key not in ann:
                refuse(f'has no {key}')
        for key in ('image_id', 'category_id'):
            ann[key] = _joined(ann[key])
            if ann[key] is None:
                refuse(f'its {key} must be a whole number or a text')
        if self._id_type is str:
            ann['image_id'] = str(ann['image_id'])
        box = ann['bbox']
        numbers = [_number(v) for v in box] if isinstance(box, list) else []
        image = self.imgs.get(ann['image_id'], {})
        file = image.get('file_name', 'an unknown image')
        # NaN is not below anything.
        if len(numbers) != 4 or not all(abs(v) <= _FAR for v in numbers):
            refuse(
                f'its bbox, in {file}, must be four finite numbers of pixels: '
                'x, y, width, height'
            )
        _, _, w, h = numbers
        if w < 0 or h < 0:
            refuse(
                f'the width and height of its bbox, in {file}, must not be '
                'negative'
            )
        if any(isinstance(v, str) for v in box):
            ann['bbox'] = numbers
        area = ann.get('area')
        if area in (None, ''):
            ann['area'] = w * h
        else:
            ann['area'] = _number(area)
            if not 0 < ann['area'] < math.inf:
                ann['area'] = w * h
                self._no_area[file] += 1
        for key in ('iscrowd', 'ignore'):
            flag = ann.get(key)
            if flag not in (None, '', 0, 1, '0', '1'):
                refuse(f'its {key} must be 0 or 1')
            ann[key] = int(flag or 0)

    def _check_ids(self, keys: list) -> None:
        keys = [key for key in keys if key is not None]
        try:
            if len(set(keys)) == len(keys):
                return
        except TypeError:  # A list, say.
            pass
        key, count = Counter(map(brief, keys)).most_common(1)[0]
        if count > 1:
            raise ValueError(
                f'{self.name}: {count} annotations have the id {key}'
            )

    def _check_normalized(self, found: list[tuple[dict, dict]]) -> None:
        if len(found) > _FEW * len(self.anns):
            ann, image = found[0]
            raise ValueError(
                f'{self.name}: {len(found)} of {len(self.anns)} boxes lie '
                f'within 0..1, as normalized ones do; the first is '
                f'{ann["bbox"]} in {image["file_name"]} (image id '
                f'{image["id"]!r}). COCO has pixels'
            )

    def _tell(self, beyond: Counter) -> None:
        lines = []
        if self._no_area:
            lines.append(
                f'{sum(self._no_area.values())} annotations have no positive '
                f'area ({some(self._no_area)}); width times height is taken'
            )
        if sum(beyond.values()) > _FEW * len(self.anns):
            lines.append(
                f'{sum(beyond.values())} of {len(self.anns)} boxes reach '
                f'beyond their image ({some(beyond)}) and are clipped. Are '
                'they of another resolution, or x1, y1, x2, y2? COCO has x, '
                'y, width, height'
            )
        for line in lines:
            print_log(
                f'{self.name}: {line}',
                logger='current',
                level=logging.WARNING,
            )

    # ------------------------------------------------------------- helpers

    def _entries(self, key: str) -> list[dict]:
        if key not in self.dataset:
            self._refuse_format(f'it has no `{key}`')
        entries = self.dataset[key]
        if not isinstance(entries, list):
            self._refuse_format(
                f'`{key}` is a {type(entries).__name__}, not a list'
            )
        for number, entry in enumerate(entries):
            if not isinstance(entry, dict):
                self._refuse_format(
                    f'{key}[{number}] is {brief(entry)}, not an object'
                )
        return entries

    def _refuse_format(self, reason: str) -> NoReturn:
        raise ValueError(f'{self.name} is no COCO annotation file: {reason}')


def _is_mask(value: Any) -> bool:
    """Whether it is polygons or a run-length encoding, as mmdet has them."""
    if isinstance(value, dict):
        return isinstance(value.get('counts'), (list, str)) and bool(
            value.get('size')
        )
    return isinstance(value, list) and any(
        isinstance(polygon, list)
        and len(polygon) >= 6
        and len(polygon) % 2 == 0
        for polygon in value
    )


def _joined(key: Any) -> int | str | None:
    """Return an id: whole numbers, however written, as int; else texts."""
    if type(key) is int:
        return key
    if isinstance(key, str) and key.strip():
        return int(key) if key == str(_whole(key)) else key
    if isinstance(key, float) and key.is_integer():
        return int(key)
    return None


def _whole(text: str) -> int | None:
    try:
        return int(text)
    except ValueError:
        return None


def _number(value: Any) -> float:
    """Return a number, also of its text; NaN for anything else."""
    try:
        return math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan
