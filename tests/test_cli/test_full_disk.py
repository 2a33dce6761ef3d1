"""What commands leave where a disk is full or a folder cannot be written."""

import json
import resource
import signal
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

pytest.importorskip('mmdet', reason='needs the toolbox')

from surge_det.cli.main import main
from surge_det.whole_files import replacing, save


@contextmanager
def full(limit):
    """Let no file grow beyond some bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)


@pytest.fixture
def work_dir(tmp_path):
    """What a training logs."""
    folder = tmp_path / 'work' / '20260101_000000' / 'vis_data'
    folder.mkdir(parents=True)
    lines = [dict(loss=1.0, epoch=1, iter=i, step=i) for i in (1, 2)]
    lines.append({'pascal_voc/mAP': 0.5, 'step': 1})
    text = '\n'.join(map(json.dumps, lines))
    (folder / 'scalars.json').write_text(text)
    return tmp_path / 'work'


def test_a_picture(work_dir, tmp_path, capsys):
    out = tmp_path / 'out' / 'curve.png'
    command = ['plot-run', work_dir, '--out', out]
    with full(1000), pytest.raises(SystemExit) as end:
        main(command)
    assert end.value.code == 2
    assert f'File too large: {str(out)!r}' in capsys.readouterr().err
    assert list(out.parent.iterdir()) == []
    main(command)
    old = out.read_bytes()
    with full(1000), pytest.raises(SystemExit):
        main(command)
    assert out.read_bytes() == old
    assert list(out.parent.iterdir()) == [out]


def test_a_file_where_the_folder_should_be(work_dir, tmp_path, capsys):
    (tmp_path / 'out').write_text('a file')
    with pytest.raises(SystemExit) as end:
        main(['plot-run', work_dir, '--out', tmp_path / 'out' / 'curve.png'])
    assert end.value.code == 2
    assert str(tmp_path / 'out') in capsys.readouterr().err


def test_a_folder_that_cannot_be_written(work_dir, capsys):
    # Not even root writes there.
    with pytest.raises(SystemExit) as end:
        main(['plot-run', work_dir, '--out', '/proc/surge/curve.png'])
    assert end.value.code == 2
    assert '/proc/surge' in capsys.readouterr().err


def test_weights(tmp_path):
    path = tmp_path / 'weights.pth'
    value = {'weights': torch.ones(9999)}
    with full(1000), pytest.raises(OSError, match=r'too large.*weights\.pth'):
        save(value, path)
    assert list(tmp_path.iterdir()) == []
    save(value, path)
    assert torch.load(path)['weights'].sum() == 9999


@pytest.mark.parametrize(
    'error',
    [
        FileNotFoundError(2, 'No such file or directory', '/data/img.jpg'),
        OSError('Caught OSError in DataLoader worker process 0.'),
    ],
)
def test_errors_of_other_files_stay_what_they_are(tmp_path, error):
    with pytest.raises(type(error)) as raised, replacing(tmp_path / 'out.pkl'):
        raise error
    assert raised.value is error


def test_a_table(tmp_path):
    path = tmp_path / 'table.csv'
    path.write_text('old')
    with (
        full(10),
        pytest.raises(OSError, match=r'table\.csv'),
        replacing(path) as new,
    ):
        new.write_text('x' * 99)
    assert [p.name for p in Path(tmp_path).iterdir()] == ['table.csv']
    assert path.read_text() == 'old'
