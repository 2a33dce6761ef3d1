"""Optimizer wrappers that set AGS or train FSG; their constructor."""

from .ags_optim_wrapper import AGSAmpOptimWrapper, AGSOptimWrapper
from .fsg_optim_wrapper import FSGAmpOptimWrapper, FSGOptimWrapper
from .surge_optim_wrapper_constructor import SURGEOptimWrapperConstructor

__all__ = [
    'AGSAmpOptimWrapper',
    'AGSOptimWrapper',
    'FSGAmpOptimWrapper',
    'FSGOptimWrapper',
    'SURGEOptimWrapperConstructor',
]
