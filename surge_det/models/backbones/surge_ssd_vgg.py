"""1-bit VGG for SSD."""

from __future__ import annotations

import re
from typing import Any

from mmcv.cnn import VGG, build_conv_layer, build_norm_layer
from mmdet.registry import MODELS
from mmengine.model import BaseModule, Sequential
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from surge_det.core import checks
from surge_det.core.activations import RPReLU
from surge_det.models.registered_layers import OneBitByDefault

from .blocks import SURGEBlock, build_shortcut
from .pretrained import check_pretrained_convs

_FEATURE = re.compile(r'features\.(\d+)\.weight')


class SURGEVGGBlock(SURGEBlock):
    """One 1-bit 3x3 convolution with a shortcut around it.

    Shift, sign, 1-bit convolution, BN, plus shortcut, RPReLU: one half of
    ``SURGEBasicBlock``.

    Args:
        in_channels: C_in.
        channels: C_out.
        stride: 1, with C_in = C_out and the identity as shortcut, or more:
            then the shortcut is average pool, real 1x1 convolution, BN.
        **kwargs: Arguments of :class:`SURGEBlock`.

    Shape:
        (N, C_in, H, W) to (N, C_out, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(
        self, in_channels: int, channels: int, stride: int, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.add_conv('', in_channels, channels, 3, stride, norm_name='norm')
        self.downsample = None
        if stride != 1:
            self.downsample = build_shortcut(
                in_channels, channels, stride, self.norm_cfg
            )
        self.act = RPReLU(channels)

    def _forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.act(self.convolve('', x) + shortcut)


@MODELS.register_module()
class SURGESSDVGG(OneBitByDefault, BaseModule):
    """VGG for SSD with 1-bit 3x3 convolutions.

    From BiDet (CVPR 2020) and its public code: the first convolution is
    real, all others of VGG are 1-bit with BN and a shortcut; a 1-bit block
    of stride 2 replaces each of the first four max-pools. It comes in
    addition to VGG's convolutions, and changes the number of
    channels (for depth 16: 12 blocks and 4 of stride 2); pool5 is a 3x3
    max-pool of stride 1; conv6 is 1-bit, 3x3 with dilation 6, conv7 real,
    1x1, both with BN and without shortcut; no convolution has a bias.

    Different from BiDet: a learned shift before each sign; RPReLU after each
    addition and, in place of ReLU, after conv6 and conv7, so that what
    feeds a sign keeps negative values; BN after pool5, whose output is
    hardly ever negative (0.1 % of it on a photograph); every average pool
    rounds its size up, not only the third. BiDet's losses are no part of
    this class.

    Weights of a float VGG of the same depth load by torchvision's keys
    (``init_cfg=dict(type='Pretrained', checkpoint='torchvision://vgg16')``),
    also those of torchvision's ``vgg16_bn`` and of mmdet's SSD (with
    ``prefix='backbone.'``), which bring conv6 and conv7 as well.
    Convolutions alone are taken, in VGG's order: the first of each stage
    after a max-pool goes to the block of stride 2, which has its shape
    (``stage2.0`` to ``stage5.0``), and the next block (``stage2.1``
    to ``stage5.1``) has no counterpart. What stays random is listed in a
    warning; a checkpoint that holds none of the convolutions is an error.

    Args:
        depth: 11, 13, 16 or 19.
        conv_cfg: Type and keywords of the 1-bit convolutions, e.g.
            ``dict(type='SURGEConv2d', eta=0.1)``.
        norm_cfg: Norm layer.
        norm_eval: Whether BN keeps its running statistics while training.
        with_cp: Whether to trade time for memory by gradient checkpointing
            of the blocks.
        init_cfg: Initialization, as in mmengine. ``None`` means Kaiming.

    Shape:
        - Input: (N, 3, H, W).
        - Output: tuple of the end of stage conv4_3, (N, 512, H / 8, W / 8),
          and conv7, (N, 1024, H / 16, W / 16), sizes rounded up: 38x38 and
          19x19 for 300x300.

    Raises:
        ValueError: If ``depth`` is not allowed.
    """

    arch_settings = VGG.arch_settings

    def __init__(
        self,
        depth: int = 16,
        conv_cfg: dict | None = None,
        norm_cfg: dict | None = None,
        norm_eval: bool = False,
        with_cp: bool = False,
        init_cfg: dict | list | None = None,
    ) -> None:
        checks.one_of('depth', depth, sorted(self.arch_settings))
        super().__init__(
            init_cfg
            or [
                dict(type='Kaiming', layer='Conv2d'),
                dict(type='Constant', val=1, layer='_BatchNorm'),
            ]
        )
        conv_cfg = conv_cfg or self.default_conv_cfg
        norm_cfg = norm_cfg or dict(type='BN')
        self.norm_eval = norm_eval

        self.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.norm1 = build_norm_layer(norm_cfg, 64)[1]
        # Names of the convolutions that a float VGG has too, in its order.
        self._float_names = ['conv1']
        in_channels = 64
        for stage, num_convs in enumerate(self.arch_settings[depth], 1):
            channels = min(64 * 2 ** (stage - 1), 512)
            strides = [1] * (num_convs - 1)
            if stage > 1:
                strides = [2, 1, *strides]
            blocks = []
            for i, stride in enumerate(strides):
                blocks.append(
                    SURGEVGGBlock(
                        in_channels,
                        channels,
                        stride,
                        conv_cfg=conv_cfg,
                        norm_cfg=norm_cfg,
                        with_cp=with_cp,
                    )
                )
                in_channels = channels
                if stage == 1 or i != 1:
                    self._float_names.append(f'stage{stage}.{i}.conv')
            self.add_module(f'stage{stage}', Sequential(*blocks))

        self.pool5 = nn.MaxPool2d(3, stride=1, padding=1)
        # The maximum of nine values is rarely negative; this centres it.
        self.norm5 = build_norm_layer(norm_cfg, 512)[1]
        self.conv6 = build_conv_layer(
            conv_cfg, 512, 1024, 3, padding=6, dilation=6, bias=False
        )
        self.norm6 = build_norm_layer(norm_cfg, 1024)[1]
        self.act6 = RPReLU(1024)
        self.conv7 = nn.Conv2d(1024, 1024, 1, bias=False)
        self.norm7 = build_norm_layer(norm_cfg, 1024)[1]
        self.act7 = RPReLU(1024)
        self._register_load_state_dict_pre_hook(self._rename_float_keys)

    def _rename_float_keys(
        self, state_dict: dict, prefix: str, *args: Any
    ) -> None:
        found = {}
        for key, value in state_dict.items():
            match = _FEATURE.fullmatch(key.removeprefix(prefix))
            if key.startswith(prefix) and match and value.dim() == 4:
                found[int(match[1])] = key
        keys = [found[number] for number in sorted(found)]
        names = [*self._float_names, 'conv6', 'conv7'][: len(keys)]
        if len(names) < len(self._float_names) or (
            [state_dict[key].shape for key in keys]
            != [self.get_submodule(name).weight.shape for name in names]
        ):
            # Of another depth: `check_pretrained_convs` reports it.
            return
        for key, name in zip(keys, names):
            state_dict[f'{prefix}{name}.weight'] = state_dict.pop(key)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Apply; shapes as in the class."""
        x = self.norm1(self.conv1(x))
        x = self.stage4(self.stage3(self.stage2(self.stage1(x))))
        first = x
        x = self.norm5(self.pool5(self.stage5(x)))
        x = self.act6(self.norm6(self.conv6(x)))
        return first, self.act7(self.norm7(self.conv7(x)))

    def train(self, mode: bool = True) -> SURGESSDVGG:
        """Set the mode; on request BN stays in eval."""
        super().train(mode)
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def init_weights(self) -> None:
        """Initialize, and say what a pretrained checkpoint left random."""
        with check_pretrained_convs(self):
            super().init_weights()
