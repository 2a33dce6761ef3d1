import json
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip('surge_runtime', reason='needs runtime/ installed')
pytest.importorskip('onnx', reason='needs onnx')

from PIL import Image
from runtime_files import layered_detector, sealed, whole_image_detector
from surge_runtime import cli


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'detector.onnx').write_bytes(sealed(whole_image_detector()))
    (tmp_path / 'images').mkdir()
    for name in ('a.jpg', 'b.png', 'c.pgm'):
        Image.new('L', (30, 20)).save(tmp_path / 'images' / name)
    return tmp_path


def command(*arguments, status=None):
    arguments = [*map(str, arguments), '--model', 'detector.onnx']
    if status is None:
        return cli.main(arguments)
    with pytest.raises(SystemExit) as error:
        cli.main(arguments)
    assert error.value.code == status
    return None


def test_a_folder_of_images(folder, capsys):
    folder.joinpath('images/folder.jpg').mkdir()
    command('images', '--out', 'out')
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith("Detector('detector.onnx': 2 classes, ONNX Runt")
    assert last.startswith('3 detections with score above 0.3 in 3 image(s), ')
    assert last.endswith('ms each: out/vis, out/preds')
    pictures = {p.name for p in folder.joinpath('out/vis').iterdir()}
    assert pictures == {'a.jpg', 'b.png', 'c.png'}
    for name in 'abc':
        results = json.loads((folder / f'out/preds/{name}.json').read_text())
        scores = results.pop('scores')
        np.testing.assert_allclose(scores, [0.9, 0.2], rtol=1e-6)
        assert results == {
            'labels': [1, 0],
            'bboxes': [[0, 0, 30, 20]] * 2,
            'names': ['dog', 'cat'],
        }
    # The frame that was drawn.
    assert np.asarray(Image.open('out/vis/b.png').convert('RGB')).any()


def test_the_installed_command(folder):
    program = [sys.executable, '-m', 'surge_runtime']
    for arguments, status in (
        (['images/a.jpg', '--model', 'detector.onnx'], 0),
        (['images/a.jpg', '--model', 'none.onnx'], 2),
        (['--help'], 0),
    ):
        ran = subprocess.run([*program, *arguments], capture_output=True)
        assert ran.returncode == status, ran.stderr
    assert (folder / 'detections/vis/a.jpg').is_file()


def test_broken_images_are_named_and_the_others_done(folder, capsys):
    folder.joinpath('images/a.jpg').write_text('no image')
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (20, 30), dtype=np.uint8))
    noise.save('images/b.png')
    folder.joinpath('images/b.png').write_bytes(
        folder.joinpath('images/b.png').read_bytes()[:-40]
    )
    command('images', '--out', 'out', status=2)
    told = capsys.readouterr()
    assert 'in 1 image(s)' in told.out
    assert told.err.startswith('error: 2 of 3 failed:\n')
    assert "image 'images/a.jpg': not an image of" in told.err
    assert "image 'images/b.png': cannot be read" in told.err
    assert [p.name for p in folder.joinpath('out/vis').iterdir()] == ['c.png']


def test_an_image_that_the_model_cannot_take_is_named(folder, capsys):
    folder.joinpath('detector.onnx').write_bytes(sealed(layered_detector()))
    Image.new('L', (5000, 1)).save('images/b.png')
    command('images', '--out', 'out', status=2)
    err = capsys.readouterr().err
    assert err.startswith('error: 1 of 3 failed:\nimages/b.png: model ')
    assert 'no pixel left' in err


def test_wrong_arguments(folder, capsys):
    folder.joinpath('empty').mkdir()
    folder.joinpath('images/b.jpg').touch()
    folder.joinpath('file').touch()
    for arguments, why in (
        (['none.jpg'], "'none.jpg' does not exist"),
        (['empty'], 'empty has no images'),
        (['images'], 'images/b.jpg, images/b.png have the same name'),
        (['images/a.jpg', 'images/a.jpg'], 'have the same name'),
        (['camera:x'], "'camera:x' must be such as camera:0"),
        (['images/a.jpg', '--score-thr', '2'], "'2' is not allowed: a number"),
        (['images/a.jpg', '--score-thr', 'nan'], 'is not allowed: a number'),
        (['images/a.jpg', '--threads', '0'], 'is not allowed: a whole'),
        (['images/a.jpg', '--out', 'file'], 'file'),
    ):
        command(*arguments, status=2)
        err = capsys.readouterr().err
        assert 'error: ' in err
        assert why in err
        assert not folder.joinpath('detections').exists()


def test_inputs_are_not_overwritten(folder, capsys):
    folder.joinpath('vis').mkdir()
    image = folder / 'vis' / 'a.jpg'
    folder.joinpath('images/a.jpg').rename(image)
    before = image.read_bytes()
    command('vis/a.jpg', '--out', '.', status=2)
    assert 'would be overwritten' in capsys.readouterr().err
    assert image.read_bytes() == before


def test_a_refused_model(folder, capsys):
    folder.joinpath('detector.onnx').write_text('x')
    command('images', status=2)
    assert capsys.readouterr().err == (
        "error: model 'detector.onnx': not an ONNX file, or cut off\n"
    )


def test_a_video(folder, capsys):
    cv2 = pytest.importorskip('cv2', reason='videos need OpenCV')
    writer = cv2.VideoWriter(
        'film.avi', cv2.VideoWriter_fourcc(*'MJPG'), 10, (64, 48)
    )
    for _ in range(5):
        writer.write(np.zeros((48, 64, 3), np.uint8))
    writer.release()
    command('film.avi', 'images/a.jpg')
    assert '6 detections' in capsys.readouterr().out
    lines = folder.joinpath('detections/preds/film.jsonl').read_text()
    frames = [json.loads(line) for line in lines.splitlines()]
    assert [f['bboxes'][0] for f in frames] == [[0, 0, 64, 48]] * 5
    film = cv2.VideoCapture('detections/vis/film.mp4')
    assert film.get(cv2.CAP_PROP_FRAME_COUNT) == 5
    assert film.read()[1].any()

    folder.joinpath('film.avi').write_bytes(b'no film')
    command('film.avi', 'images/a.jpg', status=2)
    assert 'film.avi: no frame can be read' in capsys.readouterr().err


def test_videos_need_opencv(folder, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, 'cv2', None)
    folder.joinpath('film.mp4').touch()
    command('film.mp4', status=2)
    assert "pip install 'surge_runtime[video]'" in capsys.readouterr().err
