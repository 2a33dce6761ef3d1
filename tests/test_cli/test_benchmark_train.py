"""The benchmarks of a training step, alone and under DDP."""

import argparse
import csv
import re
import statistics
import sys

import pytest
import torch
from command_line import ROOT, run
from torch import nn

pytest.importorskip('mmdet', reason='needs the toolbox')
pytest.importorskip('matplotlib', reason='the benchmark draws')

from mmengine.config import Config

from surge_det.cli.benchmark import reference, train, train_step
from surge_det.cli.common import read_config
from surge_det.cli.main import main
from surge_det.core import SURGEConv2d
from surge_det.datasets.shapes import prepare_shapes

DEMO = ROOT / 'configs' / 'surge_faster_rcnn_r18_demo.py'
STE = ROOT / 'configs' / 'ste_faster_rcnn_r18_demo.py'
FSG = """
_base_ = {base!r}
train_dataloader = dict(batch_size=1)
optim_wrapper = dict(
    type='FSGOptimWrapper',
    fsg=dict(slow=dict(block_size=4096, d_model=1, independent=True)),
)
"""


pytestmark = pytest.mark.usefixtures('threads_as_before')


def bench(*args):
    main(['benchmark', *map(str, args)])


def rows(path):
    with open(path, newline='') as file:
        return list(csv.DictReader(file))


def test_train_step_of_all_contestants(tmp_path, capsys):
    bench(
        *('train', DEMO, '--size', 64, 64, '--batch', 1, '--rounds', 2),
        *('--warmup', 0, '--out', tmp_path),
    )
    found = rows(tmp_path / 'train.csv')
    assert [r['layers'] for r in found[::2]] == train.CONTESTANTS
    seconds = {}
    for row in found:
        seconds.setdefault(row['layers'], []).append(float(row['s']))
    table = (tmp_path / 'train.md').read_text()
    printed = capsys.readouterr().out
    for name, own in seconds.items():
        wanted = statistics.median(
            a / b for a, b in zip(own, seconds['reference STE'])
        )
        cells = next(
            line.split('|')
            for line in table.splitlines()
            if f'| {name} |' in line
        )
        assert float(cells[4]) == pytest.approx(wanted, abs=0.006)
        assert re.search(rf'{name} +{cells[3].strip()} ', printed)
    assert (tmp_path / 'train.png').stat().st_size > 10_000


def test_train_step_under_autocast(monkeypatch, capsys):
    seen = set()
    forward = SURGEConv2d.forward

    def spy(self, x):
        out = forward(self, x)
        seen.add((self.weight.dtype, out.dtype))
        return out

    monkeypatch.setattr(SURGEConv2d, 'forward', spy)
    bench(
        *('train', DEMO, '--size', 64, 64, '--batch', 1, '--rounds', 1),
        *('--warmup', 0, '--dtype', 'autocast'),
        *('--contestants', 'reference STE', 'SURGE'),
    )
    assert seen == {(torch.float32, torch.bfloat16)}
    assert 'autocast, cpu' in capsys.readouterr().out


def test_contestants_have_the_layers_that_they_say():
    def changed(contestant):
        model = nn.Sequential(SURGEConv2d(2, 3, 3), nn.Conv2d(3, 3, 1))
        before = model[0].weight.detach().clone()
        train_step.change_layers(model, contestant)
        assert torch.equal(model[0].weight, before)
        assert type(model[1]) is nn.Conv2d
        return model[0]

    assert type(changed(train.FLOAT)) is nn.Conv2d
    assert type(changed(train.REF_STE)) is reference.ReferenceSTEConv2d
    assert type(changed(train.REF_SURGE)) is reference.ReferenceSURGEConv2d
    assert changed(train.SURGE).compensate
    assert changed(train.NARROW).aux_dtype == torch.bfloat16
    assert not changed(train.STE).compensate


def test_noise_has_the_size_that_the_test_pipeline_makes():
    cfg = Config.fromfile(DEMO)
    cfg.test_dataloader.dataset.pipeline = [dict(type='Resize', scale=96)]
    args = argparse.Namespace(size=None, batch=2, device='cpu')
    (batch,) = train_step.random_batches(cfg, args)
    assert [image.shape for image in batch['inputs']] == [(3, 96, 96)] * 2


