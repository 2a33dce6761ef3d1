import json
import re

import pytest

pytest.importorskip('mmdet', reason='needs the toolbox')

from PIL import Image

from surge_det.cli.main import main
from surge_det.datasets.shapes import CLASSES, prepare_shapes

NAME = 'surge_faster_rcnn_r18_demo'


@pytest.fixture
def shapes(tmp_path, monkeypatch):
    monkeypatch.setenv('SURGE_DATA_ROOT', str(tmp_path))
    return prepare_shapes(tmp_path, 6, 5, 0)[0]


def check(capsys, *args):
    """Return the status, the tables' rows by their first cells, errors."""
    status = main(['check-data', *args])
    printed = capsys.readouterr()
    rows = [re.split(' {2,}', line) for line in printed.out.splitlines()]
    errors = printed.err.splitlines()
    return status, rows, errors


def test_what_there_is_and_what_it_holds(shapes, capsys):
    path = shapes / 'Annotations' / 'train_00000.xml'
    text = re.sub('<object>.*</object>', '', path.read_text(), flags=re.S)
    path.write_text(text)
    status, rows, errors = check(capsys, NAME)
    assert (status, errors) == (0, [])
    place = ['VOCFormatDataset', f'{shapes}/', 'ImageSets/Main/train.txt']
    assert ['train', *place] in rows
    xmls = [p.read_text() for p in (shapes / 'Annotations').iterdir()]
    counts = {
        name: [
            sum(
                xml.count(f'<name>{name}</name>')
                for xml in xmls
                if f'{split}_0' in xml
            )
            for split in ('train', 'test', 'test')
        ]
        for name in CLASSES
    }
    for name, of in counts.items():
        assert [name, *map(str, of)] in rows
    train, _, test = (str(sum(c)) for c in zip(*counts.values()))
    assert ['train', '6', train, '0', '0', '1', '192x128'] in rows
    for mode in ('val', 'test'):
        assert [mode, '5', test, '0', '0', '0', '192x128'] in rows


def test_data_that_is_missing(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('SURGE_DATA_ROOT', str(tmp_path))
    status, rows, errors = check(capsys, NAME)
    assert status == 1
    # Each fault in a line; what to do, once.
    assert ['error: no data at' in e for e in errors[:3]] == [True] * 3
    assert len([e for e in errors if 'surge-det make-demo-data' in e]) == 1
    assert ['class'] not in [row[:1] for row in rows]


def test_faults_of_all_splits_and_files_are_told(shapes, capsys):
    images = shapes / 'JPEGImages'
    for index in range(5):
        Image.new('RGB', (128, 192)).save(images / f'train_0000{index}.jpg')
    (images / 'test_00003.jpg').write_bytes(b'')
    (images / 'test_00004.jpg').write_bytes(b'no image')
    status, rows, errors = check(capsys, NAME)
    assert status == 1
    assert ['train', *'------'] in rows
    for index in range(5):
        (line,) = [e for e in errors if f'train_0000{index}.jpg' in e]
        assert 'loaded as 128x192' in line
        assert 'for 192x128' in line
    # Once, though two splits have them.
    (line,) = [e for e in errors if 'test_00003.jpg' in e]
    assert 'is empty' in line
    (line,) = [e for e in errors if 'test_00004.jpg' in e]
    assert 'cannot be read' in line
    assert len(errors) == 7
    assert all(line.startswith('error: ') for line in errors)


def test_annotations_with_faults(shapes, capsys):
    for name in ('train_00001', 'test_00002'):
        path = shapes / 'Annotations' / f'{name}.xml'
        text = path.read_text()
        path.write_text(re.sub('<xmax>.*?</xmax>', '<xmax>nan</xmax>', text))
    status, _, errors = check(capsys, NAME)
    assert status == 1
    assert ['train_00001.xml' in errors[0], 'test_00002.xml' in errors[1]] == [
        True,
        True,
    ]
    assert len(errors) == 2


def test_a_head_of_another_number_of_classes(shapes, capsys):
    key = 'model.roi_head.bbox_head.num_classes'
    _, _, errors = check(capsys, NAME, '--cfg-options', f'{key}=4')
    (line,) = errors
    assert f'{key}=4' in line
    assert 'must be 5' in line


def test_other_datasets(tmp_path, capsys):
    """COCO's format, image folders, and one that cannot be built."""
    for name in ('cat', 'dog'):
        (tmp_path / 'folder' / name).mkdir(parents=True)
        Image.new('RGB', (9, 9)).save(tmp_path / 'folder' / name / '0.png')
    (tmp_path / 'folder' / 'dog' / '1.png').touch()
    Image.new('RGB', (64, 48)).save(tmp_path / '0.jpg')
    box = dict(image_id=1, category_id=3, bbox=[1, 2, 8, 9], area=72)
    (tmp_path / 'a.json').write_text(
        json.dumps(
            dict(
                images=[dict(id=1, file_name='0.jpg', width=64, height=48)],
                categories=[dict(id=3, name='cat')],
                annotations=[
                    dict(box, id=1, iscrowd=0),
                    dict(box, id=2, iscrowd=1),
                ],
            )
        )
    )
    config = tmp_path / 'config.py'
    config.write_text(f"""
root = {str(tmp_path)!r}
train_dataloader = dict(dataset=dict(
    type='CocoDataset', data_root=root, ann_file='a.json', pipeline=[],
    metainfo=dict(classes=('cat',)), data_prefix=dict(img='')))
val_dataloader = dict(dataset=dict(
    type='ImageFolderDataset', data_root=root + '/folder'))
test_dataloader = dict(dataset=dict(type='NoDataset'))
""")
    status, rows, errors = check(capsys, str(config))
    assert status == 1
    assert ['train', '1', '1', '1'] in [row[:4] for row in rows]
    assert ['val', '3', '3', '0', '0', '0', '-'] in rows
    assert ['cat', '1', '1', '0'] in rows
    assert ['dog', '0', '2', '0'] in rows
    assert len(errors) == 3
    assert 'folder/dog/1.png is empty' in errors[0]
    assert 'NoDataset' in errors[1]
    assert "('cat',), and val_dataloader has other ones" in errors[2]
