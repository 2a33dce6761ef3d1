"""Accuracy of a classifier."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from mmdet.registry import METRICS
from mmengine.evaluator import BaseMetric


@METRICS.register_module()
class TopKAccuracy(BaseMetric):
    """Share of images whose class is among the k highest scores.

    Gives ``accuracy/top<k>`` for every k, and ``accuracy/mean_class``: the
    top-1 accuracy of each class that occurs, averaged over those classes,
    which chance puts at 1 / K however rare a class is. All in per cent.
    Classes with equal scores count as ranked before the image's own.

    Args:
        topk: The values of k.
        per_class: Whether each class's top-1 accuracy is given as well, as
            ``accuracy/<class>``.
        collect_device: As in mmengine.

    Raises:
        ValueError: If ``topk`` is empty or not of integers >= 1.
    """

    default_prefix = 'accuracy'

    def __init__(
        self,
        topk: Sequence[int] = (1, 5),
        per_class: bool = False,
        collect_device: str = 'cpu',
    ) -> None:
        if not topk or not all(isinstance(k, int) and k >= 1 for k in topk):
            raise ValueError(
                f'topk={topk!r} is not allowed: one or more integers >= 1'
            )
        super().__init__(collect_device)
        self.topk = tuple(topk)
        self.per_class = per_class

    def process(
        self, data_batch: object, data_samples: Sequence[dict]
    ) -> None:
        """Note label and rank of the label of each image.

        Args:
            data_batch: Not used.
            data_samples: One dict per image with ``scores``, a tensor (K,),
                and ``label``.

        Raises:
            ValueError: If a k of ``topk`` is above K, or a score is NaN.
        """
        for sample in data_samples:
            scores, label = sample['scores'], int(sample['label'])
            if max(self.topk) > len(scores):
                raise ValueError(
                    f'topk={self.topk} is not allowed: at most the number '
                    f'of classes, {len(scores)}'
                )
            if scores.isnan().any():
                raise ValueError('a score is NaN: the network has diverged')
            rank = int((scores >= scores[label]).sum())
            self.results.append((label, rank))

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Make percentages of the ranks."""
        labels, ranks = np.array(results).T
        metrics = {
            f'top{k}': 100 * float((ranks <= k).mean()) for k in self.topk
        }
        by_class = {
            int(c): 100 * float((ranks[labels == c] == 1).mean())
            for c in np.unique(labels)
        }
        metrics['mean_class'] = float(np.mean(list(by_class.values())))
        if self.per_class:
            names = (self.dataset_meta or {}).get('classes')
            for c, value in by_class.items():
                metrics[names[c] if names else f'class{c}'] = value
        return metrics
