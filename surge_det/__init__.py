"""1-bit object detectors with SURGE, as a plugin for MMDetection.

Importing this package registers its parts with mmdet where the toolbox
(mmengine, mmcv, mmdet) is installed. ``surge_det.core`` needs torch only.
"""

import warnings
from importlib.util import find_spec

from surge_det import compat
from surge_det.version import __version__

__all__ = ['__version__']

compat.install()

if all(find_spec(name) for name in ('mmengine', 'mmcv', 'mmdet')):
    try:
        from surge_det import (  # noqa: F401
            datasets,
            engine,
            evaluation,
            models,
        )
    except Exception as error:  # whatever a half-installed toolbox raises
        warnings.warn(
            'surge_det: the toolbox is installed but does not import, so '
            f'nothing is registered with mmdet ({type(error).__name__}: '
            f'{error}). `python -m surge_det doctor` tells what to do. '
            'surge_det.core works all the same.',
            stacklevel=2,
        )
