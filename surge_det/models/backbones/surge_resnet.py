"""1-bit ResNet."""

from __future__ import annotations

from typing import Any

from mmcv.cnn import build_norm_layer
from mmdet.models.backbones import ResNet
from mmdet.registry import MODELS
from mmengine.model import Sequential
from torch import Tensor, nn

from surge_det.core import checks
from surge_det.core.activations import RPReLU
from surge_det.models.registered_layers import OneBitByDefault

from .blocks import SURGEBlock, avg_pool, build_shortcut
from .pretrained import check_pretrained_convs


class SURGEBasicBlock(SURGEBlock):
    """Two 1-bit 3x3 convolutions, a shortcut around each.

    Each half is shift, sign, 1-bit convolution, BN, plus shortcut, RPReLU:
    the block of IDa-Det (ECCV 2022) with Bi-Real Net's shortcuts.

    Args:
        in_channels: C_in.
        channels: C_out.
        stride: Of the first half.
        dilation: Of the first half.
        downsample: Shortcut of the first half, or ``None`` for identity.
        **kwargs: Arguments of :class:`SURGEBlock`.

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
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.add_conv(1, in_channels, channels, 3, stride, dilation)
        self.downsample = downsample
        self.act1 = RPReLU(channels)
        self.add_conv(2, channels, channels, 3)
        self.act2 = RPReLU(channels)

    def _forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        x = self.act1(self.convolve(1, x) + identity)
        return self.act2(self.convolve(2, x) + x)


class SURGEBottleneck(SURGEBlock):
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
        **kwargs: Arguments of :class:`SURGEBlock`.

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
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        out_channels = self.expansion * channels
        self.add_conv(1, in_channels, channels, 1)
        self.act1 = RPReLU(channels)
        self.add_conv(2, channels, channels, 3, stride, dilation)
        self.pool = nn.Identity() if stride == 1 else avg_pool(stride)
        self.act2 = RPReLU(channels)
        self.add_conv(3, channels, out_channels, 1)
        self.downsample = downsample
        self.act3 = RPReLU(out_channels)

    def _forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        x = self.act1(self.convolve(1, x))
        x = self.act2(self.convolve(2, x) + self.pool(x))
        return self.act3(self.convolve(3, x) + identity)


@MODELS.register_module()
class SURGEResNet(OneBitByDefault, ResNet):
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
        - Output: tuple, one per ``out_indices``: ``(N, 64 * 2**i,
          H / 2**(i + 2), W / 2**(i + 2))``, sizes rounded up; four times the
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
            conv_cfg=conv_cfg or self.default_conv_cfg,
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
                downsample = build_shortcut(inplanes, width, stride, norm_cfg)
            blocks.append(
                block(
                    inplanes if i == 0 else width,
                    planes,
                    stride if i == 0 else 1,
                    dilation,
                    downsample,
                    conv_cfg=conv_cfg,
                    norm_cfg=norm_cfg,
                    with_cp=with_cp,
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
