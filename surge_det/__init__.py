"""1-bit object detectors with SURGE, as a plugin for MMDetection.

Importing this package imports neither torch nor the toolbox (mmengine, mmcv,
mmdet). It prepares the toolbox: mmdet's registries import our parts when
something is looked up in them. ``surge_det.core`` needs torch only.
"""

from surge_det import compat
from surge_det.version import __version__

__all__ = ['__version__']

compat.install()
