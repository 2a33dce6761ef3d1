"""What a layer becomes in OpenVINO: one rule for each type.

``BinaryConvolution`` (operation set 1) of OpenVINO 2026.4 computes
``conv2d(sign(x), sign(w))`` exactly, on x86, within these limits, outside of
which it fails or gives wrong numbers:

- static shapes, one group, input channels in multiples of 8;
- a padding of the columns that is at most 4 (2 without AVX-512), or the
  output's width where that is less;
- with zeros as padding (also where there is none to pad), strides below 3.

Layers that it cannot compute get around the limits (:func:`needs_pad`), or
become an ordinary convolution of signs.

The threshold of a sign, with the learned shift in it, is the range of a
``FakeQuantize`` of two levels. After the ``BinaryConvolution`` follow one
multiplication by the scale and one addition of the bias, which merge with a
norm that follows.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from surge_det.core.bits import pack_signs
from surge_det.core.layers import SURGEConv2d, SURGELayer, SURGELinear
from surge_det.deploy.extra import require
from surge_det.deploy.norms import factor_and_offset

# Suffix of the names of nodes that binarize.
SIGN = '/sign'
_PACK = 8
_NO_PADS = (0, 0, 0, 0)
_TINY = np.finfo(np.float32).tiny
_LARGEST = float(np.finfo(np.float32).max)


def stored_as_bits(layer: nn.Module) -> bool:
    """Whether a layer's weights are bits in the file.

    Those of other layers, also of 1-bit ones that become an ordinary
    convolution of signs, are float32.
    """
    return (
        isinstance(layer, SURGELayer)
        and layer.weight_bits == layer.activation_bits == 1
        and layer.weight.shape[1] % _PACK == 0
        and getattr(layer, 'groups', 1) == 1
    )


def needs_pad(layer: SURGEConv2d) -> bool:
    """Whether an operation of its own has to pad the layer's input."""
    left, right, top, bottom = layer.pads
    if max(left, right) > 1:
        return True
    if layer.pad_value != 0 or not any(layer.pads):
        return False
    # A window may lie in the padding with all its rows, or between them.
    rows, dilation = layer.kernel_size[0], layer.dilation[0]
    centred = rows % 2 and top == bottom == dilation * (rows - 1) // 2
    return max(layer.stride) > 2 or (dilation > 1 and not centred)


def operation(layer: nn.Module) -> str:
    """Return what computes a layer in OpenVINO."""
    linear = isinstance(layer, nn.Linear)
    if stored_as_bits(layer):
        if linear:
            return 'BinaryConvolution, 1x1'
        return 'Pad and ' * needs_pad(layer) + 'BinaryConvolution'
    if linear:
        name = 'MatMul'
    elif isinstance(layer, nn.Conv2d):
        name = 'GroupConvolution' if layer.groups > 1 else 'Convolution'
    else:
        return type(layer).__name__
    signs = isinstance(layer, SURGELayer) and layer.activation_bits == 1
    return name + ' on signs' * signs


class Lowering:
    """How one module is computed by operations of OpenVINO's.

    Args:
        module: On the CPU, in eval mode.
        name: Its name in the detector.
    """

    def __init__(self, module: Any, name: str = '') -> None:
        self.module = module
        self.name = name
        self.ops = require('openvino.opset1')

    def call(self, operation: Callable, x: Tensor) -> Tensor:
        """Call what stands for the module while it is traced."""
        # A copy, because OpenVINO crashes on a later operation in place.
        return operation(x).clone()

    def output_shape(self, x: Tensor) -> Sequence[int]:
        """Return the shape that the module makes of an input."""
        return x.shape

    def lower(self, x: Any) -> Any:
        """Return the node that computes the module's output."""
        raise NotImplementedError

    def _number(self, value: float) -> Any:
        return self.ops.constant(value, np.float32)

    def _ints(self, *values: int) -> Any:
        return self.ops.constant(values, np.int64)

    def _parameter(self, value: Tensor, *shape: int) -> Any:
        return self.ops.constant(value.detach().numpy().reshape(shape))


class NormLowering(Lowering):
    """A norm as one multiplication and one addition, as torch does.

    OpenVINO would fold the factor into the weights of a real convolution
    before it. What is rounded otherwise there, several times as far from
    torch's values as need be, runs through all shortcuts and flips signs:
    on BCCD, in one image of five. So there is something between that cannot
    be folded.
    """

    def call(self, operation: Callable, x: Tensor) -> Tensor:
        """Leave inputs that are no images to OpenVINO's own rule."""
        if x.dim() == 4:
            return super().call(operation, x)
        norm = self.module
        return F.batch_norm(
            x,
            norm.running_mean,
            norm.running_var,
            norm.weight,
            norm.bias,
            eps=norm.eps,
        )

    def lower(self, x: Any) -> Any:
        """Apply to (N, C, H, W)."""
        factor, shift = factor_and_offset(self.module)
        if _is_convolved(x.get_node()):
            x = self.ops.clamp(x, -_LARGEST, _LARGEST)
        y = self.ops.multiply(x, self._parameter(factor, 1, -1, 1, 1))
        return self.ops.add(y, self._parameter(shift, 1, -1, 1, 1))


