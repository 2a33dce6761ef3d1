"""What the layers of a model binarize: told, stored and compared."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from torch import nn

from .layers import named_surge_layers

# Key of a checkpoint's `meta` for what `binarization_of` says.
BINARIZED = 'binarized'

# (bits of weights, bits of activations) -> what a layer is called.
KINDS = {
    (1, 1): '1-bit',
    (1, 32): 'weights 1-bit',
    (32, 1): 'activations 1-bit',
    (32, 32): 'real',
}


def binarization_of(model: nn.Module) -> dict[str, str]:
    """Say what the layers of a model binarize, and how.

    Args:
        model: A detector.

    Returns:
        A text for each layer that binarizes something, by its name. Two
        models of the same parameters that differ here give different outputs.
    """
    found = {}
    for name, layer in named_surge_layers(model):
        bits = layer.weight_bits, layer.activation_bits
        if bits == (32, 32):
            continue
        words = [KINDS[bits]]
        if layer.weight_bits == 1:
            binarizer = layer.weight_binarizer
            # That of an unpacked layer knows where its scale is from.
            words.append(
                getattr(binarizer, 'origin', type(binarizer).__name__)
            )
        if layer.activation_bits == 1 and any(layer.pads):
            words.append(f'pad_value={layer.pad_value:g}')
        found[name] = ', '.join(words)
    return found


def recorded(meta: dict[str, Any]) -> dict[str, str] | None:
    """Return what :func:`binarization_of` said, if a checkpoint has it."""
    found = meta.get(BINARIZED)
    if isinstance(found, dict) and all(
        isinstance(text, str) for pair in found.items() for text in pair
    ):
        return found
    return None


def stored_binarization(meta: dict[str, Any]) -> dict[str, str] | None:
    """Return what layers binarize, None where a checkpoint does not tell.

    Those that SURGE's hooks wrote do. Of others, a config that names nothing
    of SURGE's trained a real detector.
    """
    found = recorded(meta)
    if found is not None:
        return found
    text = meta.get('cfg')
    if isinstance(text, str) and not re.search('SURGE|binarize_cfg', text):
        return {}
    return None


def differences(model: nn.Module, trained: dict[str, str]) -> list[str]:
    """Return a text for each layer that binarizes otherwise than a file says.

    Args:
        model: The detector that a config gives.
        trained: What :func:`binarization_of` said of the one in the file.
    """
    mine = binarization_of(model)
    return [
        f'{_seen(name)} {_seen(trained.get(name, "real"))} there, '
        f'{mine.get(name, "real")} here'
        for name in {**mine, **trained}
        if mine.get(name) != trained.get(name)
    ]


def _seen(text: str) -> str:
    # What a file says may be of any length, and hold ends of lines.
    return repr(text[:99])[1:-1]


def check_binarization(
    model: nn.Module, trained: dict[str, str], path: str | Path
) -> None:
    """See that a model's layers binarize what they were trained to.

    Args:
        model: The detector that a config gives.
        trained: What :func:`binarization_of` said of the one in a file.
        path: The file, for messages.

    Raises:
        ValueError: If a layer differs.
    """
    if other := differences(model, trained):
        raise ValueError(
            f'{path}: was trained with another config: {len(other)} layers '
            f'compute something else in this one ({other[0]}); give the '
            'config that it was trained with'
        )
