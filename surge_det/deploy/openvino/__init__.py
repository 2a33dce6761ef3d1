"""1-bit detectors in OpenVINO.

=====================  ===================================================
``export_openvino``    writes a detector's networks
``load_openvino``      mmdet's model around them
``dense_network``      what a detector runs once per image, as a module
``roi_network``        what a two-stage one runs on its regions
``convert``            such a module, 1-bit or real, to ``openvino.Model``
``Network``            runs one, whatever the size
=====================  ===================================================
"""

from .conversion import convert
from .export import export_openvino
from .network import dense_network, roi_network
from .runtime import Network, load_openvino, read_openvino_config

__all__ = [
    'Network',
    'convert',
    'dense_network',
    'export_openvino',
    'load_openvino',
    'read_openvino_config',
    'roi_network',
]
