import os
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('mmdet', reason='needs the toolbox')

from PIL import Image

from surge_det.cli import make_crops
from surge_det.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
BOX = '<object><name>{}</name><bndbox>{}</bndbox></object>'


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / 'voc'
    for name in ('Annotations', 'JPEGImages', 'ImageSets/Main'):
        (folder / name).mkdir(parents=True)
    # Class, then VOC's XYXY: counted from 1, the far corner inclusive.
    boxes = {
        'a': [('ball', 11, 21, 20, 30), ('cube', 1, 1, 20, 10)],
        'b': [('ball', 31, 1, 40, 20), ('ball', 5, 5, 8, 8)],
        # So many that one without area is no fault of the dataset.
        'c': [('cube', 1, 1, 40, 30), ('ball', 2, 2, 2, 9)]
        + [('ball', 5, 5, 8, 8)] * 19,
    }
    rng = np.random.default_rng(0)
    for stem, items in boxes.items():
        pixels = rng.integers(0, 256, (30, 40, 3), np.uint8)
        # Lossless, so that pixels can be compared.
        Image.fromarray(pixels).save(
            folder / 'JPEGImages' / f'{stem}.jpg', format='PNG'
        )
        objects = ''.join(
            BOX.format(
                name,
                ''.join(
                    f'<{tag}>{value}</{tag}>'
                    for tag, value in zip(
                        ('xmin', 'ymin', 'xmax', 'ymax'), box
                    )
                ),
            )
            for name, *box in items
        )
        (folder / 'Annotations' / f'{stem}.xml').write_text(
            '<annotation><size><width>40</width><height>30</height>'
            f'<depth>3</depth></size>{objects}</annotation>'
        )
    (folder / 'ImageSets' / 'Main' / 'train.txt').write_text('a\nb\n')
    (folder / 'ImageSets' / 'Main' / 'val.txt').write_text('c\n')
    return folder


def listed(folder):
    return sorted(
        str(path.relative_to(folder)) for path in folder.rglob('*.png')
    )


def test_crops_are_the_boxes(source, tmp_path, capsys):
    out = tmp_path / 'crops'
    args = ['--source', str(source), '--out', str(out)]
    main(['make-crops', *args, '--margin', '0'])
    # Boxes of 4 pixels, and the one without area are left out.
    assert listed(out) == [
        'train/ball/a_0.png',
        'train/ball/b_0.png',
        'train/cube/a_1.png',
        'val/cube/c_0.png',
    ]
    image = np.asarray(Image.open(source / 'JPEGImages' / 'a.jpg'))
    crop = np.asarray(Image.open(out / 'train' / 'ball' / 'a_0.png'))
    assert np.array_equal(crop, image[20:30, 10:20])
    assert 'ball 2, cube 1' in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(['make-crops', *args])
    assert 'is not empty' in capsys.readouterr().err


def test_margin_and_cap(source, tmp_path):
    out = tmp_path / 'crops'
    args = ['--source', source, '--out', out, '--margin', 0.5]
    main(['make-crops', *args, '--max-per-class', 1, '--min-size', 1])
    names = listed(out)
    assert len([n for n in names if n.startswith('train/ball')]) == 1
    crop = Image.open(out / 'train' / 'cube' / 'a_1.png')
    # 20 x 10 at the image's corner: half of it more on two sides.
    assert crop.size == (30, 15)


@pytest.mark.parametrize(
    ('args', 'said'),
    [
        (['--source', 'nowhere'], '--source'),
        (['--max-per-class', '0'], "--max-per-class: '0' is"),
        (['--margin', '-1'], '--margin'),
    ],
)
def test_refuses_with_a_message(args, said, capsys):
    with pytest.raises(SystemExit) as error:
        main(['make-crops', *args])
    assert error.value.code == 2
    assert said in capsys.readouterr().err


def test_bccd(tmp_path):
    root = os.environ.get('SURGE_DATA_ROOT')
    if not root or not (Path(root) / 'bccd').is_dir():
        pytest.skip('needs BCCD in the folder that SURGE_DATA_ROOT names')
    classes = make_crops.class_names(Path(root) / 'bccd')
    assert classes == ['Platelets', 'RBC', 'WBC']
    boxes = make_crops.find_boxes(Path(root) / 'bccd', 'val', classes)
    few = {name: items[:2] for name, items in boxes.items()}
    counts = make_crops.cut(few, tmp_path, 0.1, 8)
    assert counts == dict(Platelets=2, RBC=2, WBC=2)


@pytest.mark.parametrize('name', ['../out', '/tmp/out', '..'])
def test_a_class_that_is_no_folder_is_refused(source, tmp_path, capsys, name):
    path = source / 'Annotations' / 'a.xml'
    path.write_text(path.read_text().replace('cube', name))
    args = ['--source', str(source), '--out', str(tmp_path / 'new' / 'crops')]
    with pytest.raises(SystemExit, match='2'):
        main(['make-crops', *args])
    assert 'names of folders' in capsys.readouterr().err
    assert not (tmp_path / 'new').exists()
    assert not (tmp_path / 'out').exists()
