import importlib
import logging
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmdet.evaluation import VOCMetric
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import init_default_scope
from torch.utils.data import DataLoader

from surge_det.datasets import VOCFormatDataset, check_data, shapes

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
    with pytest.raises(ValueError, match='4 without.*40.0% are lost'):
        _dataset(tmp_path, test_mode=test_mode)
    dataset = _dataset(tmp_path, test_mode=test_mode, max_dropped=0.5)
    counts = [
        len(dataset.get_data_info(i)['instances']) for i in range(len(dataset))
    ]
    assert counts == [1, 1, 1, 1, 2]
    ((level, text),) = log
    assert level == logging.WARNING
    assert '4 of 10 boxes are left out: 4 without area' in text
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


def test_unknown_classes_are_counted_once(tmp_path, log):
    cow, cat = (_object(n, (5, 5, 20, 20)) for n in ('cow', 'cat'))
    _write(tmp_path, {'a': [cow, cat], 'b': [cow]})
    assert len(_dataset(tmp_path)) == 2
    assert ['cow (2)' in text for _, text in log] == [True]


def test_no_known_class_at_all_is_an_error(tmp_path):
    _write(tmp_path, {'a': [_object('Cat', (5, 5, 20, 20))]})
    with pytest.raises(ValueError, match=r"classes \('cat', 'dog'\).*Cat \(1"):
        _dataset(tmp_path)


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


@pytest.mark.parametrize(
    'content',
    [
        '<annotation>',
        '<annotation><size><width>x</width><height>4</height></size>'
        '</annotation>',
        '<annotation><size><width>0</width><height>0</height></size>'
        '</annotation>',
        '<annotation><size><width>9</width><height>9</height></size>'
        '<object><name>cat</name></object></annotation>',
        '<annotation><size><width>9</width><height>9</height></size>'
        '<object><bndbox/></object></annotation>',
    ],
)
def test_malformed_annotation_is_named(tmp_path, content):
    _write(tmp_path, {'a': []})
    (tmp_path / 'Annotations' / 'a.xml').write_text(content)
    with pytest.raises(ValueError, match='a.xml'):
        _dataset(tmp_path)


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
    leaves.append(cfg.val_dataloader.dataset)
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
