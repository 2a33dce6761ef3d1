"""Gradient estimators, one file each."""

from .approx_sign import ApproxSign
from .base import ESTIMATORS, Estimator, build_estimator, register_estimator
from .ede import EDE
from .reste import ReSTE
from .ste import STE

__all__ = [
    'EDE',
    'ESTIMATORS',
    'STE',
    'ApproxSign',
    'Estimator',
    'ReSTE',
    'build_estimator',
    'register_estimator',
]
