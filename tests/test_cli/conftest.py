import json
import sys

import pytest

# A training that takes no time. It behaves by seed and learning rate: 0.04
# fails, 0.03 stays on the way until it is ended, 0.05 takes 100 MiB for a
# second. Each call leaves a line.
TRAIN = """
import json, os, pathlib, runpy, sys, time, zipfile
config, _, folder, *rest = sys.argv[1:]
cfg = runpy.run_path(config)
folder = pathlib.Path(folder)
name, seed = folder.parent.name, cfg['randomness']['seed']
lr = cfg['optim_wrapper']['optimizer']['lr']
def save(name):
    with zipfile.ZipFile(folder / name, 'w') as file:
        file.writestr('lr', str(lr))
with open(os.environ['CALLS'], 'a') as file:
    print(name, seed, *rest, file=file)
print('11/21 - mmengine - INFO - Epoch(train) [2][ 10/40]  lr: 1', flush=True)
if lr == 0.03:
    save('epoch_1.pth')
    (folder.parent / 'at_work').write_text(str(os.getpid()))
    time.sleep(60)
if lr == 0.04:
    sys.exit('loss is upside down')
if lr == 0.05:
    held = b'x' * (100 << 20)
    time.sleep(1)
surge = cfg['model']['backbone']['conv_cfg'].get('compensate', True)
final = 0.5 + 0.1 * seed + (0.03 - 0.02 * seed) * surge
log = folder / '20260101_000000' / 'vis_data'
log.mkdir(parents=True)
records = [
    dict(loss=1.0, time=t, epoch=1, iter=i, step=i)
    for i, t in enumerate((9.0, 0.25, 0.5, 0.25), 1)
]
records += [
    {'pascal_voc/mAP': score, 'step': epoch}
    for epoch, score in enumerate((final / 2, final), 1)
]
(log / 'scalars.json').write_text('\\n'.join(map(json.dumps, records)))
save(f"epoch_{cfg['train_cfg']['max_epochs']}.pth")
"""

# An evaluation that takes no time. What it measures is in $SCORES by method
# and learning rate; 'fail' and 'wait' are what they say.
TEST = """
import json, os, pathlib, runpy, sys, time, zipfile
config, checkpoint, _, folder = sys.argv[1:]
cfg = runpy.run_path(config)
folder = pathlib.Path(folder)
name = folder.parents[1].name
lr = zipfile.ZipFile(checkpoint).read('lr').decode()
assert float(lr) == cfg['optim_wrapper']['optimizer']['lr']
assert cfg['test_evaluator'] == cfg['val_evaluator']
assert os.environ['OMP_NUM_THREADS']
data = pathlib.Path(cfg['test_dataloader']['dataset']['ann_file']).name
with open(os.environ['CALLS'], 'a') as file:
    print(name, lr, data, file=file)
print('Epoch(test)  [10/40]    eta: 0:00:01', flush=True)
score = json.loads(os.environ['SCORES']).get(name, {}).get(lr, 0.1)
if score == 'wait':
    (folder.parents[1] / 'at_work').write_text(str(os.getpid()))
    time.sleep(60)
if score == 'fail':
    sys.exit('nothing is detected')
(folder / '20260101_000000').mkdir(parents=True)
(folder / '20260101_000000' / '20260101_000000.json').write_text(
    json.dumps({'pascal_voc/AP50': 0.9, 'pascal_voc/mAP': score})
)
"""

# What stands for ``python -m surge_det``.
PROGRAM = """
import pathlib, runpy, sys
runpy.run_path(pathlib.Path(__file__).with_name(sys.argv.pop(1) + '.py'))
"""


@pytest.fixture(scope='session')
def drawn_data(tmp_path_factory):
    """A data folder with the drawn shapes, a few of them."""
    from surge_det.datasets.shapes import prepare_shapes

    folder = tmp_path_factory.mktemp('data')
    prepare_shapes(folder, 5, 5, 0)
    return folder


@pytest.fixture
def calls(drawn_data, tmp_path, monkeypatch):
    """Put the stubs in place; return what reads (and forgets) their calls."""
    (tmp_path / 'tools').mkdir()
    (tmp_path / 'tools' / 'train.py').write_text(TRAIN)
    (tmp_path / 'tools' / 'test.py').write_text(TEST)
    program = tmp_path / 'tools' / 'program.py'
    program.write_text(PROGRAM)
    monkeypatch.setattr(
        'surge_det.cli.compare.runs.PROGRAM', [sys.executable, str(program)]
    )
    for name in ('runs', 'scheduler'):
        monkeypatch.setattr(f'surge_det.cli.compare.{name}.POLL', 0.02)
    # The toolbox lays out what it writes, which takes longest.
    monkeypatch.setattr(
        'mmengine.config.Config.dump',
        lambda cfg, path: path.write_text(
            '\n'.join(f'{k} = {v!r}' for k, v in cfg.to_dict().items())
        ),
    )
    monkeypatch.setenv('CALLS', str(tmp_path / 'calls'))
    monkeypatch.setenv('SCORES', '{}')
    monkeypatch.setenv('SURGE_DATA_ROOT', str(drawn_data))

    def read():
        file = tmp_path / 'calls'
        lines = file.read_text().splitlines() if file.exists() else []
        file.unlink(missing_ok=True)
        return lines

    return read


@pytest.fixture
def undrawn(monkeypatch):
    """Leave out the pictures, which take longest."""
    for name in ('draw_curves', 'draw_differences'):
        monkeypatch.setattr(
            f'surge_det.cli.compare.pictures.{name}', lambda *_: None
        )


@pytest.fixture
def scores(monkeypatch):
    """Return what decides the mAP that evaluations measure."""

    def decide(**by_method):
        monkeypatch.setenv('SCORES', json.dumps(by_method))

    return decide


@pytest.fixture(autouse=True)
def _no_logger_is_left():
    """Forget mmengine's loggers: they write to a stream of one test's own."""
    yield
    logging = sys.modules.get('mmengine.logging')
    if logging is not None:
        logging.MMLogger._instance_dict.clear()
