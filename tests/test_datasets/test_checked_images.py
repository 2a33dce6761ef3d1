import logging
import warnings

import cv2
import mmcv
import numpy as np
import pytest

import surge_det  # noqa: F401

# isort: split
from mmcv.transforms import LoadImageFromFile
from mmdet.datasets import BaseDetDataset
from PIL import Image

from surge_det.datasets import checked_images
from surge_det.datasets.checked_images import (
    CheckedImages,
    Loader,
    image_faults,
    read_header,
)

pytestmark = pytest.mark.usefixtures('mmdet_scope')


LOADERS = [
    Loader(color_type, backend)
    for color_type in ('color', 'color_ignore_orientation', 'unchanged')
    for backend in (None, 'cv2', 'pillow')
]


def _info(path, width=64, height=48):
    return dict(img_path=str(path), width=width, height=height, instances=[])


@pytest.mark.parametrize('ending', ['jpg', 'png', 'webp', 'tif', 'bmp', 'ppm'])
@pytest.mark.parametrize('orientation', [None, 1, 3, 5, 6, 8])
def test_sizes_are_those_of_the_loaded_image(tmp_path, ending, orientation):
    path = str(tmp_path / f'a.{ending}')
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    kwargs = {} if ending in ('bmp', 'ppm') else dict(exif=exif)
    Image.new('RGB', (64, 48)).save(path, **kwargs)
    for loader in LOADERS:
        header = read_header(path, loader)
        image = mmcv.imread(path, *loader[:1], backend=loader.backend)
        assert (header.height, header.width) == image.shape[:2], loader
        assert header.turned == ((orientation or 1) > 1 and bool(kwargs))
        assert not header.deep


def test_a_format_that_pillow_does_not_read(tmp_path):
    path = str(tmp_path / 'a.hdr')
    cv2.imwrite(path, np.ones((48, 64, 3), np.float32))
    with pytest.raises(OSError, match='cannot identify'):
        Image.open(path)
    header = read_header(path, Loader())
    assert header == (64, 48, False, True)


def test_headers_are_read_once(tmp_path, monkeypatch):
    path = tmp_path / 'a.jpg'
    opened = []
    original = Image.open
    monkeypatch.setattr(
        Image, 'open', lambda path: opened.append(path) or original(path)
    )
    Image.new('RGB', (64, 48)).save(path)
    for _ in range(3):
        assert read_header(str(path), Loader())[:2] == (64, 48)
    assert len(opened) == 1
    Image.new('RGB', (65, 48)).save(path)
    assert read_header(str(path), Loader())[:2] == (65, 48)


@pytest.mark.parametrize(
    ('content', 'said'),
    [(None, 'no image at'), (b'', 'is empty'), (b'<html>', 'cannot be read')],
)
def test_files_that_are_no_image_are_named(tmp_path, content, said):
    path = tmp_path / 'a.jpg'
    if content is not None:
        path.write_bytes(content)
    (fault,) = image_faults([_info(path)], Loader())
    assert 'a.jpg' in fault
    assert said in fault


def test_a_large_image_is_no_attack(tmp_path, monkeypatch):
    path = tmp_path / 'a.png'
    Image.new('L', (64, 48)).save(path)
    for limit in (2000, 1000):
        monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', limit)
        checked_images._read_header.cache_clear()
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            assert image_faults([_info(path)], Loader()) == []


def _deep(tmp_path, name, highest, colours=1):
    path = tmp_path / name
    values = np.linspace(0, highest, 48 * 64 * colours).reshape(48, 64, -1)
    assert cv2.imwrite(str(path), values.astype(np.uint16))
    return _info(path)


@pytest.mark.parametrize('colours', [1, 3])
@pytest.mark.parametrize('ending', ['png', 'tif', 'jp2', 'pnm'])
def test_deep_images_are_refused_where_they_load_black(
    tmp_path, log, ending, colours
):
    full = _deep(tmp_path, f'full.{ending}', 65535, colours)
    dark = _deep(tmp_path, f'dark.{ending}', 4095, colours)
    assert read_header(full['img_path'], Loader()).deep
    assert image_faults([full], Loader()) == []
    (fault,) = image_faults([dark], Loader())
    assert f'dark.{ending} has more than 8 bits' in fault
    assert 'brightest value is 1' in fault
    # Not scaled at all, and not black.
    assert image_faults([dark], Loader('unchanged')) == []
    assert log == []
    # Scaled as the others are; it may be of the night.
    assert image_faults([dark, full], Loader()) == []
    ((level, text),) = log
    assert level == logging.WARNING
    assert f'dark.{ending}' in text


