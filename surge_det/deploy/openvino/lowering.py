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

    A module that is applied several times, as that of an RPN, has constants
    that are made once.

    Args:
        module: On the CPU, in eval mode.
        name: Its name in the detector.
    """

    def __init__(self, module: Any, name: str = '') -> None:
        self.module = module
        self.name = name
        self.ops = require('openvino.opset1')
        self._constants: dict[str, Any] = {}

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

    def constant(self, key: str, make: Callable[[], Any]) -> Any:
        """Return a constant of the module, made once.

        Args:
            key: Its name.
            make: Gives an array, or a node.
        """
        if key not in self._constants:
            value = make()
            if isinstance(value, np.ndarray):
                value = self.ops.constant(value)
            value.set_friendly_name(f'{self.name}/{key}')
            self._constants[key] = value
        return self._constants[key]

    def number(self, value: float) -> Any:
        """Return a float32 constant."""
        return self.constant(
            f'number{value:+g}', lambda: np.asarray(value, np.float32)
        )

    def ints(self, *values: int) -> Any:
        """Return a constant of whole numbers, such as a shape."""
        return self.constant(
            'ints' + '_'.join(map(str, values)),
            lambda: np.asarray(values, np.int64),
        )


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
        norm = self.module
        with torch.no_grad():
            # In the order of torch's kernel, rounded as there.
            factor = 1 / (norm.running_var + norm.eps).sqrt()
            if norm.weight is not None:
                factor = factor * norm.weight
            shift = -norm.running_mean * factor
            if norm.bias is not None:
                shift = norm.bias + shift
        if _is_convolved(x.get_node()):
            x = self.ops.clamp(x, -_LARGEST, _LARGEST)
        y = self.ops.multiply(x, factor.view(1, -1, 1, 1).numpy())
        return self.ops.add(y, shift.view(1, -1, 1, 1).numpy())


def _is_convolved(node: Any) -> bool:
    """Whether a real convolution, perhaps with a bias, computes it."""
    if node.get_type_name() == 'Add':
        node = node.input_value(0).get_node()
    return node.get_type_name() in ('Convolution', 'GroupConvolution')


class SURGELowering(Lowering):
    """What convolutions and linear layers that binarize have in common."""

    # Behind the channels: of an input, and of a bias.
    places: tuple[int, ...] = ()

    @functools.cached_property
    def _weight_and_scale(self) -> tuple[np.ndarray, np.ndarray | None]:
        layer = self.module
        if layer.weight_bits == 32:
            return layer.weight.detach().numpy(), None
        _, scale, signs = layer.binarized_weight()
        return signs.numpy(), scale.flatten().numpy()

    @property
    def weight(self) -> np.ndarray:
        """Weights, or their signs."""
        return self._weight_and_scale[0]

    @property
    def scale(self) -> np.ndarray | None:
        """(C_out,), where weights are binarized."""
        return self._weight_and_scale[1]

    def bits(self) -> Any:
        """Return the constant of the weights' signs."""

        def make() -> Any:
            ov = require('openvino')
            shape = list(self.weight.shape)
            shape += [1] * (4 - len(shape))
            tensor = ov.Tensor(ov.Type.u1, ov.Shape(shape))
            # In channels of whole bytes: no bits in between.
            bits = pack_signs(torch.from_numpy(self.weight)).numpy()
            tensor.data[:] = bits.reshape(tensor.data.shape)
            return require('openvino.op').Constant(tensor)

        return self.constant('bits', make)

    def _threshold(self) -> np.ndarray:
        layer = self.module
        if layer.shift is not None:
            shift = layer.shift.detach().numpy()
        else:
            shift = np.zeros(layer.weight.shape[1], np.float32)
        return below(-shift).reshape(1, -1, 1, 1)

    def binary_convolution(
        self,
        x: Any,
        pads: tuple[int, ...] = _NO_PADS,
        value: float = 0.0,
        stride: tuple[int, int] = (1, 1),
        dilation: tuple[int, int] = (1, 1),
    ) -> Any:
        """Binarize (N, C, H, W) and convolve with the signs.

        Args:
            x: The input.
            pads: Left, right, top, bottom.
            value: What signs are padded with.
            stride: Rows, columns.
            dilation: Rows, columns.
        """
        # One constant for both ends of the range, and not only to save one:
        # that keeps the CPU plugin from merging a sign with the convolution
        # before it, which goes wrong where a shortcut is added in between.
        threshold = self.constant('threshold', self._threshold)
        sign = self.ops.fake_quantize(
            x, threshold, threshold, self.number(0), self.number(1), 2
        )
        sign.set_friendly_name(self.name + SIGN)
        left, right, top, bottom = pads
        y = self.ops.binary_convolution(
            sign,
            self.bits(),
            list(stride),
            [top, left],
            [bottom, right],
            list(dilation),
            'xnor-popcount',
            # Without padding any other value than 0, which has a slower
            # kernel, and one that is wrong for strides above 2.
            float(value) if any(pads) else -1.0,
        )
        y.set_friendly_name(self.name)
        return y

    def scaled(self, y: Any) -> Any:
        """Multiply (N, C_out, H, W) by the scale, and add the bias."""
        scale = self.constant('scale', lambda: self.scale.reshape(1, -1, 1, 1))
        return self.biased(self.ops.multiply(y, scale), (1, -1, 1, 1))

    def biased(self, y: Any, shape: tuple[int, ...]) -> Any:
        """Add the bias, in a shape, where there is one."""
        bias = self.module.bias
        if bias is None:
            return y
        return self.ops.add(
            y,
            self.constant(
                'bias', lambda: bias.detach().numpy().reshape(shape)
            ),
        )

    def real_input(self, x: Any) -> Any:
        """Shift, and take the sign as a real number, as the layer does."""
        layer, ops = self.module, self.ops
        if layer.shift is not None:
            shape = (-1, *self.places)
            x = ops.add(
                x,
                self.constant(
                    'shift',
                    lambda: layer.shift.detach().numpy().reshape(shape),
                ),
            )
        if layer.activation_bits == 1:
            x = ops.select(
                ops.greater_equal(x, self.number(0)),
                self.number(1),
                self.number(-1),
            )
        return x

    def real_weight(self) -> Any:
        """Return the constant of the weights as torch multiplies them."""

        def make() -> np.ndarray:
            weight, scale = self._weight_and_scale
            if scale is not None:
                weight = weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
            groups = getattr(self.module, 'groups', 1)
            if groups > 1:
                weight = weight.reshape(groups, -1, *weight.shape[1:])
            return weight

        return self.constant('weight', make)


