import importlib
import logging
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import surge_det  # noqa: F401

# isort: split
from mmcv.transforms import LoadImageFromFile
from mmdet.datasets import VOCDataset
from mmdet.evaluation import VOCMetric
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import init_default_scope
from PIL import Image
from torch.utils.data import DataLoader

from surge_det.datasets import (
    PascalVOCDataset,
    VOCFormatDataset,
    check_data,
    shapes,
)

CONFIGS = Path(__file__).parents[2] / 'configs' / '_base_' / 'datasets'
CLASSES = ('cat', 'dog')


def _object(name, box, extra=''):
    tags = ('xmin', 'ymin', 'xmax', 'ymax')
    sides = ''.join(f'<{t}>{v}</{t}>' for t, v in zip(tags, box))
    return (
        f'<object><name>{name}</name>{extra}<bndbox>{sides}</bndbox></object>'
    )


def _write(root, files):
    """Images of 64x48, and ``{name: objects}`` as their annotations."""
    for folder in ('Annotations', 'JPEGImages', 'ImageSets/Main'):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for name, objects in files.items():
        size = '<size><width>64</width><height>48</height></size>'
        (root / 'Annotations' / f'{name}.xml').write_text(
            f'<annotation>{size}{"".join(objects)}</annotation>'
        )
        image = np.full((48, 64, 3), 90, np.uint8)
        cv2.imwrite(str(root / 'JPEGImages' / f'{name}.jpg'), image)
    (root / 'ImageSets' / 'Main' / 'all.txt').write_text('\n'.join(files))


def _dataset(root, **kwargs):
    kwargs.setdefault('metainfo', dict(classes=CLASSES))
    return VOCFormatDataset(
        data_root=str(root), ann_file='ImageSets/Main/all.txt', **kwargs
    )


@pytest.fixture
def log(monkeypatch):
    """Collect what ``print_log`` gets, whatever loggers exist."""
    lines = []
    for name in ('voc_format', 'dropped'):
        module = importlib.import_module(f'surge_det.datasets.{name}')
        monkeypatch.setattr(
            module,
            'print_log',
            lambda text, logger, level: lines.append((level, text)),
        )
    return lines


def test_boxes_are_zero_based_and_flags_optional(tmp_path, log):
    hard = '<difficult>1</difficult>'
    _write(
        tmp_path,
        {
            'a': [_object('dog', (1, 2, 30, 40), hard)]
            + [_object('cat', (3.0, 4.0, 64, 48))]
        },
    )
    instances = _dataset(tmp_path).get_data_info(0)['instances']
    assert instances == [
        dict(ignore_flag=1, bbox=[0, 1, 29, 39], bbox_label=1),
        dict(ignore_flag=0, bbox=[2, 3, 63, 47], bbox_label=0),
    ]
    assert log == []


@pytest.mark.parametrize('test_mode', [False, True])
def test_boxes_without_area_are_dropped_and_named(tmp_path, log, test_mode):
    fine = _object('cat', (5, 5, 20, 20))
    _write(
        tmp_path,
        {
            'point': [fine, _object('cat', (9, 9, 9, 9))],
            'line': [fine, _object('dog', (9, 9, 9, 30))],
            'turned': [fine, _object('dog', (30, 9, 20, 30))],
            'outside': [fine, _object('dog', (70, 9, 90, 30))],
            'good': [fine, _object('dog', (9, 9, 90, 90))],
        },
    )
    with pytest.raises(ValueError, match='3 without.*1 outside.*40.0% are'):
        _dataset(tmp_path, test_mode=test_mode)
    dataset = _dataset(tmp_path, test_mode=test_mode, max_dropped=0.5)
    counts = [
        len(dataset.get_data_info(i)['instances']) for i in range(len(dataset))
    ]
    assert counts == [1, 1, 1, 1, 2]
    ((level, text),) = log
    assert level == logging.WARNING
    assert '4 of 10 boxes are left out: 3 without area' in text
    for name in ('point', 'line', 'turned', 'outside'):
        assert f'{name}.xml' in text
    assert 'good' not in text


