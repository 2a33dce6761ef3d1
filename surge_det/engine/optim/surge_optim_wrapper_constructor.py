"""Learning-rate and weight-decay factors for binarized layers."""

from __future__ import annotations

import logging

from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS
from torch import nn

from surge_det.core import checks
from surge_det.core.layers import SURGELayer

from .ags_optim_wrapper import AGS_REMEDY, AGSMixin

_FACTORS = ('latent_lr_mult', 'latent_decay_mult')
_STOCK_KEYS = (
    'custom_keys',
    'bias_lr_mult',
    'bias_decay_mult',
    'norm_decay_mult',
    'dwconv_decay_mult',
    'flat_decay_mult',
    'dcn_offset_lr_mult',
    'bypass_duplicate',
)


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class SURGEOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """mmengine's default constructor, with factors for SURGE layers.

    The factors multiply what the stock rules of ``paramwise_cfg`` (or, where
    none applies, the optimizer's settings) give to a parameter.
    ``custom_keys`` cannot express them: it matches substrings of names, and
    ``weight`` is in ``aux_weight`` and in every other layer's name.

    If the wrapper's config has ``ags`` and its type takes none (as where
    mmdet's stock ``tools/train.py --amp`` replaced the type), ``ags`` is
    dropped with a warning.

    Examples:
        >>> optim_wrapper = dict(
        ...     type='AGSOptimWrapper',
        ...     constructor='SURGEOptimWrapperConstructor',
        ...     paramwise_cfg=dict(latent_decay_mult=0.),
        ...     optimizer=dict(type='SGD', lr=0.01, weight_decay=1e-4))

    Args:
        optim_wrapper_cfg: As in ``DefaultOptimWrapperConstructor``.
        paramwise_cfg: Keys of ``DefaultOptimWrapperConstructor``, and

            ``latent_lr_mult`` and ``latent_decay_mult``, factors for
            ``weight`` of SURGE layers that binarize it: numbers >= 0, 1 by
            default.

    Raises:
        ValueError: If a key is unknown, a factor is out of range, or the
            optimizer's config lacks the ``lr`` or ``weight_decay`` that a
            factor multiplies.
    """

    def _validate_cfg(self) -> None:
        super()._validate_cfg()
        unknown = sorted(set(self.paramwise_cfg) - {*_FACTORS, *_STOCK_KEYS})
        if unknown:
            raise ValueError(
                f'paramwise_cfg: unknown key {unknown}; allowed: '
                f'{[*_FACTORS, *_STOCK_KEYS]}'
            )
        for key in _FACTORS:
            value = self.paramwise_cfg.get(key, 1.0)
            checks.number(f'paramwise_cfg: {key}', value, low=0)
            base, name = (
                (self.base_lr, 'lr')
                if key.endswith('lr_mult')
                else (self.base_wd, 'weight_decay')
            )
            if value != 1 and base is None:
                raise ValueError(
                    f'paramwise_cfg: {key}={value!r} needs {name!r} in the '
                    "optimizer's config"
                )

    def add_params(
        self,
        params: list[dict],
        module: nn.Module,
        prefix: str = '',
        is_dcn_module: int | float | None = None,
    ) -> None:
        """Add all parameters of a module to the parameter groups.

        Args:
            params: Parameter groups, changed in place.
            module: The module.
            prefix: Its name.
            is_dcn_module: As in ``DefaultOptimWrapperConstructor``.
        """
        start = len(params)
        super().add_params(params, module, prefix, is_dcn_module)
        if not isinstance(module, SURGELayer):
            return
        for group in params[start:]:
            (param,) = group['params']
            if param is module.weight and module.binarize_weight:
                self._scale(group, f'{prefix}.weight')

    def _scale(self, group: dict, name: str) -> None:
        for key, base, factor in (
            ('lr', self.base_lr, 'latent_lr_mult'),
            ('weight_decay', self.base_wd, 'latent_decay_mult'),
        ):
            mult = self.paramwise_cfg.get(factor, 1.0)
            if mult != 1:
                group[key] = group.get(key, base) * mult
                print_log(
                    f'paramwise_options -- {name.lstrip(".")}:'
                    f'{key}={group[key]} ({factor}={mult})',
                    logger='current',
                )

    def __call__(self, model: nn.Module) -> OptimWrapper:
        """Build the optimizer wrapper for a model."""
        if 'ags' in self.optim_wrapper_cfg:
            name = self.optim_wrapper_cfg.get('type', 'OptimWrapper')
            wrapper = name
            if isinstance(name, str):
                with OPTIM_WRAPPERS.switch_scope_and_registry(
                    None
                ) as registry:
                    wrapper = registry.get(name)
            # An unknown name is left to the build, which reports it.
            if isinstance(wrapper, type) and not issubclass(wrapper, AGSMixin):
                del self.optim_wrapper_cfg['ags']
                print_log(
                    f'The AGS settings of the config are lost: '
                    f'optim_wrapper.type={wrapper.__name__!r} takes none. '
                    f'{AGS_REMEDY}',
                    logger='current',
                    level=logging.WARNING,
                )
        return super().__call__(model)
