"""What a wheel installs works from an empty folder, without a clone."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from command_line import ROOT, environment

pytest.importorskip('mmdet', reason='needs the toolbox')
pytest.importorskip('safetensors', reason='needs the extra deploy')
pytest.importorskip('pip')

import mmdet

from surge_det.datasets.shapes import prepare_shapes

NAME = 'surge_faster_rcnn_r18_demo'
SMALL = (
    '--cfg-options',
    'train_dataloader.batch_size=3',
    'train_cfg.val_interval=9',
    *(
        f'{split}_dataloader.{key}'
        for split in ('train', 'val', 'test')
        for key in ('num_workers=0', 'persistent_workers=False')
    ),
    'train_cfg.max_epochs=1',
)


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    """Build it from a copy: building leaves files in the source folder."""
    source = tmp_path_factory.mktemp('source')
    for name in ('surge_det', 'configs', 'tools', 'weights'):
        # Other tests may write the compiled files at this moment.
        shutil.copytree(
            ROOT / name,
            source / name,
            ignore=shutil.ignore_patterns('__pycache__'),
        )
    for path in ROOT.iterdir():
        if path.is_file() and path.name[0] != '.':
            shutil.copy(path, source)
    out = tmp_path_factory.mktemp('wheel')
    pip = [sys.executable, '-m', 'pip', 'wheel', '--quiet', '--no-deps']
    pip += ['--no-build-isolation', '--wheel-dir', str(out), str(source)]
    subprocess.run(pip, check=True)
    return next(out.iterdir())


@pytest.fixture(scope='module')
def surge_det(wheel, tmp_path_factory):
    """The command of a fresh environment, in an empty folder."""
    venv = tmp_path_factory.mktemp('venv')
    subprocess.run(
        [sys.executable, '-m', 'venv', '--without-pip', venv], check=True
    )
    python = venv / 'bin' / 'python'
    install = ['install', '--quiet', '--no-deps', '--no-index', str(wheel)]
    subprocess.run(
        [sys.executable, '-m', 'pip', '--python', python, *install], check=True
    )
    # Everything else is taken from the environment of the tests.
    (site,) = venv.glob('lib/python*/site-packages')
    others = {str(Path(m.__file__).parents[1]) for m in (torch, mmdet)}
    (site / 'others.pth').write_text('\n'.join(others))
    data = tmp_path_factory.mktemp('data')
    prepare_shapes(data, 6, 5, 0)
    folder = tmp_path_factory.mktemp('empty')
    env = environment(data)
    del env['PYTHONPATH']

    def run(*args):
        done = subprocess.run(
            [venv / 'bin' / 'surge-det', *map(str, args)],
            cwd=folder,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert done.returncode == 0, done.stdout[-4000:]
        return done.stdout

    run.folder, run.data, run.site = folder, data, site
    return run


def test_from_a_config_by_name_to_detections(surge_det):
    path = Path(surge_det('config', NAME).strip())
    assert path == surge_det.site / f'surge_det/.mim/configs/{NAME}.py'
    surge_det('config', NAME, '--out', 'mine.py')
    out = surge_det('train', NAME, *SMALL)
    assert 'Epoch(train) [1][2/2]' in ' '.join(out.split())
    checkpoint = f'work_dirs/{NAME}/epoch_1.pth'
    out = surge_det('test', 'mine.py', checkpoint, *SMALL)
    assert 'pascal_voc/mAP: ' in out
    packed = 'x.safetensors'
    args = ['--format', 'packed', '--out', packed]
    surge_det('export', NAME, checkpoint, *args)
    image = next((surge_det.data / 'shapes' / 'JPEGImages').iterdir())
    surge_det('infer', image, '--model', packed)
    written = surge_det.folder / 'detections' / 'preds'
    assert (written / f'{image.stem}.json').is_file()


def test_a_shipped_detector(surge_det):
    image = next((surge_det.data / 'shapes' / 'JPEGImages').iterdir())
    surge_det('infer', image, '--model', 'shapes', '--out', 'shipped')
    assert (surge_det.folder / 'shipped' / 'vis' / image.name).is_file()


def test_the_wheel_has_what_mim_looks_for(surge_det):
    mim = surge_det.site / 'surge_det' / '.mim'
    assert (mim.parent / 'py.typed').is_file()
    assert (mim / 'tools' / 'dist_train.sh').is_file()
    index = (mim / 'model-index.yml').read_text()
    for line in index.splitlines()[1:]:
        assert (mim / line.removeprefix('  - ')).is_file()
    shipped = {p.name for p in (ROOT / 'configs').rglob('*.py')}
    assert {p.name for p in (mim / 'configs').rglob('*.py')} == shipped
    weights = {p.name for p in (ROOT / 'weights').iterdir()}
    assert {p.name for p in (mim / 'weights').iterdir()} == weights
