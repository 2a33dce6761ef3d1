"""Annotation files as nobody should write them: read, or refused by name."""

import copy
import json
import math
import xml.etree.ElementTree as ET

import pytest
from coco_content import content
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

pytest.importorskip('mmdet', reason='needs the toolbox')

import surge_det  # noqa: F401

# isort: split
from mmdet.datasets.transforms import LoadAnnotations

from surge_det.datasets import (
    COCOFormatDataset,
    VOCFormatDataset,
    checked_coco,
    checked_images,
    coco_format,
    dropped,
    voc_format,
)

CLASSES = ('cat', 'dog')
SIZE = (160, 120)
# What is documented; anything else is somebody's traceback.
REFUSED = (ValueError, FileNotFoundError)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A folder with two images, and no log."""
    folder = tmp_path_factory.mktemp('data')
    for name in ('Annotations', 'JPEGImages'):
        (folder / name).mkdir()
    (folder / 'all.txt').write_text('1\n2')
    for name in '12':
        Image.new('RGB', SIZE).save(folder / 'JPEGImages' / f'{name}.jpg')
    with pytest.MonkeyPatch.context() as patch:
        for module in (
            *(checked_coco, checked_images, coco_format),
            *(dropped, voc_format),
        ):
            patch.setattr(module, 'print_log', lambda *_, **__: None)
        yield folder


def check(load, *names):
    """Load; what is wrong is of a documented kind, and names a file."""
    try:
        data = load()
    except REFUSED as error:
        said = str(error)
    else:
        said = None
        infos = [data.get_data_info(i) for i in range(len(data))]
        for info in infos:
            assert (info['width'], info['height']) == SIZE
            for instance in info['instances']:
                x1, y1, x2, y2 = instance['bbox']
                assert x1 < x2 < math.inf
                assert y1 < y2 < math.inf
                assert instance['bbox_label'] in (0, 1)
                assert instance['ignore_flag'] in (0, 1)
    assert said is None or any(name in said for name in names), said


numbers = st.sampled_from(
    [
        '',
        ' ',
        '0',
        '1',
        '2',
        '30',
        '-1',
        '1e3',
        '1e400',
        '-1e400',
        'nan',
        'inf',
    ]
    + ['9' * 30, '9' * 400, '9' * 5000, '1_0', '0x10', '１２', '3.7', '0.5']
    + ['1,5', 'cat', 'dog', 'Unspecified', '1.jpg', '../2.jpg', 'a' * 300]
)
TAGS = ['annotation', 'object', 'bndbox', 'xmin', 'name', 'size', 'width', 'x']
ENCODINGS = ['utf-8', 'utf-16', 'utf-7', 'latin-1', 'big5', 'idna', 'hex', 'x']


def voc():
    root = ET.Element('annotation')
    ET.SubElement(root, 'filename').text = '1.jpg'
    size = ET.SubElement(root, 'size')
    for tag, value in zip(('width', 'height', 'depth'), (*SIZE, 3)):
        ET.SubElement(size, tag).text = str(value)
    for name in CLASSES:
        item = ET.SubElement(root, 'object')
        ET.SubElement(item, 'name').text = name
        ET.SubElement(item, 'difficult').text = '0'
        box = ET.SubElement(item, 'bndbox')
        for tag, value in zip(
            ('xmin', 'ymin', 'xmax', 'ymax'), (9, 8, 50, 60)
        ):
            ET.SubElement(box, tag).text = str(value)
    return root


def damaged(draw, content):
    """Bytes of a file, some of them others."""
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(content)))
        length = draw(st.sampled_from([0, 1, 5, len(content)]))
        content = (
            content[:at] + draw(st.binary(max_size=4)) + content[at + length :]
        )
    return content


@st.composite
def voc_files(draw):
    root = voc()
    for _ in range(draw(st.integers(0, 4))):
        element = draw(st.sampled_from(list(root.iter())))
        way = draw(st.integers(0, 5))
        children = list(element)
        if way < 3:
            element.text = draw(numbers | st.text('0123456789.-eE+ nai'))
        elif way == 3:
            element.tag = draw(st.sampled_from([*TAGS, '{http://x}y']))
        elif children and way == 4:
            element.remove(draw(st.sampled_from(children)))
        elif children:
            child = copy.deepcopy(draw(st.sampled_from(children)))
            draw(st.sampled_from(list(root.iter()))).append(child)
    content = ET.tostring(root)
    if draw(st.integers(0, 5)) == 0:
        name = draw(st.sampled_from(ENCODINGS))
        content = f'<?xml version="1.0" encoding="{name}"?>'.encode() + content
    if draw(st.integers(0, 3)) == 0:
        content = damaged(draw, content)
    return content


@given(content=voc_files(), max_dropped=st.sampled_from([0.05, 1]))
def test_voc(folder, content, max_dropped):
    good = ET.tostring(voc())
    for name, value in (('1', content), ('2', good)):
        (folder / 'Annotations' / f'{name}.xml').write_bytes(value)
    check(
        lambda: VOCFormatDataset(
            data_root=str(folder),
            ann_file='all.txt',
            metainfo=dict(classes=CLASSES),
            max_dropped=max_dropped,
        ),
        *('1.xml', 'all.txt', '1.jpg'),
    )


@given(
    st.binary(max_size=40)
    | st.lists(
        st.sampled_from(
            ['1', '2.xml', '2.jpg', '', ' ', '..', '/', '1/x', '.', 'a' * 300]
        ),
        max_size=3,
    ).map(lambda lines: '\n'.join(lines).encode())
)
def test_voc_list(folder, content):
    (folder / 'other.txt').write_bytes(content)
    for name in '12':
        (folder / 'Annotations' / f'{name}.xml').write_bytes(
            ET.tostring(voc())
        )
    check(
        lambda: VOCFormatDataset(
            data_root=str(folder),
            ann_file='other.txt',
            metainfo=dict(classes=CLASSES),
        ),
        'other.txt',
    )


def coco():
    data = content(info=dict(year=2026))
    for annotation in data['annotations']:
        annotation['segmentation'] = [[1, 2, 30, 2, 30, 40]]
    return data


scalars = (
    st.sampled_from([None, True, False, 0, 1, 2, -1, 10**400, -(10**400)])
    | st.sampled_from([0.5, 1.0, 1e308, math.nan, math.inf, -math.inf, -0.0])
    | st.sampled_from(['', '1', '01', '1.0', 'cat', '1.jpg', '9' * 400, 'é'])
    | st.sampled_from(['9' * 5000, '../1.jpg', '/', '\x00', 'nan', 'a' * 300])
    | st.text(max_size=3)
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(
            st.sampled_from(['id', 'name', 'bbox', 'counts', 'size']),
            inner,
            max_size=2,
        )
    ),
    max_leaves=6,
)


def places(value):
    """Every container of a file, with each of its keys."""
    keys = []
    if isinstance(value, dict):
        keys = list(value)
    elif isinstance(value, list):
        keys = list(range(len(value)))
    for key in keys:
        yield value, key
        yield from places(value[key])


@st.composite
def coco_files(draw):
    data = coco()
    for _ in range(draw(st.integers(0, 4))):
        found = list(places(data))
        if not found:
            break
        container, key = draw(st.sampled_from(found))
        way = draw(st.integers(0, 5))
        if way < 3:
            container[key] = draw(values)
        elif way == 3:
            del container[key]
        elif isinstance(container, list):
            container.append(copy.deepcopy(container[key]))
        else:
            container[draw(st.sampled_from(['ignore', 'area', 'id']))] = draw(
                values
            )
    if draw(st.integers(0, 20)) == 0:
        data = draw(values)
    content = json.dumps(data).encode()
    if draw(st.integers(0, 3)) == 0:
        content = damaged(draw, content)
    return content


@given(
    content=coco_files(),
    max_dropped=st.sampled_from([0.05, 1]),
    test_mode=st.booleans(),
    masks=st.booleans(),
)
def test_coco(folder, content, max_dropped, test_mode, masks):
    (folder / 'train.json').write_bytes(content)
    pipeline = [LoadAnnotations(with_mask=True)] if masks else []
    check(
        lambda: COCOFormatDataset(
            ann_file=str(folder / 'train.json'),
            data_prefix=dict(img=str(folder / 'JPEGImages')),
            metainfo=dict(classes=CLASSES),
            pipeline=pipeline,
            max_dropped=max_dropped,
            test_mode=test_mode,
        ),
        *('train.json', '1.jpg', '2.jpg'),
    )
