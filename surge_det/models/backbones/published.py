"""Bring published checkpoints into the names and shapes of our backbones."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from surge_det.core import checks
from surge_det.core.layers import named_surge_layers
from surge_det.text import some

_SIGN = (
    'sign: the published code takes torch.sign, whose sign(0) is 0; here it '
    'is +1 (differs only where an activation or a weight is exactly 0)'
)
_NO_PRELU = (
    'activation: the published block has none after its addition; the '
    'slopes of PReLU are set to 1, which with shifts at 0 is the identity, '
    'and are learned from there on'
)
_FLOAT = (
    'a float network: its weights become latent weights, of which the signs '
    'and one scale per channel are used, so the outputs are others and have '
    'to be trained'
)
_STATISTICS = (
    'statistics of BN are those of float activations; with norm_eval=False, '
    'the default, training renews them'
)


@dataclass(frozen=True)
class Row:
    """What became of one key.

    Args:
        status: ``loaded`` (same name), ``renamed``, ``copied`` (a replica:
            its layer copies the latent weight when it loads the file),
            ``set`` (written, though the source has no such thing),
            ``missing`` (ours, stays at its start value) or ``unused`` (in
            the source, not taken).
        key: Our key, or '' for ``unused``.
        source: The source's key, without ``module.``, or ''.
        shape: Of our key, or of the source's for ``unused``.
        note: What else happened to it.
    """

    status: str
    key: str
    source: str
    shape: tuple[int, ...]
    note: str = ''


@dataclass(frozen=True)
class Conversion:
    """A converted state dict and the account of every key.

    Args:
        state_dict: Our keys, as the backbone's ``state_dict`` names them.
        rows: One for each key of the backbone, then one for each key of the
            source that was not taken.
        layout: Name of the source's layout.
        notes: In what the published network differs from the backbone.
        random: Convolutions of the backbone that the source has not.
    """

    state_dict: dict[str, Tensor]
    rows: list[Row]
    layout: str
    notes: tuple[str, ...]
    random: list[str]

    def totals(self) -> Counter:
        """Count the rows of each status."""
        return Counter(row.status for row in self.rows)


@dataclass(frozen=True)
class _Layout:
    """How one public code names what our backbone has.

    Args:
        backbone: Registered name and depth of ours that it fits by default.
        match: State dict of theirs to our key -> their key.
        has: Patterns, each of which some key matches in full.
        lacks: Patterns that no key matches.
        slopes: Pattern of our PReLUs' keys -> slope that makes them what the
            published network has there.
        folded: Their bias of a convolution -> our key of the running mean
            that it is subtracted from.
        notes: What differs.
    """

    backbone: tuple[str, int]
    match: Callable[[Mapping[str, Tensor]], dict[str, str]]
    has: tuple[str, ...]
    lacks: tuple[str, ...] = ()
    slopes: Mapping[str, float] = field(default_factory=dict)
    folded: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


_BLOCK = re.compile(r'layer(\d+)\.(\d+)\.(.+)')
_STEM = re.compile(r'(conv1\.weight|bn1\.\w+)')

# {h}: the half of our block, 1 or 2.
_ONE_CONV = {
    r'binary_conv\.weights?': r'conv{h}.weight',
    r'bn1\.(\w+)': r'bn{h}.\1',
    r'move0\.bias': r'shift{h}.shift',
    r'move1\.bias': r'act{h}.0.shift',
    r'prelu\.weight': r'act{h}.1.weight',
    r'move2\.bias': r'act{h}.2.shift',
    r'downsample\.1\.weight': r'downsample.0.weight',
    r'downsample\.2\.(\w+)': r'downsample.1.\1',
}
_BIDET = {
    r'conv([12])\.conv\.weight': r'conv\1.weight',
    r'conv([12])\.bn\.(\w+)': r'bn\1.\2',
    r'conv1\.res_func\.1\.weight': r'downsample.0.weight',
    r'conv1\.res_func\.2\.(\w+)': r'downsample.1.\1',
}
_BIDET_VGG = {
    r'conv\.weight': r'conv.weight',
    r'bn\.(\w+)': r'norm.\1',
    r'downsample\.1\.weight': r'downsample.0.weight',
    r'downsample\.2\.(\w+)': r'downsample.1.\1',
}
# Blocks of each stage of SURGESSDVGG, depth 16, in order.
_VGG_BLOCKS = [
    f'stage{stage}.{i}'
    for stage, count in enumerate((1, 3, 4, 4, 4), 1)
    for i in range(count)
]
# Those that a float VGG has not, see there.
_VGG_ADDED = [f'stage{stage}.1' for stage in range(2, 6)]


def _first_match(table: Mapping[str, Any], name: str) -> Any:
    """Return what stands for the first pattern that matches, or ``None``."""
    for pattern, ours in table.items():
        if found := re.fullmatch(pattern, name):
            return found.expand(ours) if isinstance(ours, str) else ours
    return None


def _key_by_key(
    rename: Callable[[str], str | None],
) -> Callable[[Mapping[str, Tensor]], dict[str, str]]:
    def match(state: Mapping[str, Tensor]) -> dict[str, str]:
        named = {rename(key): key for key in state}
        return {ours: key for ours, key in named.items() if ours}

    return match


@_key_by_key
def _match_one_conv(key: str) -> str | None:
    """Name a key of a code whose blocks have one convolution each."""
    if _STEM.fullmatch(key):
        return key
    found = _BLOCK.fullmatch(key)
    if not found:
        return None
    block, half = divmod(int(found[2]), 2)
    ours = _first_match(_ONE_CONV, found[3])
    return ours and f'layer{found[1]}.{block}.{ours.format(h=half + 1)}'


@_key_by_key
def _match_bidet(key: str) -> str | None:
    if _STEM.fullmatch(key):
        return key
    found = _BLOCK.fullmatch(key)
    ours = found and _first_match(_BIDET, found[3])
    return ours and f'layer{found[1]}.{found[2]}.{ours}'


@_key_by_key
def _match_bidet_vgg(key: str) -> str | None:
    number, _, name = key.partition('.')
    # Places in the published list of layers; 18 is pool5, 21 and 24 ReLU.
    real = {'0': 'conv1', '1': 'norm1', '19': 'conv6'}
    real |= {'20': 'norm6', '22': 'conv7', '23': 'norm7'}
    if number in real:
        return f'{real[number]}.{name}'
    place = int(number) - 2 if number.isdigit() else -1
    ours = _first_match(_BIDET_VGG, name)
    if ours is None or not 0 <= place < len(_VGG_BLOCKS):
        return None
    return f'{_VGG_BLOCKS[place]}.{ours}'


@_key_by_key
def _match_torchvision(key: str) -> str | None:
    return key if _STEM.fullmatch(key) or _BLOCK.fullmatch(key) else None


def _match_torchvision_vgg(state: Mapping[str, Tensor]) -> dict[str, str]:
    theirs = sorted(
        int(key.split('.')[1])
        for key, value in state.items()
        if re.fullmatch(r'features\.\d+\.weight', key) and value.dim() == 4
    )
    ours = [f'{b}.conv' for b in _VGG_BLOCKS if b not in _VGG_ADDED]
    ours.insert(0, 'conv1')
    if len(theirs) != len(ours):
        raise ValueError(
            f'the file has {len(theirs)} convolutions under features.*; '
            f'VGG-16 has {len(ours)}'
        )
    return {
        f'{name}.weight': f'features.{number}.weight'
        for name, number in zip(ours, theirs)
    }


_PAD = (
    'padding: BiDet pads the binarized input with -1, SURGEConv2d with 0 by '
    "default; conv_cfg=dict(type='SURGEConv2d', pad_value=-1) computes what "
    'the published network does'
)
_RESNET, _VGG = ('SURGEResNet', 18), ('SURGESSDVGG', 16)
_LAYOUTS = {
    'bidet': _Layout(
        _RESNET,
        _match_bidet,
        has=(r'layer\d+\.\d+\.conv1\.conv\.weight',),
        slopes={r'layer.*': 1.0},
        notes=(_PAD, _NO_PRELU, _SIGN),
    ),
    'bidet-vgg': _Layout(
        _VGG,
        _match_bidet_vgg,
        has=(r'2\.conv\.weight', r'3\.downsample\.1\.weight', r'22\.bias'),
        slopes={r'stage.*': 1.0, r'act6\..*': 0.0},
        folded={'22.bias': 'norm7.running_mean'},
        notes=(
            _PAD,
            _NO_PRELU,
            'ReLU: the published code has it after conv6 and conv7; after '
            'conv6, where a real convolution follows, the slope of PReLU is '
            'set to 0, which is ReLU; after conv7, where binarized layers '
            'follow, PReLU keeps its start value, for the sign of what '
            'passed a ReLU is constant here',
            'norm5: this BN, before conv6, is ours; as it starts it '
            'changes no sign in evaluation, while training centres by it',
            "bias: conv7 has none here; the published one's is in the "
            'running mean of norm7',
            _SIGN,
        ),
    ),
    'reactnet': _Layout(
        _RESNET,
        _match_one_conv,
        has=(
            r'layer\d+\.\d+\.binary_conv\.weights?',
            r'layer\d+\.\d+\.move0\.bias',
        ),
        notes=(
            'step: the keys of a checkpoint of step 1 (real weights, binary '
            'activations) are those of step 2; one of step 1 computes what '
            "it was trained for with conv_cfg=dict(type='SURGEConv2d', "
            'binarize_weight=False)',
            _SIGN,
        ),
    ),
    'birealnet': _Layout(
        _RESNET,
        _match_one_conv,
        has=(r'layer\d+\.\d+\.binary_conv\.weights?',),
        lacks=(r'layer\d+\.\d+\.move0\.bias',),
        slopes={r'layer.*': 1.0},
        notes=(_NO_PRELU, _SIGN),
    ),
    'torchvision': _Layout(
        _RESNET,
        _match_torchvision,
        has=(r'layer1\.0\.conv1\.weight', r'layer1\.0\.bn1\.weight'),
        lacks=(r'.*\.shift1\.shift', r'.*\.downsample\.2\..*'),
        notes=(
            _FLOAT,
            'ReLU: the float stem and blocks have it; here the stem has '
            'none and the blocks have RPReLU',
            'shortcuts: here one around each 3x3 convolution; downsampling: '
            'here average pooling before the 1x1 convolution instead '
            'of a stride in it',
            _STATISTICS,
        ),
    ),
    'torchvision-vgg': _Layout(
        _VGG,
        _match_torchvision_vgg,
        has=(
            r'features\.0\.weight',
            r'features\.28\.weight|features\.40\.weight',
        ),
        notes=(
            _FLOAT,
            'ReLU and max-pool: here RPReLU, and a 1-bit block of stride 2 '
            'in place of each of the first four max-pools: that block takes '
            "the weights of the stage's first convolution, the one after "
            'it has no counterpart',
            'bias and BN: no convolution has a bias here, and of a VGG with '
            'BN only the convolutions are taken',
        ),
    ),
}
LAYOUTS = tuple(_LAYOUTS)


def unwrap(checkpoint: object) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint under their plain names.

    Takes them out of ``{'state_dict': ...}`` or ``{'model': ...}`` and drops
    the ``module.`` that DataParallel puts in front.

    Raises:
        ValueError: If there is no dict of tensors.
    """
    state = checkpoint
    if isinstance(state, Mapping):
        wrapped = (state.get(key) for key in ('state_dict', 'model'))
        state = next((w for w in wrapped if isinstance(w, Mapping)), state)
    if (
        not isinstance(state, Mapping)
        or not state
        or not all(isinstance(v, Tensor) for v in state.values())
    ):
        what = type(checkpoint).__name__
        if isinstance(checkpoint, Mapping):
            what += f' with the keys {some(checkpoint)}'
        raise ValueError(
            f'no state dict in the file: it holds a {what}; allowed is a '
            "dict of tensors, by itself or under 'state_dict' or 'model'"
        )
    return {key.removeprefix('module.'): v for key, v in state.items()}


