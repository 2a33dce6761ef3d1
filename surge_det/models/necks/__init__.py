"""1-bit necks."""

from .surge_fpn import SURGEFPN

__all__ = ['SURGEFPN']
