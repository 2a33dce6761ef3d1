import importlib
import re

import pytest
from command_line import ROOT

pytest.importorskip('mmdet', reason='needs the toolbox')
pytest.importorskip('mambapy', reason='the slow network is a block of mambapy')

from surge_det.datasets.shapes import prepare_shapes

STE = ROOT / 'configs' / 'ste_faster_rcnn_r18_demo.py'
FSG = """
_base_ = {base!r}
train_dataloader = dict(batch_size=1)
optim_wrapper = dict(
    type='FSGOptimWrapper',
    fsg=dict(slow=dict(block_size=4096, d_model=1, independent=True)),
)
"""


@pytest.fixture
def step_time():
    return importlib.import_module('surge_det.cli.benchmark.step_time')


def test_detectors_take_turns(step_time, tmp_path, monkeypatch, capsys):
    prepare_shapes(tmp_path, 5, 5, 0)
    monkeypatch.setenv('SURGE_DATA_ROOT', str(tmp_path))
    config = tmp_path / 'fsg_demo.py'
    config.write_text(FSG.format(base=str(STE)))
    trainers = []
    monkeypatch.setattr(
        step_time,
        'Trainer',
        lambda *args, make=step_time.Trainer: (
            trainers.append(make(*args)) or trainers[-1]
        ),
    )
    # From the second step on FSG does all that it does.
    step_time.main([str(config), str(STE), '--steps', '1', '--warmup', '1'])
    out = capsys.readouterr().out
    assert re.search(r'fsg_demo: \d+\.\d+ s a step, 1\.00 of fsg_demo', out)
    assert re.search(
        r'ste_faster_rcnn_r18_demo: \d\S+ s a step, \d\S+ of fsg_demo', out
    )
    peak = re.search(r'peak memory of this process: (\d+) MiB', out)
    assert int(peak[1]) > 100

    fsg = trainers[0].wrapper.fsg
    layers = fsg.state_dict()['layers']
    assert len(layers) == 25
    for name, kept in layers.items():
        # Every layer was reached, and ran with generated weights.
        assert len(kept['history']) == 2, name
        assert kept['history'][0].abs().sum() > 0, name
    slow = fsg.slow_optimizer.state[fsg.slow_net.embedding]
    assert (slow['exp_avg'].abs().sum(1) > 0).all()


@pytest.mark.parametrize(
    ('args', 'named'),
    [
        (['no.py'], "'no.py' does not exist"),
        ([str(STE), '--steps', '0'], '--steps 0'),
        ([str(STE), '--warmup', '-1'], '--warmup -1'),
    ],
)
def test_bad_arguments_are_named(step_time, capsys, args, named):
    with pytest.raises(SystemExit) as stop:
        step_time.main(args)
    assert stop.value.code == 2
    assert named in capsys.readouterr().err
