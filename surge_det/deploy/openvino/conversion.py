"""Networks of torch as OpenVINO models, 1-bit layers as BinaryConvolution.

OpenVINO's own frontend traces and converts a network; what is said here is
what becomes of :class:`~surge_det.core.layers.SURGELayer`. The threshold of
a sign, with the learned shift in it, is the range of a ``FakeQuantize`` of
two levels. Behind the ``BinaryConvolution`` follow one multiplication by the
scale and one addition of the bias, which merge with a norm that follows.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from surge_det.core.bits import pack_signs
from surge_det.core.layers import (
    SURGEConv2d,
    SURGELayer,
    SURGELinear,
    named_surge_layers,
)
from surge_det.core.sign import binary_sign
from surge_det.deploy.extra import require

from .network import PART
from .rules import is_packed, needs_pad

# Suffix of the names of nodes that binarize.
SIGN = '/sign'
_TINY = np.finfo(np.float32).tiny
_LARGEST = np.finfo(np.float32).max


def convert(
    network: nn.Module,
    example: Tensor,
    sizes_vary: bool = True,
    fold_norms: bool = False,
) -> Any:
    """Convert a network to an ``openvino.Model``.

    Args:
        network: Takes one tensor; returns a tensor or a tuple of tensors.
            float32, on the CPU; what it does in eval mode is converted. It is
            left as it is. It may have 1-bit layers or none.
        example: An input (N, C, ...).
        sizes_vary: Whether other dimensions than N may differ from the
            example's; C may not.
        fold_norms: Whether OpenVINO may fold norms into real convolutions: a
            little faster, and farther from torch's values.

    Returns:
        The model; dimensions that vary are dynamic. Where it has a
        ``BinaryConvolution``, it must be given a static shape (``reshape``)
        before OpenVINO's CPU plugin compiles it.

    Raises:
        ImportError: If openvino is not installed.
        Exception: OpenVINO's own, or tracing's, if an operation cannot be
            converted.
    """
    ov = require('openvino')
    frontend = require('openvino.frontend.pytorch')
    layers = [layer for _, layer in named_surge_layers(network)]
    norms = [
        module
        for module in network.modules()
        if isinstance(module, _BatchNorm)
        and module.track_running_stats
        and not fold_norms
    ]
    extensions = []
    for number, (name, layer) in enumerate(named_surge_layers(network)):
        operation = f'SURGELayer{number}'
        extensions += [
            frontend.ModuleExtension(
                layer,
                operation,
                evaluate=lambda module, x: x.new_zeros(
                    _output_shape(module, x)
                ),
                convert=_call,
            ),
            frontend.ConversionExtension(
                operation, _converter(_Layer(name, layer))
            ),
        ]
    for number, norm in enumerate(norms):
        operation = f'SURGENorm{number}'
        extensions += [
            frontend.ModuleExtension(
                norm,
                operation,
                evaluate=lambda module, x: x.new_zeros(x.shape),
                convert=_call_norm,
            ),
            frontend.ConversionExtension(operation, _norm_converter(norm)),
        ]
    patched = [*layers, *norms]
    with (
        torch.no_grad(),
        warnings.catch_warnings(),
        evaluating(network),
        _unchanged(patched),
    ):
        # What the tracer says of Python numbers: the converted network is
        # compared at another size.
        warnings.simplefilter('ignore')
        model = ov.convert_model(
            network,
            example_input=example,
            extension=extensions or None,
            # Training that goes on would change the converted network.
            share_weights=False,
        )
    sizes = list(example.shape[2:])
    model.reshape(
        [-1, example.shape[1], *([-1] * len(sizes) if sizes_vary else sizes)]
    )
    fold_shifts(model)
    _separate_constants(model)
    return model


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Put a network into eval mode meanwhile."""
    training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def _unchanged(layers: Sequence[nn.Module]) -> Iterator[None]:
    # OpenVINO leaves its own forward in them.
    before = [dict(vars(layer)) for layer in layers]
    try:
        yield
    finally:
        for layer, own in zip(layers, before):
            vars(layer).clear()
            vars(layer).update(own)