def test_training_images_need_no_processes(tmp_path, monkeypatch):
    prepare_shapes(tmp_path, 5, 5, 0)
    monkeypatch.setenv('SURGE_DATA_ROOT', str(tmp_path))
    cfg = read_config(DEMO)
    # Each is refused by a loader without processes.
    cfg.train_dataloader.update(
        num_workers=2, prefetch_factor=2, persistent_workers=True
    )
    batches = train_step.training_batches(cfg, argparse.Namespace())
    assert len(batches) == 3


def test_layers_that_the_references_lack_are_refused():
    model = nn.Sequential(SURGEConv2d(2, 3, 3, shift=0.0))
    with pytest.raises(ValueError, match=r'^0 is SURGEConv2d.*shift'):
        train_step.change_layers(model, train.REF_STE)


def test_configs_take_turns(tmp_path, monkeypatch, capsys):
    pytest.importorskip('mambapy', reason='the slow network is a block of it')
    prepare_shapes(tmp_path, 5, 5, 0)
    monkeypatch.setenv('SURGE_DATA_ROOT', str(tmp_path))
    config = tmp_path / 'fsg_demo.py'
    config.write_text(FSG.format(base=str(STE)))
    trainers = []

    class Trainer(train_step.Trainer):
        def __init__(self, *args):
            super().__init__(*args)
            trainers.append(self)

    monkeypatch.setattr(train_step, 'Trainer', Trainer)
    # The step whose memory is measured counts with FSG's history.
    monkeypatch.setattr(train_step, 'peak_mib', lambda *_: None)
    # From the second step on FSG does all that it does.
    bench(
        *('train', config, STE, '--as-is', '--data', '--rounds', 1),
        *('--warmup', 1, '--threads', 1, '--cpu-time'),
    )
    out = capsys.readouterr().out
    assert re.search(r'fsg_demo +as is +\d+\.\d+ +1\.00 +— +—', out)
    assert re.search(r'ste_faster_rcnn_r18_demo +as is +\d\S+ +\d\S+ ', out)
    assert '/ fsg_demo' in out
    assert "the config's images, float32, cpu" in out
    peak = re.search(r'peak memory of this process: (\d+) MiB', out)
    assert int(peak[1]) > 100

    fsg = trainers[0].wrapper.fsg
    layers = fsg.state_dict()['layers']
    assert len(layers) == 19
    for name, kept in layers.items():
        # Every layer was reached, and ran with generated weights.
        assert len(kept['history']) == 2, name
        assert kept['history'][0].abs().sum() > 0, name
    slow = fsg.slow_optimizer.state[fsg.slow_net.embedding]
    assert (slow['exp_avg'].abs().sum(1) > 0).all()


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['train', 'no.py'], "'no.py' does not exist"),
        (['train', DEMO, '--rounds', 0], "--rounds: '0'"),
        (['train', DEMO, '--warmup', -1], '--warmup -1'),
        (['train', DEMO, DEMO, '--as-is'], 'each name once'),
        (['train', DEMO, '--device', 'gpu'], "--device 'gpu'"),
        (['train', DEMO, '--as-is', '--contestants', 'SURGE'], '--as-is'),
        (['ddp', DEMO, '--batch', 0], "--batch: '0'"),
        (['ddp', DEMO], 'torch.distributed.run'),
    ],
)
def test_bad_arguments(arguments, message, capsys):
    with pytest.raises(SystemExit) as end:
        bench(*arguments)
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_ddp_beside_processes_on_their_own(tmp_path):
    out = run(
        sys.executable,
        *('-m', 'torch.distributed.run', '--nproc_per_node', '2'),
        *('--standalone', ROOT / 'tools' / 'benchmark_ddp.py'),
        *(DEMO, '--size', '64', '64', '--batch', '1'),
        *('--rounds', '1', '--warmup', '0'),
        root=tmp_path,
    )
    found = re.search(
        r'2 processes, batch 1 each: alone ([\d.]+) s, DDP ([\d.]+) s a '
        r'step, ratio ([\d.]+)',
        out,
    )
    alone, ddp, ratio = map(float, found.groups())
    assert ratio == pytest.approx(ddp / alone, abs=0.02)
