import numpy as np
import pytest

pytest.importorskip('mmdet', reason='needs the toolbox')

import surge_det  # noqa: F401

# isort: split
from mmengine.visualization import Visualizer


# The first is no formula, the second would be drawn as one.
@pytest.mark.parametrize('name', [r'$\frac{$', '$a$', 'US$ bill'])
def test_dollar_signs_are_drawn(name):
    visualizer = Visualizer(image=np.full((64, 64, 3), 128, np.uint8))
    visualizer.draw_texts(name, np.array([[9, 9]]))
    (text,) = visualizer.ax_save.texts
    assert text.get_text() == name
    assert not text.get_parse_math()
    assert (visualizer.get_image() != 128).any()
