"""1-bit necks."""

from .surge_fpn import SURGEFPN
from .surge_ssd_neck import SURGESSDNeck

__all__ = ['SURGEFPN', 'SURGESSDNeck']
