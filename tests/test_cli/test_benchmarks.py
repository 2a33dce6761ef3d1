"""The benchmarks of a training step, of growth and of DDP."""

import csv
import importlib
import re
import statistics
import sys

import pytest
import torch
from command_line import ROOT, run
from torch import nn

pytest.importorskip('mmdet', reason='needs the toolbox')

from surge_det.core import SURGEConv2d

DEMO = ROOT / 'configs' / 'surge_faster_rcnn_r18_demo.py'


def load(name):
    return importlib.import_module(f'surge_det.cli.benchmark.{name}')


def rows(path):
    with open(path, newline='') as file:
        return list(csv.DictReader(file))


def test_train_step_of_all_contestants(tmp_path, monkeypatch, capsys):
    tool = load('train')
    tool.main(
        [str(DEMO), '--size', '64', '64', '--batch', '1', '--rounds', '2']
        + ['--warmup', '0', '--out', str(tmp_path)]
    )
    found = rows(tmp_path / 'train.csv')
    assert [r['layers'] for r in found[::2]] == tool.CONTESTANTS
    seconds = {}
    for row in found:
        seconds.setdefault(row['layers'], []).append(float(row['s']))
    table = (tmp_path / 'train.md').read_text()
    assert table in capsys.readouterr().out
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
    assert (tmp_path / 'train.png').stat().st_size > 10_000


@pytest.mark.parametrize('dtype', ['bfloat16', 'autocast'])
def test_train_step_in_other_types(dtype, monkeypatch, capsys):
    tool = load('train')
    seen = set()
    forward = SURGEConv2d.forward

    def spy(self, x):
        out = forward(self, x)
        seen.add((self.weight.dtype, out.dtype))
        return out

    monkeypatch.setattr(SURGEConv2d, 'forward', spy)
    tool.main(
        [str(DEMO), '--size', '64', '64', '--batch', '1', '--rounds', '1']
        + ['--warmup', '0', '--dtype', dtype]
        + ['--contestants', 'reference STE', 'SURGE']
    )
    own = torch.float32 if dtype == 'autocast' else torch.bfloat16
    assert seen == {(own, torch.bfloat16)}
    assert f'{dtype}, cpu' in capsys.readouterr().out


def test_contestants_have_the_layers_that_they_say(monkeypatch):
    tool = load('train')
    reference = importlib.import_module('surge_det.cli.benchmark.reference')

    def changed(contestant):
        model = nn.Sequential(SURGEConv2d(2, 3, 3), nn.Conv2d(3, 3, 1))
        before = model[0].weight.detach().clone()
        tool.change_layers(model, contestant)
        assert torch.equal(model[0].weight, before)
        assert type(model[1]) is nn.Conv2d
        return model[0]

    assert type(changed(tool.FLOAT)) is nn.Conv2d
    assert type(changed(tool.REF_STE)) is reference.ReferenceSTEConv2d
    assert type(changed(tool.REF_SURGE)) is reference.ReferenceSURGEConv2d
    assert changed(tool.SURGE).compensate
    assert changed(tool.NARROW).aux_dtype == torch.bfloat16
    assert not changed(tool.STE).compensate


def test_layers_that_the_references_lack_are_refused(monkeypatch):
    tool = load('train')
    model = nn.Sequential(SURGEConv2d(2, 3, 3, shift=0.0))
    with pytest.raises(ValueError, match=r'^0 is SURGEConv2d.*shift'):
        tool.change_layers(model, tool.REF_STE)


def test_references_compute_what_the_layer_does(monkeypatch):
    load('train')
    reference = importlib.import_module('surge_det.cli.benchmark.reference')
    torch.manual_seed(0)
    layer = SURGEConv2d(3, 4, 3, padding=1, stride=2).double()
    x = torch.randn(2, 3, 7, 7, dtype=torch.float64, requires_grad=True)
    grad = torch.randn(2, 4, 4, 4, dtype=torch.float64)
    layer(x).backward(grad)
    ours = [x.grad, layer.weight.grad, layer.aux_weight.grad, layer.bias.grad]
    x.grad = None
    copy = reference.as_reference(
        layer,
        reference.ReferenceSURGEConv2d,
        factor=layer.ags.last_scale.item(),
    )
    copy(x).backward(grad)
    theirs = [x.grad, copy.weight.grad, copy.aux_weight.grad, copy.bias.grad]
    for mine, other in zip(ours, theirs):
        torch.testing.assert_close(mine, other)


def test_growth_finds_the_exponent(tmp_path, monkeypatch, capsys):
    tool = load('growth')
    assert tool.exponent([(1, 3), (2, 12), (4, 48)]) == pytest.approx(2)
    monkeypatch.setattr(tool, 'SWEEPS', {'area': [1, 4], 'channels': [8, 16]})
    tool.main(
        ['--shrink', '4', '--rounds', '1', '--warmup', '0']
        + ['--out', str(tmp_path)]
    )
    found = rows(tmp_path / 'growth.csv')
    assert len(found) == 2 * 2 * len(tool.SHOWN)
    # What SURGE keeps is the input and nothing that does not grow with it.
    table = (tmp_path / 'growth.md').read_text()
    assert table in capsys.readouterr().out
    slopes = {
        tuple(cells[1:3]): float(cells[4])
        for cells in (
            [c.strip() for c in line.split('|')]
            for line in table.splitlines()[2:]
        )
    }
    assert slopes['area', 'SURGEConv2d'] == pytest.approx(1, abs=0.05)
    assert slopes['channels', 'SURGEConv2d'] == pytest.approx(1, abs=0.05)
    assert (tmp_path / 'growth.png').stat().st_size > 10_000


@pytest.mark.parametrize(
    ('tool', 'arguments', 'message'),
    [
        ('train', ['no.py'], "'no.py' does not exist"),
        ('train', [DEMO, '--rounds', '0'], '--rounds 0'),
        ('train', [DEMO, '--warmup', '-1'], '--warmup -1'),
        ('train', [DEMO, '--device', 'gpu'], "--device 'gpu'"),
        ('growth', ['--out', 'x', '--shrink', '0'], '--shrink 0'),
        ('growth', ['--out', 'x', '--warmup', '-1'], '--warmup -1'),
        ('ddp', [DEMO, '--batch', '0'], '--batch 0'),
        ('ddp', [DEMO], 'torch.distributed.run'),
    ],
)
def test_bad_arguments(tool, arguments, message, monkeypatch, capsys):
    with pytest.raises(SystemExit) as end:
        load(tool).main([str(a) for a in arguments])
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
