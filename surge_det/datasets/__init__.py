"""Where data lies, and datasets: formats of COCO and VOC, image folders."""

from .coco_format import COCOFormatDataset
from .image_folder import ImageFolderDataset
from .root import check_data, data_root, merge_options
from .voc_format import PascalVOCDataset, VOCFormatDataset

__all__ = [
    'COCOFormatDataset',
    'ImageFolderDataset',
    'PascalVOCDataset',
    'VOCFormatDataset',
    'check_data',
    'data_root',
    'merge_options',
]
