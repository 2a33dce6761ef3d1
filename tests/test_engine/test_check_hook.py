from pathlib import Path

import pytest

pytest.importorskip('mmdet', reason='needs the toolbox')

import surge_det  # noqa: F401

# isort: split
import torch
from mmdet.datasets import ConcatDataset, MultiImageMixDataset
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.dataset import (
    BaseDataset,
    ClassBalancedDataset,
    RepeatDataset,
)
from mmengine.registry import init_default_scope
from torch import nn
from torch.utils.data import Subset

from surge_det.datasets.classes import ClassesError, class_names
from surge_det.engine.hooks.check_hook import check_classes

HOOK = [{'type': 'SURGECheckHook'}]


class Data(BaseDataset):
    def load_data_list(self):
        return [{'instances': []}, {'instances': []}]

    def get_cat_ids(self, idx):
        return [idx]


def data(*classes, file='list.txt', **metainfo):
    metainfo = {'classes': classes, **metainfo}
    return Data(ann_file=file, metainfo=metainfo, serialize_data=False)


class Head(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.num_classes = num_classes


def detector(**heads):
    model = nn.Module()
    for name, numbers in heads.items():
        head = Head(numbers)
        if isinstance(numbers, list):
            head = nn.ModuleList(map(Head, numbers))
        model.add_module(name, head)
    return model


WRAPPERS = {
    'alone': lambda d: d,
    'repeat': lambda d: RepeatDataset(d, times=2),
    'balanced': lambda d: ClassBalancedDataset(d, oversample_thr=0.1),
    'mix': lambda d: MultiImageMixDataset(d, pipeline=[]),
    'subset': lambda d: Subset(d, [0]),
    'second': lambda d: ConcatDataset([data('cat', 'dog'), d]),
    'inside': lambda d: ConcatDataset(
        [data('cat', 'dog'), d], ignore_keys=['classes']
    ),
    'deep': lambda d: Subset(ConcatDataset([d]), [0]),
}


@pytest.mark.parametrize('wrapper', WRAPPERS.values(), ids=WRAPPERS)
def test_datasets_agree(wrapper):
    model = detector(bbox_head=2)
    val = data('cat', 'dog')
    check_classes(
        model, [('train', wrapper(data('cat', 'dog'))), ('val', val)]
    )
    other = wrapper(data('dog', 'cat', file='train.json'))
    with pytest.raises(ClassesError) as error:
        check_classes(model, [('train', other), ('val', val)])
    for part in ("('dog', 'cat')", "('cat', 'dog')", 'train.json', 'order'):
        assert part in str(error.value)
    fewer = data('dog')
    with pytest.raises(ClassesError, match=r'2 classes.*1, \(.dog.,\)'):
        check_classes(model, [('train', val), ('val', wrapper(fewer))])


@pytest.mark.parametrize('wrong', [1, 80])
def test_every_head_fits(wrong):
    both = [('train', data('cat', 'dog'))]
    good = detector(bbox_head=[2, 2, 2], mask_head=2, rpn_head=1, backbone=9)
    check_classes(good, both)
    check_classes(nn.ModuleDict({'module': good}), both)
    for heads, key in (
        ({'bbox_head': [2, wrong, 2]}, 'bbox_head.1'),
        ({'bbox_head': 2, 'mask_head': wrong}, 'mask_head'),
    ):
        with pytest.raises(ClassesError) as error:
            check_classes(detector(**heads), both)
        message = str(error.value)
        assert message.startswith(f'model.{key}.num_classes={wrong}, but')
        assert 'must be 2' in message


def test_panoptic_heads_may_be_of_things():
    panoptic = data('cat', 'dog', 'sky', thing_classes=['cat', 'dog'])
    model = detector(bbox_head=2, panoptic_fusion_head=3, semantic_head=2)
    check_classes(model, [('train', panoptic)])
    with pytest.raises(ClassesError, match=r'model\.bbox_head\.num_classes=4'):
        check_classes(detector(bbox_head=4), [('train', panoptic)])


@pytest.mark.parametrize(
    ('name', 'key'),
    [
        ('cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco', 'mask_head.2'),
        ('dino/dino-4scale_r50_8xb2-12e_coco', 'bbox_head'),
        ('yolo/yolov3_mobilenetv2_8xb24-320-300e_coco', 'bbox_head'),
    ],
)
def test_heads_of_mmdet(name, key, tmp_path):
    file = tmp_path / 'config.py'
    file.write_text(f"_base_ = 'mmdet::{name}.py'")
    init_default_scope('mmdet')
    model = Config.fromfile(file).model
    with torch.device('meta'):
        model = MODELS.build(model)
    names = [str(i) for i in range(80)]
    check_classes(model, [('train', data(*names))])
    with pytest.raises(ClassesError, match=f'{key}.num_classes=80'):
        check_classes(model, [('train', data(*names[1:]))])


def test_nothing_to_compare():
    model = detector(bbox_head=7)
    check_classes(model, [])
    silent = Data(serialize_data=False)
    check_classes(model, [('train', [1, 2]), ('val', silent)])


def test_what_metainfo_may_be():
    assert class_names({'CLASSES': ['a', 'b']}) == ('a', 'b')
    # mmdet's ConcatDataset, where palettes differ.
    assert class_names([{'classes': ('a',)}, {'classes': ('a',)}]) == ('a',)
    for nothing in (None, {}, [], {'classes': None}):
        assert class_names(nothing) is None


def test_before_a_run(make_runner, make_model):
    model = make_model()
    model.bbox_head = Head(3)
    runner = make_runner(model, custom_hooks=HOOK)
    with pytest.raises(ClassesError, match=r"bbox_head\.num_classes=3.*'a'"):
        runner.train()
    assert runner.iter == 0
    # Text in place of classes.
    model.language_model = nn.Identity()
    make_runner(model, custom_hooks=HOOK, work_dir='text').train()


def test_a_loaded_checkpoint(make_runner, make_model, tmp_path):
    path = tmp_path / 'start.pth'
    state = make_model().state_dict()
    for run, (meta, told) in enumerate(
        (
            ({'classes': ('b', 'a')}, True),
            ({'CLASSES': ('a', 'b', 'c')}, True),
            ({'classes': ['a', 'b']}, False),
            ({}, False),
        )
    ):
        meta = {'dataset_meta': meta} if meta else {}
        torch.save({'meta': meta, 'state_dict': state}, path)
        runner = make_runner(
            make_model(),
            custom_hooks=HOOK,
            load_from=str(path),
            work_dir=str(run),
        )
        runner.train()
        (log,) = Path(runner.log_dir).glob('*.log')
        lines = [x for x in log.read_text().splitlines() if ' classes, ' in x]
        assert len(lines) == told, lines
        if told:
            (names,) = meta['dataset_meta'].values()
            for part in ('WARNING', str(path), str(names), "('a', 'b')"):
                assert part in lines[0]


def test_evaluation_of_other_classes_is_refused(
    make_runner, make_model, tmp_path
):
    path = tmp_path / 'trained.pth'
    meta = {'dataset_meta': {'classes': ('b', 'a')}}
    torch.save({'meta': meta, 'state_dict': make_model().state_dict()}, path)
    runner = make_runner(
        make_model(),
        custom_hooks=HOOK,
        load_from=str(path),
        test_dataloader={
            'batch_size': 4,
            'num_workers': 0,
            'dataset': data('a', 'b'),
            'sampler': {'type': 'DefaultSampler', 'shuffle': False},
        },
        test_cfg={},
        test_evaluator=[],
    )
    with pytest.raises(ClassesError, match=r"\('b', 'a'\).*\('a', 'b'\)"):
        runner.test()


def test_a_checkpoint_tells_one_set_of_classes(
    make_runner, make_model, tmp_path
):
    joined = ConcatDataset([data('a', palette=[1]), data('a', palette=[2])])
    assert isinstance(joined.metainfo, list)
    meta = {'dataset_meta': joined.metainfo}
    runner = make_runner(make_model(), custom_hooks=HOOK)
    runner.call_hook('before_save_checkpoint', checkpoint={'meta': meta})
    assert meta['dataset_meta']['palette'] == [1]
