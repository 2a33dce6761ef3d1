"""1-bit feature pyramid."""

from __future__ import annotations

from typing import Any

from mmcv.cnn import ConvModule
from mmdet.models.necks import FPN
from mmdet.registry import MODELS

from surge_det.models.registered_layers import OneBitByDefault


@MODELS.register_module()
class SURGEFPN(OneBitByDefault, FPN):
    """Feature pyramid with 1-bit 3x3 convolutions, each with bias and PReLU.

    Lateral convolutions are 3x3 as well (IDa-Det, ECCV 2022): a 1-bit 1x1
    convolution sees too few values. By default there is no norm layer, as
    there. Trained from scratch, the inputs of the second convolutions then
    grow until the estimator clips nearly all of them;
    ``norm_cfg=dict(type='BN')`` keeps them in its window. What that is worth
    depends on width and data (``docs/results/bccd.md``, ``neu.md``).

    Args:
        in_channels: Channels of each input level.
        out_channels: C of every output level.
        num_outs: Number of output levels.
        conv_cfg: Type and keywords of the convolutions, e.g.
            ``dict(type='SURGEConv2d', eta=0.1)``.
        kwargs: The other arguments of mmdet's ``FPN``.

    Shape:
        - Input: tuple of (N, C_i, H_i, W_i).
        - Output: tuple of ``num_outs`` (N, C, H_i, W_i).

    Raises:
        ValueError: If ReLUs would stand before a sign.
    """

    def __init__(
        self,
        in_channels: list[int],
        out_channels: int,
        num_outs: int,
        conv_cfg: dict | None = None,
        **kwargs: Any,
    ) -> None:
        conv_cfg = conv_cfg or self.default_conv_cfg
        act_cfg = dict(type='PReLU', num_parameters=out_channels)
        if kwargs.get('relu_before_extra_convs'):
            raise ValueError(
                'relu_before_extra_convs=True is not allowed: a sign after '
                'a ReLU sees nothing but +1'
            )
        super().__init__(
            in_channels,
            out_channels,
            num_outs,
            conv_cfg=conv_cfg,
            act_cfg=act_cfg,
            **kwargs,
        )
        lateral_norm_cfg = (
            None if self.no_norm_on_lateral else kwargs.get('norm_cfg')
        )
        for i in range(len(self.lateral_convs)):
            self.lateral_convs[i] = ConvModule(
                in_channels[i + self.start_level],
                out_channels,
                3,
                padding=1,
                conv_cfg=conv_cfg,
                norm_cfg=lateral_norm_cfg,
                act_cfg=act_cfg,
                inplace=False,
            )
