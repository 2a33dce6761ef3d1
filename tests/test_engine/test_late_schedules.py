"""Warnings of schedules that a training is too short for."""

import pytest

pytest.importorskip('mmdet', reason='needs the toolbox')

import torch
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn

from surge_det.engine import SURGECheckHook


class Model(BaseModel):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(1, 1)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        return dict(loss=self.fc(torch.stack(inputs)).sum())


@pytest.fixture
def warned(tmp_path, monkeypatch):
    """Return what is warned of before a training with five iterations."""

    def train(schedule, **train_cfg):
        runner = Runner(
            Model(),
            str(tmp_path),
            train_dataloader=dict(
                dataset=[dict(inputs=torch.ones(1))] * 5,
                batch_size=1,
                sampler=dict(type='DefaultSampler'),
            ),
            train_cfg=dict(by_epoch=True) | train_cfg,
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
            param_scheduler=[dict(type='ConstantLR', end=1), schedule],
            custom_hooks=[SURGECheckHook()],
            default_hooks=dict(checkpoint=None),
            experiment_name=str(len(runs)),
        )
        runs.append(runner)
        said = []
        monkeypatch.setattr(runner.logger, 'warning', said.append)
        runner.train()
        return [text for text in said if 'param_scheduler' in text]

    runs = []
    return train


def by_iteration(end, **settings):
    return dict(type='LinearLR', by_epoch=False, end=end, **settings)


@pytest.mark.parametrize(
    ('schedule', 'told'),
    [
        (by_iteration(10), None),
        (by_iteration(500), 'end=500 (LinearLR): the training has 10 iter'),
        (dict(type='LinearLR', end=2), None),
        (dict(type='LinearLR', end=3), 'end=3 (LinearLR): the training has 2'),
        (dict(type='LinearLR', end=2, convert_to_iter_based=True), None),
        (
            dict(type='LinearLR', end=3, convert_to_iter_based=True),
            'end=15 (LinearLR): the training has 10 iterations',
        ),
        (dict(type='MultiStepLR', milestones=[1], end=12), None),
        (
            dict(type='MultiStepLR', milestones=[1, 2], end=2),
            'milestones=[1, 2] (MultiStepLR): the training has 2 epochs',
        ),
        (dict(type='ExponentialLR', gamma=0.9), None),
        (dict(type='CosineAnnealingLR', T_max=2), None),
        (
            dict(type='CosineAnnealingLR', T_max=3),
            'T_max=3 (CosineAnnealingLR): the training has 2 epochs',
        ),
        (
            dict(type='CosineAnnealingLR', T_max=2, begin=1),
            'T_max=2 (CosineAnnealingLR): the training has 2 epochs',
        ),
        (dict(type='StepLR', step_size=1), None),
        (
            dict(type='StepLR', step_size=2),
            'step_size=2 (StepLR): the training has 2 epochs',
        ),
    ],
)
def test_schedules_longer_than_the_training(warned, schedule, told):
    said = warned(schedule, max_epochs=2)
    assert len(said) == bool(told)
    assert all(text.startswith(f'param_scheduler.1.{told}') for text in said)


def test_schedules_by_epoch_in_a_training_by_iteration(warned):
    first, *more = warned(by_iteration(4), by_epoch=False, max_iters=3)
    assert first.startswith('param_scheduler.0 (ConstantLR) goes by epochs')
    assert more == [
        'param_scheduler.1.end=4 (LinearLR): the training has 3 iterations, '
        'so this schedule does not get to its end'
    ]
