"""The field's methods as keywords of a binarized layer."""

from __future__ import annotations

import copy
from typing import Any

from .checks import refuse

_SCHEDULED = {
    name: {
        'activation_estimator': {'type': estimator},
        'weight_estimator': {'type': estimator},
    }
    for name, estimator in (('reste', 'ReSTE'), ('ede', 'EDE'))
}

METHODS: dict[str, dict[str, Any]] = {
    'float': {'binarize_weight': False, 'binarize_activation': False},
    'ste': {},
    # What a replica has to beat: gradients beyond the window, for nothing.
    'ste_wide': {'activation_estimator': {'type': 'STE', 'clip': 1.5}},
    'ste_leaky': {'activation_estimator': {'type': 'STE', 'leak': 0.1}},
    'approxsign': {'activation_estimator': {'type': 'ApproxSign'}},
    **_SCHEDULED,
    'irnet': {**_SCHEDULED['ede'], 'weight_binarizer': {'type': 'IRNet'}},
    'recu': {
        'activation_estimator': {'type': 'ApproxSign'},
        'weight_binarizer': {'type': 'ReCU'},
        'normalize_input': True,
    },
    'reactnet': {
        'activation_estimator': {'type': 'ApproxSign'},
        'weight_estimator': {'type': 'STE', 'clip': 1.0},
    },
    # The rest is done around the backward pass: by FSGOptimWrapper, or by
    # `surge_det.core.fsg.FSG`.
    'fsg': {},
    'surge': {'compensate': True},
    'surge_auto': {'compensate': True, 'eta': 'auto'},
}
for _keywords in METHODS.values():
    _keywords.setdefault('compensate', False)

_PREFIX = 'surge+'
# What SURGE has nothing to add to.
_ALONE = {'float', 'surge', 'surge_auto'}


def method_cfg(name: str) -> dict[str, Any]:
    """Return the keywords of ``SURGEConv2d`` and ``SURGELinear`` of a method.

    Args:
        name: A key of ``METHODS``, or ``'surge+'`` and one of those that
            binarize: the same with the replica in the backward pass.

    Returns:
        A dict of its own.

    Raises:
        ValueError: If there is no such method.

    Examples:
        >>> method_cfg('surge+approxsign')
        {'activation_estimator': {'type': 'ApproxSign'}, 'compensate': True}
    """
    base = name.removeprefix(_PREFIX) if isinstance(name, str) else None
    composed = base != name
    if base not in METHODS or (composed and base in _ALONE):
        with_surge = [_PREFIX + n for n in METHODS if n not in _ALONE]
        refuse('name', name, f'one of {[*METHODS, *with_surge]}')
    keywords = copy.deepcopy(METHODS[base])
    if composed:
        keywords['compensate'] = True
    return keywords
