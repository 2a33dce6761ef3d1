"""Gradient estimators, one file each."""

from .base import ESTIMATORS, Estimator, build_estimator, register_estimator
from .ste import STE

__all__ = [
    'ESTIMATORS',
    'STE',
    'Estimator',
    'build_estimator',
    'register_estimator',
]
