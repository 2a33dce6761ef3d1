"""Where data lies, and datasets in Pascal VOC format."""

from .root import check_data, data_root, merge_options
from .voc_format import VOCFormatDataset

__all__ = ['VOCFormatDataset', 'check_data', 'data_root', 'merge_options']
