"""Binarized drop-ins for ``nn.Conv2d`` and ``nn.Linear``."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.common_types import _size_2_t

from .ags import AGS
from .binarizers import ScaledSign, build_binarizer
from .estimators import STE, build_estimator
from .functional import Settings, surge
from .operators import ConvOperator, LinearOperator
from .sign import binary_sign

# ReCU's published code.
_VARIANCE_EPS = 1e-5


class BinarizedWeight(NamedTuple):
    """What a 1-bit layer makes of its latent weights.

    Attributes:
        z: Pre-quantized weights, (C_out, ...).
        scale: (C_out, 1, ...), as many dimensions as ``z``.
        signs: Sign of ``z``, -1 and +1. The layer computes with
            ``scale * signs``.
    """

    z: Tensor
    scale: Tensor
    signs: Tensor


class SURGELayer(nn.Module):
    """What the binarized layers share: estimators, replica, AGS.

    The replica ``aux_weight`` works in the backward pass of training mode
    only; in eval mode a layer has the plain estimator's gradients. Until
    the first forward pass of training ``aux_weight`` follows ``weight``, so
    that it starts as a copy of it whatever initializer wrote ``weight`` last;
    loading or writing ``aux_weight`` itself ends that.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None
    shift: nn.Parameter | None
    weight_binarizer: nn.Module
    ags: AGS | None
    # What generates the weights' updates, if anything does (FSG).
    fsg: Any = None

    def _setup(
        self,
        activation_estimator: Any,
        weight_estimator: Any,
        eta: float,
        compensate: bool,
        binarize_weight: bool,
        binarize_activation: bool,
        shift: float | None,
        weight_binarizer: Any,
        normalize_input: bool,
        aux_dtype: torch.dtype | str | None,
        pad_value: float = 0.0,
    ) -> None:
        for name, value in (
            ('compensate', compensate),
            ('binarize_weight', binarize_weight),
            ('binarize_activation', binarize_activation),
            ('normalize_input', normalize_input),
        ):
            if not isinstance(value, bool):
                raise ValueError(f'{name}={value!r}: True or False is allowed')
        if isinstance(pad_value, bool) or pad_value not in (-1, 0, 1):
            raise ValueError(
                f'pad_value={pad_value!r} is not allowed: 0, -1 or +1'
            )
        if pad_value != 0 and not binarize_activation:
            raise ValueError(
                f'pad_value={pad_value!r} pads a binarized input; with '
                'binarize_activation=False only 0 is allowed'
            )
        if normalize_input and not binarize_activation:
            raise ValueError(
                'normalize_input=True would change a real input; with '
                'binarize_activation=False only False is allowed'
            )
        if shift is not None and (
            isinstance(shift, bool)
            or not isinstance(shift, (int, float))
            or not math.isfinite(shift)
        ):
            raise ValueError(
                f'shift={shift!r} is not allowed: None or a finite number'
            )
        self.aux_dtype = _narrow(aux_dtype)
        self.activation_estimator = build_estimator(
            STE(clip=1.0)
            if activation_estimator is None
            else activation_estimator,
            'activation_estimator',
        )
        self.weight_estimator = build_estimator(
            STE(clip=None) if weight_estimator is None else weight_estimator,
            'weight_estimator',
        )
        self.weight_binarizer = build_binarizer(
            ScaledSign() if weight_binarizer is None else weight_binarizer,
            'weight_binarizer',
        )
        self.binarize_weight = binarize_weight
        self.binarize_activation = binarize_activation
        self.normalize_input = normalize_input
        self.pad_value = float(pad_value)
        self.shift_start = None if shift is None else float(shift)
        self._register_shift(self.weight)
        self._set_up_binarizer()
        ags = AGS(eta)
        self.ags = ags if compensate else None
        # What `aux_weight` was when it last followed. A buffer, because DDP
        # then gives every process the first one's, as it does with
        # `aux_weight` itself.
        self._following = compensate
        if compensate:
            self.register_parameter(
                'aux_weight', nn.Parameter(self.weight.detach().clone())
            )
            self.register_buffer(
                '_followed', _checksum(self.weight), persistent=False
            )
        else:
            self.register_parameter('aux_weight', None)

    def _register_shift(self, weight: Tensor) -> None:
        if self.shift_start is None:
            self.register_parameter('shift', None)
            return
        # Conv2d and Linear keep the number of inputs under two names.
        channels = getattr(self, 'in_channels', None) or self.in_features
        value = weight.detach().new_full((channels,), self.shift_start)
        self.shift = nn.Parameter(value, weight.requires_grad)

    def _set_up_binarizer(self) -> None:
        # Parameters that no forward pass uses would stop DDP.
        if self.binarize_weight:
            self.weight_binarizer.setup(self.weight)

    def __getattr__(self, name: str) -> Any:
        # Parameters are looked up here: an initializer's new `weight` is seen
        # in `aux_weight` at once.
        if name == 'aux_weight':
            self._follow()
        return super().__getattr__(name)

    @property
    def compensate(self) -> bool:
        """Whether there is a replica."""
        return self.aux_weight is not None

    def _follow(self) -> None:
        """Copy ``weight`` to the replica unless that is its own by now."""
        if not self._following:
            return
        aux_weight = self._parameters.get('aux_weight')
        if aux_weight is None or aux_weight.is_meta:
            return
        if not torch.equal(_checksum(aux_weight), self._followed):
            self._following = False
            return
        with torch.no_grad():
            checksum = _checksum(self.weight)
            if not torch.equal(checksum, self._followed):
                aux_weight.copy_(self.weight)
                self._followed.copy_(checksum)

    def _apply(self, fn: Any, recurse: bool = True) -> SURGELayer:
        self._follow()
        super()._apply(fn, recurse)
        self._mark_followed()
        return self

    def _mark_followed(self) -> None:
        if self._following:
            self._followed = _checksum(self._parameters['aux_weight'])

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._follow()
        super()._save_to_state_dict(*args, **kwargs)

    def _load_from_state_dict(
        self, state_dict: dict, prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        key, source = prefix + 'aux_weight', prefix + 'weight'
        own = key in state_dict
        if self._parameters.get('aux_weight') is None:
            # The output does not depend on a replica: a checkpoint of SURGE
            # training fits a layer without one.
            state_dict = {k: v for k, v in state_dict.items() if k != key}
        elif not own and source in state_dict:
            state_dict = {**state_dict, key: state_dict[source].clone()}
        shift = prefix + 'shift'
        if (
            self.shift is not None
            and source in state_dict
            and shift not in state_dict
        ):
            # A float layer's checkpoint: nothing to move the start by.
            state_dict = {**state_dict, shift: self.shift.detach().clone()}
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        if key in state_dict:
            self._following = not own
            self._mark_followed()

    def strip(self) -> SURGELayer:
        """Drop the replica in place.

        Returns:
            The layer itself; it computes the same output as before.
        """
        self.register_parameter('aux_weight', None)
        self._buffers.pop('_followed', None)
        self.ags = None
        self._following = False
        return self

    @property
    def weight_bits(self) -> int:
        """1 or 32."""
        return 1 if self.binarize_weight else 32

    @property
    def activation_bits(self) -> int:
        """Of the layer's input, 1 or 32."""
        return 1 if self.binarize_activation else 32

    @property
    def pads(self) -> tuple[int, int, int, int]:
        """Padding of the input: left, right, top, bottom."""
        return 0, 0, 0, 0

    @property
    def operator(self) -> ConvOperator | LinearOperator:
        """The linear operator that the layer applies to signs."""
        raise NotImplementedError

    @torch.no_grad()
    def binarized_weight(self) -> BinarizedWeight:
        """Binarize the weights as the forward pass does, without gradients.

        Raises:
            ValueError: If the layer has real weights.
        """
        if not self.binarize_weight:
            raise ValueError(
                f'layer={self!r} has real weights: binarize_weight=True is '
                'allowed'
            )
        z = self.weight_binarizer.prepare(self.weight)
        return BinarizedWeight(
            z, self.weight_binarizer.scale(z), binary_sign(z)
        )

    def shifted(self, x: Tensor) -> Tensor:
        """Return what the sign sees of an input: ``x`` plus ``shift``."""
        if self.shift is None:
            return x
        # Channels stand third from last in a convolution's input. In the
        # input's type, so that autocast's narrow one stays.
        places = 2 if isinstance(self, nn.Conv2d) else 0
        return x + self.shift.to(x.dtype).view(-1, *[1] * places)

    def normalized(self, x: Tensor) -> Tensor:
        """Divide each sample (first dimension) by its standard deviation.

        Where ``normalize_input`` is set and gradients are to come: the sign,
        and with it the output, is the same with and without.
        """
        if not (
            self.normalize_input and self.training and torch.is_grad_enabled()
        ):
            return x
        dims = tuple(range(1, x.dim())) or (0,)
        # One value has no unbiased variance.
        correction = min(1, math.prod(x.shape[d] for d in dims) - 1)
        variance = x.var(dims, correction=correction, keepdim=True)
        return x * (variance + _VARIANCE_EPS).rsqrt()

    def _run(self, x: Tensor) -> Tensor:
        x = self.normalized(self.shifted(x))
        aux_weight = None
        # A tracer sees the forward pass only.
        learning = torch.is_grad_enabled() and not torch.jit.is_tracing()
        if self.training and learning and self.compensate:
            aux_weight = self.aux_weight
            self._following = False
        weight, on_weight_grad = self.weight, None
        if self.training and learning and self.fsg is not None:
            on_weight_grad = self.fsg.record
            if self.fsg.offset is not None:
                weight = weight + self.fsg.offset
        settings = Settings(
            self.operator,
            self.activation_estimator if self.binarize_activation else None,
            self.weight_estimator if self.binarize_weight else None,
            self.weight_binarizer,
            self.ags,
            self.pad_value,
            self.aux_dtype,
            on_weight_grad,
        )
        return surge(x, weight, aux_weight, self.bias, settings)

    def _adopt(self, module: nn.Module) -> SURGELayer:
        """Take over what ``from_float`` does not pass to the constructor."""
        for name in ('weight', 'bias', 'aux_weight'):
            if self._parameters[name] is None:
                continue
            # A clone keeps device and memory format.
            value = getattr(module, name.removeprefix('aux_'))
            self.register_parameter(
                name,
                nn.Parameter(value.detach().clone(), value.requires_grad),
            )
        self._register_shift(module.weight)
        self._set_up_binarizer()
        self._mark_followed()
        return self.train(module.training)

    def extra_repr(self) -> str:
        """Geometry of the float layer, then what is binarized and how."""
        parts = [super().extra_repr()]
        if self.binarize_activation:
            parts.append(f'activation_estimator={self.activation_estimator}')
        else:
            parts.append('binarize_activation=False')
        if self.binarize_weight:
            parts.append(f'weight_estimator={self.weight_estimator}')
            if not isinstance(self.weight_binarizer, ScaledSign):
                parts.append(f'weight_binarizer={self.weight_binarizer}')
        else:
            parts.append('binarize_weight=False')
        parts.append(f'eta={self.ags.eta}' if self.ags else 'compensate=False')
        if self.shift_start is not None:
            parts.append(f'shift={self.shift_start}')
        if self.normalize_input:
            parts.append('normalize_input=True')
        if self.aux_dtype is not None:
            parts.append(f'aux_dtype={str(self.aux_dtype)[6:]}')
        if self.pad_value:
            parts.append(f'pad_value={self.pad_value:+.0f}')
        return ', '.join(parts)

    def __repr__(self) -> str:
        # One line, as a float layer has, in spite of the submodule.
        return f'{self._get_name()}({self.extra_repr()})'


class SURGEConv2d(SURGELayer, nn.Conv2d):
    r"""1-bit convolution with a full-precision replica in its backward pass.

    Forward: :math:`\alpha\,\mathrm{sign}(w) * \mathrm{sign}(x) + b`, one
    convolution, where :math:`\alpha` is the mean of :math:`|w|` over each
    output channel (another ``weight_binarizer`` has another
    :math:`\alpha` and standardises :math:`w`) and
    :math:`\mathrm{sign}(0) = +1`. Backward: see
    :func:`surge_det.core.functional.surge`. A drop-in for ``nn.Conv2d``.

    Source: SURGE (arXiv 2605.10989), DPGC and AGS.

    Shape:
        - Input: (N, C_in, H, W) or (C_in, H, W), N may be 0.
        - Output: as ``nn.Conv2d``'s.
        - ``weight`` (latent), ``aux_weight`` (replica): (C_out,
          C_in / groups, kh, kw); ``bias``: (C_out,); ``shift``: (C_in,).

    Args:
        in_channels: As in ``nn.Conv2d``, like all arguments up to ``dtype``.
        out_channels: Number of output channels.
        kernel_size: Rows, columns.
        stride: Rows, columns.
        padding: Number(s), ``'same'`` or ``'valid'``. Applied after sign.
        dilation: Rows, columns.
        groups: Number of groups.
        bias: Whether a real-valued bias is added.
        padding_mode: ``'zeros'`` only.
        device: Where parameters live.
        dtype: Type of parameters.
        activation_estimator: Surrogate derivative of the input's sign: an
            object with ``derivative(x)`` or ``dict(type='STE', clip=1.0)``.
            ``None`` means ``STE(clip=1.0)``.
        weight_estimator: The same for the weights' sign. ``None`` means
            ``STE(clip=None)``, the identity.
        eta: Base factor of AGS, >= 0; 0 gives the plain estimator's
            gradients, and zeros for ``aux_weight``.
        compensate: Whether there is a replica at all.
        binarize_weight: Whether weights are binarized.
        binarize_activation: Whether the input is binarized.
        shift: Where the learned shift of each input channel starts, which is
            added to the input in front of sign and replica (ReActNet's
            RSign, arXiv 2003.03488, eq. 1); ``None`` for no shift.
        weight_binarizer: How weights are binarized: a
            :class:`~surge_det.core.binarizers.Binarizer` or
            ``dict(type='IRNet')``. ``None`` means ``ScaledSign()``. Its
            parameters, where it has any, are
            ``weight_binarizer.*`` in the state dict.
        normalize_input: Whether, in training, each sample is divided by its
            standard deviation (plus 1e-5 under the root) in front of sign
            and replica. The output is the same; gradients are scaled, and
            estimators see other values (ReCU, arXiv 2103.12369).
        pad_value: What the binarized input is padded with: 0, -1 or +1. The
            replica's input is always padded with 0.
        aux_dtype: ``'bfloat16'``: the type of the replica's
            two products in the backward pass and of the copy of the input
            that is kept for them; ``None`` for the type of the others.

    Raises:
        ValueError: If an argument is out of range; it is named.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: _size_2_t,
        stride: _size_2_t = 1,
        padding: _size_2_t | str = 0,
        dilation: _size_2_t = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = 'zeros',
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        activation_estimator: Any = None,
        weight_estimator: Any = None,
        eta: float = 0.2,
        compensate: bool = True,
        binarize_weight: bool = True,
        binarize_activation: bool = True,
        shift: float | None = None,
        weight_binarizer: Any = None,
        normalize_input: bool = False,
        pad_value: float = 0.0,
        aux_dtype: torch.dtype | str | None = None,
    ) -> None:
        _check_positive(
            in_channels=in_channels,
            out_channels=out_channels,
            kernel_size=kernel_size,
            stride=stride,
            dilation=dilation,
            groups=groups,
        )
        for name, value in (('in', in_channels), ('out', out_channels)):
            if value % groups:
                raise ValueError(
                    f'groups={groups!r} is not allowed: a divisor of '
                    f'{name}_channels={value}'
                )
        if padding_mode != 'zeros':
            raise ValueError(
                f"padding_mode={padding_mode!r} is not allowed: 'zeros' "
                '(pad_value sets what the binarized input is padded with)'
            )
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,
            device,
            dtype,
        )
        self._setup(
            activation_estimator,
            weight_estimator,
            eta,
            compensate,
            binarize_weight,
            binarize_activation,
            shift,
            weight_binarizer,
            normalize_input,
            aux_dtype,
            pad_value,
        )

    @classmethod
    def from_float(cls, module: nn.Conv2d, **kwargs: Any) -> SURGEConv2d:
        """Binarize a float convolution.

        Args:
            module: An ``nn.Conv2d`` or a subclass that computes the same. It
                is not changed; weights and bias are copied.
            kwargs: The keywords of this class beyond ``nn.Conv2d``'s.

        Raises:
            ValueError: If ``module`` is no ``nn.Conv2d`` or pads otherwise
                than with zeros.
        """
        if not isinstance(module, nn.Conv2d):
            raise ValueError(
                f'module is a {type(module).__name__}; an nn.Conv2d is allowed'
            )
        layer = cls(
            module.in_channels,
            module.out_channels,
            module.kernel_size,
            module.stride,
            module.padding,
            module.dilation,
            module.groups,
            module.bias is not None,
            module.padding_mode,
            'meta',
            module.weight.dtype,
            **kwargs,
        )
        return layer._adopt(module)

    @property
    def pads(self) -> tuple[int, int, int, int]:
        """Padding of the input: left, right, top, bottom."""
        if self.padding == 'valid':
            return 0, 0, 0, 0
        if self.padding == 'same':
            total = [
                d * (k - 1) for d, k in zip(self.dilation, self.kernel_size)
            ]
            top, left = total[0] // 2, total[1] // 2
            return left, total[1] - left, top, total[0] - top
        rows, columns = self.padding
        return columns, columns, rows, rows

    @property
    def operator(self) -> ConvOperator:
        """The convolution, with its adjoints."""
        return ConvOperator(self.stride, self.pads, self.dilation, self.groups)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve; shapes as in the class."""
        if x.dim() == 3:
            return self.forward(x.unsqueeze(0)).squeeze(0)
        return self._run(x)


class SURGELinear(SURGELayer, nn.Linear):
    r"""1-bit linear layer with a full-precision replica in its backward pass.

    Forward: :math:`\mathrm{sign}(x)\,(\alpha\,\mathrm{sign}(w))^T + b`;
    everything else as in :class:`SURGEConv2d`. A drop-in for ``nn.Linear``.

    Source: SURGE (arXiv 2605.10989), DPGC and AGS.

    Shape:
        - Input: (..., C_in); output: (..., C_out).
        - ``weight`` (latent), ``aux_weight`` (replica): (C_out, C_in);
          ``bias``: (C_out,); ``shift``: (C_in,).

    Args:
        in_features: C_in.
        out_features: C_out.
        bias: Whether a real-valued bias is added.
        device: Where parameters live.
        dtype: Type of parameters.
        activation_estimator: As in :class:`SURGEConv2d`, like the rest.
        weight_estimator: Surrogate derivative of the weights' sign.
        eta: Base factor of AGS.
        compensate: Whether there is a replica at all.
        binarize_weight: Whether weights are binarized.
        binarize_activation: Whether the input is binarized.
        shift: Where the learned shift of each input feature starts.
        weight_binarizer: How weights are binarized.
        normalize_input: Whether samples (first dimension of the input) are
            divided by their standard deviation in training.
        aux_dtype: Type of the replica's two products.

    Raises:
        ValueError: If an argument is out of range; it is named.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        activation_estimator: Any = None,
        weight_estimator: Any = None,
        eta: float = 0.2,
        compensate: bool = True,
        binarize_weight: bool = True,
        binarize_activation: bool = True,
        shift: float | None = None,
        weight_binarizer: Any = None,
        normalize_input: bool = False,
        aux_dtype: torch.dtype | str | None = None,
    ) -> None:
        _check_positive(in_features=in_features, out_features=out_features)
        super().__init__(in_features, out_features, bias, device, dtype)
        self._setup(
            activation_estimator,
            weight_estimator,
            eta,
            compensate,
            binarize_weight,
            binarize_activation,
            shift,
            weight_binarizer,
            normalize_input,
            aux_dtype,
        )

    @classmethod
    def from_float(cls, module: nn.Linear, **kwargs: Any) -> SURGELinear:
        """Binarize a float linear layer.

        Args:
            module: An ``nn.Linear`` or a subclass that computes the same. It
                is not changed; weights and bias are copied.
            kwargs: The keywords of this class beyond ``nn.Linear``'s.

        Raises:
            ValueError: If ``module`` is no ``nn.Linear``.
        """
        if not isinstance(module, nn.Linear):
            raise ValueError(
                f'module is a {type(module).__name__}; an nn.Linear is allowed'
            )
        layer = cls(
            module.in_features,
            module.out_features,
            module.bias is not None,
            'meta',
            module.weight.dtype,
            **kwargs,
        )
        return layer._adopt(module)

    @property
    def operator(self) -> LinearOperator:
        """The matrix product, with its adjoints."""
        return LinearOperator()

    def forward(self, x: Tensor) -> Tensor:
        """Apply; shapes as in the class."""
        return self._run(x)


def named_surge_layers(
    module: nn.Module,
) -> Iterator[tuple[str, SURGELayer]]:
    """Yield name and layer of every binarized layer, each once."""
    for name, child in module.named_modules():
        if isinstance(child, SURGELayer):
            yield name, child


def _narrow(aux_dtype: torch.dtype | str | None) -> torch.dtype | None:
    if aux_dtype is None:
        return None
    # Not float16: gradients are too small for it, and scaled where it's AMP's.
    if aux_dtype not in ('bfloat16', torch.bfloat16):
        raise ValueError(
            f"aux_dtype={aux_dtype!r} is not allowed: None or 'bfloat16'"
        )
    return torch.bfloat16


def _check_positive(**arguments: Any) -> None:
    for name, value in arguments.items():
        numbers = value if isinstance(value, (tuple, list)) else (value,)
        if not all(
            isinstance(n, int) and not isinstance(n, bool) and n > 0
            for n in numbers
        ):
            raise ValueError(
                f'{name}={value!r} is not allowed: whole numbers > 0'
            )


def _checksum(x: Tensor) -> Tensor:
    """Tell whether somebody wrote to ``x``, through ``.data`` too.

    Exact integer arithmetic: the same on every device and in every order.

    Returns:
        0-dim int64 tensor on the device of ``x``.
    """
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()]
    words = x.detach().contiguous().view(bits).flatten().to(torch.int64)
    places = torch.arange(1, 2 * words.numel(), 2, device=x.device)
    return (words * places).sum()
