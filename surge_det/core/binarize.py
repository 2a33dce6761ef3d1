"""Binarize a float model in place: which layers, and which activations.

What cannot be binarized is said in :func:`_obstacle`. What should not be is
for the caller to say; for detectors :mod:`surge_det.models.detector_policy`
does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils import parametrize

from . import checks
from .activations import SlopePReLU
from .layers import SURGEConv2d, SURGELayer, SURGELinear

DEFAULT_LAYER = {'shift': 0.0}
DEFAULT_ACTIVATION = {'type': 'PReLU', 'init': 0.25}

ACTIVATIONS = {'PReLU': SlopePReLU, 'LeakyReLU': nn.LeakyReLU}

# Set on a part that the conversion of the whole model leaves as it is.
HAS_OWN_CONVERSION = '_has_own_conversion'

_EQUIVALENT: set[type] = {nn.Conv2d, nn.Linear}
_FUNCTIONAL: set[type] = {nn.MultiheadAttention}


@dataclass
class Conversion:
    """What :func:`binarize` did.

    A shared module is listed under its first name.

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
    """Declare that a class computes what ``nn.Conv2d``/``nn.Linear`` does.

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
    """Declare that a module reads its layers' weights without calling them.

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
    keep_real: Callable[[Candidate], str | None] | None = None,
    replace_relu: Callable[[Candidate, list[Candidate]], bool] | None = None,
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

    A ReLU's output has no negative values, so its sign is constant. Therefore
    ReLUs (and ReLU6s) are replaced by an activation that keeps negatives.

    Args:
        model: What to convert; it keeps its own identity.
        include: Patterns of the layers to binarize.
        exclude: Patterns of the layers (or ReLUs) to leave as they are.
        keep_real: Called with each layer that is asked for; returns why it
            should stay real, or ``None``. A layer that ``include`` names
            without a wildcard is binarized anyway.
        replace_relu: Called with each ReLU and the binarized layers; returns
            whether its output may reach one of them. By default all do.
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
    layer_cfg = _mapping('layer_cfg', layer_cfg)
    overrides = _mapping('overrides', overrides)
    for pattern, more in overrides.items():
        _mapping(f'overrides[{pattern!r}]', more)
    _check_activation(activation_cfg)
    layers = list(_candidates(model, (nn.Conv2d, nn.Linear)))
    relus = list(_candidates(model, (nn.ReLU, nn.ReLU6)))
    _check_matches(model, 'include', include, layers)
    _check_matches(model, 'exclude', exclude, layers + relus)

    chosen, kept = _choose(model, layers, include, exclude, keep_real)
    if not chosen:
        raise ValueError(
            f'nothing to binarize: include={list(include)}, '
            f'exclude={list(exclude)} and keep_real (of detectors: '
            f'defaults=True) leave none of {len(layers)} convolutions and '
            f'linear layers, for {sorted(set(kept.values()))}'
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
            and not relu.has_own_conversion
            and (replace_relu is None or replace_relu(relu, chosen))
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
class Candidate:
    """A module that may be replaced.

    Attributes:
        module: The module.
        names: Its names in the model, one for every place.
        chains: For each name, what holds the module: from the model to the
            module's parent.
    """

    module: nn.Module
    names: list[str] = field(default_factory=list)
    chains: list[list[nn.Module]] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The first name."""
        return self.names[0]

    @property
    def model(self) -> nn.Module:
        """The whole model."""
        return self.chains[0][0]

    @property
    def parents(self) -> list[nn.Module]:
        """What holds the module directly, one for each name."""
        return [chain[-1] for chain in self.chains]

    @property
    def has_own_conversion(self) -> bool:
        """Whether it is in a part that is converted by itself."""
        # The model itself may be converted again.
        return any(
            hasattr(owner, HAS_OWN_CONVERSION)
            for chain in self.chains
            for owner in chain[1:]
        )

    def matches(self, patterns: Iterable[str], lead: str = '') -> bool:
        """Whether one of the names, after ``lead``, matches a pattern."""
        return any(
            fnmatchcase(lead + name, pattern)
            for name in self.names
            for pattern in patterns
        )


def _candidates(model: nn.Module, kinds: tuple) -> Iterator[Candidate]:
    found: dict[nn.Module, Candidate] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if not name or isinstance(module, SURGELayer):
            continue
        if isinstance(module, kinds):
            candidate = found.setdefault(module, Candidate(module))
            candidate.names.append(name)
            candidate.chains.append(_ancestors(model, name))
    yield from found.values()


def _ancestors(model: nn.Module, name: str) -> list[nn.Module]:
    """Return what holds a module, from the model to its parent."""
    chain = [model]
    for part in name.split('.')[:-1]:
        chain.append(chain[-1]._modules[part])
    return chain


def _put(model: nn.Module, candidate: Candidate, new: nn.Module) -> None:
    for name, parent in zip(candidate.names, candidate.parents):
        parent._modules[name.rpartition('.')[2]] = new


# --- which layers ---------------------------------------------------------


def _choose(
    model: nn.Module,
    layers: list[Candidate],
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    keep_real: Callable[[Candidate], str | None] | None,
) -> tuple[list[Candidate], dict[str, str]]:
    """Split the candidates into those to binarize and those kept, with why."""
    tied = _tied_parameters(model)
    chosen, kept, refused = [], {}, {}
    for layer in layers:
        if layer.has_own_conversion:
            kept[layer.name] = 'its part has a conversion of its own'
        elif not layer.matches(include):
            kept[layer.name] = 'not included'
        elif layer.matches(exclude):
            kept[layer.name] = 'excluded'
        elif reason := _obstacle(layer, tied):
            asked = layer.matches([p for p in include if p != '*'])
            (refused if asked else kept)[layer.name] = reason
        elif (
            keep_real is not None
            and not set(layer.names) & set(include)
            and (reason := keep_real(layer))
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


def _obstacle(layer: Candidate, tied: set[int]) -> str | None:
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


# --- what becomes of them -------------------------------------------------


def _to_surge(
    layer: Candidate,
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


def _activation(cfg: Mapping[str, Any]) -> nn.Module:
    settings = dict(cfg)
    return ACTIVATIONS[settings.pop('type')](**settings)


def _check_activation(cfg: Mapping[str, Any] | None) -> None:
    if cfg is None:
        return
    if not isinstance(cfg, Mapping) or cfg.get('type') not in ACTIVATIONS:
        checks.refuse(
            'activation_cfg',
            cfg,
            f'None or a dict with a type of {sorted(ACTIVATIONS)}',
        )
    try:
        _activation(cfg)
    except TypeError as error:
        raise ValueError(f'activation_cfg={cfg!r}: {error}') from error
    for name in ('init', 'negative_slope'):
        slope = cfg.get(name, 0.25)
        if not checks.is_number(slope) or slope == 0:
            checks.refuse(
                f'activation_cfg: {name}',
                slope,
                'a finite number that is not 0, for 0 is a ReLU',
            )


# --- patterns -------------------------------------------------------------


def _patterns(argument: str, value: Iterable[str]) -> tuple[str, ...]:
    patterns = () if isinstance(value, str) else tuple(value)
    if not all(isinstance(p, str) for p in patterns) or isinstance(value, str):
        checks.refuse(argument, value, 'a list of name patterns')
    return patterns


def _mapping(argument: str, value: Any) -> dict[str, Any]:
    if value is not None and not isinstance(value, Mapping):
        checks.refuse(argument, value, 'a dict')
    return dict(value or {})


def _check_matches(
    model: nn.Module,
    argument: str,
    patterns: Iterable[str],
    candidates: list[Candidate],
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
