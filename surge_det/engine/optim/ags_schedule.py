"""Settings of AGS over a training run."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase

from surge_det.core import checks
from surge_det.core.ags import check_eta

_DECAYS = ('constant', 'linear', 'cosine')


@dataclass
class AGSSchedule:
    r"""What the base factor :math:`\eta` of every layer is, and when.

    At iteration ``t`` (counted from 0) of ``T`` a layer has
    ``eta * factor(t, T)``, where ``eta`` is its own: from ``overrides``, else
    ``eta``, else what it was built with. With warm-up ``W``, start ``s`` and
    end ``d`` the factor is

    - ``s + (1 - s) * t / W`` while ``t < W``;
    - then, with ``p = (t - W) / (T - W)``: 1 (``'constant'``),
      ``1 + (d - 1) * p`` (``'linear'``) or
      ``d + (1 - d) * (1 + cos(pi * p)) / 2`` (``'cosine'``).

    The source (SURGE, arXiv 2605.10989) keeps :math:`\eta` constant, which is
    the default here too.

    Args:
        eta: Base factor of all layers, >= 0 or ``'auto'``
            (:class:`~surge_det.core.AGS`); ``None`` keeps what each layer was
            built with.
        warmup_iters: Length ``W`` of the warm-up in iterations (backward
            passes).
        warmup_start: Factor ``s`` >= 0 at iteration 0.
        decay: ``'constant'``, ``'linear'`` or ``'cosine'``.
        decay_end: Factor ``d`` >= 0 that the decay reaches at ``T``.
        overrides: Base factor of single layers, by a glob (``fnmatch``; ``*``
            matches dots too) over the layer's name in the unwrapped model,
            such as ``{'backbone.layer1.*': 0.1}``. Of several patterns that
            match, the last one holds.

    Raises:
        ValueError: If a setting is out of range.
    """

    eta: float | str | None = None
    warmup_iters: int = 0
    warmup_start: float = 0.0
    decay: str = 'constant'
    decay_end: float = 0.0
    overrides: dict[str, float | str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.eta = check_eta('ags: eta', self.eta, or_none=True)
        checks.integer('ags: warmup_iters', self.warmup_iters, 0)
        for name in ('warmup_start', 'decay_end'):
            value = checks.number(f'ags: {name}', getattr(self, name), low=0)
            setattr(self, name, value)
        checks.one_of('ags: decay', self.decay, _DECAYS)
        if not isinstance(self.overrides, dict):
            checks.refuse(
                'ags: overrides', self.overrides, 'a dict of pattern -> eta'
            )
        self.overrides = {
            str(pattern): check_eta(f'ags: overrides[{pattern!r}]', eta)
            for pattern, eta in self.overrides.items()
        }

    @classmethod
    def from_cfg(cls, cfg: AGSSchedule | dict | None) -> AGSSchedule:
        """Make a schedule from a config's ``ags`` entry.

        Args:
            cfg: A schedule, a dict of the arguments above, or ``None`` for
                the defaults.

        Raises:
            ValueError: If it is none of these, or names an unknown setting.
        """
        if isinstance(cfg, cls):
            return cfg
        if cfg is None:
            return cls()
        if not isinstance(cfg, dict):
            checks.refuse('ags', cfg, 'a dict or None')
        return checks.from_settings(cls, cfg, 'ags')

    def to_dict(self) -> dict:
        """Settings as plain Python values, as a checkpoint stores them."""
        return asdict(self)

    def factor(self, cur_iter: int, max_iters: int) -> float:
        """Factor on every layer's base factor at an iteration.

        Args:
            cur_iter: Iterations done before this one.
            max_iters: Iterations of the whole run; only a decay needs it, and
                -1 stands for unknown.

        Raises:
            ValueError: If there is a decay and ``max_iters`` is unknown.
        """
        if cur_iter < self.warmup_iters:
            start = self.warmup_start
            return start + (1 - start) * cur_iter / self.warmup_iters
        if self.decay == 'constant':
            return 1.0
        if max_iters <= 0:
            raise ValueError(
                f'ags: decay={self.decay!r} needs the number of iterations, '
                f'got max_iters={max_iters}; call '
                'initialize_count_status(model, cur_iter, max_iters) of the '
                "optimizer wrapper (mmengine's Runner does for a single "
                "wrapper), or use decay='constant'"
            )
        length = max(max_iters - self.warmup_iters, 1)
        progress = min((cur_iter - self.warmup_iters) / length, 1.0)
        if self.decay == 'linear':
            return 1 + (self.decay_end - 1) * progress
        cosine = (1 + math.cos(math.pi * progress)) / 2
        return self.decay_end + (1 - self.decay_end) * cosine

    def override_etas(self, names: Iterable[str]) -> dict[str, float | str]:
        """Base factors that ``overrides`` gives to the layers so named.

        Raises:
            ValueError: If a pattern matches no layer.
        """
        names = list(names)
        etas = {}
        for pattern, eta in self.overrides.items():
            matched = [n for n in names if fnmatchcase(n, pattern)]
            if not matched:
                shown = ', '.join(names[:5])
                more = f', ... ({len(names)} in all)' if names[5:] else ''
                raise ValueError(
                    f'ags: overrides pattern {pattern!r} matches no SURGE '
                    f'layer that has a replica; such layers are: {shown}{more}'
                )
            etas.update(dict.fromkeys(matched, eta))
        return etas
