"""A frozen teacher for a 1-bit student, by the config key ``distill_cfg``."""

from .distill_cfg import Distiller, build_distilled
from .losses import (
    IDaDistillLoss,
    LogitsDistillLoss,
    PearsonDistillLoss,
    TeacherError,
)

__all__ = [
    'Distiller',
    'IDaDistillLoss',
    'LogitsDistillLoss',
    'PearsonDistillLoss',
    'TeacherError',
    'build_distilled',
]
