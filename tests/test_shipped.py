"""The trained detectors that come with the package."""

import hashlib
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from command_line import ROOT, tool
from PIL import Image

pytest.importorskip('mmdet', reason='needs the toolbox')
pytest.importorskip('safetensors', reason='needs safetensors')

from mmengine.fileio import load

from surge_det import shipped
from surge_det.cli.main import main
from surge_det.core.packed_layers import PackedLayer
from surge_det.datasets.shapes import prepare_shapes
from surge_det.deploy import load_detector

MODELS = {
    m['Name']: m for m in load(shipped.WEIGHTS / 'metafile.yml')['Models']
}
DATA = Path(os.environ.get('SURGE_DATA_ROOT', 'data')).resolve()


@pytest.fixture(scope='module')
def drawn(tmp_path_factory):
    """The demo's test images; few of those for training."""
    root = tmp_path_factory.mktemp('data')
    prepare_shapes(root, train=5)
    return root


def test_files_are_those_that_are_listed():
    files = {path.stem: path for path in shipped.WEIGHTS.glob('*.safetensors')}
    assert set(files) == set(MODELS)
    for name, model in MODELS.items():
        path = shipped.FOLDER / model['Weights']
        assert path == files[name] == shipped.shipped_weights(name)
        assert path.stat().st_size <= 6e6
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        assert digest == model['SHA-256']
        assert (ROOT / model['Config']).is_file()
        about = model['Metadata']
        assert about['License of the data']
        assert Path(model['Config']).stem in about['Command']
    assert sum(path.stat().st_size for path in files.values()) <= 20e6


@pytest.mark.parametrize('name', MODELS)
def test_it_is_the_1_bit_detector_of_its_config(name):
    path = shipped.shipped_weights(name)
    config = ROOT / MODELS[name]['Config']
    detector = load_detector(path, config)
    held = load_detector(path)
    assert detector.dataset_meta == held.dataset_meta
    count = 19 if name == 'shapes' else 25
    assert sum(isinstance(m, PackedLayer) for m in held.modules()) == count
    # No path of the machine that exported it.
    roots = re.findall(rb"data_root='(.*?)'", path.read_bytes())
    assert roots
    assert all(root.startswith(b'data/') for root in roots)


@pytest.mark.parametrize('name', MODELS)
def test_map_is_the_one_that_is_told(name, drawn, tmp_path):
    model = MODELS[name]
    told = model['Results'][0]['Metrics']['box AP50']
    folder, root = {
        'bccd': ('bccd', DATA),
        'neu': ('neu_det', DATA),
        'shapes': ('shapes', drawn),
    }[name]
    if not (root / folder).is_dir():
        pytest.skip(f'no {folder} in {root}; set SURGE_DATA_ROOT')
    output = tool(
        'test.py',
        Path(model['Config']).stem,
        name,
        '--work-dir',
        tmp_path,
        '--cfg-options',
        'test_dataloader.num_workers=0',
        'test_dataloader.persistent_workers=False',
        root=root,
    )
    found = float(re.search(r'pascal_voc/mAP: ([\d.]+)', output)[1])
    # Other instructions of a CPU give a few other signs.
    assert found == pytest.approx(told, abs=0.01)


def test_infer_draws_boxes(drawn, tmp_path):
    from mmdet.evaluation import bbox_overlaps

    images = sorted((drawn / 'shapes' / 'JPEGImages').glob('test_*.jpg'))[:2]
    args = ['--model', 'shapes', '--out', tmp_path / 'out', '--device', 'cpu']
    output = tool('infer.py', *images, *args, root=drawn, cwd=tmp_path)
    count = 0
    for image in images:
        found = json.loads(
            (tmp_path / f'out/preds/{image.stem}.json').read_text()
        )
        over = bbox_overlaps(*[np.array(found['bboxes'])] * 2)
        picture = np.asarray(Image.open(tmp_path / 'out/vis' / image.name))
        before = np.asarray(Image.open(image))
        assert picture.shape == before.shape
        for index, box in enumerate(found['bboxes']):
            if found['scores'][index] <= 0.3:
                continue
            # A surer one, in the order of scores, is over the same object.
            if (over[index, :index] > 0.5).any():
                continue
            count += 1
            x1, y1, x2, y2 = (max(0, round(value)) for value in box)
            # Its left edge: paint that is not in the image.
            edge = np.s_[y1:y2, max(0, x1 - 1) : x1 + 2]
            changed = abs(picture[edge].astype(int) - before[edge]).max(-1)
            assert (changed > 40).mean() > 0.2
    assert count >= 2
    assert f'{count} detections with score above 0.3 in 2 image(s)' in output


@pytest.mark.parametrize('command', ['infer', 'test'])
def test_a_name_that_is_not_shipped(command, capsys):
    args = {
        'infer': ['images', '--model', 'bcd'],
        'test': ['surge_faster_rcnn_r18_demo', 'bcd'],
    }
    with pytest.raises(SystemExit) as end:
        main([command, *args[command]])
    assert end.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    names = ', '.join(MODELS)
    assert line.endswith(
        f"'bcd' does not exist; the shipped models are {names}"
    )


def test_a_file_wins_over_a_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path('bccd').write_text('nothing')
    with pytest.raises(SystemExit):
        main(['infer', str(ROOT / 'docs' / 'images'), '--model', 'bccd'])
    assert capsys.readouterr().err.startswith('error: bccd: ')


@pytest.mark.parametrize('name', MODELS)
def test_a_changed_byte_is_refused(name, tmp_path, monkeypatch, capsys):
    shutil.copytree(shipped.WEIGHTS, tmp_path / 'weights')
    monkeypatch.setattr(shipped, 'FOLDER', tmp_path)
    monkeypatch.setattr(shipped, 'WEIGHTS', tmp_path / 'weights')
    path = shipped.shipped_weights(name)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(SystemExit) as end:
        main(['infer', 'images', '--model', name])
    assert end.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert f'{path} is damaged' in line
    assert 'install surge_det again' in line


@pytest.mark.parametrize(
    ('file', 'text', 'said'),
    [
        ('shapes.safetensors', None, 'cannot be read'),
        ('metafile.yml', None, 'is damaged or missing'),
        ('metafile.yml', 'Models: [', 'is damaged or missing'),
        ('metafile.yml', 'Models: [{}]', 'is damaged or missing'),
        ('metafile.yml', '[]', 'is damaged or missing'),
        ('metafile.yml', '', 'is damaged or missing'),
    ],
)
def test_a_half_installation(file, text, said, tmp_path, monkeypatch, capsys):
    shutil.copytree(shipped.WEIGHTS, tmp_path / 'weights')
    monkeypatch.setattr(shipped, 'FOLDER', tmp_path)
    monkeypatch.setattr(shipped, 'WEIGHTS', tmp_path / 'weights')
    path = tmp_path / 'weights' / file
    path.unlink()
    if text is not None:
        path.write_text(text)
    with pytest.raises(SystemExit) as end:
        main(['infer', 'images', '--model', 'shapes'])
    assert end.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert str(path) in line
    assert said in line
    assert line.endswith('install surge_det again')
