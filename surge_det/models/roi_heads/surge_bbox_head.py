"""Box head whose hidden layers can be binarized."""

from __future__ import annotations

from typing import Any

from mmcv.cnn.bricks.activation import build_activation_layer
from mmdet.models.roi_heads.bbox_heads import Shared2FCBBoxHead
from mmdet.registry import MODELS
from torch import nn

from surge_det.core.activations import LearnedShift


@MODELS.register_module()
class SURGEShared2FCBBoxHead(Shared2FCBBoxHead):
    """Two shared fully connected layers, real or 1-bit, and real outputs.

    With ``linear_cfg=None`` this is mmdet's ``Shared2FCBBoxHead``, which is
    what published 1-bit detectors use. Otherwise each hidden layer is a
    learned shift, the layer that ``linear_cfg`` names, and PReLU.

    Args:
        linear_cfg: Type and keywords of the hidden layers, e.g.
            ``dict(type='SURGELinear', eta=0.1)``; ``None`` keeps them real.
        kwargs: The arguments of mmdet's ``Shared2FCBBoxHead``.

    Shape:
        RoI features (R, C, h, w) give class scores (R, classes + 1) and box
        deltas (R, 4 * classes).
    """

    def __init__(
        self,
        *args: Any,
        linear_cfg: dict | None = None,
        init_cfg: dict | list | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, init_cfg=init_cfg, **kwargs)
        if linear_cfg is None:
            return
        for i, fc in enumerate(self.shared_fcs):
            self.shared_fcs[i] = nn.Sequential(
                LearnedShift(fc.in_features),
                MODELS.build(
                    dict(
                        linear_cfg,
                        in_features=fc.in_features,
                        out_features=fc.out_features,
                    )
                ),
                build_activation_layer(
                    dict(type='PReLU', num_parameters=fc.out_features)
                ),
            )
        # `forward` applies this after each hidden layer.
        self.relu = nn.Identity()
        if init_cfg is None:
            # mmdet's rule for `shared_fcs` takes all in there for matrices.
            self.init_cfg = [
                dict(type='Xavier', distribution='uniform', layer='Linear'),
                *self.init_cfg[:-1],
            ]
