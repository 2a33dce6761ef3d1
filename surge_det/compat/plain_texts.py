"""Let mmengine draw texts as they are: a class may be called "US$ bill".

Matplotlib takes what is between two dollar signs for a formula, and ends at
one that it cannot read.
"""

import functools
from types import ModuleType


def install(module: ModuleType) -> None:
    """Let ``Visualizer.draw_texts`` read no formulas; idempotent.

    Args:
        module: ``mmengine.visualization.visualizer``.
    """
    draw_texts = module.Visualizer.draw_texts
    if hasattr(draw_texts, 'is_plain'):
        return

    @functools.wraps(draw_texts)
    def plainly(*args, **kwargs):
        from matplotlib import rc_context

        with rc_context({'text.parse_math': False}):
            return draw_texts(*args, **kwargs)

    plainly.is_plain = True
    module.Visualizer.draw_texts = plainly
