"""What is said about mistakes in configs that nothing fails by."""

import re
from pathlib import Path

import pytest

pytest.importorskip('mmdet', reason='needs the toolbox')

import mmdet
from mmengine.config import Config

from surge_det.cli.common import read_config
from surge_det.cli.config_checks import check_types, warnings
from surge_det.shipped import CONFIGS

BASE = """
data_root = 'data/a/'
image_size = 3
model = dict(type='X', size=image_size)
train_dataloader = dict(dataset=dict(type='D', data_root=data_root))
custom_hooks = [dict(type='EMAHook'), dict(type='YOLOXModeSwitchHook')]
"""


@pytest.fixture
def warned(tmp_path, capsys):
    """Return the warnings about a config with a base."""

    def read(text, **options):
        (tmp_path / 'base.py').write_text(BASE)
        path = tmp_path / 'own.py'
        path.write_text(f"_base_ = './base.py'\n{text}\n")
        read_config(path, options)
        lines = capsys.readouterr().err.splitlines()
        assert all(line.startswith(f'warning: {path}: ') for line in lines)
        return [line.removeprefix(f'warning: {path}: ') for line in lines]

    return read


@pytest.mark.parametrize(
    ('key', 'near'),
    [
        ('optim_wraper', 'optim_wrapper'),
        ('load_form', 'load_from'),
        ('param_schedulers', 'param_scheduler'),
        ('custom_hook', 'custom_hooks'),
        ('train_config', 'train_cfg'),
        ('lr_config', 'param_scheduler'),
        ('resume_from', 'load_from, resume=True'),
    ],
)
def test_keys_that_nothing_reads(warned, key, near):
    expected = [f'nothing reads {key}; did you mean {near}?']
    assert warned(f'{key} = dict(a=1)') == expected
    assert warned('', **{key: 1}) == expected


def test_variables_of_a_config_are_no_mistakes(warned):
    assert not warned('optimizer = dict(lr=1)\noptim_wrapper = optimizer')
    assert not warned('max_epochs = 3\nwork_dir = None\nmy_own = image = 1')


def test_hooks_that_a_list_replaced(warned):
    ours = "dict(type='AGSHook')"
    (warning,) = warned(f"custom_hooks = [{ours}, dict(type='EMAHook')]")
    assert 'base.py, so YOLOXModeSwitchHook will not run' in warning
    # What the warning says.
    assert not warned(f'custom_hooks = [*_base_.custom_hooks, {ours}]')
    assert not warned('custom_hooks = []')
    assert not warned('')


def test_a_data_root_that_comes_too_late(warned):
    (warning,) = warned("data_root = 'mine/'")
    assert "data_root='mine/' is used by no dataset" in warning
    assert "'data/a/'" in warning
    dataset = 'train_dataloader = dict(dataset=dict(data_root=data_root))'
    assert not warned(f"data_root = 'mine/'\n{dataset}")
    assert not warned('', data_root='mine')
    # Datasets of several places need no common one.
    other = "val_dataloader = dict(dataset=dict(data_root='other/'))"
    assert not warned(f"data_root = 'mine/'\n{other}")


MMDET = Path(mmdet.__file__).parent / '.mim/configs'
OTHERS = sorted(
    path for path in MMDET.glob('*/*.py') if path.parent.name != '_base_'
)
SHIPPED = sorted(
    path for path in CONFIGS.rglob('*.py') if '_base_' not in path.parts
)


@pytest.mark.parametrize('paths', [SHIPPED, OTHERS[::60]])
def test_no_warning_without_a_mistake(paths):
    assert paths
    for path in paths:
        cfg = Config.fromfile(path)
        assert not list(warnings(cfg)), path
        check_types(cfg)


@pytest.mark.parametrize(
    ('key', 'wrong', 'right'),
    [
        ('model.backbone.conv_cfg.type', 'SURGEConv2D', 'SURGEConv2d'),
        ('model.backbone.conv_cfg.type', 'mmdet.SURGEConv', 'SURGEConv2d'),
        ('model.rpn_head.type', 'SurgeRPNHead', 'SURGERPNHead'),
        ('optim_wrapper.type', 'AGSOptimWraper', 'AGSOptimWrapper'),
        ('custom_hooks.0.type', 'AGSHok', 'AGSHook'),
        (
            'train_dataloader.dataset.type',
            'VOCFormatDataSet',
            'VOCFormatDataset',
        ),
    ],
)
def test_a_type_that_is_nearly_ours(key, wrong, right):
    cfg = Config(dict(custom_hooks=[dict(type='EMAHook')]))
    cfg.merge_from_dict({key: wrong})
    message = f"{key}='{wrong}' is not registered; did you mean '{right}'? "
    with pytest.raises(ValueError, match=re.escape(message)):
        check_types(cfg)
    cfg.merge_from_dict({key: right})
    check_types(cfg)


def test_a_layer_that_nobody_has():
    cfg = Config(dict(model=dict(neck=dict(conv_cfg=dict(type='BinConv')))))
    with pytest.raises(
        ValueError, match=r"neck.conv_cfg.type='BinConv'.*Conv"
    ):
        check_types(cfg)
    for known in ('Conv2d', 'DCNv2', 'mmdet.SURGEConv2d'):
        cfg.model.neck.conv_cfg.type = known
        check_types(cfg)
