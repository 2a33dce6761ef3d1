"""Layers of the core under the names that configs use."""

from mmengine.registry import MODELS

from surge_det.core import LearnedShift, RPReLU, SURGEConv2d, SURGELinear

# In the root registry, so that `conv_cfg` finds them in every scope.
for _layer in (LearnedShift, RPReLU, SURGEConv2d, SURGELinear):
    MODELS.register_module(module=_layer)
