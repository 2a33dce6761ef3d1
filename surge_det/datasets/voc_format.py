"""Detection datasets that lie on disk as Pascal VOC does."""

from __future__ import annotations

import logging
import math
import os
import os.path as osp
import re
import xml.etree.ElementTree as ET
from collections import Counter, defaultdict

from mmdet.datasets import VOCDataset, XMLDataset
from mmdet.registry import DATASETS
from mmengine.fileio import get, list_from_file
from mmengine.logging import print_log

from surge_det.core import checks
from surge_det.datasets.checked_coco import nearest
from surge_det.datasets.checked_images import (
    CheckedImages,
    is_local,
)
from surge_det.datasets.dropped import DroppedBoxes
from surge_det.text import some

_SIDES = ('xmin', 'ymin', 'xmax', 'ymax')
# No image is that large: OpenCV reads sides of up to 2**20.
_FAR = 2**20
# What OpenCV reads, by the ends of file names.
_IMAGE = re.compile(
    r'\.(avif|bmp|dib|exr|gif|hdr|jp2|jpe|jpe?g|pbm|pfm|pgm|pic|png|pnm|ppm|pxm'
    r'|ras|sr|tiff?|webp)$',
    re.IGNORECASE,
)


@DATASETS.register_module()
class VOCFormatDataset(CheckedImages, XMLDataset):
    """Any dataset in Pascal VOC format, told its classes by the config.

    mmdet's ``XMLDataset`` with the faults of real files handled:

    - Boxes that cover no area inside the image, and objects without
      ``bndbox``, are dropped, in training and in evaluation: a width of 0
      makes a regression target infinite and the loss NaN. One warning says
      how many, and in which files.
    - Objects of classes that the config does not name are left out, as mmdet
      does, and one line says which and how many; that *no* object is of a
      named class is an error.
    - Images have any ending that OpenCV reads. One is found by the name in
      the list, else by ``<filename>``.
    - Entries of the list may have an ending and blanks around them.
    - A size that ``<size>`` does not tell is read from the image.
    - Missing and malformed files are errors that name the files.

    Boxes are XYXY in pixels, 0-based, the far corner inclusive (VOC's count
    less one), as ``VOCMetric`` expects them in either ``eval_mode``.

    Args:
        metainfo (dict): ``classes``, a sequence of names, and, for pictures,
            ``palette``, as many RGB triples.
        data_prefix (dict): ``sub_data_root`` is the folder, below
            ``data_root``, of ``JPEGImages`` and ``Annotations``; ``data_root``
            itself by default.
        max_dropped (float): Which part of the boxes may be dropped, in
            [0, 1]; 1 allows that none is left.
        **kwargs: As for mmdet's ``XMLDataset``.

    Raises:
        ValueError: for absent, empty or repeated classes; for an annotation
            file that is no VOC annotation; for an entry that the list
            repeats; for images that do not fit their annotation; for a
            dataset without objects of the named classes, or that loses a
            part above ``max_dropped``.
        FileNotFoundError: for an absent split, annotation file or image.
    """

    def __init__(
        self,
        *args,
        metainfo: dict | None = None,
        data_prefix: dict | None = None,
        max_dropped: float = 0.05,
        **kwargs,
    ) -> None:
        self.max_dropped = checks.number(
            'max_dropped', max_dropped, low=0, high=1
        )
        metainfo = {**self.METAINFO, **(metainfo or {})}
        classes = metainfo.get('classes')
        if isinstance(classes, str) or not classes:
            raise ValueError(
                f'metainfo={metainfo!r} must hold `classes`, a sequence of '
                'class names (a lone name needs its comma)'
            )
        if len(set(classes)) != len(classes):
            raise ValueError(f'metainfo classes={classes!r} repeat a name')
        if data_prefix is None:
            data_prefix = dict(sub_data_root='')
        super().__init__(
            *args, metainfo=metainfo, data_prefix=data_prefix, **kwargs
        )

    def load_data_list(self) -> list[dict]:
        """Read every annotation file of the split, and log what was left."""
        classes = self._metainfo['classes']
        self.cat2label = {name: label for label, name in enumerate(classes)}
        self.dropped = DroppedBoxes(self.ann_file)
        self._unknown: Counter = Counter()
        self._is_local = is_local(self)
        self._folders: dict[str, dict[str, list[str]]] = {}
        data_list, faults = [], []
        for img_id in self._listed():
            try:
                data_list.append(self.parse_data_info(dict(img_id=img_id)))
            except (FileNotFoundError, ValueError) as error:
                faults.append(error)
        if faults:
            raise type(faults[0])(self.first_lines(faults))
        self._folders.clear()
        # First: boxes are dropped where the size is another image's.
        self.check_sample(data_list)
        self._check_objects(data_list)
        return data_list

    def _listed(self) -> list[str]:
        """Return the names in the list, without endings."""
        if '://' not in self.ann_file and not osp.isfile(self.ann_file):
            raise FileNotFoundError(
                f'no list of images at {self.ann_file}: check data_root, '
                'ann_file and the environment variable SURGE_DATA_ROOT'
            )
        try:
            lines = list_from_file(
                self.ann_file,
                # With or without the mark that Windows' editors write.
                encoding='utf-8-sig',
                backend_args=self.backend_args,
            )
        except UnicodeDecodeError as error:
            raise ValueError(
                f'{self.ann_file} must be text in UTF-8: {error}'
            ) from error
        names = Counter(
            self._without_ending(line.strip().replace('\\', '/'))
            for line in lines
            if line.strip()
        )
        if not names:
            raise ValueError(f'{self.ann_file} lists no image')
        twice = [name for name, count in names.items() if count > 1]
        if twice:
            raise ValueError(
                f'{self.ann_file} lists an image more than once: '
                f'{some(twice)}; to repeat images in training, wrap the '
                'dataset in RepeatDataset'
            )
        return list(names)

    def _without_ending(self, name: str) -> str:
        known = _IMAGE.search(name) or name.lower().endswith('.xml')
        # A name may as well look as if it had one: x.jpg.xml beside x.jpg.jpg.
        if known and not osp.isfile(self._xml_path(name)):
            return osp.splitext(name)[0]
        return name

    def _xml_path(self, img_id: str) -> str:
        return osp.join(self.sub_data_root, self.ann_subdir, f'{img_id}.xml')

    def _check_objects(self, data_list: list[dict]) -> None:
        """Log what objects there are not, or refuse it."""
        instances = [i for data in data_list for i in data['instances']]
        self.dropped.check(len(instances), self.max_dropped)
        classes = tuple(self._metainfo['classes'])
        unknown = some([f'{n} ({c})' for n, c in self._unknown.items()])
        if unknown and not instances:
            raise ValueError(
                f'{self.ann_file}: no object is of the classes {classes}; '
                f'the files have {unknown}'
            )
        named = {_plain(name): name for name in classes}
        for name in self._unknown:
            if _plain(name) in named:
                raise ValueError(
                    f'{self.ann_file}: the files have objects of {name!r}, '
                    f'which the config names {named[_plain(name)]!r}'
                )
        if not instances and self.max_dropped < 1:
            raise ValueError(
                f'{self.ann_file}: no object in {len(data_list)} files'
            )
        if instances and all(i['ignore_flag'] for i in instances):
            raise ValueError(
                f'{self.ann_file}: all {len(instances)} objects are '
                '`difficult` or below bbox_min_size: none is left to learn '
                'or to measure'
            )
        if unknown:
            print_log(
                f'{self.ann_file}: left out objects of classes that the '
                f'config does not name: {unknown}',
                logger='current',
                level=logging.WARNING,
            )
        found = {instance['bbox_label'] for instance in instances}
        absent = [n for n, i in self.cat2label.items() if i not in found]
        for name in absent if instances and not self.test_mode else ():
            near = nearest(name, set(self._unknown) - set(classes))
            if near:
                raise ValueError(
                    f'{self.ann_file}: no object is of the class {name!r}; '
                    f'the nearest name in the files is {near!r}'
                )
        if absent and instances and not self.test_mode:
            print_log(
                f'{self.ann_file}: no object is of the classes {some(absent)}',
                logger='current',
                level=logging.WARNING,
            )

    def parse_data_info(self, img_info: dict) -> dict:
        """Parse one annotation file, without the boxes that have no area.

        Args:
            img_info (dict): ``img_id``, the name in the list.

        Returns:
            dict: As of mmdet's ``XMLDataset``.

        Raises:
            ValueError: If it is no VOC annotation, with its name.
            FileNotFoundError: If it or its image is missing.
        """
        img_id = img_info['img_id']
        path = self._xml_path(img_id)
        try:
            content = get(path, backend_args=self.backend_args)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f'{self.ann_file} lists {img_id!r}, but there is no {path}'
            ) from error
        except (OSError, ValueError) as error:
            # A name that is too long, or no name of a file.
            raise ValueError(
                f'{self.ann_file} lists {img_id!r}, but {path} cannot be '
                f'read: {error}'
            ) from error
        root = parse_annotation(content, path)
        img_path = self._image(img_id, text_of(root, 'filename'))
        try:
            width, height = self._size(root, img_path)
            instances = self._instances(root, width, height, path)
        except ValueError as error:
            raise ValueError(f'{path}: {error}') from error
        return dict(
            img_path=img_path,
            img_id=img_id,
            xml_path=path,
            height=height,
            width=width,
            instances=instances,
        )

    def _image(self, img_id: str, told: str) -> str:
        """Return the path of an image; ``told`` is ``<filename>``."""
        folder = osp.join(self.sub_data_root, self.img_subdir)
        default = osp.join(folder, f'{img_id}.jpg')
        if not self._is_local:
            return default
        told = told.replace('\\', '/').rpartition('/')[2]
        folder = osp.dirname(default)
        names = self._images_in(folder).get(osp.basename(img_id), [])
        if len(names) == 1:
            return osp.join(folder, names[0])
        if told in names or (not names and osp.isfile(f'{folder}/{told}')):
            return osp.join(folder, told)
        if osp.basename(default) in names:
            return default
        if names:
            raise ValueError(
                f'{img_id!r} may be any of several images in {folder}: '
                f'{some(names)}'
            )
        raise FileNotFoundError(
            f'{self.ann_file} lists {img_id!r}, but there is no image of '
            f'that name in {folder}'
        )

    def _images_in(self, folder: str) -> dict[str, list[str]]:
        """Return the names of the images in a folder, by their stems."""
        if folder not in self._folders:
            names = self._folders[folder] = defaultdict(list)
            for name in sorted(os.listdir(folder)):
                if _IMAGE.search(name):
                    names[osp.splitext(name)[0]].append(name)
        return self._folders[folder]

    def _size(self, root: ET.Element, img_path: str) -> tuple[int, int]:
        """Return width and height, of the image where no size is told."""
        told = []
        for tag in ('width', 'height'):
            text = text_of(root, f'size/{tag}')
            value = _number(text or '0', tag)
            if value < 0 or value != int(value):
                raise ValueError(f'{tag}={text} must be a whole number')
            told.append(int(value))
        if all(told):
            return told[0], told[1]
        return self.size_of_image(img_path)

    def _instances(
        self, root: ET.Element, width: int, height: int, path: str
    ) -> list[dict]:
        """Return the objects of named classes that have an area."""
        instances = []
        file = osp.basename(path)
        for number, item in enumerate(root.findall('object'), 1):
            name = text_of(item, 'name')
            if not name:
                raise ValueError(f'object {number} has no <name>')
            if name not in self.cat2label:
                self._unknown[name] += 1
                continue
            if item.find('bndbox') is None:
                self.dropped.add('without <bndbox>', file)
                continue
            try:
                x1, y1, x2, y2 = bbox = _box(item)
                hard = _difficult(text_of(item, 'difficult'))
            except ValueError as error:
                raise ValueError(f'object {number}, {name}: {error}') from None
            # Clipped, because the pipeline's Resize clips.
            if x2 <= x1 or y2 <= y1:
                self.dropped.add('without area', file)
            elif min(x2, width) <= max(x1, 0) or min(y2, height) <= max(y1, 0):
                self.dropped.add('outside the image', file)
            else:
                low = self.bbox_min_size or 0
                small = x2 - x1 < low or y2 - y1 < low
                instances.append(
                    dict(
                        ignore_flag=int(hard or small),
                        bbox=bbox,
                        bbox_label=self.cat2label[name],
                    )
                )
        return instances


