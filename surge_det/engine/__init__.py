"""What mmengine's runner builds: optimizer wrappers and hooks."""

from .hooks import AGSHook
from .optim import (
    AGSAmpOptimWrapper,
    AGSOptimWrapper,
    AGSSchedule,
    SURGEOptimWrapperConstructor,
)

__all__ = [
    'AGSAmpOptimWrapper',
    'AGSHook',
    'AGSOptimWrapper',
    'AGSSchedule',
    'SURGEOptimWrapperConstructor',
]
