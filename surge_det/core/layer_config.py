"""Keywords of the 1-bit layers, checked in one place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from . import checks
from .ags import check_eta
from .binarizers import ScaledSign, build_binarizer
from .estimators import STE, build_estimator


@dataclass
class LayerConfig:
    """What a 1-bit layer has beyond its float layer.

    Estimators and the binarizer may be given as objects or as dicts. Here
    they become objects, so a config belongs to one layer.

    Args:
        activation_estimator: Surrogate derivative of the input's sign: an
            object with ``derivative(x)`` or ``dict(type='STE', clip=1.0)``.
            ``None`` means ``STE(clip=1.0)``.
        weight_estimator: The same for the weights' sign. ``None`` means
            ``STE(clip=None)``, the identity.
        eta: Base factor of AGS, >= 0, or ``'auto'``; 0 gives the plain
            estimator's gradients, and zeros for ``aux_weight``.
        compensate: Whether there is a replica at all.
        binarize_weight: Whether weights are binarized.
        binarize_activation: Whether the input is binarized.
        shift: Start of the learned shift of each input channel, which is
            added to the input before sign and replica (ReActNet's RSign,
            arXiv 2003.03488, eq. 1); ``None`` for no shift.
        weight_binarizer: How weights are binarized: a
            :class:`~surge_det.core.binarizers.Binarizer` or
            ``dict(type='IRNet')``. ``None`` means ``ScaledSign()``. Its
            parameters, where it has any, are ``weight_binarizer.*`` in the
            state dict.
        normalize_input: Whether, in training, each sample (first dimension)
            is divided by its standard deviation (plus 1e-5 under the root)
            before sign and replica. The output is the same; gradients are
            scaled, and estimators see other values (ReCU, arXiv 2103.12369).
        aux_dtype: ``'bfloat16'``: the type of the replica's two products in
            the backward pass and of the copy of the input that is kept for
            them; ``None`` for the type of the others.

    Raises:
        ValueError: If a value is out of range; the keyword is named.
    """

    activation_estimator: Any = None
    weight_estimator: Any = None
    eta: float | str = 0.1
    compensate: bool = True
    binarize_weight: bool = True
    binarize_activation: bool = True
    shift: float | None = None
    weight_binarizer: Any = None
    normalize_input: bool = False
    aux_dtype: torch.dtype | str | None = None

    def __post_init__(self) -> None:
        for name in (
            'compensate',
            'binarize_weight',
            'binarize_activation',
            'normalize_input',
        ):
            checks.boolean(name, getattr(self, name))
        self.eta = check_eta('eta', self.eta)
        if self.normalize_input and not self.binarize_activation:
            raise ValueError(
                'normalize_input=True would change a real input; with '
                'binarize_activation=False only False is allowed'
            )
        self.shift = checks.number('shift', self.shift, or_none=True)
        # Not float16: gradients are too small for it, and scaled where it is
        # the type of mixed precision.
        if self.aux_dtype is not None:
            if self.aux_dtype not in ('bfloat16', torch.bfloat16):
                checks.refuse(
                    'aux_dtype', self.aux_dtype, "None or 'bfloat16'"
                )
            self.aux_dtype = torch.bfloat16
        for name, build, default in (
            ('activation_estimator', build_estimator, STE(clip=1.0)),
            ('weight_estimator', build_estimator, STE(clip=None)),
            ('weight_binarizer', build_binarizer, ScaledSign()),
        ):
            given = getattr(self, name)
            built = build(default if given is None else given, name)
            setattr(self, name, built)


@dataclass
class ConvConfig(LayerConfig):
    """:class:`LayerConfig`, and what only convolutions have.

    Args:
        pad_value: What the binarized input is padded with: 0, -1 or +1. The
            replica's input is always padded with 0.
    """

    pad_value: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not checks.is_number(self.pad_value) or self.pad_value not in (
            -1,
            0,
            1,
        ):
            checks.refuse('pad_value', self.pad_value, '0, -1 or +1')
        if self.pad_value != 0 and not self.binarize_activation:
            raise ValueError(
                f'pad_value={self.pad_value!r} pads a binarized input; with '
                'binarize_activation=False only 0 is allowed'
            )
