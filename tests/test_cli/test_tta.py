"""Test-time augmentation flips images, not the ground truth."""

import pytest
import torch
from command_line import ROOT

pytest.importorskip('mmdet', reason='needs the toolbox')

from mmdet.registry import DATASETS
from mmengine.config import Config
from mmengine.registry import init_default_scope

from surge_det.cli.test import apply_tta
from surge_det.datasets.shapes import prepare_shapes


def _repeated(dataset):
    return dict(type='RepeatDataset', times=2, dataset=dataset)


def _concatenated(dataset):
    return dict(type='ConcatDataset', datasets=[dataset, dict(dataset)])


@pytest.mark.parametrize('wrapped', [dict, _repeated, _concatenated])
def test_every_flip_has_the_ground_truth_of_the_plain_image(
    tmp_path, monkeypatch, wrapped
):
    monkeypatch.setenv('SURGE_DATA_ROOT', str(tmp_path))
    prepare_shapes(tmp_path, 5, 5, 0)
    cfg = Config.fromfile(ROOT / 'configs' / 'ste_faster_rcnn_r18_demo.py')
    leaf = cfg.test_dataloader.dataset.to_dict()
    cfg.test_dataloader = dict(_delete_=True, dataset=wrapped(leaf))
    init_default_scope('mmdet')
    plain = DATASETS.build(cfg.test_dataloader.dataset)[-1]
    apply_tta(cfg)
    augmented = DATASETS.build(cfg.test_dataloader.dataset)[-1]
    wanted = plain['data_samples'].gt_instances.bboxes.tensor
    assert len(wanted)
    flips = [sample.flip for sample in augmented['data_samples']]
    assert flips == [True, False]
    for sample in augmented['data_samples']:
        assert torch.equal(sample.gt_instances.bboxes.tensor, wanted)
    flipped, straight = augmented['inputs']
    assert torch.equal(straight, plain['inputs'])
    assert torch.equal(flipped, straight.flip(-1))
