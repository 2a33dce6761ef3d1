"""Let mmdet's ``SSDHead`` predict.

Since mmdet 3.2, ``BaseDenseHead`` asks every head for ``loss_cls`` when it
predicts, and ``SSDHead`` has none: its loss is a function
(https://github.com/open-mmlab/mmdetection/issues/11780, open).
"""

from typing import Any

from mmdet.models.dense_heads import SSDHead


def install() -> None:
    """Let an ``SSDHead`` without ``loss_cls`` answer ``None``; idempotent."""
    SSDHead.__getattr__ = _getattr


def _getattr(self: SSDHead, name: str) -> Any:
    try:
        return super(SSDHead, self).__getattr__(name)
    except AttributeError:
        # Asked last, so that a head that has one, keeps it.
        if name == 'loss_cls':
            return None
        raise