def _is_convolved(node: Any) -> bool:
    """Whether a real convolution, perhaps with a bias, computes it."""
    if node.get_type_name() == 'Add':
        node = node.input_value(0).get_node()
    return node.get_type_name() in ('Convolution', 'GroupConvolution')


class SURGELowering(Lowering):
    """What convolutions and linear layers that binarize have in common.

    The constant of the weights is made once, also where a layer is applied
    several times, as an RPN's is; other constants are made for each time.
    """

    @functools.cached_property
    def _weight_and_scale(self) -> tuple[np.ndarray, np.ndarray | None]:
        layer = self.module
        if layer.weight_bits == 32:
            return layer.weight.detach().numpy(), None
        _, scale, signs = layer.binarized_weight()
        return signs.numpy(), scale.numpy()

    @functools.cached_property
    def _bits(self) -> Any:
        ov, (signs, _) = require('openvino'), self._weight_and_scale
        shape = [*signs.shape, 1, 1][:4]
        tensor = ov.Tensor(ov.Type.u1, ov.Shape(shape))
        # In channels of whole bytes: no bits in between.
        bits = pack_signs(torch.from_numpy(signs)).numpy()
        tensor.data[:] = bits.reshape(tensor.data.shape)
        constant = require('openvino.op').Constant(tensor)
        constant.set_friendly_name(f'{self.name}/bits')
        return constant

    def _binary(
        self, x: Any, pads: tuple[int, ...] = _NO_PADS, value: float = 0.0
    ) -> Any:
        """Binarize (N, C, H, W), pad with a value, convolve with the signs."""
        layer = self.module
        start = np.zeros(layer.weight.shape[1], np.float32)
        if layer.shift is not None:
            start = -layer.shift.detach().numpy()
        # One constant for both ends of the range, and not only to save one:
        # that keeps the CPU plugin from merging a sign with the convolution
        # before it, which goes wrong where a shortcut is added in between.
        threshold = self.ops.constant(below(start).reshape(1, -1, 1, 1))
        sign = self.ops.fake_quantize(
            x, threshold, threshold, self._number(0), self._number(1), 2
        )
        sign.set_friendly_name(self.name + SIGN)
        y = self.ops.binary_convolution(
            sign,
            self._bits,
            *self._geometry(pads),
            'xnor-popcount',
            # Without padding any other value than 0, which has a slower
            # kernel, and one that is wrong for strides above 2.
            float(value) if any(pads) else -1.0,
        )
        y.set_friendly_name(self.name)
        return y

    def _geometry(self, pads: tuple[int, ...]) -> tuple[list[int], ...]:
        """Return strides, padding before and after, and dilations."""
        left, right, top, bottom = pads
        stride = getattr(self.module, 'stride', (1, 1))
        dilation = getattr(self.module, 'dilation', (1, 1))
        return list(stride), [top, left], [bottom, right], list(dilation)

    def _scaled(self, y: Any) -> Any:
        """Multiply (N, C_out, H, W) by the scale, and add the bias."""
        _, scale = self._weight_and_scale
        y = self.ops.multiply(y, scale.reshape(1, -1, 1, 1))
        return self._biased(y, 1, -1, 1, 1)

    def _biased(self, y: Any, *shape: int) -> Any:
        bias = self.module.bias
        if bias is None:
            return y
        return self.ops.add(y, self._parameter(bias, *shape))

    def _real_input(self, x: Any, *shape: int) -> Any:
        """Add the shift, in a shape, and take the sign as a real number."""
        shift = self.module.shift
        if shift is not None:
            x = self.ops.add(x, self._parameter(shift, *shape))
        if self.module.activation_bits == 32:
            return x
        positive = self.ops.greater_equal(x, self._number(0))
        return self.ops.select(positive, self._number(1), self._number(-1))

    @functools.cached_property
    def _real_weight(self) -> Any:
        """The weights as torch multiplies them."""
        weight, scale = self._weight_and_scale
        if scale is not None:
            weight = weight * scale
        groups = getattr(self.module, 'groups', 1)
        if groups > 1:
            weight = weight.reshape(groups, -1, *weight.shape[1:])
        return self.ops.constant(weight)


