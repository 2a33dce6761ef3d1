"""Binarize a float model in place: which layers, and which activations.

What the safe default keeps real is said once, in :func:`_default_reason` and
the tables above it; what cannot be binarized, in :func:`_obstacle`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils import parametrize

from .activations import SlopePReLU
from .layers import SURGEConv2d, SURGELayer, SURGELinear

DEFAULT_LAYER = {'shift': 0.0}
DEFAULT_ACTIVATION = {'type': 'PReLU', 'init': 0.25}

# The most that an image has, sliced as YOLOX does it included. A first
# convolution with more inputs is that of a neck or a head converted alone.
IMAGE_CHANNELS = 16

ACTIVATIONS = {'PReLU': SlopePReLU, 'LeakyReLU': nn.LeakyReLU}

# What stays real by its name; patterns see the name behind a dot.
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
# Modules that see pooled values, by class name for want of a common base.
CHANNEL_ATTENTION = {
    'ChannelAttention',
    'DyReLU',
    'SELayer',
    'SqueezeExcitation',
}
# Layers of heads that are hidden although no norm or activation stands
# beside them.
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

# Set on a module whose own conversion is not to be changed by another one.
SETTLED = '_binarization_is_settled'

_EQUIVALENT: set[type] = {nn.Conv2d, nn.Linear}
_FUNCTIONAL: set[type] = {nn.MultiheadAttention}


@dataclass
class Conversion:
    """What :func:`binarize` did.

    A shared module stands under its first name.

    Attributes:
        binarized: Names of the layers that are 1-bit now.
        kept: Names of the convolutions and linear layers that stay real,
            and why.
        activations: Names of the ReLUs that were replaced.
    """

    binarized: list[str] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)
    activations: list[str] = field(default_factory=list)


def add_equivalent(layer: type) -> None:
    """Say that a subclass computes what ``nn.Conv2d``/``nn.Linear`` does.

    Args:
        layer: A class that overrides ``forward`` without another result.

    Raises:
        ValueError: If it is no subclass of either.
    """
    if not issubclass(layer, (nn.Conv2d, nn.Linear)):
        raise ValueError(
            f'layer={layer!r}: subclasses of nn.Conv2d and nn.Linear are '
            'allowed'
        )
    _EQUIVALENT.add(layer)


def add_functional(owner: type) -> None:
    """Say that a module reads weights of layers in it, not calling them.

    Args:
        owner: A class such as ``nn.MultiheadAttention``; no layer inside its
            instances can be binarized.
    """
    _FUNCTIONAL.add(owner)


def binarize(
    model: nn.Module,
    *,
    include: Iterable[str] = ('*',),
    exclude: Iterable[str] = (),
    defaults: bool = True,
    layer_cfg: Mapping[str, Any] | None = None,
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
    activation_cfg: Mapping[str, Any] | None = DEFAULT_ACTIVATION,
) -> Conversion:
    """Turn layers of a float model into SURGE layers, in place.

    Candidates are the ``nn.Conv2d`` and ``nn.Linear`` modules, subclasses
    included. A module with several names is converted once and stays shared.
    Patterns are those of :mod:`fnmatch`, on names as in
    ``model.named_modules()``; a layer that is matched by any of its names is
    matched.

    The safe default keeps real: the first convolution, 1×1 convolutions of
    downsampling shortcuts, depthwise convolutions, channel attention,
    predictors of sampling positions and attention weights, everything in a
    head but its convolutions with a norm or an activation beside them and
    the hidden layers of two-stage heads, and what cannot be binarized.

    What passed a ReLU has no negative values and constant sign. Therefore
    ReLUs (and ReLU6s) give way to an activation that keeps negatives, in
    every branch of the model that has a binarized layer: the branches of a
    detector (a model with a ``backbone``) are its children, another model
    is one branch. A ReLU that a head holds beside real layers only
    stays, and so do those that are no modules.

    Args:
        model: What to convert; it keeps its own identity.
        include: Patterns of the layers to binarize.
        exclude: Patterns of the layers (or ReLUs) to leave as they are.
        defaults: Whether the safe default holds too. A layer that
            ``include`` names without a wildcard is binarized all the same.
        layer_cfg: Keywords of :class:`SURGEConv2d` and
            :class:`SURGELinear`, on top of ``DEFAULT_LAYER``; linear
            layers skip those that only convolutions have.
        overrides: More keywords for the layers that match a pattern; of
            several the last one holds.
        activation_cfg: What replaces a ReLU: ``dict(type='PReLU',
            init=...)`` with one slope, ``dict(type='LeakyReLU',
            negative_slope=...)``, or ``None`` for no replacement.

    Returns:
        What was done.

    Raises:
        ValueError: If a pattern matches nothing, if a layer that ``include``
            asks for cannot be binarized, if nothing is left to binarize, or
            if a setting is not allowed. The model is unchanged then.
    """
    include = _patterns('include', include)
    exclude = _patterns('exclude', exclude)
    if not isinstance(defaults, bool):
        raise ValueError(f'defaults={defaults!r}: True or False is allowed')
    layer_cfg = _mapping('layer_cfg', layer_cfg)
    overrides = _mapping('overrides', overrides)
    for pattern, more in overrides.items():
        _mapping(f'overrides[{pattern!r}]', more)
    _check_activation(activation_cfg)
    layers = list(_candidates(model, (nn.Conv2d, nn.Linear)))
    relus = list(_candidates(model, (nn.ReLU, nn.ReLU6)))
    _check_matches(model, 'include', include, layers)
    _check_matches(model, 'exclude', exclude, layers + relus)

    chosen, kept = _choose(model, layers, include, exclude, defaults)
    if not chosen:
        raise ValueError(
            f'nothing to binarize: include={list(include)}, '
            f'exclude={list(exclude)}, defaults={defaults} leave none of '
            f'{len(layers)} convolutions and linear layers'
        )
    _check_matches(model, 'overrides', overrides, chosen)
    # All of them before the first is put in, so that an error changes nothing.
    converted = [_to_surge(layer, layer_cfg, overrides) for layer in chosen]
    for layer, new in zip(chosen, converted):
        _put(model, layer, new)
    replaced = []
    if activation_cfg is not None:
        replaced = [
            relu
            for relu in relus
            if not relu.matches(exclude)
            and not relu.is_settled
            and _meets_sign(model, relu, chosen)
        ]
    for relu in replaced:
        new = _activation(activation_cfg)
        reference = next(model.parameters())
        new.to(reference.device, reference.dtype).train(relu.module.training)
        _put(model, relu, new)
    return Conversion(
        [layer.name for layer in chosen], kept, [r.name for r in replaced]
    )


@dataclass(eq=False)
class _Candidate:
    module: nn.Module
    # One each for every place where it stands.
    names: list[str] = field(default_factory=list)
    chains: list[list[nn.Module]] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.names[0]

    @property
    def parents(self) -> list[nn.Module]:
        return [chain[-1] for chain in self.chains]

    @property
    def is_settled(self) -> bool:
        # The model itself may be converted again.
        return any(
            hasattr(owner, SETTLED)
            for chain in self.chains
            for owner in chain[1:]
        )

    def matches(self, patterns: Iterable[str], lead: str = '') -> bool:
        return any(
            fnmatchcase(lead + name, pattern)
            for name in self.names
            for pattern in patterns
        )


def _candidates(model: nn.Module, kinds: tuple) -> Iterator[_Candidate]:
    found: dict[nn.Module, _Candidate] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if not name or isinstance(module, SURGELayer):
            continue
        if isinstance(module, kinds):
            candidate = found.setdefault(module, _Candidate(module))
            candidate.names.append(name)
            candidate.chains.append(_ancestors(model, name))
    yield from found.values()


def _ancestors(model: nn.Module, name: str) -> list[nn.Module]:
    """Return what holds a module, from the model to its parent."""
    chain = [model]
    for part in name.split('.')[:-1]:
        chain.append(chain[-1]._modules[part])
    return chain


def _put(model: nn.Module, candidate: _Candidate, new: nn.Module) -> None:
    for name, parent in zip(candidate.names, candidate.parents):
        parent._modules[name.rpartition('.')[2]] = new


# --- which layers ---------------------------------------------------------


def _choose(
    model: nn.Module,
    layers: list[_Candidate],
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    defaults: bool,
) -> tuple[list[_Candidate], dict[str, str]]:
    """Split the candidates into those to binarize and those kept, with why."""
    first = _first_convolutions(model)
    tied = _tied_parameters(model)
    chosen, kept, refused = [], {}, {}
    for layer in layers:
        if layer.is_settled:
            kept[layer.name] = 'settled by a conversion of its own part'
        elif not layer.matches(include):
            kept[layer.name] = 'not included'
        elif layer.matches(exclude):
            kept[layer.name] = 'excluded'
        elif reason := _obstacle(layer, tied):
            asked = layer.matches([p for p in include if p != '*'])
            (refused if asked else kept)[layer.name] = reason
        elif (
            defaults
            and not set(layer.names) & set(include)
            and (reason := _default_reason(layer, first))
        ):
            kept[layer.name] = reason
        else:
            chosen.append(layer)
    if refused:
        raise ValueError(
            f'include={list(include)} matches layers that cannot be '
            'binarized: '
            + '; '.join(f'{name} ({why})' for name, why in refused.items())
            + f'. Keep them real with exclude={list(refused)}, or a pattern '
            'that matches them'
        )
    return chosen, kept


def _first_convolutions(model: nn.Module) -> set[nn.Module]:
    # A model may hold several detectors, as a student and its teacher.
    detectors = [m for m in model.modules() if hasattr(m, 'backbone')]
    found = set()
    for part in (model, *detectors):
        convolutions = (m for m in part.modules() if isinstance(m, nn.Conv2d))
        found |= set(itertools.islice(convolutions, 1))
    return found


def _obstacle(layer: _Candidate, tied: set[int]) -> str | None:
    """Say why a layer cannot be binarized, or ``None``."""
    module = layer.module
    if any(
        isinstance(owner, tuple(_FUNCTIONAL))
        for chain in layer.chains
        for owner in chain
    ):
        return 'used functionally: its weight is read, it is never called'
    if isinstance(module, LazyModuleMixin):
        return 'lazy: its shape is not known yet'
    if parametrize.is_parametrized(module) or not isinstance(
        module._parameters.get('weight'), nn.Parameter
    ):
        return 'its weight is computed from other parameters'
    if not _computes_the_same(module):
        return f'{type(module).__name__} computes something else'
    if getattr(module, 'padding_mode', 'zeros') != 'zeros':
        return f'padding_mode={module.padding_mode!r}'
    if tied & {id(p) for p in module.parameters()}:
        return 'shares a parameter with another module'
    if module._forward_hooks or module._forward_pre_hooks:
        return 'has hooks that would be lost'
    return None


def _computes_the_same(module: nn.Module) -> bool:
    changed = {'forward', '_conv_forward'}
    if changed & vars(module).keys():
        return False
    for cls in type(module).__mro__:
        if cls in _EQUIVALENT:
            return True
        if changed & vars(cls).keys():
            return False
    return False


def _tied_parameters(model: nn.Module) -> set[int]:
    """Return ids of the parameters that several modules hold."""
    seen, tied = set(), set()
    for module in model.modules():
        own = {id(p) for p in module._parameters.values() if p is not None}
        tied |= own & seen
        seen |= own
    return tied


def _default_reason(layer: _Candidate, first: set[nn.Module]) -> str | None:
    """Say why the safe default keeps a layer real, or ``None``."""
    module = layer.module
    if module in first and module.in_channels <= IMAGE_CHANNELS:
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


def _is_pointwise(module: nn.Module) -> bool:
    return getattr(module, 'kernel_size', (1, 1)) == (1, 1)


def _is_depthwise(module: nn.Module) -> bool:
    return 1 < getattr(module, 'groups', 1) == module.in_channels


def _is_channel_attention(layer: _Candidate) -> bool:
    # A fully connected layer written as a convolution sees pooled values.
    return (
        isinstance(layer.module, nn.Conv2d)
        and any(n.rpartition('.')[2].startswith('fc') for n in layer.names)
    ) or any(
        type(owner).__name__ in CHANNEL_ATTENTION
        for chain in layer.chains
        for owner in chain
    )


def _is_in_head(layer: _Candidate) -> bool:
    return any(
        'head' in part for name in layer.names for part in name.split('.')
    ) or any(_is_head(m) for chain in layer.chains for m in chain)


def _is_head(module: nn.Module) -> bool:
    return type(module).__name__.endswith('Head')


def _is_hidden(layer: _Candidate) -> bool:
    """Tell a hidden layer of a head from one that may emit results."""
    if layer.matches(HIDDEN_NAMES, '.'):
        return True
    if not isinstance(layer.module, nn.Conv2d):
        return False
    return any(_is_in_block(layer.module, parent) for parent in layer.parents)


def _is_in_block(conv: nn.Module, parent: nn.Module) -> bool:
    """Whether a norm, or in a block of one layer an activation, follows."""
    children = list(parent.children())
    behind = children[children.index(conv) + 1 :]
    if not behind or _is_norm(behind[0]):
        return bool(behind)
    if isinstance(parent, nn.Sequential):
        # The last one emits, whatever it is rectified with.
        goes_on = any(isinstance(m, nn.Conv2d) for m in behind)
        return goes_on and _is_activation(behind[0])
    return all(
        _is_norm(m) or _is_activation(m) for m in children if m is not conv
    )


def _is_norm(module: nn.Module) -> bool:
    return (
        isinstance(module, (_NormBase, nn.GroupNorm, nn.LayerNorm))
        or 'Norm' in type(module).__name__
    )


def _is_activation(module: nn.Module) -> bool:
    return type(module).__name__ in HIDDEN_ACTIVATIONS


# --- what becomes of them -------------------------------------------------


def _to_surge(
    layer: _Candidate,
    layer_cfg: dict[str, Any],
    overrides: dict[str, Mapping[str, Any]],
) -> SURGELayer:
    settings = {**DEFAULT_LAYER, **layer_cfg}
    for pattern, more in overrides.items():
        if layer.matches([pattern]):
            settings.update(more)
    known = SURGEConv2d.keywords()
    if unknown := settings.keys() - known:
        raise ValueError(
            f'layer_cfg, overrides: {sorted(unknown)} for {layer.name} are '
            f'not allowed; {sorted(known)} are'
        )
    convolution = isinstance(layer.module, nn.Conv2d)
    cls = SURGEConv2d if convolution else SURGELinear
    for pattern, more in overrides.items():
        lost = more.keys() - cls.keywords()
        # A pattern with a wildcard may mean convolutions beside this one.
        if pattern in layer.names and lost:
            raise ValueError(
                f'overrides[{pattern!r}]: {sorted(lost)} are not allowed for '
                f'a {cls.__name__}'
            )
    settings = {k: v for k, v in settings.items() if k in cls.keywords()}
    try:
        return cls.from_float(layer.module, **settings)
    except ValueError as error:
        raise ValueError(f'{layer.name}: {error}') from error


def _meets_sign(
    model: nn.Module, relu: _Candidate, chosen: list[_Candidate]
) -> bool:
    """Whether a ReLU stands where its output may reach a binarized layer."""
    branches = set().union(*(_branches(model, layer) for layer in chosen))
    if not branches & _branches(model, relu):
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


def _branches(model: nn.Module, candidate: _Candidate) -> set[str]:
    if not hasattr(model, 'backbone'):
        return {''}
    return {name.partition('.')[0] for name in candidate.names}


def _list_items(module: nn.Module) -> list[nn.Module]:
    return list(module) if isinstance(module, nn.ModuleList) else []


def _activation(cfg: Mapping[str, Any]) -> nn.Module:
    settings = dict(cfg)
    return ACTIVATIONS[settings.pop('type')](**settings)


def _check_activation(cfg: Mapping[str, Any] | None) -> None:
    if cfg is None:
        return
    if not isinstance(cfg, Mapping) or cfg.get('type') not in ACTIVATIONS:
        raise ValueError(
            f'activation_cfg={cfg!r} is not allowed: None or a dict with a '
            f'type of {sorted(ACTIVATIONS)}'
        )
    try:
        _activation(cfg)
    except TypeError as error:
        raise ValueError(f'activation_cfg={cfg!r}: {error}') from error
    for name in ('init', 'negative_slope'):
        slope = cfg.get(name, 0.25)
        if (
            not isinstance(slope, (int, float))
            or not 0 < abs(slope) < math.inf
        ):
            raise ValueError(
                f'activation_cfg={cfg!r}: {name}={slope!r} is not allowed: a '
                'finite number that is not 0, for 0 is a ReLU'
            )


# --- patterns -------------------------------------------------------------


def _patterns(argument: str, value: Iterable[str]) -> tuple[str, ...]:
    patterns = () if isinstance(value, str) else tuple(value)
    if not all(isinstance(p, str) for p in patterns) or isinstance(value, str):
        raise ValueError(
            f'{argument}={value!r} is not allowed: a list of name patterns'
        )
    return patterns


def _mapping(argument: str, value: Any) -> dict[str, Any]:
    if value is not None and not isinstance(value, Mapping):
        raise ValueError(f'{argument}={value!r} is not allowed: a dict')
    return dict(value or {})


def _check_matches(
    model: nn.Module,
    argument: str,
    patterns: Iterable[str],
    candidates: list[_Candidate],
) -> None:
    for pattern in patterns:
        if not any(c.matches([pattern]) for c in candidates):
            named = dict(model.named_modules()).get(pattern)
            if not isinstance(named, (nn.Conv2d, nn.Linear, type(None))):
                raise ValueError(
                    f'{argument}: {pattern!r} is a {type(named).__name__}, to '
                    'which this does not apply'
                )
            some = [c.name for c in candidates]
            step = -(-len(some) // 5) or 1
            raise ValueError(
                f'{argument}: {pattern!r} matches none of the {len(some)} '
                f'layers it may apply to, such as {some[::step]}'
            )
