"""Layers of the core under the names that configs use."""

from typing import ClassVar

from mmengine.registry import MODELS

from surge_det.core import LearnedShift, RPReLU, SURGEConv2d, SURGELinear

# In the root registry, so that `conv_cfg` finds them in every scope.
for _layer in (LearnedShift, RPReLU, SURGEConv2d, SURGELinear):
    MODELS.register_module(module=_layer)


class OneBitByDefault:
    """Base of the parts whose convolutions are 1-bit without a ``conv_cfg``.

    :mod:`surge_det.engine.apply_method` reads the default too.
    """

    default_conv_cfg: ClassVar[dict] = {'type': 'SURGEConv2d'}
