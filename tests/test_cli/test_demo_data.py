import pytest

from surge_det.cli.main import main


def test_draws_once_and_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('SURGE_DATA_ROOT', str(tmp_path))
    main(['make-demo-data', '--train', '6', '--test', '6'])
    first = capsys.readouterr().out
    assert '100%' in first
    assert 'drawn in' in first
    main(['make-demo-data', '--train', '6', '--test', '6'])
    second = capsys.readouterr().out
    assert 'already there' in second
    assert 'drawn' not in second
    assert (tmp_path / 'shapes' / 'ImageSets' / 'Main' / 'test.txt').is_file()


def test_root_option_wins(tmp_path, monkeypatch):
    monkeypatch.setenv('SURGE_DATA_ROOT', str(tmp_path / 'a'))
    root = str(tmp_path / 'b')
    main(['make-demo-data', '--root', root, '--train', '6', '--test', '6'])
    assert (tmp_path / 'b' / 'shapes').is_dir()
    assert not (tmp_path / 'a').exists()


def test_bad_parameters_end_with_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(['make-demo-data', '--root', str(tmp_path), '--train', '2'])
    assert 'error: train=2 must be' in capsys.readouterr().err