def detect_layout(keys: Iterable[str]) -> str:
    """Tell by its keys which public code a state dict is from.

    Args:
        keys: Without ``module.``.

    Returns:
        One of ``LAYOUTS``.

    Raises:
        ValueError: If it is none of them, or one of ours already.
    """
    keys = list(keys)

    def has(pattern: str) -> bool:
        return any(re.fullmatch(pattern, key) for key in keys)

    for name, layout in _LAYOUTS.items():
        if all(map(has, layout.has)) and not any(map(has, layout.lacks)):
            return name
    if has(r'(.*\.)?layer1\.0\.shift1\.shift'):
        raise ValueError(
            "the file has surge_det's own keys already; it needs no "
            "conversion (init_cfg takes prefix='backbone.' for the "
            'checkpoint of a whole model)'
        )
    raise ValueError(
        f'the layout is none of {list(LAYOUTS)}: the keys are such as '
        f'{some(keys)}'
    )


def default_backbone(layout: str) -> tuple[str, int]:
    """Return registered name and depth of the backbone a layout fits."""
    return _LAYOUTS[layout].backbone


def convert_published(
    state_dict: Mapping[str, Tensor],
    backbone: nn.Module,
    layout: str = 'auto',
) -> Conversion:
    """Give a published backbone's tensors the names and shapes of ours.

    Converted 1-bit backbones compute what the published networks do; where
    that takes a setting of the backbone, ``notes`` says which.

    Source: the public PyTorch code of BiDet (CVPR 2020), ReActNet (ECCV
    2020, its ResNet variant), Bi-Real Net (ECCV 2018) and torchvision.

    Args:
        state_dict: As :func:`unwrap` returns it.
        backbone: A ``SURGEResNet`` or ``SURGESSDVGG``. It is not changed.
        layout: One of ``LAYOUTS``, or ``'auto'``.

    Raises:
        ValueError: If the layout is unknown, nothing fits, the depths are
            not the same, or a shape differs.
    """
    checks.one_of('layout', layout, ['auto', *LAYOUTS])
    if layout == 'auto':
        layout = detect_layout(state_dict)
    rules = _LAYOUTS[layout]
    ours = backbone.state_dict()
    sources = rules.match(state_dict)
    _check_depth(sources, ours)
    sources = {key: name for key, name in sources.items() if key in ours}
    if not sources:
        raise ValueError(
            f'nothing of the file fits {type(backbone).__name__} as layout '
            f'{layout!r}: its keys are such as {some(state_dict)}; expected '
            f'are matches of {" and ".join(rules.has)}'
        )

    converted: dict[str, Tensor] = {}
    rows, wrong = [], []
    replicas = {
        f'{name}.aux_weight': f'{name}.weight'
        for name, _ in named_surge_layers(backbone)
    }
    slopes = {
        f'{name}.weight': _first_match(rules.slopes, f'{name}.weight')
        for name, module in backbone.named_modules()
        if isinstance(module, nn.PReLU)
    }
    for key, value in ours.items():
        shape = tuple(value.shape)
        source = sources.get(key)
        status, note = 'missing', 'start value'
        if source is not None:
            old = tuple(state_dict[source].shape)
            tensor = _reshaped(state_dict[source], shape)
            if tensor is None:
                wrong.append(f'{source} {old} for {key} {shape}')
                continue
            status = 'loaded' if source == key else 'renamed'
            note = '' if old == shape else f'reshaped from {old}'
            # A copy: a view would bring its whole storage into the file.
            converted[key] = tensor.to(value.dtype, copy=True).contiguous()
        elif replicas.get(key) in sources:
            status, note = 'copied', 'when training begins'
            source = sources[replicas[key]]
        elif slopes.get(key) is not None:
            status, note = 'set', f'to {slopes[key]:g}'
            converted[key] = torch.full_like(value, slopes[key])
        rows.append(Row(status, key, source or '', shape, note))
    if wrong:
        raise ValueError(
            f'{len(wrong)} shape(s) differ from those of '
            f'{type(backbone).__name__}: {some(wrong)}'
        )
    taken = set(sources.values())
    for bias, key in rules.folded.items():
        if bias in state_dict and key in converted:
            converted[key] -= state_dict[bias].to(converted[key].dtype)
            taken.add(bias)
            rows = [
                replace(row, note=f'less {bias}') if row.key == key else row
                for row in rows
            ]
    rows += [
        Row('unused', '', key, tuple(value.shape))
        for key, value in state_dict.items()
        if key not in taken
    ]
    notes = rules.notes
    is_float = layout.startswith('torchvision')
    if not is_float and _only_signs(converted, replicas.values()):
        notes += (
            'weights: every 1-bit convolution holds one number per channel '
            'and its negative and no other (a file made for inference): the '
            'outputs are right, but the latent weights have no magnitudes '
            'to train on',
        )
    random = [
        f'{name}.weight'
        for name, module in backbone.named_modules()
        if isinstance(module, nn.Conv2d) and f'{name}.weight' not in converted
    ]
    return Conversion(converted, rows, layout, notes, random)


