"""Metrics."""

from .coco_format_metric import COCOFormatMetric
from .top_k_accuracy import TopKAccuracy

__all__ = ['COCOFormatMetric', 'TopKAccuracy']