def test_image_left_without_boxes_is_filtered_in_training(tmp_path):
    _write(
        tmp_path,
        {
            'a': [_object('cat', (9, 9, 9, 9))],
            'b': [_object('cat', (9, 9, 19, 19))],
        },
    )
    keep = dict(filter_cfg=dict(filter_empty_gt=True), max_dropped=0.5)
    assert len(_dataset(tmp_path, **keep)) == 1
    assert len(_dataset(tmp_path, test_mode=True, **keep)) == 2


@pytest.mark.parametrize('bad', [-0.1, 1.5, '5%', None, float('nan')])
def test_bad_max_dropped_is_refused(tmp_path, bad):
    with pytest.raises(ValueError, match='max_dropped'):
        _dataset(tmp_path, max_dropped=bad)


def test_a_filter_that_leaves_no_image_is_refused(tmp_path):
    _write(tmp_path, {'a': [_object('cat', (9, 9, 19, 19))]})
    assert len(_dataset(tmp_path, filter_cfg=dict(min_size=48))) == 1
    with pytest.raises(ValueError, match="all.txt.*'min_size': 49.*of 1 im"):
        _dataset(tmp_path, filter_cfg=dict(min_size=49))


def test_unknown_classes_are_counted_once(tmp_path, log):
    cow, cat = (_object(n, (5, 5, 20, 20)) for n in ('cow', 'cat'))
    _write(tmp_path, {'a': [cow, cat], 'b': [cow]})
    assert len(_dataset(tmp_path, test_mode=True)) == 2
    assert ['cow (2)' in text for _, text in log] == [True]


def test_a_class_without_objects_is_told_in_training(tmp_path, log):
    _write(tmp_path, {'a': [_object('cat', (5, 5, 20, 20))]})
    _dataset(tmp_path, test_mode=True)
    assert log == []
    _dataset(tmp_path)
    assert ['no object is of the classes dog' in t for _, t in log] == [True]


def test_the_nearest_name_of_a_class_that_is_misspelt_is_told(tmp_path):
    boxes = [_object(n, (5, 5, 20, 20)) for n in ('dog', 'catt')]
    _write(tmp_path, {'a': boxes})
    with pytest.raises(ValueError, match="class 'cat'; the nearest.*'catt'"):
        _dataset(tmp_path)
    # Evaluated on a part of the classes.
    assert len(_dataset(tmp_path, test_mode=True)) == 1


@pytest.mark.parametrize('name', ['Cat', 'ca t', 'c_at', 'CAT '])
def test_other_ways_to_write_a_class_are_refused(tmp_path, name):
    boxes = [_object(n, (5, 5, 20, 20)) for n in ('dog', 'cat', name.strip())]
    _write(tmp_path, {'a': boxes})
    with pytest.raises(ValueError, match=f"{name.strip()}', which.*'cat'"):
        _dataset(tmp_path)


def test_blanks_around_names_and_numbers_are_no_part(tmp_path):
    _write(tmp_path, {'a': [_object(' cat\n', ('\n5 ', ' 5', 20, 20))]})
    ((instance,),) = [_dataset(tmp_path).get_data_info(0)['instances']]
    assert instance == dict(ignore_flag=0, bbox=[4, 4, 19, 19], bbox_label=0)


@pytest.mark.parametrize('test_mode', [False, True])
def test_no_object_to_learn_or_measure_is_refused(tmp_path, test_mode):
    _write(tmp_path, {'a': [], 'b': []})
    with pytest.raises(ValueError, match='all.txt: no object in 2 files'):
        _dataset(tmp_path, test_mode=test_mode)
    assert len(_dataset(tmp_path, max_dropped=1, test_mode=test_mode)) == 2
    hard = '<difficult>1</difficult>'
    _write(tmp_path, {'a': [_object('cat', (5, 5, 9, 9), hard)]})
    with pytest.raises(ValueError, match='all 1 objects are `difficult`'):
        _dataset(tmp_path, test_mode=test_mode)


