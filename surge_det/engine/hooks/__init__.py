"""Hooks."""

from .ags_hook import AGSHook

__all__ = ['AGSHook']
