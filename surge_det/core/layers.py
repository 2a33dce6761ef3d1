"""Binarized drop-ins for ``nn.Conv2d`` and ``nn.Linear``."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import fields
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.common_types import _size_2_t

from . import checks
from .activations import add_per_channel
from .ags import AGS
from .binarizers import ScaledSign
from .functional import Settings, surge
from .layer_config import ConvConfig, LayerConfig
from .operators import ConvOperator, LinearOperator
from .sign import binary_sign

# ReCU's published code.
_VARIANCE_EPS = 1e-5
_DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


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
    only; in eval mode a layer has the plain estimator's gradients. It is all
    zeros until :meth:`begin_training` copies ``weight`` to it, and begins as
    a copy whatever initializer wrote last. SURGE's optimizer wrappers call
    that for all layers before the first step. Where nobody does, a layer's
    first forward pass in training copies, if the replica is all zeros then.
    That pass may be another one in each process, and an initializer that
    writes all parameters has written the replica too. So another training
    loop should call it, and has to with sharded parameters (FSDP).
    """

    # The float layer, its arguments that are attributes of it, and the
    # keywords that it does not have.
    float_class: type[nn.Module]
    geometry: tuple[str, ...]
    config_class: type[LayerConfig] = LayerConfig

    weight: nn.Parameter
    bias: nn.Parameter | None
    shift: nn.Parameter | None
    weight_binarizer: nn.Module
    ags: AGS | None
    # What generates the weights' updates, if anything does (FSG).
    fsg: Any = None
    # Of the last backward pass, where the layer was watched.
    last_clipped: Tensor | None = None
    _watches = False
    # The replica that is known to have begun. By identity, because other
    # tensors may stand in for a layer's own (torch.func.functional_call).
    _begun: Tensor | None = None

    @classmethod
    def keywords(cls) -> set[str]:
        """Names of the keywords that the float layer does not have."""
        return {field.name for field in fields(cls.config_class)}

    @classmethod
    def _read_keywords(cls, kwargs: dict[str, Any]) -> LayerConfig:
        if unknown := kwargs.keys() - cls.keywords():
            raise TypeError(
                f'{cls.__name__} has no keywords {sorted(unknown)}; allowed '
                f"besides the float layer's are {sorted(cls.keywords())}"
            )
        return cls.config_class(**kwargs)

    @classmethod
    def from_float(cls, module: nn.Module, **kwargs: Any) -> SURGELayer:
        """Binarize a float layer.

        Args:
            module: A layer of ``float_class``, or of a subclass that computes
                the same. It is not changed; weights and bias are copied.
            **kwargs: The keywords that the float layer does not have.

        Raises:
            ValueError: If ``module`` is another layer, or has an argument
                that is not allowed here.
        """
        if not isinstance(module, cls.float_class):
            raise ValueError(
                f'module is a {type(module).__name__}; an '
                f'nn.{cls.float_class.__name__} is allowed'
            )
        layer = cls(
            **{name: getattr(module, name) for name in cls.geometry},
            bias=module.bias is not None,
            device='meta',
            dtype=module.weight.dtype,
            **kwargs,
        )
        for name, value in (('weight', module.weight), ('bias', module.bias)):
            if value is not None:
                # A clone keeps device and memory format.
                own = nn.Parameter(value.detach().clone(), value.requires_grad)
                layer.register_parameter(name, own)
        layer._setup(cls._read_keywords(kwargs))
        return layer.train(module.training)

    def _setup(self, config: LayerConfig) -> None:
        self.activation_estimator = config.activation_estimator
        self.weight_estimator = config.weight_estimator
        self.weight_binarizer = config.weight_binarizer
        self.binarize_weight = config.binarize_weight
        self.binarize_activation = config.binarize_activation
        self.normalize_input = config.normalize_input
        self.pad_value = float(getattr(config, 'pad_value', 0))
        self.aux_dtype = config.aux_dtype
        self.shift_start = config.shift
        weight = self.weight
        shift = aux_weight = None
        if config.shift is not None:
            # Conv2d and Linear keep the number of inputs under two names.
            channels = getattr(self, 'in_channels', None) or self.in_features
            shift = weight.detach().new_full((channels,), config.shift)
            shift = nn.Parameter(shift, weight.requires_grad)
        self.register_parameter('shift', shift)
        # Parameters that no forward pass uses would stop DDP.
        if self.binarize_weight:
            self.weight_binarizer.setup(weight)
        self.ags = AGS(config.eta) if config.compensate else None
        if config.compensate:
            aux_weight = torch.zeros_like(weight)
            aux_weight = nn.Parameter(aux_weight, weight.requires_grad)
        self.register_parameter('aux_weight', aux_weight)

    @property
    def compensate(self) -> bool:
        """Whether there is a replica."""
        return self.aux_weight is not None

    @torch.no_grad()
    def begin_training(self) -> None:
        """Copy ``weight`` to the replica, unless it began already.

        A replica that was loaded has begun, and so has every one after the
        first step. Without a replica it does nothing.

        Raises:
            RuntimeError: If the parameters are shards of other shapes.
        """
        if self.compensate and self._begun is None:
            if self.aux_weight.shape != self.weight.shape:
                raise RuntimeError(
                    'weight and replica are shards of other shapes: call '
                    'begin_training() before the model is wrapped'
                )
            self.aux_weight.copy_(self.weight)
            self._set_begun(True)

    @torch.compiler.disable
    @torch.no_grad()
    def _begin_if_zero(self) -> None:
        if not self.aux_weight.is_meta:
            if not self.aux_weight.any():
                self.aux_weight.copy_(self.weight)
            self._set_begun(True)

    def _set_begun(self, begun: bool) -> None:
        # Not by setattr, which would register a parameter.
        self.__dict__['_begun'] = self.aux_weight if begun else None

    def reset_parameters(self) -> None:
        """Draw weight and bias anew; the replica will be a copy again.

        The shift and what a binarizer learns stay as they are.
        """
        super().reset_parameters()
        # The float layer's constructor calls this too.
        if getattr(self, 'aux_weight', None) is not None:
            nn.init.zeros_(self.aux_weight)
            self._set_begun(False)

    def _load_from_state_dict(
        self, state_dict: dict, prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        key, source = prefix + 'aux_weight', prefix + 'weight'
        if self.aux_weight is None:
            # The output does not depend on a replica: a checkpoint of SURGE
            # training fits a layer without one.
            state_dict = {k: v for k, v in state_dict.items() if k != key}
        elif key not in state_dict and source in state_dict:
            zeros = torch.zeros_like(state_dict[source])
            state_dict = {**state_dict, key: zeros}
        shift = prefix + 'shift'
        if (
            self.shift is not None
            and source in state_dict
            and shift not in state_dict
        ):
            # A float layer's checkpoint: nothing to move the start by.
            state_dict = {**state_dict, shift: self.shift.detach().clone()}
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        if key in state_dict and self.compensate:
            replica = self.aux_weight
            self._set_begun(not replica.is_meta and bool(replica.any()))

    def strip(self) -> SURGELayer:
        """Drop the replica in place.

        Returns:
            The layer itself; it computes the same output as before.
        """
        self.aux_weight = self.ags = None
        self._set_begun(False)
        return self

    @property
    def watches(self) -> bool:
        """Whether a backward pass in training leaves ``last_clipped``.

        That is the share of the input where the activation estimator's
        derivative is 0, a 0-dim tensor. It takes a pass over the input.
        :class:`~surge_det.core.AGS` has more to leave. Setting it clears
        what earlier passes left.
        """
        return self._watches

    @watches.setter
    def watches(self, value: bool) -> None:
        self._watches = value
        # Or it would stand beside the lambda of a later, unwatched pass.
        self.last_clipped = None
        if self.ags is not None:
            self.ags.watches = value
            self.ags.last_cosine = self.ags.last_missed = None

    def _keep_clipped(self, share: Tensor) -> None:
        self.last_clipped = share

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
        z, scale = self._binarize(self.weight.detach())
        return BinarizedWeight(z, scale, binary_sign(z))

    def _binarize(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        z = self.weight_binarizer.prepare(weight)
        return z, self.weight_binarizer.scale(z)

    def shifted(self, x: Tensor) -> Tensor:
        """Return what the sign sees of an input: ``x`` plus ``shift``."""
        if self.shift is None:
            return x
        return add_per_channel(x, self.shift, len(self.weight.shape) - 2)

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
        # Float16 has no squares of values above 256.
        wide = x.float() if x.dtype == torch.float16 else x
        variance = wide.var(dims, correction=correction, keepdim=True)
        # An infinite one would make zeros of all values.
        variance = variance.clamp(max=torch.finfo(wide.dtype).max)
        return x * (variance + _VARIANCE_EPS).rsqrt().to(x.dtype)

    def _run(self, x: Tensor) -> Tensor:
        x = self.normalized(self.shifted(x))
        aux_weight = None
        # A tracer sees the forward pass only.
        learning = torch.is_grad_enabled() and not torch.jit.is_tracing()
        if self.training and learning and self.compensate:
            if self._begun is not self.aux_weight:
                self._begin_if_zero()
            aux_weight = self.aux_weight
        watched = self.training and self.watches and self.binarize_activation
        weight, on_weight_grad = self.weight, None
        if self.training and learning and self.fsg is not None:
            on_weight_grad = self.fsg.record
            if self.fsg.offset is not None:
                weight = weight + self.fsg.offset
        settings = Settings(
            self.operator,
            self.activation_estimator if self.binarize_activation else None,
            self._binarize if self.binarize_weight else None,
            self.weight_estimator,
            self.ags,
            self.pad_value,
            self.aux_dtype,
            on_weight_grad,
            self._keep_clipped if watched else None,
        )
        return surge(x, weight, aux_weight, self.bias, settings)

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
        parts.append(
            f'eta={self.ags.eta!r}' if self.ags else 'compensate=False'
        )
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
            ``padding`` is applied after the sign; ``padding_mode`` can only
            be ``'zeros'``.
        **kwargs: Keywords of :class:`~surge_det.core.layer_config.ConvConfig`.

    Raises:
        ValueError: If an argument is out of range; it is named.
        TypeError: If a keyword is unknown.
    """

    float_class = nn.Conv2d
    geometry = ('in_channels', 'out_channels', 'kernel_size', 'stride')
    geometry += ('padding', 'dilation', 'groups', 'padding_mode')
    config_class = ConvConfig

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
        **kwargs: Any,
    ) -> None:
        config = self._read_keywords(kwargs)
        checks.integers(
            1,
            in_channels=in_channels,
            out_channels=out_channels,
            groups=groups,
        )
        checks.pairs(
            1, kernel_size=kernel_size, stride=stride, dilation=dilation
        )
        if isinstance(padding, str):
            checks.one_of('padding', padding, ('valid', 'same'))
            if padding == 'same' and stride not in (1, (1, 1), [1, 1]):
                checks.refuse('padding', padding, 'only with stride=1')
        else:
            checks.pairs(0, padding=padding)
        _check_tensor_arguments(bias, device, dtype)
        for name, value in (('in', in_channels), ('out', out_channels)):
            if value % groups:
                checks.refuse(
                    'groups', groups, f'a divisor of {name}_channels={value}'
                )
        if padding_mode != 'zeros':
            checks.refuse(
                'padding_mode',
                padding_mode,
                "'zeros' (pad_value is what the binarized input is padded "
                'with)',
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
        self._setup(config)

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
        in_features: As in ``nn.Linear``, like all arguments up to ``dtype``.
        **kwargs: Keywords of
            :class:`~surge_det.core.layer_config.LayerConfig`.

    Raises:
        ValueError: If an argument is out of range; it is named.
        TypeError: If a keyword is unknown.
    """

    float_class = nn.Linear
    geometry = ('in_features', 'out_features')

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        **kwargs: Any,
    ) -> None:
        config = self._read_keywords(kwargs)
        checks.integers(1, in_features=in_features, out_features=out_features)
        _check_tensor_arguments(bias, device, dtype)
        super().__init__(in_features, out_features, bias, device, dtype)
        self._setup(config)

    @property
    def operator(self) -> LinearOperator:
        """The matrix product, with its adjoints."""
        return LinearOperator()

    def forward(self, x: Tensor) -> Tensor:
        """Apply; shapes as in the class."""
        return self._run(x)


def _check_tensor_arguments(bias: Any, device: Any, dtype: Any) -> None:
    checks.boolean('bias', bias)
    if dtype is not None and dtype not in _DTYPES:
        checks.refuse('dtype', dtype, f'None or one of {_DTYPES}')
    try:
        if device is not None:
            torch.device(device)
    except (RuntimeError, TypeError) as error:
        checks.refuse('device', device, f'None or a device of torch ({error})')


def named_surge_layers(
    module: nn.Module,
) -> Iterator[tuple[str, SURGELayer]]:
    """Yield name and layer of every binarized layer, each once."""
    for name, child in module.named_modules():
        if isinstance(child, SURGELayer):
            yield name, child
