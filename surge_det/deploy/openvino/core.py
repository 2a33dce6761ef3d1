"""OpenVINO's runtime in this process."""

from __future__ import annotations

import functools
from typing import Any

from surge_det.deploy.extra import require


@functools.cache
def core() -> Any:
    """Return the one ``openvino.Core`` of this process.

    OpenVINO's CPU plugin, of which each ``Core`` has its own, puts up a stack
    for signal handlers (``sigaltstack``) when it comes, and the one it has
    found when it goes. Of two that come and go in turn, the second puts up
    the first one's, which is unmapped by then, and the next signal that
    Python handles, be it Ctrl-C or the end of a data loading process, is a
    segmentation fault. So there is one, and it stays.

    Raises:
        ImportError: If openvino is not installed.
    """
    return require('openvino').Core()
