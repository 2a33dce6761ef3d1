import numpy as np
import pytest

pytest.importorskip('mmdet', reason='needs the toolbox')

import surge_det  # noqa: F401

# isort: split
import torch
from mmdet.structures import DetDataSample
from mmdet.visualization import DetLocalVisualizer, get_palette
from mmengine.structures import InstanceData

CLASSES = tuple(f'class {i}' for i in range(25))
RED, BLUE = (255, 0, 0), (0, 0, 255)
PALETTES = {
    'absent': None,
    'random': 'random',
    'shorter': [RED, BLUE],
    'longer': [RED, BLUE] * 20,
    'empty': [],
    'lists': [[255, 0, 0], [0, 0, 255]],
    'tuple': (RED, BLUE),
    'no tuple': (),
    'names': ['red', 'blue'],
    'one': RED,
    'one name': 'red',
    'voc': 'voc',
    'coco': 'coco',
}


@pytest.mark.parametrize('palette', PALETTES.values(), ids=PALETTES)
def test_every_class_has_a_colour(palette):
    colors = get_palette(palette, len(CLASSES))
    assert len(colors) >= len(CLASSES)
    for color in colors:
        assert isinstance(color, tuple)
        assert len(color) == 3
    if palette and RED in get_palette(palette, 1):
        assert colors[0] == RED
    if isinstance(palette, (list, tuple)) and len(palette) == 2:
        assert colors[:2] == [RED, BLUE]
        # The others can be told apart.
        assert len(set(colors)) > 20


@pytest.mark.parametrize('palette', PALETTES.values(), ids=PALETTES)
def test_mmdet_draws_it(palette):
    visualizer = DetLocalVisualizer()
    visualizer.dataset_meta = {'classes': CLASSES, 'palette': palette}
    found = InstanceData(
        bboxes=torch.tensor([[4.0, 4, 40, 40], [20.0, 10, 60, 50]]),
        labels=torch.tensor([24, 0]),
        scores=torch.tensor([0.9, 0.8]),
    )
    sample = DetDataSample(gt_instances=found, pred_instances=found)
    image = np.full((64, 64, 3), 128, np.uint8)
    visualizer.add_datasample('image', image, sample)
    assert (visualizer.get_image() != 128).any()