def _reshaped(value: Tensor, shape: tuple[int, ...]) -> Tensor | None:
    """Drop dimensions of 1, or unfold a flat convolution; else ``None``."""
    if tuple(value.shape) == shape:
        return value
    flat = value.dim() <= 2 and value.shape[1:].numel() == 1
    squeezed = tuple(n for n in value.shape if n != 1)
    if value.numel() == torch.Size(shape).numel() and (
        (flat and len(shape) == 4) or (len(shape) == 1 and squeezed == shape)
    ):
        return value.reshape(shape)
    return None


def _check_depth(sources: Iterable[str], ours: Iterable[str]) -> None:
    theirs, mine = _blocks(sources), _blocks(ours)
    if any(mine.get(stage) != count for stage, count in theirs.items()):
        raise ValueError(
            f'the file is of another depth: its stages make '
            f"{list(theirs.values())} of our blocks, the backbone's are "
            f'{list(mine.values())} (depth 18 has [2, 2, 2, 2], 34 and 50 '
            'have [3, 4, 6, 3])'
        )


def _blocks(keys: Iterable[str]) -> dict[str, int]:
    stages: dict[str, set] = {}
    for key in keys:
        found = _BLOCK.fullmatch(key)
        if found:
            stages.setdefault(found[1], set()).add(found[2])
    return {stage: len(stages[stage]) for stage in sorted(stages)}


def _only_signs(state: Mapping[str, Tensor], keys: Iterable[str]) -> bool:
    weights = [state[key].abs().flatten(1) for key in keys if key in state]
    return bool(weights) and all(
        torch.equal(w, w[:, :1].expand_as(w)) for w in weights
    )
