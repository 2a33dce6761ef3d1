"""Two-step training: two configs, the second from the first's checkpoint."""

from pathlib import Path

import pytest
import torch

pytest.importorskip('mmdet', reason='needs the toolbox')

import surge_det  # noqa: F401

# isort: split
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import load_checkpoint, save_checkpoint

from surge_det.core.layers import named_surge_layers

FOLDER = Path(__file__).resolve().parents[1] / 'configs' / 'two_step'
NAMES = [f'surge_faster_rcnn_r18_bccd_step{i}' for i in (1, 2)]


@pytest.fixture(scope='module')
def steps():
    init_default_scope('mmdet')
    return [Config.fromfile(FOLDER / f'{name}.py') for name in NAMES]


def test_the_second_starts_from_the_firsts_last_checkpoint(steps):
    one, two = steps
    # tools/train.py puts a run into work_dirs/<name of the config>.
    assert one.get('work_dir') is None
    last = one.train_cfg.max_epochs
    assert two.load_from == f'work_dirs/{NAMES[0]}/epoch_{last}.pth'
    assert one.load_from is None
    assert not two.get('resume')


def test_they_differ_in_weights_and_decay_only(steps):
    one, two = (cfg.to_dict() for cfg in steps)
    # Decoupled, as AdamW's, 1e-5 would do nothing in so few steps.
    assert one['optim_wrapper']['optimizer']['type'] == 'Adam'
    assert one['optim_wrapper']['optimizer'].pop('weight_decay') > 0
    assert two['optim_wrapper']['optimizer'].pop('weight_decay') == 0
    two.pop('load_from')
    one.pop('load_from')
    # The config's own variable.
    one.pop('step1')
    for part in ('backbone', 'neck', 'rpn_head'):
        cfg = one['model'][part]['conv_cfg']
        assert cfg.pop('binarize_weight') is False
    assert one == two


def test_a_checkpoint_of_step_one_fits_step_two(steps, tmp_path):
    torch.manual_seed(0)
    one, two = (MODELS.build(cfg.model) for cfg in steps)
    for model, binary in ((one, False), (two, True)):
        layers = dict(named_surge_layers(model))
        assert len(layers) == 25
        for layer in layers.values():
            assert layer.binarize_weight is binary
            assert layer.binarize_activation
            assert layer.compensate
    file = tmp_path / 'epoch_4.pth'
    save_checkpoint({'state_dict': one.state_dict()}, str(file))
    load_checkpoint(two, str(file), strict=True)
    name = 'backbone.layer1.0.conv1'
    layer = two.get_submodule(name)
    assert torch.equal(layer.weight, one.get_submodule(name).weight)
    x = torch.randn(1, 64, 4, 4)
    assert not torch.equal(layer(x), one.get_submodule(name)(x))
