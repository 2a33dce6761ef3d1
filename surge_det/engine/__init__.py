"""What mmengine's runner builds: optimizer wrappers and hooks."""

from .hooks import (
    AGSHook,
    BroadcastBuffersHook,
    NonFiniteError,
    SURGECheckHook,
    SURGECheckpointHook,
    SURGEFiniteHook,
    SURGEProgressHook,
    SURGESeedHook,
    Terminated,
)
from .loaded_weights import WeightsError
from .optim import (
    AGSAmpOptimWrapper,
    AGSOptimWrapper,
    FSGAmpOptimWrapper,
    FSGOptimWrapper,
    SURGEOptimWrapperConstructor,
)

__all__ = [
    'AGSAmpOptimWrapper',
    'AGSHook',
    'AGSOptimWrapper',
    'BroadcastBuffersHook',
    'FSGAmpOptimWrapper',
    'FSGOptimWrapper',
    'NonFiniteError',
    'SURGECheckHook',
    'SURGECheckpointHook',
    'SURGEFiniteHook',
    'SURGEOptimWrapperConstructor',
    'SURGEProgressHook',
    'SURGESeedHook',
    'Terminated',
    'WeightsError',
]
