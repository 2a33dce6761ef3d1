import numpy as np
import pytest
import torch

pytest.importorskip('mmdet', reason='needs the toolbox')

import surge_det  # noqa: F401

# isort: split
from mmdet.registry import DATASETS
from mmengine.dataset import default_collate
from PIL import Image

pytestmark = pytest.mark.usefixtures('mmdet_scope')


@pytest.fixture
def folder(tmp_path):
    for i, name in enumerate(('cat', 'dog')):
        (tmp_path / name).mkdir()
        for j in range(2):
            pixels = np.zeros((6 + j, 8, 3), np.uint8)
            pixels[..., i] = 100 + j
            Image.fromarray(pixels).save(tmp_path / name / f'{j}.png')
    return tmp_path


def build(folder, **kwargs):
    return DATASETS.build(
        dict(type='ImageFolderDataset', data_root=str(folder), **kwargs)
    )


def test_items_labels_and_batches(folder):
    dataset = build(
        folder, pipeline=[dict(type='Resize', size=(4, 5))], num_classes=2
    )
    assert len(dataset) == 4
    assert dataset.metainfo == dict(classes=('cat', 'dog'))
    batch = default_collate([dataset[i] for i in range(4)])
    assert batch['inputs'].dtype == torch.uint8
    assert batch['inputs'].shape == (4, 3, 4, 5)
    assert batch['data_samples'].tolist() == [0, 0, 1, 1]
    # RGB: cats are red, dogs green.
    assert batch['inputs'][1, :, 0, 0].tolist() == [101, 0, 0]
    assert batch['inputs'][2, :, 0, 0].tolist() == [0, 100, 0]


def test_without_transforms_images_stay_as_they_are(folder):
    assert build(folder)[3]['inputs'].shape == (3, 7, 8)


@pytest.mark.parametrize(
    ('kwargs', 'said'),
    [
        (dict(num_classes=3), 'has 2 class folders'),
        (dict(pipeline=[dict(type='RandomFlip')]), "type='RandomFlip'"),
        (dict(pipeline=[dict(size=3)]), 'type=None'),
        (dict(pipeline=[dict(type='functional')]), "type='functional'"),
        (dict(pipeline=[dict(type='Resize', scale=3)]), 'Resize: .*scale'),
    ],
)
def test_wrong_arguments(folder, kwargs, said):
    with pytest.raises(ValueError, match=said):
        build(folder, **kwargs)


def test_absent_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match='SURGE_DATA_ROOT'):
        build(tmp_path / 'nowhere')
    with pytest.raises(FileNotFoundError, match='class folder'):
        build(tmp_path)
