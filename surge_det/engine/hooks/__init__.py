"""Hooks."""

from .ags_hook import AGSHook
from .broadcast_buffers_hook import BroadcastBuffersHook
from .check_hook import SURGECheckHook
from .checkpoint_hook import SURGECheckpointHook, Terminated
from .finite_hook import NonFiniteError, SURGEFiniteHook
from .progress_hook import SURGEProgressHook
from .seed_hook import SURGESeedHook

__all__ = [
    'AGSHook',
    'BroadcastBuffersHook',
    'NonFiniteError',
    'SURGECheckHook',
    'SURGECheckpointHook',
    'SURGEFiniteHook',
    'SURGEProgressHook',
    'SURGESeedHook',
    'Terminated',
]
