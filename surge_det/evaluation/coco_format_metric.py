"""COCO's metric for datasets in COCO's format."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from mmdet.evaluation import CocoMetric
from mmdet.registry import METRICS
from mmengine.fileio import get_local_path

from surge_det.datasets.checked_coco import CheckedCOCO


@METRICS.register_module()
class COCOFormatMetric(CocoMetric):
    """mmdet's ``CocoMetric`` on an annotation file that is checked.

    Labels are joined with the file's categories by the names of the dataset's
    classes, whatever their order and ids. The file is read as
    ``COCOFormatDataset`` reads it: boxes without area or outside their image
    are in neither.

    Args:
        ann_file (str, optional): The dataset's annotation file; without it
            the truth is taken from the samples, as mmdet does.
        **kwargs: As for mmdet's ``CocoMetric``.

    Raises:
        ValueError: For what ``CheckedCOCO`` refuses; when the classes become
            known, for a file without them or without a box of them; for an
            image that the file does not have.
    """

    def __init__(self, ann_file: str | None = None, **kwargs) -> None:
        super().__init__(**kwargs)
        self._ranks = None
        if ann_file is None:
            return
        with get_local_path(ann_file, backend_args=self.backend_args) as path:
            self._coco_api = CheckedCOCO(path, ann_file)
        # The dataset refuses what is too much.
        self._coco_api.dropped.check(len(self._coco_api.anns), allowed=1)
        if 'segm' in self.metrics:
            self._coco_api.fill_masks()

    def _set_dataset_meta(self, dataset_meta: dict) -> None:
        self._dataset_meta = dataset_meta
        coco = self._coco_api
        if coco is None or not dataset_meta or self._ranks is not None:
            return
        classes = dataset_meta['classes']
        coco.add_absent(classes)
        ids = coco.get_cat_ids(classes)
        named = set(ids)
        if not self.format_only and not any(
            ann['category_id'] in named and not ann['iscrowd']
            for ann in coco.anns.values()
        ):
            raise ValueError(
                f'{coco.name}: no box is of the classes {tuple(classes)}, so '
                'nothing can be measured'
            )
        # COCOeval sorts the categories, mmdet's table by class does not.
        self.cat_ids = sorted(ids)
        self._ranks = np.argsort(np.argsort(ids))

    dataset_meta = CocoMetric.dataset_meta.setter(_set_dataset_meta)

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Take one batch of samples with predictions; see ``CocoMetric``."""
        if self._ranks is not None:
            for sample in data_samples:
                self._check_image(sample)
        super().process(data_batch, data_samples)

    def _check_image(self, sample: dict) -> None:
        image = self._coco_api.imgs.get(sample['img_id'])
        path = sample.get('img_path')
        # Endings may differ: a dataset may have its images in another format.
        if image is None or (
            path and Path(path).stem != Path(image['file_name']).stem
        ):
            raise ValueError(
                f'{self._coco_api.name}: the dataset has the image {path} '
                f'with id {sample["img_id"]!r}, this file '
                + ('none' if image is None else image['file_name'])
                + '. Evaluator and dataset must have the same ann_file'
            )

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Compute the metrics of all samples; see ``CocoMetric``."""
        if self._ranks is not None:
            for truth, result in results:
                # Masks need the size; that of a sample is as loaded.
                image = self._coco_api.imgs[truth['img_id']]
                for side in ('width', 'height'):
                    image[side] = image[side] or truth[side]
                result['labels'] = self._ranks[result['labels']]
        return super().compute_metrics(results)