@contextmanager
def exact_arithmetic(network: nn.Module) -> Iterator[None]:
    """Let 1-bit layers sum signs, and scale the sum.

    That is what is converted. Torch sums scaled signs and rounds as it does,
    so that a sum of zero, which untrained norms pass on as such, comes out
    on either side of it.
    """
    layers = [
        layer for _, layer in named_surge_layers(network) if is_packed(layer)
    ]
    with _unchanged(layers):
        for layer in layers:
            layer.forward = functools.partial(_exact_forward, layer)
        yield


def _exact_forward(layer: SURGELayer, x: Tensor) -> Tensor:
    _, scale, weight = layer.binarized_weight()
    scale = scale.flatten()
    x = binary_sign(layer.shifted(x))
    if isinstance(layer, SURGELinear):
        y = F.linear(x, weight) * scale
        return y if layer.bias is None else y + layer.bias
    y = layer.operator.forward(x, weight, None, layer.pad_value)
    y = y * scale.view(-1, 1, 1)
    return y if layer.bias is None else y + layer.bias.view(-1, 1, 1)


def _call(module: SURGELayer, operation: Callable, x: Tensor) -> Tensor:
    single = isinstance(module, SURGEConv2d) and x.dim() == 3
    # A copy, because OpenVINO crashes on a later operation in place.
    y = operation(x.unsqueeze(0) if single else x).clone()
    return y.squeeze(0) if single else y


def _call_norm(module: _BatchNorm, operation: Callable, x: Tensor) -> Tensor:
    if x.dim() == 4:
        return operation(x).clone()
    return F.batch_norm(
        x,
        module.running_mean,
        module.running_var,
        module.weight,
        module.bias,
        eps=module.eps,
    )


def _norm_converter(norm: _BatchNorm) -> Callable:
    """Convert a norm as one multiplication and one addition, as torch does.

    OpenVINO would fold the factor into the weights of a real convolution
    before it. What is rounded otherwise there, several times as far from
    torch's values as need be, runs through all shortcuts and flips signs:
    on BCCD, in one image of five. So there is something between that cannot
    be folded.
    """

    def convert_node(context: Any) -> Any:
        ops = require('openvino.opset1')
        with torch.no_grad():
            # In the order of torch's kernel, rounded as there.
            factor = 1 / (norm.running_var + norm.eps).sqrt()
            if norm.weight is not None:
                factor = factor * norm.weight
            shift = -norm.running_mean * factor
            if norm.bias is not None:
                shift = norm.bias + shift
        x = context.get_input(0)
        if _is_convolved(x.get_node()):
            x = ops.clamp(x, -float(_LARGEST), float(_LARGEST))
        x = ops.multiply(x, ops.constant(factor.view(1, -1, 1, 1).numpy()))
        return ops.add(
            x, ops.constant(shift.view(1, -1, 1, 1).numpy())
        ).outputs()

    return convert_node


def _is_convolved(node: Any) -> bool:
    """Whether a real convolution, perhaps with a bias, computes it."""
    if node.get_type_name() == 'Add':
        node = node.input_value(0).get_node()
    return node.get_type_name() in ('Convolution', 'GroupConvolution')


def _output_shape(layer: SURGELayer, x: Tensor) -> list[int]:
    if isinstance(layer, SURGELinear):
        return [*x.shape[:-1], layer.out_features]
    left, right, top, bottom = layer.pads
    sizes = [x.shape[2] + top + bottom, x.shape[3] + left + right]
    return [
        x.shape[0],
        layer.out_channels,
        *(
            (size - dilation * (kernel - 1) - 1) // stride + 1
            for size, dilation, kernel, stride in zip(
                sizes, layer.dilation, layer.kernel_size, layer.stride
            )
        ),
    ]


