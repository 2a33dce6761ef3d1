"""What the blocks of the 1-bit backbones share."""

from __future__ import annotations

from collections import OrderedDict

import torch.utils.checkpoint as cp
from mmcv.cnn import build_conv_layer, build_norm_layer
from mmengine.model import BaseModule
from torch import Tensor, nn

from surge_det.core.activations import LearnedShift


class SURGEBlock(BaseModule):
    """Base of blocks of shift, sign, 1-bit convolution and BN.

    Args:
        conv_cfg: Type and keywords of the convolutions.
        norm_cfg: Norm layer.
        with_cp: Whether to trade time for memory by gradient checkpointing.
        init_cfg: Initialization, as in mmengine.
    """

    def __init__(
        self,
        conv_cfg: dict,
        norm_cfg: dict,
        with_cp: bool = False,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.conv_cfg = conv_cfg
        self.norm_cfg = norm_cfg
        self.with_cp = with_cp

    def add_conv(
        self,
        number: int | str,
        in_channels: int,
        channels: int,
        kernel_size: int,
        stride: int = 1,
        dilation: int = 1,
        norm_name: str | None = None,
    ) -> None:
        """Add ``shift<number>``, ``conv<number>`` and their norm.

        The norm's name is mmcv's, such as ``bn1``, unless it is given.
        """
        conv = build_conv_layer(
            self.conv_cfg,
            in_channels,
            channels,
            kernel_size,
            stride=stride,
            padding=dilation * (kernel_size // 2),
            dilation=dilation,
            bias=False,
        )
        self.add_module(f'shift{number}', LearnedShift(in_channels))
        self.add_module(f'conv{number}', conv)
        name, norm = build_norm_layer(self.norm_cfg, channels, number)
        name = norm_name or name
        setattr(self, f'norm{number}_name', name)
        self.add_module(name, norm)

    def convolve(self, number: int, x: Tensor) -> Tensor:
        """Apply shift, convolution and norm of a number."""
        x = getattr(self, f'conv{number}')(getattr(self, f'shift{number}')(x))
        return getattr(self, getattr(self, f'norm{number}_name'))(x)

    def forward(self, x: Tensor) -> Tensor:
        """Apply; shapes as in the class."""
        if self.with_cp and x.requires_grad:
            return cp.checkpoint(self._forward, x, use_reentrant=False)
        return self._forward(x)

    def _forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError


def avg_pool(stride: int) -> nn.AvgPool2d:
    """Pool to as many rows and columns as a convolution with this stride."""
    return nn.AvgPool2d(
        stride, stride, ceil_mode=True, count_include_pad=False
    )


def build_shortcut(
    in_channels: int, channels: int, stride: int, norm_cfg: dict
) -> nn.Sequential:
    """Build a real shortcut: average pool, 1x1 convolution, BN."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if stride != 1:
        layers['pool'] = avg_pool(stride)
    # Named as in torchvision, which has no pool.
    layers['0'] = nn.Conv2d(in_channels, channels, 1, bias=False)
    layers['1'] = build_norm_layer(norm_cfg, channels)[1]
    return nn.Sequential(layers)
