"""Optimizer wrappers that schedule AGS or train FSG; their constructor."""

from .ags_optim_wrapper import AGSAmpOptimWrapper, AGSOptimWrapper
from .ags_schedule import AGSSchedule
from .fsg_optim_wrapper import FSGAmpOptimWrapper, FSGOptimWrapper
from .surge_optim_wrapper_constructor import SURGEOptimWrapperConstructor

__all__ = [
    'AGSAmpOptimWrapper',
    'AGSOptimWrapper',
    'AGSSchedule',
    'FSGAmpOptimWrapper',
    'FSGOptimWrapper',
    'SURGEOptimWrapperConstructor',
]
