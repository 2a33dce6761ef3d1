"""A detector's loss with targets and regions held."""

import random

import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from small_detector import small_config, small_one_stage

from surge_det.models.held_loss import HeldLoss


def batch():
    generator = torch.Generator().manual_seed(0)
    samples = []
    for _ in range(2):
        sample = DetDataSample(
            metainfo=dict(
                img_shape=(64, 96), ori_shape=(64, 96), scale_factor=(1, 1)
            )
        )
        sample.gt_instances = InstanceData(
            bboxes=torch.tensor([[8.0, 8, 40, 40], [50, 10, 90, 60]]),
            labels=torch.tensor([0, 2]),
        )
        samples.append(sample)
    images = [
        torch.randint(0, 256, (3, 64, 96), generator=generator).byte()
        for _ in range(2)
    ]
    return {'inputs': images, 'data_samples': samples}


def detector(config):
    torch.manual_seed(0)
    model = MODELS.build(config.model)
    model.init_weights()
    return model.train()


@pytest.fixture(scope='module')
def two_stage():
    return detector(small_config())


def regions(model, loss):
    """What the second stage looks at."""
    seen = []
    handle = model.roi_head.bbox_roi_extractor.register_forward_pre_hook(
        lambda module, args: seen.append(args[1])
    )
    loss(model)
    handle.remove()
    (rois,) = seen
    return rois


def test_regions_stay_where_proposals_do_not(two_stage):
    loss = HeldLoss(batch())
    first = loss(two_stage).item()
    assert loss(two_stage).item() == first
    held = regions(two_stage, loss)
    with torch.no_grad():
        two_stage.rpn_head.rpn_reg.bias += 0.5
    assert torch.equal(regions(two_stage, loss), held)
    # What is differentiated sees the change.
    assert loss(two_stage).item() != first


def test_another_batch_has_its_own(two_stage):
    other = detector(small_config())
    one, two = regions(two_stage, HeldLoss(batch())), HeldLoss(batch())
    assert not torch.equal(one, regions(other, two))


def test_targets_by_predictions_stay():
    model = detector(small_one_stage())
    loss = HeldLoss(batch())
    first = loss(model).item()
    model.bbox_head.assigner.assign.function = None
    assert loss(model).item() == first


def test_random_generators_go_on_as_they_would(two_stage):
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = random.random(), np.random.rand(), torch.rand(()).item()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    HeldLoss(batch())(two_stage)
    assert (random.random(), np.random.rand(), torch.rand(()).item()) == (
        expected
    )