def test_no_known_class_at_all_is_an_error(tmp_path):
    _write(tmp_path, {'a': [_object('Cat', (5, 5, 20, 20))]})
    with pytest.raises(ValueError, match=r"classes \('cat', 'dog'\).*Cat \(1"):
        _dataset(tmp_path, test_mode=True)


@pytest.mark.parametrize(
    'metainfo', [None, {}, dict(classes='cat'), dict(classes=('a', 'a'))]
)
def test_bad_classes_are_refused(tmp_path, metainfo):
    with pytest.raises(ValueError, match='classes'):
        _dataset(tmp_path, metainfo=metainfo)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match='all.txt.*SURGE_DATA_ROOT'):
        _dataset(tmp_path)
    _write(tmp_path, {'a': []})
    (tmp_path / 'Annotations' / 'a.xml').unlink()
    with pytest.raises(FileNotFoundError, match="lists 'a'.*a.xml"):
        _dataset(tmp_path)


SIZE = '<size><width>64</width><height>48</height></size>'
BOX = _object('cat', (5, 5, 20, 20))


def _write_xml(root, text):
    _write(root, {'a': []})
    (root / 'Annotations' / 'a.xml').write_text(text)


def _box_of(*sides):
    return f'<annotation>{SIZE}{_object("cat", sides)}</annotation>'


@pytest.mark.parametrize(
    ('content', 'said'),
    [
        ('', 'no XML'),
        ('<annotation>', 'no XML'),
        (f'<annotations>{SIZE}{BOX}</annotations>', 'root is <annotations>'),
        (f'<annotation>{SIZE}<object/></annotation>', 'object 1 has no <name'),
        (f'<annotation>{SIZE}<object><bndbox/></object></annotation>', 'name'),
        (
            f'<annotation>{SIZE}<object><name>cat</name></object>'
            '</annotation>',
            '1 without <bndbox>',
        ),
        (
            f'<annotation>{SIZE}<object><name>cat</name><bndbox/></object>'
            '</annotation>',
            "object 1, cat: <xmin> is ''",
        ),
        (_box_of(5, 5, 20, 'wide'), "<ymax> is 'wide', no number of pixels"),
        (_box_of(5, 5, '12,5', 20), "<xmax> is '12,5'"),
        (_box_of(5, 5, 20, 'nan'), "<ymax> is 'nan'"),
        (_box_of('-inf', 5, 20, 20), "<xmin> is '-inf'"),
        (_box_of(5, 5, 1e30, 20), "<xmax> is '1e\\+30'"),
        (_box_of(0.1, 0.2, 0.9, 1), 'in parts of the image'),
        (
            f'<annotation>{SIZE}'
            + _object('cat', (5, 5, 9, 9), '<difficult>hard</difficult>')
            + '</annotation>',
            "<difficult> is 'hard'",
        ),
    ],
)
def test_malformed_annotation_is_named(tmp_path, content, said):
    _write_xml(tmp_path, content)
    with pytest.raises(ValueError, match=said) as error:
        _dataset(tmp_path)
    assert 'a.xml' in str(error.value)


def test_faults_of_all_files_are_told_at_once(tmp_path):
    _write(tmp_path, {str(i): [BOX] for i in range(12)})
    for i in range(11):
        (tmp_path / 'Annotations' / f'{i}.xml').write_text('')
    with pytest.raises(ValueError, match='and 1 more') as error:
        _dataset(tmp_path)
    lines = str(error.value).splitlines()
    assert ['.xml is no XML' in line for line in lines] == [True] * 10 + [
        False
    ]


