"""What mmengine's runner builds: optimizer wrappers and hooks."""

from .hooks import (
    AGSHook,
    BroadcastBuffersHook,
    SURGECheckHook,
    SURGECheckpointHook,
    SURGEProgressHook,
)
from .optim import (
    AGSAmpOptimWrapper,
    AGSOptimWrapper,
    AGSSchedule,
    FSGAmpOptimWrapper,
    FSGOptimWrapper,
    SURGEOptimWrapperConstructor,
)

__all__ = [
    'AGSAmpOptimWrapper',
    'AGSHook',
    'AGSOptimWrapper',
    'AGSSchedule',
    'BroadcastBuffersHook',
    'FSGAmpOptimWrapper',
    'FSGOptimWrapper',
    'SURGECheckHook',
    'SURGECheckpointHook',
    'SURGEOptimWrapperConstructor',
    'SURGEProgressHook',
]
