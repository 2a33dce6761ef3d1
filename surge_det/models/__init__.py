"""Parts of detectors, registered with mmdet; one folder per role."""

from . import layers  # noqa: F401
from .backbones import SURGEResNet
from .dense_heads import SURGERPNHead
from .necks import SURGEFPN
from .roi_heads import SURGEShared2FCBBoxHead

__all__ = [
    'SURGEFPN',
    'SURGERPNHead',
    'SURGEResNet',
    'SURGEShared2FCBBoxHead',
]
