"""1-bit extra layers of SSD."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmdet.models.necks import SSDNeck
from mmdet.registry import MODELS
from torch import nn

from surge_det.models.registered_layers import OneBitByDefault


@MODELS.register_module()
class SURGESSDNeck(OneBitByDefault, SSDNeck):
    """SSD's extra layers, 1-bit, and L2Norm on the first source.

    Each extra level is a 1x1 and a 3x3 1-bit convolution, each with BN and
    without shortcut or bias, as in BiDet (CVPR 2020). BN's bias
    shifts the next sign. Where the last level is 1x1, BN sees one
    value per image and channel: training fails with one image per GPU, and
    two pass no gradient there (BN makes them -1 and +1 whatever they were).

    Args:
        in_channels: Channels of the sources.
        out_channels: Channels of all levels; begins with ``in_channels``.
        level_strides: Stride of each extra level's 3x3 convolution.
        level_paddings: Its padding.
        l2_norm_scale: Initial scale of L2Norm; ``None`` for no L2Norm.
        conv_cfg: Type and keywords of the convolutions, e.g.
            ``dict(type='SURGEConv2d', eta=0.1)``.
        norm_cfg: Norm layer; BN by default.
        init_cfg: Initialization, as in mmengine. ``None`` means Xavier.
        kwargs: The other arguments of mmdet's ``SSDNeck``:
            ``last_kernel_size``.

    Shape:
        - Input: tuple of (N, C_i, H_i, W_i).
        - Output: tuple of the same, the first normalized, and one
          (N, C_i, H_i, W_i) per extra level.

    Raises:
        ValueError: If an argument is not allowed; it is named.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: Sequence[int],
        level_strides: Sequence[int],
        level_paddings: Sequence[int],
        l2_norm_scale: float | None = 20.0,
        conv_cfg: dict | None = None,
        norm_cfg: dict | None = None,
        init_cfg: dict | list | None = None,
        **kwargs: Any,
    ) -> None:
        in_channels, out_channels = tuple(in_channels), tuple(out_channels)
        sources = len(in_channels)
        levels = len(out_channels) - sources
        if levels < 1 or out_channels[:sources] != in_channels:
            raise ValueError(
                f'out_channels={out_channels} is not allowed: '
                f'in_channels={in_channels} and one or more extra levels'
            )
        for name, value in (
            ('level_strides', level_strides),
            ('level_paddings', level_paddings),
        ):
            if len(value) != levels:
                raise ValueError(
                    f'{name}={value!r} is not allowed: {levels} numbers, one '
                    f'per extra level of out_channels={out_channels}'
                )
        if l2_norm_scale is not None and not l2_norm_scale > 0:
            raise ValueError(
                f'l2_norm_scale={l2_norm_scale!r} is not allowed: a number '
                '> 0 or None'
            )
        if kwargs.get('use_depthwise'):
            raise ValueError(
                'use_depthwise=True is not allowed: SURGESSDNeck has one '
                'form of extra levels'
            )
        if init_cfg is None:
            init_cfg = [
                dict(type='Xavier', distribution='uniform', layer='Conv2d'),
                dict(type='Constant', val=1, layer='_BatchNorm'),
            ]
        super().__init__(
            in_channels,
            out_channels,
            level_strides,
            level_paddings,
            l2_norm_scale=l2_norm_scale,
            conv_cfg=conv_cfg or self.default_conv_cfg,
            norm_cfg=norm_cfg or dict(type='BN'),
            act_cfg=None,
            # mmdet appends the rule for L2Norm.
            init_cfg=init_cfg if isinstance(init_cfg, list) else [init_cfg],
            **kwargs,
        )
        if l2_norm_scale is not None:
            # mmdet leaves it without a value until `init_weights`.
            nn.init.constant_(self.l2_norm.weight, l2_norm_scale)
