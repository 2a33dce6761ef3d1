from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('surge_runtime', reason='needs runtime/ installed')

import cv2
from PIL import Image
from surge_runtime import Detections
from surge_runtime.images import draw, to_array

from surge_det.datasets.root import data_root


@pytest.fixture
def picture():
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (37, 53, 3), dtype=np.uint8)
    return Image.fromarray(cv2.GaussianBlur(noise, (3, 3), 0))


def check(path):
    ours, theirs = to_array(path), cv2.imread(str(path))
    assert ours.dtype == np.uint8
    assert ours.flags.c_contiguous
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ('suffix', 'mode'),
    [
        *(('png', mode) for mode in ('1', 'L', 'P', 'RGB', 'RGBA', 'LA')),
        *(('bmp', mode) for mode in ('1', 'L', 'P', 'RGB', 'RGBA')),
        *(('jpg', mode) for mode in ('L', 'RGB')),
    ],
)
def test_pixels_are_those_of_opencv(picture, tmp_path, suffix, mode):
    path = tmp_path / f'image.{suffix}'
    picture.convert(mode).save(path)
    check(path)


@pytest.mark.parametrize('subsampling', [0, 1, 2])
@pytest.mark.parametrize('progressive', [False, True])
def test_kinds_of_jpeg(picture, tmp_path, subsampling, progressive):
    path = tmp_path / 'image.jpg'
    picture.save(path, subsampling=subsampling, progressive=progressive)
    check(path)


@pytest.mark.parametrize('orientation', range(1, 9))
@pytest.mark.parametrize('suffix', ['jpg', 'png'])
def test_exif_turns(picture, tmp_path, orientation, suffix):
    exif = Image.Exif()
    exif[0x112] = orientation
    path = tmp_path / f'image.{suffix}'
    picture.save(path, exif=exif)
    check(path)
    with Image.open(path) as opened:
        np.testing.assert_array_equal(to_array(opened), to_array(path))


def test_sixteen_bits_of_gray(tmp_path):
    path = tmp_path / 'image.png'
    gray = np.arange(0, 65536, 997, dtype=np.uint16).reshape(6, 11)
    assert cv2.imwrite(str(path), gray)
    check(path)


def test_data_sets():
    root = Path(data_root())
    images = [
        image
        for name in ('bccd', 'coco_tiny')
        for image in sorted((root / name).rglob('*.jpg'))[::20]
    ]
    if not images:
        pytest.skip('no images in SURGE_DATA_ROOT')
    for image in images:
        check(image)


def test_an_array_is_taken_as_it_is():
    image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    assert to_array(image) is image
    turned = to_array(image[:, ::-1])
    assert turned.flags.c_contiguous
    np.testing.assert_array_equal(turned, image[:, ::-1])


@pytest.mark.parametrize(
    'image',
    [
        np.zeros((2, 2, 3), np.float32),
        np.zeros((2, 2), np.uint8),
        np.zeros((2, 2, 4), np.uint8),
        np.zeros((0, 2, 3), np.uint8),
    ],
)
def test_other_arrays(image):
    with pytest.raises(ValueError, match=r'must be uint8 \(H, W, 3\) in BGR'):
        to_array(image)


def test_other_types():
    with pytest.raises(TypeError, match='path, a Pillow image or a uint8'):
        to_array([1, 2])


def test_files_that_are_no_images(picture, tmp_path):
    with pytest.raises(FileNotFoundError, match=r'no\.jpg.* does not exist'):
        to_array(tmp_path / 'no.jpg')
    path = tmp_path / 'image.jpg'
    path.write_text('no image')
    with pytest.raises(ValueError, match=r'image\.jpg.: not an image of'):
        to_array(path)
    picture.save(path)
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(ValueError, match=r'image\.jpg.: .*truncated'):
        to_array(path)


def test_formats_that_run_programs_are_not_read(picture, tmp_path):
    path = tmp_path / 'image.jpg'
    picture.save(path, format='EPS')
    with pytest.raises(ValueError, match='not an image of'):
        to_array(path)


def test_huge_images_are_not_read(tmp_path):
    path = tmp_path / 'image.png'
    Image.new('1', (10_000, 10_000)).save(path)
    with pytest.raises(ValueError, match='10000 x 10000 pixels; at most'):
        to_array(path)


def test_picture_of_detections():
    image = np.full((200, 300, 3), (200, 100, 0), np.uint8)
    boxes = [[20, 60, 120, 150], [-9, -9, 500, 500], [200, 60, 280, 150]]
    found = Detections(
        np.array(boxes, np.float32),
        np.array([0.9, 0.8, 0.3], np.float32),
        np.array([1, 0, 1]),
        ('cat', 'dog'),
    )
    drawn = np.asarray(draw(image, found, 0.3))
    assert drawn.shape == image.shape
    background = (0, 100, 200)
    # Its left side, the frame of the large one, the one that is not above.
    assert tuple(drawn[100, 20]) != background
    assert tuple(drawn[199, 150]) != background
    assert tuple(drawn[100, 200]) == background
    assert tuple(drawn[100, 70]) == background
    # Nothing was drawn into the input.
    assert (image == (200, 100, 0)).all()
