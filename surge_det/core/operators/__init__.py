"""Linear operators with their adjoints, and how they are computed fast."""

from .conv import ConvOperator
from .linear import LinearOperator

__all__ = ['ConvOperator', 'LinearOperator']
