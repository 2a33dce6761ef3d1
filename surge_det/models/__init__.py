"""Parts of detectors, registered with mmdet; one folder per role."""

from . import binarize_cfg, distillation, registered_layers  # noqa: F401
from .backbones import SURGESSDVGG, SURGEResNet
from .classifiers import SURGEImageClassifier
from .dense_heads import SURGERPNHead
from .necks import SURGEFPN, SURGESSDNeck
from .roi_heads import SURGEShared2FCBBoxHead

__all__ = [
    'SURGEFPN',
    'SURGEImageClassifier',
    'SURGERPNHead',
    'SURGEResNet',
    'SURGESSDNeck',
    'SURGESSDVGG',
    'SURGEShared2FCBBoxHead',
]
