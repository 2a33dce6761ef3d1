"""Hooks."""

from .ags_hook import AGSHook
from .broadcast_buffers_hook import BroadcastBuffersHook
from .check_hook import SURGECheckHook
from .checkpoint_hook import SURGECheckpointHook
from .finite_hook import NonFiniteError, SURGEFiniteHook
from .progress_hook import SURGEProgressHook

__all__ = [
    'AGSHook',
    'BroadcastBuffersHook',
    'NonFiniteError',
    'SURGECheckHook',
    'SURGECheckpointHook',
    'SURGEFiniteHook',
    'SURGEProgressHook',
]
