"""What all commands share, and those that are about configs and data."""

import json
import re
from pathlib import Path

import pytest
from command_line import ROOT

pytest.importorskip('mmdet', reason='needs the toolbox')

from mmengine.config import Config

from surge_det.cli.main import COMMANDS, main, parse_args
from surge_det.datasets.shapes import prepare_shapes

NAME = 'surge_faster_rcnn_r18_demo'


def fails(capsys, *args):
    with pytest.raises(SystemExit) as error:
        main(args)
    assert error.value.code == 2
    return capsys.readouterr().err


def test_every_script_is_a_command():
    scripts = sorted((ROOT / 'tools').glob('*.py'))
    assert len(scripts) > 10
    for path in scripts:
        text = path.read_text()
        command = re.search(r"script\('([\w-]+)'", text)[1]
        assert command in COMMANDS
        assert text.startswith(f'"""``surge-det {command}')


def test_every_command_says_what_it_is_for(capsys):
    with pytest.raises(SystemExit):
        main(['--help'])
    printed = ' '.join(capsys.readouterr().out.split())
    for command, text in COMMANDS.items():
        assert f'{command} {text}' in printed
    assert "invalid choice: 'trian'" in fails(capsys, 'trian')


def test_a_flag_before_the_command(capsys):
    error = fails(capsys, '--foo', 'train', NAME)
    assert f'unrecognized arguments: --foo {NAME}' in error


def test_a_toolbox_that_is_missing(monkeypatch, capsys):
    def run(args):
        raise ModuleNotFoundError("No module named 'mmdet'", name='mmdet')

    monkeypatch.setattr('surge_det.cli.config.run', run)
    error = fails(capsys, 'config', NAME)
    assert error.startswith("error: No module named 'mmdet'; `surge-det doc")


def test_a_config_by_its_name(capsys):
    main(['config', f'{NAME}.py'])
    assert capsys.readouterr().out == f'{ROOT / "configs" / NAME}.py\n'
    main(['config'])
    assert 'pretrain/surge_resnet18_crops\n' in capsys.readouterr().out
    error = fails(capsys, 'config', 'surge_faster_rcnn_r18_dmo')
    assert f'near names: {NAME}' in error
    error = fails(capsys, 'train', 'surge_faster_rcnn_r18_dmo')
    assert "'surge_faster_rcnn_r18_dmo' does not exist" in error
    assert f'near names: {NAME}' in error


def test_a_file_wins_over_a_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / NAME).write_text('')
    # Not what is shipped: that could be read.
    assert NAME in fails(capsys, 'check-data', NAME)


def test_a_config_to_start_from(tmp_path, capsys):
    path = tmp_path / 'mine.py'
    main(['config', NAME, '--out', path])
    assert f'Written: {path}' in capsys.readouterr().out
    cfg = Config.fromfile(path)
    shipped = Config.fromfile(ROOT / 'configs' / f'{NAME}.py')
    assert cfg.model == shipped.model
    assert cfg.custom_imports.imports == ['surge_det']
    before = path.read_text()
    assert 'exists' in fails(capsys, 'config', NAME, '--out', path)
    assert path.read_text() == before


def test_settings_are_read_as_mmdet_reads_them(capsys):
    args = ['train', NAME, '--cfg-options', 'a.b=1e-3', 'c=[1,(2,x)]']
    args += ['--cfg-options', 'd=e=f', 'a.b=1e-2', 'data_root=/sp ace/']
    assert parse_args(args).cfg_options == {
        'a.b': 1e-2,
        'c': [1, (2, 'x')],
        'd': 'e=f',
        'data_root': '/sp ace/',
    }
    error = fails(capsys, 'train', NAME, '--cfg-options', 'a')
    assert "--cfg-options: 'a' is not KEY=VALUE" in error


def test_data_that_is_there(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('SURGE_DATA_ROOT', str(tmp_path))
    prepare_shapes(tmp_path, 6, 5, 0)
    assert main(['check-data', NAME]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [re.split(' {2,}', line.strip()) for line in lines[-3:]]
    folder = str(tmp_path / 'shapes')
    assert rows == [
        ['train', 'VOCFormatDataset', folder, 'ImageSets/Main/train.txt', '6'],
        ['val', 'VOCFormatDataset', folder, 'ImageSets/Main/test.txt', '5'],
        ['test', 'VOCFormatDataset', folder, 'ImageSets/Main/test.txt', '5'],
    ]


def test_data_that_is_missing(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('SURGE_DATA_ROOT', str(tmp_path))
    with pytest.raises(SystemExit) as error:
        main(['check-data', NAME])
    assert error.value.code == 2
    printed = capsys.readouterr()
    assert printed.out.count(' missing\n') == 3
    assert 'error: no data at' in printed.err
    assert 'surge-det make-demo-data' in printed.err


def test_images_of_coco_and_of_folders_are_counted(tmp_path):
    from surge_det.cli.check_data import count_images

    (tmp_path / 'a.json').write_text(json.dumps({'images': [1, 2, 3]}))
    (tmp_path / 'class').mkdir()
    (tmp_path / 'class' / 'x.png').write_text('')
    assert count_images(tmp_path, 'a.json') == '3'
    assert count_images(tmp_path / 'class', '') == '1'
    assert count_images(tmp_path, 'b.json') == 'missing'
    assert count_images(Path(''), '') == '-'
    for name, data in (
        ('list.json', b'[1]'),
        ('other.json', b'{}'),
        ('binary.json', b'\xff'),
        ('binary.txt', b'\xff'),
    ):
        (tmp_path / name).write_bytes(data)
        assert count_images(tmp_path, name) == '?'
