"""Settings of FSG."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .. import checks
from .fast_net import FastNet
from .slow_net import SlowNet

DTYPES = {
    'float64': torch.float64,
    'float32': torch.float32,
    'bfloat16': torch.bfloat16,
    'float16': torch.float16,
}


@dataclass(frozen=True)
class FSGConfig:
    """Settings of :class:`~surge_det.core.fsg.FSG`.

    Args:
        alpha: Share of the slow network, in [0, 1].
        history_length: How many gradients a layer keeps, L >= 1.
        history_dtype: Type that they are kept in: a ``torch.dtype`` or its
            name, ``'float32'``, ``'bfloat16'``, ``'float16'`` or
            ``'float64'``. Both networks see gradients rounded to it; small
            ones are zero in float16.
        fast_lr: Learning rate of the fast network's Adam, > 0.
        slow_lr: Learning rate of the slow network's Adam, > 0.
        fast: Arguments of :class:`FastNet`.
        slow: Arguments of :class:`SlowNet` but ``num_layers``.

    Raises:
        ValueError: If a setting is out of range.
        ImportError: If mambapy is not installed.
    """

    alpha: float = 0.9
    history_length: int = 5
    history_dtype: str | torch.dtype = 'float32'
    fast_lr: float = 1e-2
    slow_lr: float = 1e-3
    fast: dict | None = None
    slow: dict | None = None

    def __post_init__(self) -> None:
        checks.number('fsg: alpha', self.alpha, low=0, high=1)
        checks.integer('fsg: history_length', self.history_length, 1)
        if self.history_dtype not in DTYPES.values():
            checks.one_of('fsg: history_dtype', self.history_dtype, DTYPES)
        checks.number('fsg: fast_lr', self.fast_lr, above=0)
        checks.number('fsg: slow_lr', self.slow_lr, above=0)
        for name in ('fast', 'slow'):
            value = getattr(self, name)
            if value is not None and not isinstance(value, dict):
                checks.refuse(f'fsg: {name}', value, 'a dict of arguments')
        self.build_nets(1)

    def build_nets(self, num_layers: int) -> tuple[FastNet, SlowNet]:
        """Build both networks; torch's global generator stays as it is.

        So a run with FSG sees the same random numbers as its twin without.
        """
        with torch.random.fork_rng(devices=[]):
            return (
                _build('fast', FastNet, **(self.fast or {})),
                _build('slow', SlowNet, num_layers, **(self.slow or {})),
            )


def _build(name: str, cls: type, *args: Any, **settings: Any) -> nn.Module:
    try:
        return cls(*args, **settings)
    except (TypeError, ValueError) as error:
        raise ValueError(f'fsg: {name}: {error}') from error