class ConvLowering(SURGELowering):
    """:class:`SURGEConv2d` as ``BinaryConvolution``, or ``Convolution``."""

    def call(self, operation: Callable, x: Tensor) -> Tensor:
        """Put a batch around a single input."""
        if x.dim() == 3:
            return super().call(operation, x.unsqueeze(0)).squeeze(0)
        return super().call(operation, x)

    def output_shape(self, x: Tensor) -> Sequence[int]:
        """Return (N, C_out, H_out, W_out)."""
        layer = self.module
        left, right, top, bottom = layer.pads
        sizes = [
            (size - dilation * (kernel - 1) - 1) // stride + 1
            for size, dilation, kernel, stride in zip(
                (x.shape[2] + top + bottom, x.shape[3] + left + right),
                layer.dilation,
                layer.kernel_size,
                layer.stride,
            )
        ]
        return [x.shape[0], layer.out_channels, *sizes]

    def lower(self, x: Any) -> Any:
        """Apply to (N, C, H, W)."""
        layer = self.module
        if not stored_as_bits(layer):
            return self._real(x)
        if not needs_pad(layer):
            return self._scaled(self._binary(x, layer.pads, layer.pad_value))
        value = layer.pad_value or -1.0
        y = self._binary(self._pad(x, value * _LARGEST))
        if layer.pad_value == 0:
            # What the -1 that stands for 0 has brought in.
            y = self.ops.add(y, self._padding_sum(x))
        return self._scaled(y)

    def _pad(self, x: Any, value: float) -> Any:
        left, right, top, bottom = self.module.pads
        return self.ops.pad(
            x,
            self._ints(0, 0, top, left),
            self._ints(0, 0, bottom, right),
            'constant',
            self._number(value),
        )

    def _padding_sum(self, x: Any) -> Any:
        """Sum of weights over padded places, (1, C_out, H_out, W_out).

        It depends on the size alone: OpenVINO computes it once.
        """
        ops, ints, (signs, _) = self.ops, self._ints, self._weight_and_scale
        shape = ops.shape_of(x)
        size = ops.strided_slice(shape, ints(2), ints(4), ints(1), [0], [0])
        inside = ops.broadcast(
            self._number(0), ops.concat([ints(1, 1), size], 0)
        )
        return ops.convolution(
            self._pad(inside, 1.0),
            signs.sum(1, keepdims=True),
            *self._geometry(_NO_PADS),
        )

    def _real(self, x: Any) -> Any:
        """What BinaryConvolution cannot compute, as torch computes it."""
        layer, pads = self.module, self.module.pads
        x = self._real_input(x, -1, 1, 1)
        if layer.pad_value:
            x, pads = self._pad(x, layer.pad_value), _NO_PADS
        convolve = self.ops.convolution
        if layer.groups > 1:
            convolve = self.ops.group_convolution
        y = convolve(x, self._real_weight, *self._geometry(pads))
        return self._biased(y, 1, -1, 1, 1)


class LinearLowering(SURGELowering):
    """:class:`SURGELinear`, its rows as the columns of one image.

    In the layout that the kernel wants, C last, that is no transposition.
    """

    def output_shape(self, x: Tensor) -> Sequence[int]:
        """Return (..., C_out)."""
        return [*x.shape[:-1], self.module.out_features]

    def lower(self, x: Any) -> Any:
        """Apply to (..., C)."""
        ops, layer, ints = self.ops, self.module, self._ints
        if not stored_as_bits(layer):
            x = self._real_input(x, -1)
            y = ops.matmul(x, self._real_weight, False, True)
            return self._biased(y, -1)
        shape = ops.shape_of(x)
        rows = ops.reshape(x, ints(1, 1, -1, layer.in_features), False)
        image = ops.transpose(rows, ints(0, 3, 1, 2))
        y = self._scaled(self._binary(image))
        y = ops.transpose(y, ints(0, 2, 3, 1))
        outer = ops.strided_slice(shape, ints(0), ints(-1), ints(1), [0], [0])
        target = ops.concat([outer, ints(layer.out_features)], 0)
        return ops.reshape(y, target, False)


# Type of a module -> its rule.
LOWERINGS: dict[type[nn.Module], type[Lowering]] = {
    SURGEConv2d: ConvLowering,
    SURGELinear: LinearLowering,
    _BatchNorm: NormLowering,
}


def lowering_of(module: nn.Module, name: str = '') -> Lowering | None:
    """Return the rule for a module; ``None`` leaves it to OpenVINO's own.

    Args:
        module: Any module.
        name: Its name in the detector.
    """
    for cls in type(module).__mro__:
        if cls in LOWERINGS:
            return LOWERINGS[cls](module, name)
    return None


def below(start: np.ndarray) -> np.ndarray:
    """Return the threshold t with which x > t says the same as x >= start.

    Whether or not the processor takes subnormal numbers for zero, as
    OpenVINO may have it do; they themselves may land on either side.

    Args:
        start: Finite float32 numbers.
    """
    threshold = np.nextafter(start.astype(np.float32), np.float32(-np.inf))
    subnormal = (threshold != 0) & (np.abs(threshold) < _TINY)
    return np.where(
        subnormal, np.where(threshold > 0, 0, -_TINY), threshold
    ).astype(np.float32)


def above(threshold: np.ndarray) -> np.ndarray:
    """Return the first number above a threshold; what :func:`below` undoes.

    Args:
        threshold: Finite float32 numbers, none of them subnormal.
    """
    start = np.nextafter(threshold, np.float32(np.inf))
    # There is but zero between the subnormal ones.
    return np.where(np.abs(start) < _TINY, (threshold >= 0) * _TINY, start)
