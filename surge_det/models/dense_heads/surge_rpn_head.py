"""Region proposal head with 1-bit hidden layers."""

from __future__ import annotations

from typing import Any

from mmcv.cnn import ConvModule
from mmdet.models.dense_heads import RPNHead
from mmdet.registry import MODELS
from torch import Tensor, nn

from surge_det.models.registered_layers import OneBitByDefault


@MODELS.register_module()
class SURGERPNHead(OneBitByDefault, RPNHead):
    """RPN head: 1-bit 3x3 convolutions with PReLU, real 1x1 outputs.

    mmdet's ``RPNHead`` has a fixed real convolution and ReLU. One layer
    serves all pyramid levels, so AGS gives one lambda per level.

    Args:
        in_channels: C of the pyramid's levels.
        conv_cfg: Type and keywords of the hidden convolutions, e.g.
            ``dict(type='SURGEConv2d', eta=0.1)``.
        kwargs: The other arguments of mmdet's ``RPNHead``.

    Shape:
        Each level (N, C, H, W) gives scores (N, anchors, H, W) and box
        deltas (N, 4 * anchors, H, W).
    """

    def __init__(
        self, in_channels: int, conv_cfg: dict | None = None, **kwargs: Any
    ) -> None:
        self.hidden_conv_cfg = conv_cfg or self.default_conv_cfg
        super().__init__(in_channels, **kwargs)

    def _init_layers(self) -> None:
        super()._init_layers()
        hidden = self.feat_channels
        self.rpn_conv = nn.Sequential(
            *(
                ConvModule(
                    self.in_channels if i == 0 else hidden,
                    hidden,
                    3,
                    padding=1,
                    conv_cfg=self.hidden_conv_cfg,
                    act_cfg=dict(type='PReLU', num_parameters=hidden),
                )
                for i in range(self.num_convs)
            )
        )

    def forward_single(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Predict for one level.

        Args:
            x: (N, C, H, W).

        Returns:
            Scores (N, anchors, H, W) and box deltas (N, 4 * anchors, H, W).
        """
        x = self.rpn_conv(x)
        return self.rpn_cls(x), self.rpn_reg(x)
