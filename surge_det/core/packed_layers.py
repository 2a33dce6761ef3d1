"""Inference form of the 1-bit layers: signs as bits, and a scale."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from .activations import add_per_channel
from .binarizers.base import Binarizer
from .bits import pack_signs, unpack_signs
from .estimators import STE
from .functional import Settings, surge
from .layers import SURGEConv2d, SURGELayer, SURGELinear

# Says that inputs are binarized; its gradient never flows.
_BINARIZES = STE()


class StoredScale(Binarizer):
    """The scale that a packed layer has, for weights that are its signs.

    Args:
        scale: (C_out,).
        origin: Name of the binarizer that both come from.
    """

    def __init__(self, scale: Tensor, origin: str) -> None:
        super().__init__()
        self.register_buffer('stored', scale.detach().clone())
        self.origin = origin

    def scale(self, z: Tensor) -> Tensor:
        """Return the scale, (C_out, 1, ...)."""
        return self.stored.view(-1, *[1] * (z.dim() - 1))


class PackedLayer(nn.Module):
    r"""What :class:`PackedConv2d` and :class:`PackedLinear` share.

    State: ``bits``, uint8 (C_out, ceil(n / 8)), the weights' signs as
    :func:`~surge_det.core.bits.pack_signs` makes them; ``scale``, (C_out,);
    ``bias``, (C_out,), and ``shift``, (C_in,), where the layer has them.
    The forward pass is the layer's own, with :math:`\alpha\,\mathrm{sign}(w)`
    made of bits and scale: the same output, bit for bit. There is no gradient
    and no training mode.
    """

    bits: Tensor
    scale: Tensor
    bias: Tensor | None
    shift: Tensor | None

    packs: type[SURGELayer]

    def __init__(self, layer: SURGELayer) -> None:
        if not isinstance(layer, self.packs):
            raise ValueError(
                f'layer is a {type(layer).__name__}; a '
                f'{self.packs.__name__} is allowed'
            )
        # Another forward pass would not be packed with it.
        if type(layer).forward is not self.packs.forward:
            raise ValueError(
                f'layer is a {type(layer).__name__}, which has a forward of '
                f'its own; that of {self.packs.__name__} is allowed'
            )
        super().__init__()
        for name in layer.geometry:
            setattr(self, name, getattr(layer, name))
        binarized = layer.binarized_weight()
        self.binarizer = type(layer.weight_binarizer).__name__
        self.operator = layer.operator
        self.binarize_activation = layer.binarize_activation
        self.pad_value = layer.pad_value
        self.weight_shape = tuple(layer.weight.shape)
        self.register_buffer('bits', pack_signs(binarized.z))
        # In the type that the layer computes in: a scale that is wider is
        # rounded there as well.
        scale = binarized.scale.flatten()
        self.register_buffer('scale', scale.to(layer.weight.dtype, copy=True))
        for name in ('bias', 'shift'):
            value = getattr(layer, name)
            self.register_buffer(
                name, None if value is None else value.detach().clone()
            )
        self.training = False

    @property
    def weight(self) -> Tensor:
        """Unpacked: scale times sign, in ``weight_shape``. A new tensor."""
        signs = unpack_signs(self.bits, self.weight_shape, self.scale.dtype)
        return signs * self.scale.view(-1, *[1] * (signs.dim() - 1))

    def train(self, mode: bool = True) -> PackedLayer:
        """Stay in eval mode.

        Raises:
            RuntimeError: If ``mode`` is true.
        """
        if mode:
            raise RuntimeError(
                f'{type(self).__name__} cannot be trained: its weights are '
                'bits, which take no gradient. Train the model that it was '
                'made of, and export that again'
            )
        return super().train(mode)

    @torch.no_grad()
    def unpacked(self) -> SURGELayer:
        """Return a new 1-bit layer that computes the same, for exports."""
        keywords: dict[str, Any] = {}
        if issubclass(self.packs, SURGEConv2d):
            keywords['pad_value'] = self.pad_value
        layer = self.packs(
            **{name: getattr(self, name) for name in self.packs.geometry},
            bias=self.bias is not None,
            device=self.bits.device,
            dtype=self.scale.dtype,
            compensate=False,
            binarize_activation=self.binarize_activation,
            shift=None if self.shift is None else 0.0,
            weight_binarizer=StoredScale(self.scale, self.binarizer),
            **keywords,
        )
        signs = unpack_signs(self.bits, self.weight_shape, self.scale.dtype)
        layer.weight.copy_(signs)
        for name in ('bias', 'shift'):
            value = getattr(self, name)
            if value is not None:
                getattr(layer, name).copy_(value)
        return layer.eval()

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Apply; shapes as in the layer that was packed."""
        if len(self.weight_shape) == 4 and x.dim() == 3:
            return self.forward(x.unsqueeze(0)).squeeze(0)
        if self.shift is not None:
            x = add_per_channel(x, self.shift, len(self.weight_shape) - 2)
        signs = unpack_signs(self.bits, self.weight_shape, self.scale.dtype)
        scale = self.scale.view(-1, *[1] * (signs.dim() - 1))
        settings = Settings(
            self.operator,
            _BINARIZES if self.binarize_activation else None,
            lambda signs: (signs, scale),
            None,
            None,
            self.pad_value,
        )
        return surge(x, signs, None, self.bias, settings)

    def extra_repr(self) -> str:
        """Shape of the weights, then what is not the default."""
        parts = ['x'.join(map(str, self.weight_shape))]
        if self.bias is not None:
            parts.append('bias=True')
        if self.shift is not None:
            parts.append('shift=True')
        if not self.binarize_activation:
            parts.append('binarize_activation=False')
        if self.pad_value:
            parts.append(f'pad_value={self.pad_value:+.0f}')
        return ', '.join(parts)


