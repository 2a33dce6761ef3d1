"""Which layers of a detector stay real, and which of its ReLUs go."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from surge_det.core import checks
from surge_det.core.binarize import Candidate, Conversion, binarize
from surge_det.core.layers import SURGELayer

# The most that an image has, also where YOLOX slices it. A first convolution
# with more inputs is that of a neck or a head converted alone.
IMAGE_CHANNELS = 16

# What stays real by its name; patterns see the name after a dot.
KEPT_NAMES = {
    '*.conv_offset': 'predicts sampling positions',
    '*.spatial_conv_offset': 'predicts sampling positions',
    '*.sampling_offsets': 'predicts sampling positions',
    '*.attention_weights': 'predicts attention weights',
    '*.reference_points*': 'emits boxes',
    '*.query_scale.*': 'scales queries, a ReLU of its own inside',
    '*.bbox_embed*': 'emits boxes',
    '*.class_embed*': 'emits classes',
    '*.mask_embed*': 'emits masks',
    '*.conv_pred.*': 'emits masks',
    '*.reg_conf.*': 'sees probabilities, emits a quality',
}
# Modules that see pooled values, by class name: they have no common base.
CHANNEL_ATTENTION = {
    'ChannelAttention',
    'DyReLU',
    'SELayer',
    'SqueezeExcitation',
}
# Hidden layers of heads without a norm or an activation beside them.
HIDDEN_NAMES = (
    '*.rpn_conv',
    '*.shared_fcs.*',
    '*.cls_fcs.*',
    '*.reg_fcs.*',
)
# Names, because toolboxes have classes of their own for some of them.
HIDDEN_ACTIVATIONS = {
    'ELU',
    'GELU',
    'HSwish',
    'Hardswish',
    'LeakyReLU',
    'Mish',
    'PReLU',
    'ReLU',
    'ReLU6',
    'SiLU',
    'SlopePReLU',
    'Swish',
}


def binarize_detector(
    model: nn.Module, *, defaults: bool = True, **settings: Any
) -> Conversion:
    """Binarize a detector, or a part of one, in place.

    The safe default keeps real: the first convolution, 1×1 convolutions of
    downsampling shortcuts, depthwise convolutions, channel attention,
    predictors of sampling positions and attention weights, and in a head
    every layer but convolutions with a norm or an activation beside them and
    the hidden layers of two-stage heads.

    ReLUs are replaced in every branch that has a binarized layer. The
    branches of a detector (a model with a ``backbone``) are its children;
    another model is one branch. A ReLU that a head holds beside real layers
    only stays, and so do those that are no modules.

    Args:
        model: What to convert.
        defaults: Whether the safe default holds.
        **settings: Keywords of :func:`surge_det.core.binarize.binarize`.

    Raises:
        ValueError: As :func:`surge_det.core.binarize.binarize`.
    """
    return binarize(
        model,
        keep_real=keep_real if checks.boolean('defaults', defaults) else None,
        replace_relu=meets_sign,
        **settings,
    )


def keep_real(layer: Candidate) -> str | None:
    """Say why the safe default keeps a layer real, or return ``None``."""
    module = layer.module
    if _is_first_convolution(layer) and module.in_channels <= IMAGE_CHANNELS:
        return 'first convolution'
    if layer.matches(['*.downsample.*'], '.') and _is_pointwise(module):
        return '1x1 downsample'
    if _is_depthwise(module):
        return 'depthwise'
    if _is_channel_attention(layer):
        return 'channel attention'
    for pattern, reason in KEPT_NAMES.items():
        if layer.matches([pattern], '.'):
            return reason
    if _is_in_head(layer) and not _is_hidden(layer):
        return 'bare layer of a head: emits classes, boxes or masks'
    return None


def meets_sign(relu: Candidate, binarized: list[Candidate]) -> bool:
    """Whether a ReLU's output may reach a binarized layer.

    Args:
        relu: The ReLU.
        binarized: The layers that were binarized.
    """
    branches = set().union(*(_branches(layer) for layer in binarized))
    if not branches & _branches(relu):
        return False
    owners = [parent for parent in relu.parents if _is_head(parent)]
    if not owners:
        return True
    # A head's own ReLU works on the layers that the head itself calls, which
    # may be what emits boxes.
    return any(
        isinstance(m, SURGELayer)
        for owner in owners
        for child in owner.children()
        for m in (child, *_list_items(child))
    )


def _branches(candidate: Candidate) -> set[str]:
    if not hasattr(candidate.model, 'backbone'):
        return {''}
    return {name.partition('.')[0] for name in candidate.names}


def _list_items(module: nn.Module) -> list[nn.Module]:
    return list(module) if isinstance(module, nn.ModuleList) else []


def _is_first_convolution(layer: Candidate) -> bool:
    # A model may hold several detectors, as a student and its teacher.
    return any(
        layer.module is _first_convolution(owner)
        for chain in layer.chains
        for owner in chain
        if owner is layer.model or hasattr(owner, 'backbone')
    )


def _first_convolution(model: nn.Module) -> nn.Module | None:
    convolutions = (m for m in model.modules() if isinstance(m, nn.Conv2d))
    return next(convolutions, None)


def _is_pointwise(module: nn.Module) -> bool:
    return getattr(module, 'kernel_size', (1, 1)) == (1, 1)


def _is_depthwise(module: nn.Module) -> bool:
    return 1 < getattr(module, 'groups', 1) == module.in_channels


def _is_channel_attention(layer: Candidate) -> bool:
    # A fully connected layer written as a convolution sees pooled values.
    return (
        isinstance(layer.module, nn.Conv2d)
        and any(n.rpartition('.')[2].startswith('fc') for n in layer.names)
    ) or any(
        type(owner).__name__ in CHANNEL_ATTENTION
        for chain in layer.chains
        for owner in chain
    )


def _is_in_head(layer: Candidate) -> bool:
    return any(
        'head' in part for name in layer.names for part in name.split('.')
    ) or any(_is_head(m) for chain in layer.chains for m in chain)


def _is_head(module: nn.Module) -> bool:
    return type(module).__name__.endswith('Head')


def _is_hidden(layer: Candidate) -> bool:
    """Tell a hidden layer of a head from one that may emit results."""
    if layer.matches(HIDDEN_NAMES, '.'):
        return True
    if not isinstance(layer.module, nn.Conv2d):
        return False
    return any(_is_in_block(layer.module, parent) for parent in layer.parents)


def _is_in_block(conv: nn.Module, parent: nn.Module) -> bool:
    """Whether a norm, or in a block of one layer an activation, follows."""
    children = list(parent.children())
    following = children[children.index(conv) + 1 :]
    if not following or is_norm(following[0]):
        return bool(following)
    if isinstance(parent, nn.Sequential):
        # The last one emits, whatever it is rectified with.
        goes_on = any(isinstance(m, nn.Conv2d) for m in following)
        return goes_on and _is_activation(following[0])
    return all(
        is_norm(m) or _is_activation(m) for m in children if m is not conv
    )


def is_norm(module: Any) -> bool:
    """Whether a module normalizes, whichever toolbox it is of."""
    return (
        isinstance(module, (_NormBase, nn.GroupNorm, nn.LayerNorm))
        or 'Norm' in type(module).__name__
    )


def _is_activation(module: nn.Module) -> bool:
    return type(module).__name__ in HIDDEN_ACTIVATIONS