def test_a_highest_value_between_is_deep(tmp_path):
    path = tmp_path / 'a.ppm'
    path.write_bytes(b'P6 64 48 4095\n' + b'\x0f\xff' * 64 * 48 * 3)
    (fault,) = image_faults([_info(path)], Loader())
    assert 'brightest value is 15 of 255' in fault


def test_deep_grey_that_pillow_cuts_off_is_refused(tmp_path):
    info = _deep(tmp_path, 'a.png', 65535)
    (fault,) = image_faults([info], Loader('color', 'pillow'))
    assert 'a.png has 16 bits' in fault
    assert "imdecode_backend='cv2'" in fault
    info = _deep(tmp_path, 'b.png', 65535, 3)
    assert image_faults([info], Loader('color', 'pillow')) == []


class _Images(CheckedImages, BaseDetDataset):
    """Images that the test gives."""

    def __init__(self, infos, **kwargs):
        self.infos = infos
        kwargs.setdefault('pipeline', [dict(type='LoadImageFromFile')])
        super().__init__(ann_file='list.txt', **kwargs)

    def load_data_list(self):
        self.check_sample(self.infos)
        return list(self.infos)


@pytest.fixture
def infos(tmp_path):
    infos = [_info(tmp_path / f'{i}.png') for i in range(200)]
    for info in infos:
        cv2.imwrite(info['img_path'], np.zeros((48, 64, 3), np.uint8))
    return infos


def test_a_sample_is_checked(infos, monkeypatch):
    looked = []
    original = checked_images.read_header
    monkeypatch.setattr(
        checked_images,
        'read_header',
        lambda path, loader: looked.append(path) or original(path, loader),
    )
    assert len(_Images(infos)) == 200
    assert looked == [i['img_path'] for i in infos[::4]]
    for index in range(0, 48, 4):
        infos[index]['width'] = 32
    with pytest.raises(ValueError, match='12 fault') as error:
        _Images(infos)
    lines = str(error.value).splitlines()
    assert lines[0].startswith('list.txt: 12 fault(s) in 50 of 200 images')
    assert (
        '0.png is loaded as 64x48, but its annotation is for 32x48'
        in (lines[1])
    )
    assert lines[-1] == 'and 2 more; `surge-det check-data` tells all'


def test_the_pipelines_way_of_loading_counts(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / 'a.jpg'
    Image.new('RGB', (64, 48)).save(path, exif=exif)
    with pytest.raises(ValueError, match='48x64.*64x48.*its EXIF says'):
        _Images([_info(path)])
    load = dict(
        type='LoadImageFromFile', color_type='color_ignore_orientation'
    )
    (item,) = _Images([_info(path)], pipeline=[load])
    assert item['img'].shape == (48, 64, 3)


@pytest.mark.parametrize('content', [None, b'', b'<html>'])
def test_an_image_that_breaks_in_training_is_named(infos, tmp_path, content):
    # Not in the sample.
    path = tmp_path / '1.png'
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    dataset = _Images(infos)
    assert dataset[0]['img'].shape == (48, 64, 3)
    with pytest.raises(RuntimeError, match=r'1\.png: '):
        dataset[1]


def test_an_image_of_another_size_in_training_is_named(infos):
    infos[1]['height'] = 47
    with pytest.raises(ValueError, match=r'1\.png is loaded as 64x48.*64x47'):
        _Images(infos)[1]


def test_images_that_are_not_local_are_not_looked_for(infos):
    infos[0]['img_path'] = 's3://bucket/0.png'
    with pytest.raises(ValueError, match='no image at s3'):
        _Images(infos)
    for remote in (
        dict(data_prefix=dict(img='s3://bucket/')),
        dict(backend_args=dict(backend='petrel')),
        dict(pipeline=[LoadImageFromFile(backend_args=dict(a=1))]),
    ):
        assert len(_Images(infos, **remote)) == 200
    with pytest.raises(ValueError, match='no image at s3'):
        _Images(infos, backend_args=dict(backend='local'))
