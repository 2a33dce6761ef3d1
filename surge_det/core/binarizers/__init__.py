"""Weight binarizers, one file each."""

from .base import BINARIZERS, Binarizer, build_binarizer, register_binarizer
from .ir_net import IRNet
from .recu import ReCU
from .scaled_sign import ScaledSign

__all__ = [
    'BINARIZERS',
    'Binarizer',
    'IRNet',
    'ReCU',
    'ScaledSign',
    'build_binarizer',
    'register_binarizer',
]
