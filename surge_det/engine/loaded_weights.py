"""Whether a checkpoint's weights are those of the model."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from surge_det.core.binarization import differences, recorded
from surge_det.text import some

# Of the tensors of the model or of the file, whichever has fewer: a file may
# hold a backbone, or a head of other classes.
LEAST_SHARE = 0.5


class WeightsError(ValueError):
    """A checkpoint is of another model than the one that it is loaded into."""


def check_resumed(model: nn.Module, checkpoint: dict, path: str) -> None:
    """See that training can go on from a checkpoint.

    Args:
        model: The model, in no wrapper.
        checkpoint: As it was read.
        path: Its file, for messages.

    Raises:
        WeightsError: If its tensors have other names or shapes than the
            model's, or its layers binarized something else.
    """
    state, own = _tensors(checkpoint), model.state_dict()
    problems = _problems(
        missing=own.keys() - state.keys(),
        unexpected=state.keys() - own.keys(),
        shapes=_other_shapes(state, own),
        order=[*own, *state],
    )
    if other := _other_layers(model, checkpoint):
        problems.append(other)
    if problems:
        raise WeightsError(
            f'{path}: cannot be resumed, it is of another model: '
            f'{"; ".join(problems)}. Give the config that it was trained '
            'with; load_from starts a new training from what fits'
        )


def watch_loading(
    model: nn.Module,
    checkpoint: dict,
    path: str,
    warn: Callable[[str], object],
) -> None:
    """Tell what the next ``load_state_dict`` of a model leaves out.

    Args:
        model: The model, in no wrapper.
        checkpoint: As it was read.
        path: Its file, for messages.
        warn: Gets one line, if there is something to tell.

    Raises:
        WeightsError: While the weights are loaded, if less than
            ``LEAST_SHARE`` of the model's tensors and of the file's are.
    """
    state = _tensors(checkpoint)

    # The layers themselves know which names of older files are theirs.
    def report(module: nn.Module, keys: Any) -> None:
        # It is the last one, so removing it disturbs no other.
        handle.remove()
        own = {k: v for k, v in module.state_dict().items() if _counts(k)}
        shapes = _other_shapes(state, own)
        missing = set(keys.missing_keys) & own.keys()
        loaded = len(own) - len(missing) - len(shapes)
        fewer = min(len(own), sum(map(_counts, state)))
        problems = _problems(
            missing=missing,
            unexpected=keys.unexpected_keys,
            shapes=shapes,
            order=[*own, *state],
        )
        text = f'{path}: {loaded} of {len(own)} tensors are loaded'
        if problems:
            text += f'; {"; ".join(problems)}'
        if loaded < LEAST_SHARE * fewer:
            raise WeightsError(
                f'{text}. That is no start: at least {LEAST_SHARE:.0%} of '
                f'{fewer} must fit. A file of a backbone alone goes into '
                "model.backbone.init_cfg=dict(type='Pretrained', "
                'checkpoint=FILE)'
            )
        if other := _other_layers(module, checkpoint):
            problems.append(other)
            text += f'; {other}'
        if problems:
            warn(text)

    handle = model.register_load_state_dict_post_hook(report)


def _tensors(checkpoint: dict) -> dict[str, Tensor]:
    state = checkpoint.get('state_dict', checkpoint)
    return {
        re.sub(r'^module\.', '', name): value
        for name, value in state.items()
        if isinstance(value, Tensor)
    }


def _counts(name: str) -> bool:
    # Neither makes a difference: a replica starts as a copy.
    return not name.endswith(('.aux_weight', '.num_batches_tracked'))


def _other_shapes(
    state: Mapping[str, Tensor], own: Mapping[str, Tensor]
) -> dict[str, str]:
    return {
        name: f'{name} {tuple(state[name].shape)} not {tuple(value.shape)}'
        for name, value in own.items()
        # Before torch 0.4 a number was a tensor of one.
        if name in state
        and state[name].shape != value.shape
        and not state[name].numel() == value.numel() == 1
    }


def _problems(
    missing: Iterable[str],
    unexpected: Iterable[str],
    shapes: Mapping[str, str],
    order: Iterable[str],
) -> list[str]:
    places = {name: place for place, name in enumerate(order)}
    lists = {
        'missing in the file': sorted(missing, key=places.__getitem__),
        'of other shape': [*shapes.values()],
        'not in the model': sorted(unexpected, key=places.__getitem__),
    }
    return [
        f'{len(names)} {what} ({some(names)})'
        for what, names in lists.items()
        if names
    ]


def _other_layers(model: nn.Module, checkpoint: dict) -> str | None:
    meta = checkpoint.get('meta') or {}
    trained = recorded(meta)
    if trained is None:
        # Files without are of other tools, which binarize nothing, or of
        # versions of this one that did not write it down.
        text = meta.get('cfg')
        ours = (
            isinstance(text, str) and re.search('SURGE|binarize_cfg', text)
        ) or any(name.endswith('.aux_weight') for name in _tensors(checkpoint))
        if ours:
            return None
        trained = {}
    other = differences(model, trained)
    if not other:
        return None
    return (
        f'{len(other)} layers compute something else than in its training '
        f'({other[0]})'
    )
