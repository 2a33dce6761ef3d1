"""Let mmdet draw one's own classes, whatever palette stands beside them.

They often keep the palette of the config's base. mmdet ends at the first
picture where that has fewer colours than classes, or where its colours are
lists, as in JSON, instead of tuples.
"""

import functools
from types import ModuleType


def install(module: ModuleType) -> None:
    """Let ``get_palette`` take any palette; idempotent.

    Args:
        module: ``mmdet.visualization.palette``, or a module that has imported
            the function from there.
    """
    get_palette = module.get_palette
    if hasattr(get_palette, '__wrapped__'):
        return

    @functools.wraps(get_palette)
    def long_enough(palette, num_classes):
        from mmengine.visualization.utils import color_str2rgb

        # A tuple of numbers is one colour for all classes.
        if isinstance(palette, tuple) and all(
            isinstance(color, (list, tuple, str)) for color in palette
        ):
            palette = list(palette)
        if isinstance(palette, list):
            palette = [
                color_str2rgb(color) if isinstance(color, str) else (*color,)
                for color in palette
            ]
        try:
            return get_palette(palette, num_classes)
        except AssertionError:
            # Too short; of no classes it returns what there is.
            colors = get_palette(palette, 0)
            more = get_palette('random', num_classes)
            return [*colors, *more[len(colors) :]]

    module.get_palette = long_enough
