import itertools
import logging

import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import Dataset

import surge_det.engine  # noqa: F401
from surge_det.core import SURGEConv2d, SURGELinear

_counter = itertools.count()


class TinyModel(BaseModel):
    """Two binarized layers by names that patterns can tell apart."""

    def __init__(self, **surge):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.body = nn.Sequential(
            nn.BatchNorm2d(4), SURGEConv2d(4, 6, 3, **surge)
        )
        self.head = SURGELinear(6, 2, **surge)

    def forward(self, inputs, labels=None, mode='tensor'):
        out = self.body(self.stem(inputs)).mean((2, 3))
        out = self.head(out)
        if mode == 'loss':
            return {'loss': nn.functional.cross_entropy(out, labels)}
        return out


class FloatModel(BaseModel):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 2)

    def forward(self, inputs, labels=None, mode='tensor'):
        out = self.head(inputs.mean((2, 3)))
        return {'loss': nn.functional.cross_entropy(out, labels)}


class TinyData(Dataset):
    metainfo = {'classes': ('a', 'b')}

    def __init__(self, length=24):
        generator = torch.Generator().manual_seed(1)
        self.images = torch.randn(length, 3, 8, 8, generator=generator)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return {'inputs': self.images[index], 'labels': index % 2}


@pytest.fixture
def make_model():
    def make(**surge):
        torch.manual_seed(0)
        return TinyModel(**surge)

    return make


@pytest.fixture
def float_model():
    return FloatModel()


@pytest.fixture
def make_runner(tmp_path):
    """Runner of 6 iterations an epoch, 4 images each, order fixed."""

    def make(model, optim_wrapper=None, max_epochs=1, interval=2, **kwargs):
        optim_wrapper = {
            'type': 'AGSOptimWrapper',
            'optimizer': {'type': 'SGD', 'lr': 0.05, 'momentum': 0.9},
            **(optim_wrapper or {}),
        }
        return Runner(
            model=model,
            work_dir=str(tmp_path / kwargs.pop('work_dir', 'run')),
            experiment_name=f'{tmp_path.name}_{next(_counter)}',
            train_dataloader={
                'batch_size': 4,
                'num_workers': 0,
                'dataset': TinyData(),
                'sampler': {'type': 'DefaultSampler', 'shuffle': False},
                'collate_fn': {'type': 'default_collate'},
            },
            train_cfg={'by_epoch': True, 'max_epochs': max_epochs},
            optim_wrapper=optim_wrapper,
            default_hooks={
                'logger': {'type': 'LoggerHook', 'interval': interval}
            },
            visualizer={
                'type': 'Visualizer',
                'vis_backends': [{'type': 'LocalVisBackend'}],
            },
            randomness={'seed': 3},
            **kwargs,
        )

    return make


@pytest.fixture
def log_messages():
    """Messages of mmengine's current logger, with their level's name."""
    messages = []

    class Handler(logging.Handler):
        def emit(self, record):
            messages.append((record.levelname, record.getMessage()))

    logger = MMLogger.get_current_instance()
    handler = Handler(logging.INFO)
    logger.addHandler(handler)
    yield messages
    logger.removeHandler(handler)