class PackedConv2d(PackedLayer):
    """Inference form of a :class:`SURGEConv2d` with 1-bit weights.

    Shape:
        As the layer that it was made of.

    Args:
        layer: What to pack; it is not changed.

    Raises:
        ValueError: If ``layer`` is no :class:`SURGEConv2d`, or has real
            weights.
    """

    packs = SURGEConv2d


class PackedLinear(PackedLayer):
    """Inference form of a :class:`SURGELinear`; as :class:`PackedConv2d`."""

    packs = SURGELinear


def pack_model(model: nn.Module) -> dict[str, str]:
    """Put packed layers in the place of 1-bit ones, for inference.

    In place; the model is in eval mode afterwards. A layer with real weights
    stays (its replica is dropped), a shared one stays shared.

    Args:
        model: Any module that holds SURGE layers; not one itself.

    Returns:
        What became of every SURGE layer, by its first name:
        ``'packed'`` or ``'real weights'``.

    Raises:
        ValueError: If a layer cannot be packed; it is named, and the model
            is unchanged.
    """
    if isinstance(model, SURGELayer):
        raise ValueError(
            'model is a layer itself; a module that holds layers is allowed, '
            f'or {type(model).__name__} through PackedConv2d, PackedLinear'
        )
    done: dict[str, str] = {}
    packed: dict[nn.Module, PackedLayer] = {}
    for name, layer in model.named_modules():
        if not isinstance(layer, SURGELayer):
            continue
        done[name] = 'packed' if layer.binarize_weight else 'real weights'
        if layer.binarize_weight:
            convolves = isinstance(layer, SURGEConv2d)
            cls = PackedConv2d if convolves else PackedLinear
            try:
                packed[layer] = cls(layer)
            except ValueError as error:
                raise ValueError(f'{name}: {error}') from error
    for layer in model.modules():
        if isinstance(layer, SURGELayer):
            layer.strip()
    _replace(model, packed)
    model.eval()
    return done


def unpack_model(model: nn.Module) -> nn.Module:
    """Return a model whose packed layers are 1-bit ones again.

    Args:
        model: Any module; not changed.

    Returns:
        A copy that computes the same, or ``model`` itself where no layer of
        it is packed.
    """
    if not any(isinstance(layer, PackedLayer) for layer in model.modules()):
        return model
    model = copy.deepcopy(model)
    _replace(
        model,
        {
            layer: layer.unpacked()
            for layer in model.modules()
            if isinstance(layer, PackedLayer)
        },
    )
    return model


def _replace(model: nn.Module, layers: dict[nn.Module, nn.Module]) -> None:
    for owner in list(model.modules()):
        for key, child in owner._modules.items():
            if child in layers:
                owner._modules[key] = layers[child]
