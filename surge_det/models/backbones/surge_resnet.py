"""1-bit ResNet."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch.utils.checkpoint as cp
from mmcv.cnn import build_conv_layer, build_norm_layer
from mmdet.models.backbones import ResNet
from mmdet.registry import MODELS
from mmengine.model import BaseModule, Sequential
from torch import Tensor, nn

from surge_det.core import checks
from surge_det.core.activations import LearnedShift, RPReLU

from .pretrained import check_pretrained_convs


class SURGEBasicBlock(BaseModule):
    """Two 1-bit 3x3 convolutions, a shortcut around each.

    Each half is shift, sign, 1-bit convolution, BN, plus shortcut, RPReLU:
    the block of IDa-Det (ECCV 2022) with Bi-Real Net's shortcuts.

    Args:
        in_channels: C_in.
        channels: C_out.
        stride: Of the first half.
        dilation: Of the first half.
        downsample: Shortcut of the first half, or ``None`` for identity.
        conv_cfg: Type and keywords of the 3x3 convolutions.
        norm_cfg: Norm layer.
        with_cp: Whether to trade time for memory by gradient checkpointing.
        init_cfg: Initialization, as in mmengine.

    Shape:
        (N, C_in, H, W) to (N, C_out, ceil(H / stride), ceil(W / stride)).
    """

    expansion = 1

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int,
        dilation: int,
        downsample: nn.Module | None,
        conv_cfg: dict,
        norm_cfg: dict,
        with_cp: bool = False,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.with_cp = with_cp
        self.shift1 = LearnedShift(in_channels)
        self.conv1 = build_conv_layer(
            conv_cfg,
            in_channels,
            channels,
            3,
            stride=stride,
            padding=dilation,
            dilation=dilation,
            bias=False,
        )
        self.norm1_name, norm1 = build_norm_layer(norm_cfg, channels, 1)
        self.add_module(self.norm1_name, norm1)
        self.downsample = downsample
        self.act1 = RPReLU(channels)
        self.shift2 = LearnedShift(channels)
        self.conv2 = build_conv_layer(
            conv_cfg, channels, channels, 3, padding=1, bias=False
        )
        self.norm2_name, norm2 = build_norm_layer(norm_cfg, channels, 2)
        self.add_module(self.norm2_name, norm2)
        self.act2 = RPReLU(channels)

    def _forward(self, x: Tensor) -> Tensor:
        norm1 = getattr(self, self.norm1_name)
        norm2 = getattr(self, self.norm2_name)
        identity = x if self.downsample is None else self.downsample(x)
        x = self.act1(norm1(self.conv1(self.shift1(x))) + identity)
        return self.act2(norm2(self.conv2(self.shift2(x))) + x)

    def forward(self, x: Tensor) -> Tensor:
        """Apply; shapes as in the class."""
        if self.with_cp and x.requires_grad:
            return cp.checkpoint(self._forward, x, use_reentrant=False)
        return self._forward(x)


class SURGEBottleneck(BaseModule):
    """1-bit 1x1, 3x3 and 1x1 convolutions, shortcuts where widths allow.

    Each third is shift, sign, 1-bit convolution, BN, plus shortcut, RPReLU.
    The 3x3 convolution has a shortcut of its own (identity, or average pool
    where it has a stride), the last 1x1 convolution has the block's; the
    first, which changes the width, has none. The stride is the 3x3
    convolution's, as in torchvision.

    Args:
        in_channels: C_in.
        channels: C; C_out = 4 * C.
        stride: Of the 3x3 convolution.
        dilation: Of the 3x3 convolution.
        downsample: The block's shortcut, or ``None`` for identity.
        conv_cfg: Type and keywords of the three convolutions.
        norm_cfg: Norm layer.
        with_cp: Whether to trade time for memory by gradient checkpointing.
        init_cfg: Initialization, as in mmengine.

    Shape:
        (N, C_in, H, W) to (N, 4 * C, ceil(H / stride), ceil(W / stride)).
    """

    expansion = 4

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int,
        dilation: int,
        downsample: nn.Module | None,
        conv_cfg: dict,
        norm_cfg: dict,
        with_cp: bool = False,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.with_cp = with_cp
        out_channels = self.expansion * channels
        self.shift1 = LearnedShift(in_channels)
        self.conv1 = build_conv_layer(
            conv_cfg, in_channels, channels, 1, bias=False
        )
        self.norm1_name, norm1 = build_norm_layer(norm_cfg, channels, 1)
        self.add_module(self.norm1_name, norm1)
        self.act1 = RPReLU(channels)
        self.shift2 = LearnedShift(channels)
        self.conv2 = build_conv_layer(
            conv_cfg,
            channels,
            channels,
            3,
            stride=stride,
            padding=dilation,
            dilation=dilation,
            bias=False,
        )
        self.norm2_name, norm2 = build_norm_layer(norm_cfg, channels, 2)
        self.add_module(self.norm2_name, norm2)
        self.pool = nn.Identity() if stride == 1 else _avg_pool(stride)
        self.act2 = RPReLU(channels)
        self.shift3 = LearnedShift(channels)
        self.conv3 = build_conv_layer(
            conv_cfg, channels, out_channels, 1, bias=False
        )
        self.norm3_name, norm3 = build_norm_layer(norm_cfg, out_channels, 3)
        self.add_module(self.norm3_name, norm3)
        self.downsample = downsample
        self.act3 = RPReLU(out_channels)

    def _forward(self, x: Tensor) -> Tensor:
        norm1 = getattr(self, self.norm1_name)
        norm2 = getattr(self, self.norm2_name)
        norm3 = getattr(self, self.norm3_name)
        identity = x if self.downsample is None else self.downsample(x)
        x = self.act1(norm1(self.conv1(self.shift1(x))))
        x = self.act2(norm2(self.conv2(self.shift2(x))) + self.pool(x))
        return self.act3(norm3(self.conv3(self.shift3(x))) + identity)

    def forward(self, x: Tensor) -> Tensor:
        """Apply; shapes as in the class."""
        if self.with_cp and x.requires_grad:
            return cp.checkpoint(self._forward, x, use_reentrant=False)
        return self._forward(x)


@MODELS.register_module()
class SURGEResNet(ResNet):
    """ResNet with 1-bit convolutions in its body.

    The stem (7x7 convolution, BN, max-pool, no ReLU) and the shortcuts'
    downsampling (average pool, 1x1 convolution, BN) stay real. Layers have
    torchvision's names, so that the latent weights load from torchvision's
    ResNet checkpoints: ``init_cfg=dict(type='Pretrained',
    checkpoint='torchvision://resnet18')``. A checkpoint that holds none of
    the convolutions is an error; one that holds some gives a warning that
    lists what stayed random.

    Source: IDa-Det (ECCV 2022) and Bi-Real Net (ECCV 2018) for the
    architecture; SURGE (arXiv 2605.10989) for the layers.

    Args:
        depth: 18 or 34 (basic blocks), 50 (bottlenecks).
        conv_cfg: Type and keywords of the 1-bit convolutions, e.g.
            ``dict(type='SURGEConv2d', eta=0.1)``.
        norm_eval: Whether BN keeps its running statistics while training.
            Unlike in mmdet's ResNet the default is ``False``: statistics of
            a float network don't fit a 1-bit one.
        kwargs: The other arguments of mmdet's ``ResNet``: ``in_channels``,
            ``stem_channels``, ``base_channels``, ``num_stages``,
            ``strides``, ``dilations``, ``out_indices``, ``frozen_stages``,
            ``norm_cfg``, ``with_cp``, ``init_cfg``.

    Shape:
        - Input: (N, 3, H, W).
        - Output: tuple, one per ``out_indices``: (N, 64 * 2**i,
          H / 2**(i + 2), W / 2**(i + 2)), sizes rounded up; four times the
          channels for depth 50.

    Raises:
        ValueError: If ``depth`` or an argument that has no 1-bit meaning
            here is not allowed.
    """

    arch_settings = {
        18: (SURGEBasicBlock, (2, 2, 2, 2)),
        34: (SURGEBasicBlock, (3, 4, 6, 3)),
        50: (SURGEBottleneck, (3, 4, 6, 3)),
    }

    def __init__(
        self,
        depth: int,
        conv_cfg: dict | None = None,
        norm_eval: bool = False,
        **kwargs: Any,
    ) -> None:
        checks.one_of('depth', depth, sorted(self.arch_settings))
        for name in (
            'dcn',
            'plugins',
            'deep_stem',
            'avg_down',
            'zero_init_residual',
            'pretrained',
        ):
            if kwargs.get(name):
                checks.refuse(
                    name,
                    kwargs[name],
                    'SURGEResNet has one form of stem, block and shortcut',
                )
        # The 3x3 convolution has the stride, as in torchvision's weights.
        checks.one_of('style', kwargs.get('style', 'pytorch'), ['pytorch'])
        super().__init__(
            depth,
            conv_cfg=conv_cfg or dict(type='SURGEConv2d'),
            norm_eval=norm_eval,
            **{**kwargs, 'zero_init_residual': False},
        )

    def _make_stem_layer(self, in_channels: int, stem_channels: int) -> None:
        self.conv1 = nn.Conv2d(
            in_channels, stem_channels, 7, stride=2, padding=3, bias=False
        )
        self.norm1_name, norm1 = build_norm_layer(
            self.norm_cfg, stem_channels, 1
        )
        self.add_module(self.norm1_name, norm1)
        # A ReLU here would leave the first sign nothing but +1.
        self.relu = nn.Identity()
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)

    def make_res_layer(
        self,
        block: type[SURGEBasicBlock] | type[SURGEBottleneck],
        inplanes: int,
        planes: int,
        num_blocks: int,
        stride: int,
        dilation: int,
        with_cp: bool,
        conv_cfg: dict,
        norm_cfg: dict,
        **kwargs: Any,
    ) -> Sequential:
        """Build one stage."""
        blocks = []
        width = planes * block.expansion
        for i in range(num_blocks):
            downsample = None
            if i == 0 and (stride != 1 or inplanes != width):
                downsample = _downsample(inplanes, width, stride, norm_cfg)
            blocks.append(
                block(
                    inplanes if i == 0 else width,
                    planes,
                    stride if i == 0 else 1,
                    dilation,
                    downsample,
                    conv_cfg,
                    norm_cfg,
                    with_cp,
                )
            )
        return Sequential(*blocks)

    def train(self, mode: bool = True) -> SURGEResNet:
        """Set the mode; frozen stages and, on request, BN stay in eval."""
        super().train(mode)
        # mmdet's method returns nothing.
        return self

    def init_weights(self) -> None:
        """Initialize, and say what a pretrained checkpoint left random."""
        with check_pretrained_convs(self):
            super().init_weights()


def _avg_pool(stride: int) -> nn.AvgPool2d:
    # As many rows and columns as the convolution's.
    return nn.AvgPool2d(
        stride, stride, ceil_mode=True, count_include_pad=False
    )


def _downsample(
    in_channels: int,
    channels: int,
    stride: int,
    norm_cfg: dict,
) -> nn.Sequential:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if stride != 1:
        layers['pool'] = _avg_pool(stride)
    # Named as in torchvision, which has no pool.
    layers['0'] = nn.Conv2d(in_channels, channels, 1, bias=False)
    layers['1'] = build_norm_layer(norm_cfg, channels)[1]
    return nn.Sequential(layers)
