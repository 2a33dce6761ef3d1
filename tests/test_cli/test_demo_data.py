import importlib.util
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / 'tools' / 'make_demo_data.py'


@pytest.fixture(scope='module')
def tool():
    spec = importlib.util.spec_from_file_location('make_demo_data', TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_draws_once_and_says_so(tool, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('SURGE_DATA_ROOT', str(tmp_path))
    tool.main(['--train', '6', '--test', '6'])
    first = capsys.readouterr().out
    assert '12/12 images' in first
    assert 'drawn in' in first
    tool.main(['--train', '6', '--test', '6'])
    second = capsys.readouterr().out
    assert 'already there' in second
    assert 'drawn' not in second
    assert (tmp_path / 'shapes' / 'ImageSets' / 'Main' / 'test.txt').is_file()


def test_root_option_wins(tool, tmp_path, monkeypatch):
    monkeypatch.setenv('SURGE_DATA_ROOT', str(tmp_path / 'a'))
    root = str(tmp_path / 'b')
    tool.main(['--root', root, '--train', '6', '--test', '6'])
    assert (tmp_path / 'b' / 'shapes').is_dir()
    assert not (tmp_path / 'a').exists()


def test_bad_parameters_end_with_one_line(tool, tmp_path):
    with pytest.raises(SystemExit, match='make_demo_data: train=2 must be'):
        tool.main(['--root', str(tmp_path), '--train', '2'])