class ConvLowering(SURGELowering):
    """:class:`SURGEConv2d` as ``BinaryConvolution``, or ``Convolution``."""

    places = (1, 1)

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
        geometry = layer.stride, layer.dilation
        if not needs_pad(layer):
            return self.scaled(
                self.binary_convolution(
                    x, layer.pads, layer.pad_value, *geometry
                )
            )
        value = layer.pad_value or -1.0
        y = self.binary_convolution(
            self._pad(x, value * _LARGEST), _NO_PADS, value, *geometry
        )
        if layer.pad_value == 0:
            # What the -1 that stands for 0 has brought in.
            y = self.ops.add(y, self._padding_sum(x))
        return self.scaled(y)

    def _pad(self, x: Any, value: float) -> Any:
        left, right, top, bottom = self.module.pads
        return self.ops.pad(
            x,
            self.ints(0, 0, top, left),
            self.ints(0, 0, bottom, right),
            'constant',
            self.number(value),
        )

    def _padding_sum(self, x: Any) -> Any:
        """Sum of weights over padded places, (1, C_out, H_out, W_out).

        It depends on the size alone: OpenVINO computes it once.
        """
        layer, ops = self.module, self.ops
        size = ops.strided_slice(
            ops.shape_of(x),
            self.ints(2),
            self.ints(4),
            self.ints(1),
            [0],
            [0],
        )
        inside = ops.broadcast(
            self.number(0), ops.concat([self.ints(1, 1), size], 0)
        )
        return ops.convolution(
            self._pad(inside, 1.0),
            self.constant(
                'padding_weight', lambda: self.weight.sum(1, keepdims=True)
            ),
            list(layer.stride),
            [0, 0],
            [0, 0],
            list(layer.dilation),
        )

    def _real(self, x: Any) -> Any:
        """What BinaryConvolution cannot compute, as torch computes it."""
        layer, ops = self.module, self.ops
        x, pads = self.real_input(x), layer.pads
        weight = self.real_weight()
        if layer.pad_value:
            x, pads = self._pad(x, layer.pad_value), _NO_PADS
        left, right, top, bottom = pads
        convolve = ops.convolution
        if layer.groups > 1:
            convolve = ops.group_convolution
        y = convolve(
            x,
            weight,
            list(layer.stride),
            [top, left],
            [bottom, right],
            list(layer.dilation),
        )
        return self.biased(y, (1, -1, 1, 1))


class LinearLowering(SURGELowering):
    """:class:`SURGELinear`, its rows as the columns of one image.

    In the layout that the kernel wants, C last, that is no transposition.
    """

    def output_shape(self, x: Tensor) -> Sequence[int]:
        """Return (..., C_out)."""
        return [*x.shape[:-1], self.module.out_features]

    def lower(self, x: Any) -> Any:
        """Apply to (..., C)."""
        ops, layer = self.ops, self.module
        if not stored_as_bits(layer):
            y = ops.matmul(self.real_input(x), self.real_weight(), False, True)
            return self.biased(y, (-1,))
        shape = ops.shape_of(x)
        rows = ops.reshape(x, self.ints(1, 1, -1, layer.in_features), False)
        image = ops.transpose(rows, self.ints(0, 3, 1, 2))
        y = self.scaled(self.binary_convolution(image))
        y = ops.transpose(y, self.ints(0, 2, 3, 1))
        outer = ops.strided_slice(
            shape, self.ints(0), self.ints(-1), self.ints(1), [0], [0]
        )
        target = ops.concat([outer, self.ints(layer.out_features)], 0)
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
