"""Our operators in torch, for ONNX's reference evaluator.

Independent of their C++. Real convolutions are torch's too, so that they are
rounded as in the detector.
"""

import numpy as np
import torch
import torch.nn.functional as F
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from surge_det.core.bits import unpack_signs


def _first(x):
    return torch.from_numpy(x).permute(0, 3, 1, 2).contiguous()


def _last(y):
    return np.ascontiguousarray(y.permute(0, 2, 3, 1).numpy())


class BinaryConv(OpRun):
    op_domain = 'surge'

    def _run(
        self,
        x,
        weight,
        start,
        scale,
        *steps,
        kernel_shape,
        strides,
        pads,
        dilations,
        groups,
        pad_value,
    ):
        channels, places, _ = weight.shape
        inputs = x.shape[3] // groups
        bits = torch.from_numpy(weight).flatten(0, 1)
        signs = unpack_signs(bits, (channels * places, inputs))
        signs = signs.view(channels, *kernel_shape, inputs)
        top, left, bottom, right = pads
        positive = _first(x) >= torch.from_numpy(start).view(-1, 1, 1)
        padded = F.pad(
            positive.float() * 2 - 1,
            (left, right, top, bottom),
            value=pad_value,
        )
        y = F.conv2d(
            padded,
            signs.permute(0, 3, 1, 2).contiguous(),
            None,
            tuple(strides),
            0,
            tuple(dilations),
            groups,
        )
        y = _last(y) * scale
        given = [*steps, *[None] * (8 - len(steps))]
        bias, factor, offset, residual, pre, slope, post, added = given
        y = y if bias is None else y + bias
        y = y if factor is None else y * factor
        y = y if offset is None else y + offset
        y = y if residual is None else y + residual
        y = y if pre is None else y + pre
        y = y if slope is None else np.where(y > 0, y, slope * y)
        y = y if post is None else y + post
        if added is not None:
            size = y.shape[1:3]
            y = y + _last(F.interpolate(_first(added), size, mode='nearest'))
        assert y.dtype == np.float32
        return (y,)


class Pool(OpRun):
    op_domain = 'surge'

    def _run(
        self,
        x,
        *,
        mode,
        kernel_shape,
        strides,
        pads,
        ceil_mode,
        count_include_pad,
    ):
        assert pads[:2] == pads[2:], 'torch pads both sides alike'
        geometry = kernel_shape, strides, pads[:2]
        if mode == 'max':
            y = F.max_pool2d(_first(x), *geometry, ceil_mode=bool(ceil_mode))
        else:
            y = F.avg_pool2d(
                _first(x), *geometry, bool(ceil_mode), bool(count_include_pad)
            )
        return (_last(y),)


class Conv(OpRun):
    op_domain = ''

    def _run(
        self,
        x,
        weight,
        bias=None,
        *,
        auto_pad,
        dilations,
        group,
        kernel_shape,
        pads,
        strides,
    ):
        top, left, bottom, right = pads
        assert (top, left) == (bottom, right)
        y = F.conv2d(
            torch.from_numpy(x),
            torch.from_numpy(weight),
            None if bias is None else torch.from_numpy(bias),
            tuple(strides),
            (top, left),
            tuple(dilations),
            group,
        )
        return (y.numpy(),)


class MatMul(OpRun):
    """A product with NHWC maps as the 1x1 convolution that it was."""

    op_domain = ''

    def _run(self, x, matrix):
        if x.ndim != 4:
            return (x @ matrix,)
        weight = torch.from_numpy(np.ascontiguousarray(matrix.T))
        return (_last(F.conv2d(_first(x), weight[:, :, None, None])),)


def evaluate(model, **inputs):
    """Return a model's outputs."""
    evaluator = ReferenceEvaluator(
        model, new_ops=[BinaryConv, Pool, Conv, MatMul]
    )
    return evaluator.run(None, inputs)
