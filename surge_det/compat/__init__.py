"""What lets one code base run on every supported toolbox installation.

`install()` does three things, each only where its package is there:

- ``mmcv.ops`` works without mmcv's compiled extension (`mmcv_ops`);
- mmengine reads checkpoints with ``weights_only`` safety (`safe_load`);
- the warning about ``pkg_resources`` that mmengine's imports set off is
  silenced: the pins and the doctor take care of it.

What is mmdet's own (`ssd_head`) is installed with `surge_det.models`, since
importing mmdet comes after this.
"""

import warnings
from importlib.util import find_spec

from surge_det.compat import mmcv_ops
from surge_det.compat.mmcv_ops import ops_source

__all__ = ['install', 'ops_source']


def install() -> None:
    """Prepare the installed toolbox; call it before importing mmdet.

    Cheap, idempotent, and without effect where torch is alone. A toolbox
    that is there and cannot be imported gives a warning, not an error, so
    that `surge_det.core` keeps working.
    """
    warnings.filterwarnings('ignore', message='pkg_resources is deprecated')
    mmcv_ops.install()
    if find_spec('mmengine') is None:
        return
    try:
        from surge_det.compat import safe_load

        safe_load.install()
    except Exception as error:
        # A half-installed toolbox fails with far more than ImportError.
        warnings.warn(
            f'mmengine is installed but cannot be imported '
            f'({type(error).__name__}: {error}). Run '
            '`python -m surge_det doctor` for the remedy.',
            stacklevel=2,
        )
