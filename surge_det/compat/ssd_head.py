"""Let mmdet's ``SSDHead`` predict.

Since mmdet 3.2, ``BaseDenseHead`` asks every head for ``loss_cls`` when it
predicts, and ``SSDHead`` has none: its loss is a function
(https://github.com/open-mmlab/mmdetection/issues/11780, open).
"""

from types import ModuleType


def install(module: ModuleType) -> None:
    """Let an ``SSDHead`` without ``loss_cls`` answer ``None``; idempotent.

    Args:
        module: ``mmdet.models.dense_heads.ssd_head``.
    """
    head_class = module.SSDHead

    def getattr_or_none(self, name):
        try:
            return super(head_class, self).__getattr__(name)
        except AttributeError:
            # Asked last, so that a head that has one, keeps it.
            if name == 'loss_cls':
                return None
            raise

    head_class.__getattr__ = getattr_or_none
