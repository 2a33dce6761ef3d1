"""Detection datasets that lie on disk as Pascal VOC does."""

import logging
import os.path as osp
import xml.etree.ElementTree as ET
from collections import Counter

from mmdet.datasets import XMLDataset
from mmdet.registry import DATASETS
from mmengine.logging import print_log

from surge_det.core import checks
from surge_det.datasets.dropped import DroppedBoxes

_NAMED = 10


def _some(names: list[str]) -> str:
    more = len(names) - _NAMED
    return ', '.join(names[:_NAMED]) + (f' and {more} more' * (more > 0))


@DATASETS.register_module()
class VOCFormatDataset(XMLDataset):
    """Any dataset in Pascal VOC format, told its classes by the config.

    mmdet's ``XMLDataset`` with the faults of real annotation files handled:

    - Boxes that cover no area inside the image are dropped, in training and
      in evaluation: a width of 0 makes a regression target infinite and the
      loss NaN. One warning says how many, and in which files.
    - Objects of classes that the config does not name are left out, as mmdet
      does, and one line says which and how many; that *no* object is of a
      named class is an error.
    - Missing and malformed files are errors that name the file.

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
            file that is no VOC annotation; for a dataset whose objects are
            all of unknown classes, or dropped in a part above
            ``max_dropped``.
        FileNotFoundError: for an absent split or annotation file.
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
        classes = (metainfo or {}).get('classes')
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
        if '://' not in self.ann_file and not osp.isfile(self.ann_file):
            raise FileNotFoundError(
                f'no list of images at {self.ann_file}: check data_root, '
                'ann_file and the environment variable SURGE_DATA_ROOT'
            )
        self._dropped = DroppedBoxes(self.ann_file)
        self._unknown: Counter = Counter()
        data_list = super().load_data_list()
        known = sum(len(data['instances']) for data in data_list)
        self._dropped.check(known, self.max_dropped)
        if self._unknown:
            left = _some([f'{n} ({c})' for n, c in self._unknown.items()])
            if not known:
                raise ValueError(
                    f'{self.ann_file}: no object is of the classes '
                    f'{tuple(self._metainfo["classes"])}; the files have '
                    f'{left}'
                )
            print_log(
                f'{self.ann_file}: left out objects of classes that the '
                f'config does not name: {left}',
                logger='current',
                level=logging.WARNING,
            )
        return data_list

    def parse_data_info(self, img_info: dict) -> dict:
        """Parse one annotation file, without the boxes that have no area."""
        path = img_info['xml_path']
        try:
            data = super().parse_data_info(img_info)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f'{self.ann_file} lists {img_info["img_id"]!r}, but there is '
                f'no {error.filename or path}'
            ) from error
        # What ET raises, and what a missing or wordy tag leads to.
        except (ET.ParseError, AttributeError, ValueError, TypeError) as error:
            raise ValueError(
                f'{path} is not a Pascal VOC annotation: {error}'
            ) from error
        width, height = data['width'], data['height']
        if width <= 0 or height <= 0:
            raise ValueError(
                f'{path}: image size {width}x{height} must be positive'
            )
        kept = []
        for instance in data['instances']:
            x1, y1, x2, y2 = instance['bbox']
            # Clipped, because the pipeline's Resize clips.
            if min(x2, width) > max(x1, 0) and min(y2, height) > max(y1, 0):
                kept.append(instance)
            else:
                self._dropped.add('without area', osp.basename(path))
        data['instances'] = kept
        return data

    def _parse_instance_info(
        self, raw_ann_info: ET.ElementTree, minus_one: bool = True
    ) -> list[dict]:
        for item in raw_ann_info.findall('object'):
            name = item.find('name').text
            if name not in self.cat2label:
                self._unknown[str(name)] += 1
        return super()._parse_instance_info(raw_ann_info, minus_one)