def test_a_namespace_is_no_part_of_the_tags(tmp_path):
    text = _box_of(5, 5, 20, 20)
    _write_xml(tmp_path, text.replace('>', ' xmlns="http://a/b">', 1))
    info = _dataset(tmp_path).get_data_info(0)
    assert (info['width'], len(info['instances'])) == (64, 1)


@pytest.mark.parametrize(
    ('text', 'flag'),
    [('', 0), (' ', 0), ('Unspecified', 0), ('0', 0), ('1', 1), (' 1 ', 1)],
)
def test_difficult(tmp_path, text, flag):
    hard = f'<difficult>{text}</difficult>'
    _write(tmp_path, {'a': [BOX, _object('dog', (5, 5, 20, 20), hard)]})
    instances = _dataset(tmp_path).get_data_info(0)['instances']
    assert [i['ignore_flag'] for i in instances] == [0, flag]


@pytest.mark.parametrize(
    'size',
    [
        '',
        '<size/>',
        '<size><width/><height/></size>',
        '<size><width>0</width><height>0</height></size>',
        '<size><width>64</width></size>',
        '<size><width>64.0</width><height> 48.0 </height></size>',
    ],
)
def test_a_size_that_is_not_told_is_that_of_the_image(tmp_path, size):
    _write_xml(tmp_path, f'<annotation>{size}{BOX}</annotation>')
    info = _dataset(tmp_path).get_data_info(0)
    assert (info['width'], info['height']) == (64, 48)


@pytest.mark.parametrize('width', ['x', '-64', '64.5', 'nan', '1e30'])
def test_a_size_that_is_none_is_refused(tmp_path, width):
    size = SIZE.replace('64', width)
    _write_xml(tmp_path, f'<annotation>{size}{BOX}</annotation>')
    with pytest.raises(ValueError, match=rf'a\.xml: .*width.*{width}'):
        _dataset(tmp_path)


def _write_turned(root):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new('RGB', (64, 48)).save(root / 'JPEGImages' / 'a.jpg', exif=exif)


def test_a_size_not_told_of_an_image_that_exif_turns_is_refused(tmp_path):
    _write_xml(tmp_path, f'<annotation>{BOX}</annotation>')
    _write_turned(tmp_path)
    with pytest.raises(ValueError, match=r'a\.xml.*EXIF turns.*48x64'):
        _dataset(tmp_path)


def test_other_sizes_than_the_images_are_refused(tmp_path):
    _write(tmp_path, {'a': [BOX], 'b': [BOX]})
    _write_turned(tmp_path)
    with pytest.raises(ValueError, match=r'a\.jpg is loaded as 48x64.*64x48'):
        _dataset(tmp_path, test_mode=True)
    half = SIZE.replace('64', '32').replace('48', '24')
    _write_xml(tmp_path, f'<annotation>{half}{BOX}</annotation>')
    with pytest.raises(ValueError, match=r'a\.jpg is loaded as 64x48.*32x24'):
        _dataset(tmp_path)


@pytest.mark.parametrize(
    ('names', 'told', 'found'),
    [
        (['a.JPG'], '', 'a.JPG'),
        (['a.jpeg'], 'other.jpg', 'a.jpeg'),
        (['a.png', 'b.png', 'a.txt'], 'a', 'a.png'),
        (['a.tif'], '', 'a.tif'),
        (['a.bmp'], '', 'a.bmp'),
        (['b.webp'], 'b.webp', 'b.webp'),
        (['b.webp'], 'C:\\\\images\\\\b.webp', 'b.webp'),
        (['a.jpg', 'a.png'], '', 'a.jpg'),
        (['a.jpg', 'a.png'], 'a.png', 'a.png'),
        (['a.png', 'a.bmp'], '', ValueError),
        (['ab.jpg', 'a.txt'], 'c.jpg', FileNotFoundError),
    ],
)
def test_images_are_found_by_stem_or_filename(tmp_path, names, told, found):
    filename = f'<filename>{told}</filename>'
    _write_xml(tmp_path, f'<annotation>{filename}{SIZE}{BOX}</annotation>')
    (tmp_path / 'JPEGImages' / 'a.jpg').unlink()
    for name in names:
        path = tmp_path / 'JPEGImages' / name
        if path.suffix == '.txt':
            path.touch()
        else:
            Image.new('RGB', (64, 48)).save(path)
    if isinstance(found, str):
        path = _dataset(tmp_path).get_data_info(0)['img_path']
        assert path == str(tmp_path / 'JPEGImages' / found)
    else:
        with pytest.raises(found, match="'a'.*JPEGImages"):
            _dataset(tmp_path)


