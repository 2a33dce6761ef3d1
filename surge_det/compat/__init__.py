"""What lets one code base run on every supported toolbox installation.

`install` imports nothing of the toolbox. Where and when a module of it is
imported, then:

- ``mmcv.ops`` works without mmcv's compiled extension (`mmcv_ops`);
- mmengine reads checkpoints with ``weights_only`` safety (`safe_load`);
- registries find our parts at their first lookup (`registration`);
- configs may have ours as base (`config_base`);
- mmdet's ``SSDHead`` predicts (`ssd_head`);
- functions are looked for in mmdet's scope without a warning (`functions`);
- pictures are drawn with any palette (`palette`), and with names that hold
  dollar signs (`plain_texts`);
- OpenCV reads no image of more pixels than Pillow would;
- the warning about ``pkg_resources`` that mmengine's imports set off is
  silenced: the pins and the doctor take care of it.
"""

import os
import warnings
from importlib import import_module
from types import ModuleType

from surge_det.compat import mmcv_ops
from surge_det.compat.after_import import after_import
from surge_det.compat.mmcv_ops import ops_source

__all__ = ['install', 'ops_source']

# Module of the toolbox: which of ours mends it.
_MENDED_BY = {
    'mmengine.config.config': 'config_base',
    'mmengine.registry.root': 'registration',
    'mmengine.runner.checkpoint': 'safe_load',
    'mmengine.visualization.visualizer': 'plain_texts',
    'mmdet.registry': 'functions',
    'mmdet.models.dense_heads.ssd_head': 'ssd_head',
    'mmdet.visualization.local_visualizer': 'palette',
    'mmdet.visualization.palette': 'palette',
}


# A small file may hold a larger image, and then it takes gigabytes.
_MAX_PIXELS = 178_956_970


def install() -> None:
    """Prepare the toolbox, in any order of imports; cheap and idempotent."""
    # Read when OpenCV is imported.
    os.environ.setdefault('OPENCV_IO_MAX_IMAGE_PIXELS', str(_MAX_PIXELS))
    warnings.filterwarnings('ignore', message='pkg_resources is deprecated')
    # Said of each picture that is drawn of a detector that learns.
    beyond = r'Warning: The (bbox|polygon) is out of bounds'
    warnings.filterwarnings('ignore', message=beyond)
    mmcv_ops.install()
    for name in _MENDED_BY:
        after_import(name, _mend)


def _mend(module: ModuleType) -> None:
    ours = import_module(f'{__name__}.{_MENDED_BY[module.__name__]}')
    ours.install(module)
