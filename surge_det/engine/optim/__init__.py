"""Optimizer wrappers that schedule AGS, and their constructor."""

from .ags_optim_wrapper import AGSAmpOptimWrapper, AGSOptimWrapper
from .ags_schedule import AGSSchedule
from .surge_optim_wrapper_constructor import SURGEOptimWrapperConstructor

__all__ = [
    'AGSAmpOptimWrapper',
    'AGSOptimWrapper',
    'AGSSchedule',
    'SURGEOptimWrapperConstructor',
]
