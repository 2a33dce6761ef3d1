"""Parts of RoI heads with 1-bit hidden layers."""

from .surge_bbox_head import SURGEShared2FCBBoxHead

__all__ = ['SURGEShared2FCBBoxHead']