@pytest.mark.parametrize(
    'text',
    [
        b'a\nsub/b.v2\n',
        b'\xef\xbb\xbfa\r\nsub/b.v2',
        b'  a \n\n\tsub/b.v2\n \n',
        b'a.jpg\nsub/b.v2.JPEG\n',
        b'a\nsub\\b.v2\n',
        b'a.xml\nsub/b.v2.xml\n',
    ],
)
def test_lists_as_they_are_written(tmp_path, text):
    for folder in ('Annotations', 'JPEGImages'):
        (tmp_path / folder / 'sub').mkdir(parents=True)
    _write(tmp_path, {'a': [BOX], 'sub/b.v2': [BOX]})
    (tmp_path / 'ImageSets' / 'Main' / 'all.txt').write_bytes(text)
    dataset = _dataset(tmp_path)
    infos = [dataset.get_data_info(i) for i in range(len(dataset))]
    assert [i['img_id'] for i in infos] == ['a', 'sub/b.v2']
    assert infos[1]['img_path'].endswith('JPEGImages/sub/b.v2.jpg')


@pytest.mark.parametrize(
    ('text', 'said'),
    [
        (b'', 'lists no image'),
        (b' \n\n', 'lists no image'),
        (b'a\nb\na.jpg\n', 'more than once: a;'),
        ('a\n'.encode('utf-16'), 'must be text in UTF-8'),
    ],
)
def test_bad_lists_are_refused(tmp_path, text, said):
    _write(tmp_path, {'a': [BOX], 'b': [BOX]})
    (tmp_path / 'ImageSets' / 'Main' / 'all.txt').write_bytes(text)
    with pytest.raises(ValueError, match=rf'all\.txt.* {said}'):
        _dataset(tmp_path)


# Boxes in the training list of each case, or what the error says.
CASES = dict(
    blankline=8,
    diffempty=8,
    diffunspec=8,
    empty_img=r'im0\.jpg is empty',
    jpeg=8,
    listbom=8,
    listext=8,
    namespace=8,
    nobndbox=r'1 without <bndbox> \(im0\.xml\)',
    png=8,
    sizefloat=8,
    sizehalf=r'im0\.jpg is loaded as 160x120.*80x60',
)


@pytest.mark.parametrize('case', CASES)
def test_cases_are_read_or_refused(case):
    folder = Path(
        os.environ.get('SURGE_DATA_ROOT', 'data'), f'cases/voc-{case}'
    )
    if not folder.is_dir():
        pytest.skip(f'no {folder}; set SURGE_DATA_ROOT')

    def build():
        return VOCFormatDataset(
            data_root=str(folder),
            ann_file='ImageSets/Main/train.txt',
            metainfo=dict(classes=CLASSES),
            pipeline=[LoadImageFromFile()],
        )

    if isinstance(CASES[case], str):
        with pytest.raises(ValueError, match=CASES[case]):
            build()
    else:
        dataset = build()
        infos = [dataset[i] for i in range(len(dataset))]
        assert len(infos) == 4
        assert sum(len(i['instances']) for i in infos) == CASES[case]
        for info in infos:
            assert info['img'].shape == (120, 160, 3)
            assert not any(i['ignore_flag'] for i in info['instances'])