@DATASETS.register_module()
class PascalVOCDataset(VOCFormatDataset):
    """Pascal VOC itself: its 20 classes, unless ``metainfo`` has others.

    As mmdet's ``VOCDataset``, its metainfo has ``dataset_type``: ``VOC2007``
    or ``VOC2012``, where the folder's name says so.

    Args:
        **kwargs: As for :class:`VOCFormatDataset`.
    """

    METAINFO = VOCDataset.METAINFO

    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs)
        years = [y for y in ('VOC2007', 'VOC2012') if y in self.sub_data_root]
        self._metainfo['dataset_type'] = years[0] if years else None


def parse_annotation(content: bytes, path: str) -> ET.Element:
    """Return the root of an annotation, its tags without a namespace.

    Args:
        content: What the file holds.
        path: Its name, for errors.

    Raises:
        ValueError: If it is no XML, or no VOC annotation.
    """
    try:
        root = ET.fromstring(content)
    except (ET.ParseError, ValueError, LookupError) as error:
        # LookupError: an encoding that Python does not know.
        raise ValueError(f'{path} is no XML: {error}') from error
    if '}' in root.tag:
        for element in root.iter():
            element.tag = element.tag.rpartition('}')[2]
    if root.tag != 'annotation':
        raise ValueError(
            f'{path} is no Pascal VOC annotation: its root is <{root.tag}>, '
            'not <annotation>'
        )
    return root


def text_of(element: ET.Element, tag: str) -> str:
    """Return what stands in a tag, without blanks around it; may be empty."""
    return (element.findtext(tag) or '').strip()


def _plain(name: str) -> str:
    """Return a name without what is written differently by mistake."""
    return re.sub(r'[\s_-]', '', name.casefold()) or name


def _number(text: str, tag: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not abs(value) < _FAR:
        raise ValueError(f'<{tag}> is {text[:30]!r}, no number of pixels')
    return value


def _box(item: ET.Element) -> list[int]:
    """Return XYXY of an object, counted from 0."""
    sides = [_number(text_of(item, f'bndbox/{s}'), s) for s in _SIDES]
    if all(0 <= s <= 1 for s in sides) and any(s % 1 for s in sides):
        raise ValueError(
            f'box {tuple(sides)} is in parts of the image; it must be in '
            'pixels'
        )
    return [int(side) - 1 for side in sides]


def _difficult(text: str) -> bool:
    if text.lower() in ('', 'unspecified', '0', '1'):
        return text == '1'
    raise ValueError(f'<difficult> is {text!r}, neither 0 nor 1')
