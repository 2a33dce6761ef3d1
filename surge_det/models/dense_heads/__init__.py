"""1-bit dense heads."""

from .surge_rpn_head import SURGERPNHead

__all__ = ['SURGERPNHead']