@pytest.mark.parametrize('test_mode', [False, True])
def test_pascal_voc_is_read_as_mmdet_reads_it(tmp_path, test_mode):
    hard = '<difficult>1</difficult>'
    folder = tmp_path / 'VOC2007'
    _write(
        folder,
        {
            'a': [
                _object('cat', (1, 2, 30.7, 40)),
                _object('dog', (5, 5, 9, 9)),
            ],
            'b': [_object('person', (3, 3, 64, 48), hard)],
        },
    )
    keywords = dict(
        data_root=str(tmp_path),
        ann_file='VOC2007/ImageSets/Main/all.txt',
        data_prefix=dict(sub_data_root='VOC2007/'),
        filter_cfg=None if test_mode else dict(bbox_min_size=10),
        test_mode=test_mode,
    )
    ours, stock = PascalVOCDataset(**keywords), VOCDataset(**keywords)
    assert len(ours) == len(stock) == 2
    for index in range(2):
        assert ours.get_data_info(index) == stock.get_data_info(index)
    assert ours.metainfo == stock.metainfo
    assert ours.metainfo['dataset_type'] == 'VOC2007'


def _load(name, monkeypatch, root):
    monkeypatch.setenv('SURGE_DATA_ROOT', str(root))
    cfg = Config.fromfile(CONFIGS / f'{name}.py')
    init_default_scope('mmdet')
    return cfg


def _build(loader, **changes):
    from mmdet.registry import DATASETS

    return DATASETS.build(dict(loader.dataset, **changes))


@pytest.mark.parametrize('slash', ['', '/'])
@pytest.mark.parametrize('eval_mode', ['11points', 'area'])
def test_shapes_config_loads_and_scores(
    tmp_path, monkeypatch, slash, eval_mode
):
    shapes.prepare_shapes(tmp_path, 8, 6)
    cfg = _load('voc_shapes', monkeypatch, f'{tmp_path}{slash}')
    assert tuple(cfg.metainfo.classes) == shapes.CLASSES
    assert len(cfg.metainfo.palette) == len(shapes.CLASSES)
    check_data(cfg)
    train = _build(cfg.train_dataloader)
    batch = next(
        iter(DataLoader(train, 8, collate_fn=pseudo_collate, num_workers=0))
    )
    for image, sample in zip(batch['inputs'], batch['data_samples']):
        assert image.shape == (3, shapes.HEIGHT, shapes.WIDTH)
        boxes = sample.gt_instances.bboxes.tensor
        assert len(boxes) > 0
        assert torch.isfinite(boxes).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()

    # Perfect detections score 1, and half of them does not.
    test = _build(cfg.test_dataloader)
    metric = VOCMetric(metric='mAP', eval_mode=eval_mode)
    metric.dataset_meta = test.metainfo
    worse = VOCMetric(metric='mAP', eval_mode=eval_mode)
    worse.dataset_meta = test.metainfo
    for index in range(len(test)):
        sample = test[index]['data_samples']
        truth = sample.gt_instances
        for which, kept in ((metric, truth), (worse, truth[::2])):
            found = dict(
                bboxes=kept.bboxes.tensor,
                labels=kept.labels,
                scores=torch.ones(len(kept)),
            )
            plain = dict(bboxes=truth.bboxes.tensor, labels=truth.labels)
            none = dict(bboxes=torch.zeros(0, 4), labels=torch.zeros(0).long())
            which.process(
                {},
                [
                    dict(
                        gt_instances=plain,
                        ignored_instances=none,
                        pred_instances=found,
                    )
                ],
            )
    assert metric.evaluate(len(test))['pascal_voc/mAP'] == pytest.approx(1.0)
    assert 0.1 < worse.evaluate(len(test))['pascal_voc/mAP'] < 0.95


