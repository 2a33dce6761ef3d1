"""Where data lies, and datasets: Pascal VOC's format, image folders."""

from .image_folder import ImageFolderDataset
from .root import check_data, data_root, merge_options
from .voc_format import VOCFormatDataset

__all__ = [
    'ImageFolderDataset',
    'VOCFormatDataset',
    'check_data',
    'data_root',
    'merge_options',
]
