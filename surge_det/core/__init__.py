"""SURGE without a toolbox: needs torch and nothing else.

=====================  ================================================
``binary_sign``        the sign that maps 0 to +1
``STE``                straight-through gradient estimator
``AGS``                Adaptive Gradient Scaler
``SURGEConv2d``        1-bit drop-in for ``nn.Conv2d``
``SURGELinear``        1-bit drop-in for ``nn.Linear``
=====================  ================================================
"""

from .ags import AGS
from .estimators import STE
from .layers import SURGEConv2d, SURGELinear
from .sign import binary_sign

__all__ = ['AGS', 'STE', 'SURGEConv2d', 'SURGELinear', 'binary_sign']
