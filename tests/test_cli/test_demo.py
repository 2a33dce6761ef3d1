import json
from pathlib import Path

import pytest
import torch

pytest.importorskip('mmdet', reason='needs the toolbox')

from mmengine.config import Config

from surge_det.cli import demo
from surge_det.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / 'configs' / 'surge_faster_rcnn_r18_demo.py'


@pytest.fixture
def finished(tmp_path, monkeypatch):
    """A work folder as a finished training with the config leaves it."""
    monkeypatch.setenv('SURGE_DATA_ROOT', str(tmp_path / 'data'))
    (tmp_path / 'data' / 'shapes').mkdir(parents=True)
    (tmp_path / 'data' / 'shapes' / 'manifest.json').write_text('{}')
    cfg = Config.fromfile(CONFIG)
    checkpoint = tmp_path / f'epoch_{cfg.train_cfg.max_epochs}.pth'
    torch.save({}, checkpoint)
    cfg.work_dir = str(tmp_path)
    cfg.launcher = 'none'
    cfg.dump(tmp_path / CONFIG.name)
    return tmp_path, checkpoint, cfg


def test_finished_training_is_found(finished):
    folder, checkpoint, _ = finished
    assert demo.last_checkpoint(CONFIG, folder, 0) == checkpoint


def test_training_on_an_older_dataset_is_not_reused(finished):
    folder, checkpoint, _ = finished
    since = checkpoint.stat().st_mtime + 1
    assert demo.last_checkpoint(CONFIG, folder, since) is None


def test_training_with_another_config_is_not_reused(finished):
    folder, _, cfg = finished
    cfg.optim_wrapper.ags.eta = 0.9
    cfg.dump(folder / CONFIG.name)
    assert demo.last_checkpoint(CONFIG, folder, 0) is None


def test_a_config_in_the_work_folder_does_not_run(finished):
    folder, _, cfg = finished
    mark = folder / 'ran'
    code = f'open({str(mark)!r}, "w").close()\n'
    (folder / CONFIG.name).write_text(cfg.pretty_text + code)
    assert demo.last_checkpoint(CONFIG, folder, 0) is None
    assert not mark.exists()


@pytest.fixture
def ran(finished, monkeypatch):
    """The commands that the demo runs, and a stand-in for what they write."""
    folder = finished[0]
    commands = []

    def call(command, *args):
        commands.append((command, *args))
        if command == 'test':
            for stamp, score in (('20260101_1', 0.1), ('20260102_1', 0.654)):
                path = folder / 'test' / stamp / f'{stamp}.json'
                path.parent.mkdir(parents=True)
                path.write_text(json.dumps({'pascal_voc/mAP': score}))
            (folder / 'predictions.pkl').write_bytes(b'')

    monkeypatch.setattr(demo, 'call', call)
    return commands


def test_second_run_reuses_all_and_the_last_line_is_the_map(
    finished, ran, capsys
):
    folder, checkpoint, _ = finished
    for expected in (
        ['test', 'show-detections', 'plot-run'],
        ['show-detections', 'plot-run'],
    ):
        expected = ['make-demo-data', 'infer', *expected]
        ran.clear()
        main(['demo', '--work-dir', str(folder)])
        assert [command[0] for command in ran] == expected
        assert ran[-2][-2:] == ('--score-thr', '0.5')
        out = capsys.readouterr().out
        assert out.startswith('Draws a dataset, trains a 1-bit detector')
        assert f'Trained already: {checkpoint}' in out
        assert out.splitlines()[-1] == 'mAP: 0.654'


def test_interrupted_training_goes_on(finished, ran):
    folder, checkpoint, _ = finished
    checkpoint.rename(folder / 'epoch_1.pth')
    (folder / 'last_checkpoint').write_text('epoch_1.pth')
    (folder / checkpoint.name).write_bytes(b'what training will write')
    main(['demo', '--work-dir', str(folder)])
    assert ran[2][0] == 'train'
    assert ran[2][-1] == '--resume'


def test_failing_tool_ends_the_demo(tmp_path, monkeypatch):
    monkeypatch.setenv('SURGE_DATA_ROOT', str(tmp_path))
    with pytest.raises(SystemExit) as error:
        demo.call('train', 'missing.py')
    assert error.value.code
