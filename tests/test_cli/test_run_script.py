import sys

import pytest

from surge_det.cli.main import main, script


@pytest.fixture(autouse=True)
def restore_interpreter(monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['surge_det'])
    monkeypatch.setattr(sys, 'path', list(sys.path))


def test_script_runs_as_python_would_run_it(tmp_path, capsys):
    (tmp_path / 'neighbour_of_script.py').write_text('value = 7\n')
    script = tmp_path / 'script.py'
    script.write_text(
        'import sys\n'
        'import neighbour_of_script\n'
        "if __name__ == '__main__':\n"
        "    print(sys.argv[1:], 'surge_det' in sys.modules,\n"
        '          neighbour_of_script.value, sys.argv[0] == __file__)\n'
    )
    main(['run', script, 'config.py', '--work-dir', 'x'])
    printed = capsys.readouterr().out
    assert printed == "['config.py', '--work-dir', 'x'] True 7 True\n"


def test_scripts_exit_status_passes(tmp_path):
    script = tmp_path / 'script.py'
    script.write_text('raise SystemExit(3)\n')
    with pytest.raises(SystemExit) as stop:
        main(['run', script])
    assert stop.value.code == 3


def test_a_script_keeps_its_exit_handlers(monkeypatch):
    # Training with gloo ends by os._exit, which would lose them.
    monkeypatch.setattr('surge_det.cli.main._uses_gloo', lambda: True)
    monkeypatch.setattr('surge_det.cli.main.main', lambda argv: 0)
    with pytest.raises(SystemExit) as stop:
        script('run', 'script.py')
    assert stop.value.code == 0


@pytest.mark.parametrize(
    ('argv', 'status', 'said'),
    [
        ([], 2, 'usage: surge-det'),
        (['run'], 2, 'usage: surge-det run'),
        (['run', '--help'], 0, 'usage: surge-det run'),
        (['run', 'nowhere/test.py'], 2, "'nowhere/test.py' does not exist"),
    ],
)
def test_missing_script(argv, status, said, capsys):
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == status
    printed = capsys.readouterr()
    assert said in printed.out + printed.err
