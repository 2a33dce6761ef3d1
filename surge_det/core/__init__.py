"""SURGE without a toolbox: needs torch and nothing else.

=====================  ================================================
``binary_sign``        the sign that maps 0 to +1
``STE``                straight-through gradient estimator
``ApproxSign``         Bi-Real Net's estimator
``ReSTE``              rectified estimator, changes over a run
``EDE``                IR-Net's estimator, changes over a run
``ScaledSign``         weights: plain scaled sign
``IRNet``              weights: standardised, scale a power of two
``ReCU``               weights: clamped, learned scale, changes over a run
``LearnedShift``       ReActNet's shift before a sign
``RPReLU``             ReActNet's shifted PReLU
``AGS``                Adaptive Gradient Scaler
``SURGEConv2d``        1-bit drop-in for ``nn.Conv2d``
``SURGELinear``        1-bit drop-in for ``nn.Linear``
``method_cfg``         keywords of the two for a method by name
``set_progress``       moves everything in a model that has a schedule
``scheduled_values``   the present values
=====================  ================================================
"""

from .activations import LearnedShift, RPReLU
from .ags import AGS
from .binarizers import IRNet, ReCU, ScaledSign
from .estimators import EDE, STE, ApproxSign, ReSTE
from .layers import SURGEConv2d, SURGELinear
from .methods import METHODS, method_cfg
from .progress import scheduled_values, set_progress
from .sign import binary_sign

__all__ = [
    'AGS',
    'EDE',
    'METHODS',
    'STE',
    'ApproxSign',
    'IRNet',
    'LearnedShift',
    'RPReLU',
    'ReCU',
    'ReSTE',
    'SURGEConv2d',
    'SURGELinear',
    'ScaledSign',
    'binary_sign',
    'method_cfg',
    'scheduled_values',
    'set_progress',
]
