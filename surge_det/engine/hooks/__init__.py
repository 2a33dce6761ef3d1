"""Hooks."""

from .ags_hook import AGSHook
from .progress_hook import SURGEProgressHook

__all__ = ['AGSHook', 'SURGEProgressHook']