def _converter(layer: _Layer) -> Callable:
    def convert_node(context: Any) -> Any:
        return layer.lower(context.get_input(0)).outputs()

    return convert_node


class _Layer:
    """One 1-bit layer as operations; its constants are made once.

    A layer that is applied several times, as that of an RPN, shares them.
    """

    def __init__(self, name: str, layer: SURGELayer) -> None:
        self.ov = require('openvino')
        self.ops = require('openvino.opset1')
        # As it is in the detector.
        self.name = name.removeprefix(PART)
        self.layer = layer
        self._constants: dict[str, Any] = {}

    @functools.cached_property
    def weight(self) -> np.ndarray:
        """Weights, or their signs."""
        return self._quantized[0].numpy()

    @functools.cached_property
    def scale(self) -> np.ndarray | None:
        """(C_out,), where weights are binarized."""
        scale = self._quantized[1]
        return None if scale is None else scale.flatten().numpy()

    @functools.cached_property
    def _quantized(self) -> tuple[Tensor, Tensor | None]:
        layer = self.layer
        if not layer.binarize_weight:
            return layer.weight.detach(), None
        _, scale, signs = layer.binarized_weight()
        return signs, scale

    @functools.cached_property
    def shift(self) -> np.ndarray:
        """(C_in,); zero where there is none."""
        if self.layer.shift is not None:
            return self.layer.shift.detach().numpy()
        linear = isinstance(self.layer, SURGELinear)
        layer = self.layer
        channels = layer.in_features if linear else layer.in_channels
        return np.zeros(channels, np.float32)

    def lower(self, x: Any) -> Any:
        """Return the node that computes the layer's output."""
        if not is_packed(self.layer):
            return self._on_reals(x)
        if isinstance(self.layer, SURGELinear):
            return self._linear(x)
        return self._conv(x)

    def constant(self, key: str, make: Callable[[], np.ndarray]) -> Any:
        if key not in self._constants:
            value = make()
            if isinstance(value, np.ndarray):
                value = self.ops.constant(value)
            value.set_friendly_name(f'{self.name}/{key}')
            self._constants[key] = value
        return self._constants[key]

    def _number(self, value: float) -> Any:
        return self.constant(
            f'number{value:+g}', lambda: np.asarray(value, np.float32)
        )

    def _shape(self, *sizes: int) -> Any:
        return self.constant(
            'ints' + '_'.join(map(str, sizes)),
            lambda: np.asarray(sizes, np.int64),
        )

    def _bits(self) -> Any:
        def make() -> Any:
            shape = list(self.weight.shape)
            shape += [1] * (4 - len(shape))
            tensor = self.ov.Tensor(self.ov.Type.u1, self.ov.Shape(shape))
            # In channels of whole bytes: no bits in between.
            bits = pack_signs(torch.from_numpy(self.weight)).numpy()
            tensor.data[:] = bits.reshape(tensor.data.shape)
            return require('openvino.op').Constant(tensor)

        return self.constant('bits', make)

    def _binary(self, x: Any, pads: tuple[int, ...], value: float) -> Any:
        """Binarize and convolve (N, C, H, W), times scale, plus bias."""
        layer = self.layer
        stride = getattr(layer, 'stride', (1, 1))
        dilation = getattr(layer, 'dilation', (1, 1))
        # One constant for both ends of the range, and not only to save one:
        # that keeps the CPU plugin from merging a sign with the convolution
        # before it, which goes wrong where a shortcut is added in between.
        threshold = self.constant(
            'threshold', lambda: below(-self.shift).reshape(1, -1, 1, 1)
        )
        sign = self.ops.fake_quantize(
            x, threshold, threshold, self._number(0), self._number(1), 2
        )
        sign.set_friendly_name(self.name + SIGN)
        left, right, top, bottom = pads
        y = self.ops.binary_convolution(
            sign,
            self._bits(),
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

    def _conv(self, x: Any) -> Any:
        layer = self.layer
        pads = layer.pads
        if not needs_pad(layer):
            return self._scaled(self._binary(x, pads, layer.pad_value))
        value = layer.pad_value or -1.0
        y = self._binary(self._pad(x, pads, value * _LARGEST), (0,) * 4, value)
        if layer.pad_value == 0:
            # What the -1 that stands for 0 has brought in.
            y = self.ops.add(y, self._padding_sum(x, pads))
        return self._scaled(y)

    def _pad(self, x: Any, pads: tuple[int, ...], value: float) -> Any:
        left, right, top, bottom = pads
        return self.ops.pad(
            x,
            self._shape(0, 0, top, left),
            self._shape(0, 0, bottom, right),
            'constant',
            self._number(value),
        )

    def _padding_sum(self, x: Any, pads: tuple[int, ...]) -> Any:
        """Sum of weights over padded places, (1, C_out, H_out, W_out).

        It depends on the size alone: OpenVINO computes it once.
        """
        layer, ops = self.layer, self.ops
        shape = ops.shape_of(x)
        size = ops.strided_slice(
            shape, self._shape(2), self._shape(4), self._shape(1), [0], [0]
        )
        inside = ops.broadcast(
            self._number(0), ops.concat([self._shape(1, 1), size], 0)
        )
        weight = self.constant(
            'padding_weight', lambda: self.weight.sum(1, keepdims=True)
        )
        return ops.convolution(
            self._pad(inside, pads, 1.0),
            weight,
            list(layer.stride),
            [0, 0],
            [0, 0],
            list(layer.dilation),
        )

    def _scaled(self, y: Any) -> Any:
        if self.scale is not None:
            scale = self.constant(
                'scale', lambda: self.scale.reshape(1, -1, 1, 1)
            )
            y = self.ops.multiply(y, scale)
        if self.layer.bias is not None:
            y = self.ops.add(y, self._bias(1, -1, 1, 1))
        return y

    def _bias(self, *shape: int) -> Any:
        return self.constant(
            'bias', lambda: self.layer.bias.detach().numpy().reshape(shape)
        )

    def _linear(self, x: Any) -> Any:
        """Apply to (..., C): rows are the columns of one image.

        In the layout that the kernel wants, C last, that is no transposition.
        """
        ops, layer = self.ops, self.layer
        shape = ops.shape_of(x)
        rows = ops.reshape(x, self._shape(1, 1, -1, layer.in_features), False)
        image = ops.transpose(rows, self._shape(0, 3, 1, 2))
        y = self._scaled(self._binary(image, (0,) * 4, -1.0))
        y = ops.transpose(y, self._shape(0, 2, 3, 1))
        outer = ops.strided_slice(
            shape, self._shape(0), self._shape(-1), self._shape(1), [0], [0]
        )
        target = ops.concat([outer, self._shape(layer.out_features)], 0)
        return ops.reshape(y, target, False)

    def _on_reals(self, x: Any) -> Any:
        """What BinaryConvolution cannot compute, as torch computes it."""
        layer, ops = self.layer, self.ops
        linear = isinstance(layer, SURGELinear)
        places = [] if linear else [1, 1]
        if layer.shift is not None:
            x = ops.add(
                x,
                self.constant(
                    'shift', lambda: self.shift.reshape(-1, *places)
                ),
            )
        if layer.binarize_activation:
            x = ops.select(
                ops.greater_equal(x, self._number(0)),
                self._number(1),
                self._number(-1),
            )
        weight = self.constant('weight', self._real_weight)
        if linear:
            y = ops.matmul(x, weight, False, True)
            if layer.bias is not None:
                y = ops.add(y, self._bias(-1))
            return y
        pads = layer.pads
        if layer.pad_value:
            x, pads = self._pad(x, pads, layer.pad_value), (0,) * 4
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
        if layer.bias is not None:
            y = ops.add(y, self._bias(1, -1, 1, 1))
        return y

    def _real_weight(self) -> np.ndarray:
        weight = self.weight
        if self.scale is not None:
            weight = weight * self.scale.reshape(-1, *[1] * (weight.ndim - 1))
        groups = getattr(self.layer, 'groups', 1)
        if groups > 1:
            weight = weight.reshape(groups, -1, *weight.shape[1:])
        return weight


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


def fold_shifts(model: Any) -> None:
    """Move shifts that only signs see into the signs' thresholds, in place.

    ``x + shift >= 0`` is ``x >= -shift`` in floating point too, which OpenVINO
    itself, adding to a threshold that is already below zero, would miss. A
    positive factor before the shift, as a norm has one, follows: OpenVINO
    would move it too, and make two constants of the one that both ends of a
    range share.
    """
    for node in model.get_ordered_ops():
        is_sign = node.get_friendly_name().endswith(SIGN)
        if node.get_type_name() == 'FakeQuantize' and is_sign:
            _fold_shift(node)


def _fold_shift(sign: Any) -> None:
    shape = tuple(sign.input_value(1).get_node().get_output_shape(0))
    # From where on it is +1.
    start = above(sign.input_value(1).get_node().data.ravel())
    # A linear layer's rows are reshaped and transposed first.
    last = sign
    while last.input_value(0).get_node().get_type_name() in (
        'Reshape',
        'Transpose',
    ) and _only_consumer(last.input_value(0)):
        last = last.input_value(0).get_node()
    axis = 1 if last is sign else -1
    moved = start
    # A threshold that has a shift in it would be rounded.
    if not start.any():
        shift, port = _constant_of(last, 'Add', start.size, axis)
        if shift is not None:
            moved = -shift
            _skip(last, port)
    factor, port = _constant_of(last, 'Multiply', start.size, axis)
    if factor is not None and (factor > _TINY).all():
        moved = moved / factor
        _skip(last, port)
    if moved is start:
        return
    threshold = require('openvino.opset1').constant(
        below(moved).reshape(shape)
    )
    threshold.set_friendly_name(f'{sign.get_friendly_name()}/threshold')
    for place in (1, 2):
        sign.input(place).replace_source_output(threshold.output(0))


def _separate_constants(model: Any) -> None:
    """Give each operation behind a shared layer factors of its own.

    As an RPN's layer on several levels: otherwise the CPU plugin does not
    merge them with the convolution. In the file equal ones are one.
    """
    ops = require('openvino.opset1')
    for node in model.get_ordered_ops():
        if node.get_type_name() != 'Constant':
            continue
        consumers = [
            port
            for port in node.output(0).get_target_inputs()
            if port.get_node().get_type_name() in ('Add', 'Multiply', 'PRelu')
        ]
        for port in consumers[1:]:
            port.replace_source_output(ops.constant(node.data).output(0))


def _constant_of(
    node: Any, kind: str, channels: int, axis: int
) -> tuple[np.ndarray | None, int]:
    """Return what an operation before ``node`` adds or multiplies with.

    One number per channel, and the operation's port of it.
    """
    before = node.input_value(0).get_node()
    if before.get_type_name() == kind and _only_consumer(before.output(0)):
        for port in (0, 1):
            constant = before.input_value(port).get_node()
            if constant.get_type_name() != 'Constant':
                continue
            shape = tuple(constant.get_output_shape(0))
            # Channels stand second in an image, last in rows.
            expected = (channels, 1, 1) if axis == 1 else (channels,)
            if shape in (expected, (1, *expected)):
                return constant.data.ravel(), port
    return None, 0


def _skip(node: Any, port: int) -> None:
    before = node.input_value(0).get_node()
    node.input(0).replace_source_output(before.input_value(1 - port))


def _only_consumer(output: Any) -> bool:
    return len(output.get_target_inputs()) == 1
