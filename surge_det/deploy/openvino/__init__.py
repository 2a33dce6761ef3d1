"""Networks of 1-bit detectors in OpenVINO.

===================  ======================================================
``convert``          a module, 1-bit or real, to ``openvino.Model``
``Network``          runs one, whatever the size
``detector``         how networks replace a detector's own
``self_check``       whether this machine computes 1-bit layers right
===================  ======================================================

:mod:`surge_det.deploy.formats.openvino` writes and reads their files.
"""

from .conversion import convert
from .runtime import Network

__all__ = ['Network', 'convert']
