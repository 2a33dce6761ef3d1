"""What all commands share, and the one that is about configs."""

import os
import re
import subprocess
import sys

import pytest
from command_line import ROOT

pytest.importorskip('mmdet', reason='needs the toolbox')

from mmengine.config import Config

from surge_det.cli.common import build_data, fail
from surge_det.cli.main import COMMANDS, main, parse_args, script

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


def test_what_an_error_quotes_does_not_reach_the_terminal(capsys):
    with pytest.raises(SystemExit):
        fail(ValueError('a file says \x1b[2J\x07:\n  \x9b2J'))
    said = capsys.readouterr().err
    assert said == 'error: a file says \\x1b[2J\\x07:\n  \\x9b2J\n'


@pytest.mark.parametrize(
    ('command', 'option'),
    [
        (['show-detections', NAME, 'a.pkl'], '--out'),
        (['infer', '.', '--model', 'a.pkl'], '--out'),
        (['compare', NAME, '--methods', 'ste'], '--out'),
        (['compare', NAME, '--methods', 'ste'], '--work-dir'),
        (['benchmark', 'layers'], '--out'),
        (['train', NAME], '--work-dir'),
        (['test', NAME, 'a.pkl'], '--work-dir'),
        (['demo'], '--work-dir'),
        (['make-crops'], '--out'),
    ],
)
def test_a_file_where_a_folder_is_written(
    command, option, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'a.pkl').write_text('')
    for folder in ('a.pkl', 'a.pkl/b/c'):
        error = fails(capsys, *command, option, folder)
        assert error.endswith(
            f"{option}: 'a.pkl' is a file: a folder is allowed\n"
        )
    assert os.listdir() == ['a.pkl']


@pytest.mark.parametrize('error', [ValueError, FileNotFoundError])
def test_data_at_fault_end_a_run_with_a_message(capsys, error):
    class Runner:
        train_loop = None

        @property
        def val_loop(self):
            raise error('val.json: no box')

    build_data(Runner(), 'train')
    with pytest.raises(SystemExit) as end:
        build_data(Runner(), 'train', 'val')
    assert end.value.code == 2
    assert capsys.readouterr().err == 'error: val.json: no box\n'


def test_resume_says_what_it_goes_on_from(tmp_path, capsys):
    from surge_det.cli.train import _newest

    assert _newest(str(tmp_path)) is None
    assert 'training starts anew' in capsys.readouterr().out
    # Of a hook whose out_dir is elsewhere.
    (tmp_path / 'last_checkpoint').write_text('/elsewhere/epoch_1.pth')
    assert _newest(str(tmp_path)) is None
    assert 'last_checkpoint names' in capsys.readouterr().out


@pytest.mark.parametrize('kind', ['', 'mmengine.', None])
def test_train_takes_the_checkpoint_hook_that_is_safe(kind):
    from surge_det.cli.train import apply_flags

    cfg = Config.fromfile(ROOT / 'configs' / f'{NAME}.py')
    hook = dict(type=f'{kind}CheckpointHook', interval=3)
    cfg.default_hooks.checkpoint = hook
    if kind is None:
        # mmengine takes one of its own then.
        cfg.pop('default_hooks')
        hook['interval'] = 1
    apply_flags(cfg, parse_args(['train', NAME]))
    assert cfg.default_hooks.checkpoint == hook | dict(
        type='SURGECheckpointHook'
    )


@pytest.mark.parametrize('unbuffered', ['', '1'])
@pytest.mark.parametrize('command', ['--help', 'config'])
def test_output_that_nobody_reads_ends_the_command(command, unbuffered):
    reader, writer = os.pipe()
    os.close(reader)
    ended = subprocess.run(
        [sys.executable, '-m', 'surge_det', command],
        cwd=ROOT,
        env=dict(os.environ, PYTHONUNBUFFERED=unbuffered),
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writer)
    assert ended.stderr == ''
    # argparse passes over what cannot be written.
    assert ended.returncode in ((0, 141) if unbuffered else (141,))


def test_another_pipe_that_breaks_is_an_error(monkeypatch, capsys):
    def run(args):
        raise BrokenPipeError(32, "a worker's")

    monkeypatch.setattr('surge_det.cli.config.run', run)
    monkeypatch.setattr(sys, 'argv', ['surge-det', 'config', NAME])
    with pytest.raises(BrokenPipeError, match='worker'):
        script()
