"""Detection datasets that have COCO's annotation files."""

from __future__ import annotations

import logging
import os.path as osp

from mmdet.datasets import CocoDataset
from mmdet.registry import DATASETS
from mmengine.fileio import get_local_path
from mmengine.logging import print_log

from surge_det.core import checks
from surge_det.datasets.checked_coco import CheckedCOCO
from surge_det.datasets.checked_images import CheckedImages, is_local
from surge_det.text import some


@DATASETS.register_module()
class COCOFormatDataset(CheckedImages, CocoDataset):
    """Any dataset in COCO's format, told its classes by the config.

    mmdet's ``CocoDataset``, with two differences. Labels follow the order of
    ``classes``, not of the file's categories. And nothing is silent:
    :class:`CheckedCOCO` reads the file and says what it refuses; boxes that
    are left out are counted by reason in one line, and more than
    ``max_dropped`` is an error. Images are checked, see
    :class:`CheckedImages`; a size that the file does not tell is theirs.

    Boxes are XYXY in pixels, not clipped to the image.

    Args:
        metainfo (dict): ``classes``, a sequence of names or a file of them;
            COCO's 80 by default. Boxes of other categories are left out. A
            name that the file lacks is an error, except in ``test_mode``
            where the file has some of the names: a small validation set.
        max_dropped (float): Which part of the boxes may be left out as
            unusable, in [0, 1]; 1 allows that none is left. Crowd and what
            is marked ``ignore`` do not count.
        **kwargs: As for mmdet's ``CocoDataset``.

    Raises:
        ValueError: For absent, empty or repeated classes; for what
            :class:`CheckedCOCO` refuses; for a file without a box of the
            classes, or with too many that are unusable.
        FileNotFoundError: For an absent annotation file.
    """

    COCOAPI = CheckedCOCO

    def __init__(
        self,
        *args,
        max_dropped: float = 0.05,
        **kwargs,
    ) -> None:
        self.max_dropped = checks.number(
            'max_dropped', max_dropped, low=0, high=1
        )
        super().__init__(*args, **kwargs)

    @classmethod
    def _load_metainfo(cls, metainfo: dict | None = None) -> dict:
        given = dict(metainfo or {})
        classes = given.get('classes', ())
        if 'CLASSES' in given:
            raise ValueError(
                f'metainfo={given}: the key is `classes`, in small letters'
            )
        if isinstance(classes, str) and not osp.isfile(classes):
            raise ValueError(
                f'metainfo classes={classes!r} must be a sequence of class '
                'names (a lone name needs its comma), or a file of them'
            )
        loaded = super()._load_metainfo(metainfo)
        classes = loaded['classes']
        if not classes or not all(isinstance(name, str) for name in classes):
            raise ValueError(
                f'metainfo classes={classes!r} must be names of classes'
            )
        if len(set(classes)) != len(classes):
            raise ValueError(f'metainfo classes={classes!r} repeat a name')
        return loaded

    def load_data_list(self) -> list[dict]:
        """Read the annotation file, and log what was left out."""
        with get_local_path(
            self.ann_file, backend_args=self.backend_args
        ) as path:
            coco = self.COCOAPI(path, self.ann_file, self._size_of)
        # In test mode, a file of images alone is one to be predicted on.
        blind = self.test_mode and not coco.has_annotations
        classes = self._metainfo['classes']
        if self.test_mode:
            coco.add_absent(classes)
        self.cat_ids = coco.get_cat_ids(classes)
        self.cat2label = {key: label for label, key in enumerate(self.cat_ids)}
        self.cat_img_map = coco.cat_img_map
        if any(
            getattr(step, 'with_mask', False)
            for step in self.pipeline.transforms
        ):
            coco.fill_masks()
        self.dropped = coco.dropped
        data_list = [
            self.parse_data_info(
                dict(
                    raw_img_info=dict(image, img_id=key),
                    raw_ann_info=coco.img_ann_map[key],
                )
            )
            for key, image in coco.imgs.items()
        ]
        # First: boxes are dropped where the size is another image's.
        self.check_sample(data_list)
        kept = sum(
            not instance['ignore_flag']
            for data in data_list
            for instance in data['instances']
        )
        self.dropped.check(kept, self.max_dropped)
        others = [
            f'{coco.cats[key]["name"]} ({len(images)})'
            for key, images in coco.cat_img_map.items()
            if key not in self.cat2label
        ]
        if not kept and not blind and self.max_dropped < 1:
            raise ValueError(
                f'{self.ann_file}: no box is of the classes {tuple(classes)}'
                + (f'; the file has {some(others)}' if others else '')
            )
        if others:
            print_log(
                f'{self.ann_file}: left out boxes of categories that the '
                f'config does not name: {some(others)}',
                logger='current',
                level=logging.WARNING,
            )
        return data_list

    def _size_of(self, file: str) -> tuple[int, int]:
        """Return the size of an image of which the file tells none."""
        if not is_local(self):
            raise ValueError(f'{self.ann_file}: {file} has no width, height')
        return self.size_of_image(osp.join(self.data_prefix['img'], file))

    def parse_data_info(self, raw_data_info: dict) -> dict:
        """Parse one image and its annotations, as ``CheckedCOCO`` has them."""
        image = raw_data_info['raw_img_info']
        data = super().parse_data_info(
            dict(raw_img_info=image, raw_ann_info=[])
        )
        instances = data['instances']
        for ann in raw_data_info['raw_ann_info']:
            label = self.cat2label.get(ann['category_id'])
            if label is None:
                continue
            x, y, w, h = ann['bbox']
            if ann.get('ignore'):
                self.dropped.add(
                    'marked `ignore`', image['file_name'], lost=False
                )
                continue
            if w < 1 or h < 1:
                self.dropped.add('smaller than a pixel', image['file_name'])
                continue
            crowd = int(ann['iscrowd'])
            if crowd:
                # Kept as mmdet keeps them: nothing is learned from them.
                self.dropped.add('of crowds', image['file_name'], lost=False)
            instance = dict(
                ignore_flag=crowd,
                bbox=[x, y, x + w, y + h],
                bbox_label=label,
            )
            if ann.get('segmentation'):
                instance['mask'] = ann['segmentation']
            instances.append(instance)
        return data