def test_validation_split_is_one_option(monkeypatch):
    cfg = _load('voc_bccd', monkeypatch, 'nowhere')
    test_split = 'ImageSets/Main/test.txt'
    assert cfg.val_dataloader.dataset.ann_file == test_split
    cfg.merge_from_dict({'val_dataloader.dataset.ann_file': 'val.txt'})
    assert cfg.test_dataloader.dataset.ann_file == test_split


@pytest.mark.parametrize(
    ('split', 'count', 'bad'),
    [('train', 205, '00343'), ('val', 87, '00338'), ('test', 72, None)],
)
def test_bccd_is_read_whole(monkeypatch, log, split, count, bad):
    root = os.environ.get('SURGE_DATA_ROOT', 'data')
    if not Path(root, 'bccd').is_dir():
        pytest.skip(f'no bccd in {root}; set SURGE_DATA_ROOT')
    cfg = _load('voc_bccd', monkeypatch, root)
    dataset = _build(
        cfg.train_dataloader,
        ann_file=f'ImageSets/Main/{split}.txt',
        pipeline=[],
    )
    assert len(dataset) == count
    for index in range(count):
        for instance in dataset.get_data_info(index)['instances']:
            x1, y1, x2, y2 = instance['bbox']
            assert x2 > x1
            assert y2 > y1
    if bad is None:
        assert log == []
    else:
        assert [
            f'left out: 1 without area (BloodImage_{bad}.xml)' in text
            for _, text in log
        ] == [True]


def test_voc_config_follows_the_recipe(monkeypatch):
    cfg = _load('voc0712_1000x600', monkeypatch, 'somewhere')
    repeat = cfg.train_dataloader.dataset
    assert (repeat.type, repeat.times) == ('RepeatDataset', 3)
    assert cfg.train_dataloader.batch_size == 4
    lists = [d.ann_file for d in repeat.dataset.datasets]
    assert lists == [
        f'VOC{year}/ImageSets/Main/trainval.txt' for year in (2007, 2012)
    ]
    leaves = [*repeat.dataset.datasets, cfg.test_dataloader.dataset]
    for leaf in leaves:
        assert leaf.data_root == 'somewhere/VOCdevkit/'
    for leaf in repeat.dataset.datasets:
        resize = leaf.pipeline[2]
        assert resize.type == 'RandomChoiceResize'
        assert [tuple(s) for s in resize.scales] == [
            (1500, 900),
            (1000, 600),
            (666, 400),
        ]
    test = cfg.test_dataloader.dataset
    assert test.ann_file == 'VOC2007/ImageSets/Main/test.txt'
    assert tuple(test.pipeline[1].scale) == (1000, 600)
    assert cfg.test_evaluator.eval_mode == '11points'
    for key in ('dataloader', 'evaluator'):
        assert cfg[f'val_{key}'] == cfg[f'test_{key}']
    with pytest.raises(FileNotFoundError, match='VOCtrainval_06-Nov-2007'):
        check_data(cfg)


def test_voc_config_trains_on_small_and_two_years(tmp_path, monkeypatch):
    for year in (2007, 2012):
        folder = tmp_path / 'VOCdevkit' / f'VOC{year}'
        _write(folder, {f'{year}': [_object('cat', (5, 5, 25, 25))]})
        lists = folder / 'ImageSets' / 'Main'
        for split in ('trainval', 'test'):
            (lists / f'{split}.txt').write_text(f'{year}\n')
    cfg = _load('voc0712_1000x600', monkeypatch, tmp_path)
    check_data(cfg)
    train = _build(cfg.train_dataloader)
    assert len(train) == 6
    sizes = {tuple(train[i]['inputs'].shape[1:]) for i in list(range(6)) * 8}
    # 64x48 within 1500x900, 1000x600 and 666x400.
    assert sizes == {(900, 1200), (600, 800), (400, 533)}
    # A box of 20 pixels counts.
    assert len(train[0]['data_samples'].gt_instances) == 1
    assert _build(cfg.test_dataloader).metainfo['dataset_type'] == 'VOC2007'
