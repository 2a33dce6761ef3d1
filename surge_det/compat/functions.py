"""Give mmdet a registry of functions, which it is the only one to lack.

mmengine looks for a config's ``collate_fn`` in mmdet's scope, and for want of
one there warns at every start of an inferencer before it takes its own.
"""

from types import ModuleType


def install(module: ModuleType) -> None:
    """Make the registry, unless there is one; idempotent.

    Args:
        module: ``mmdet.registry``.
    """
    from mmengine.registry import FUNCTIONS, Registry

    if 'mmdet' not in FUNCTIONS.children:
        # It joins its parent's children, and finds what is in the parent.
        Registry('function', parent=FUNCTIONS, scope='mmdet')
