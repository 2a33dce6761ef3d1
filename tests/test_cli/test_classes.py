"""Weights, heads and data of other classes are refused by every command."""

import pytest

pytest.importorskip('mmdet', reason='needs the toolbox')

import torch
from command_line import ROOT
from mmengine.config import Config

from surge_det.cli.main import main

CLASSES = ('circle', 'square', 'triangle', 'star', 'ring')


@pytest.fixture
def config(drawn_data, tmp_path, monkeypatch):
    monkeypatch.setenv('SURGE_DATA_ROOT', str(drawn_data))
    monkeypatch.chdir(tmp_path)
    return ROOT / 'configs' / 'surge_faster_rcnn_r18_demo.py'


def refusal(capsys, *args):
    with pytest.raises(SystemExit) as end:
        main([str(arg) for arg in args])
    assert end.value.code == 2
    *_, line = capsys.readouterr().err.strip().splitlines()
    assert line.startswith('error: ')
    return line


@pytest.mark.parametrize(
    ('command', 'classes'),
    [
        ('test', (*CLASSES[1:], CLASSES[0])),
        ('infer', CLASSES[:4]),
        ('export', ['a']),
        ('export', CLASSES[::-1]),
    ],
)
def test_a_checkpoint_of_other_classes(
    command, classes, config, tmp_path, capsys
):
    path = tmp_path / 'epoch_1.pth'
    meta = {'dataset_meta': {'classes': classes}}
    torch.save({'meta': meta, 'state_dict': {}}, path)
    args = {
        'test': (config, path),
        'infer': (ROOT / 'docs' / 'images', '--config', config)
        + ('--model', path, '--device', 'cpu'),
        'export': (config, path, '--format', 'pth', '--out', 'x.pth'),
    }
    line = refusal(capsys, command, *args[command])
    assert f'{path} has {len(classes)} classes, {tuple(classes)}' in line
    assert str(CLASSES) in line
    assert not (tmp_path / 'x.pth').exists()


@pytest.mark.parametrize('command', ['train', 'test'])
def test_a_head_of_another_number(command, config, tmp_path, capsys):
    # A config whose hooks are its own.
    cfg = Config.fromfile(config)
    cfg.model.roi_head.bbox_head.num_classes = 80
    cfg.custom_hooks = [dict(type='AGSHook')]
    cfg.dump(tmp_path / 'mine.py')
    args = [tmp_path / 'mine.py']
    if command == 'test':
        from mmengine.registry import init_default_scope

        from surge_det.deploy.trained import build_detector

        init_default_scope('mmdet')
        state = build_detector(cfg).state_dict()
        torch.save({'state_dict': state}, tmp_path / 'epoch_1.pth')
        args.append(tmp_path / 'epoch_1.pth')
    line = refusal(capsys, command, *args)
    assert 'model.roi_head.bbox_head.num_classes=80' in line
    assert str(CLASSES) in line
