import csv
import importlib.util
import json
import math
import runpy
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip('sklearn', reason='the digits come with scikit-learn')
pytest.importorskip('matplotlib', reason='draws a picture')

from torch import nn

from surge_det.core.layers import named_surge_layers
from surge_det.core.methods import METHODS

PATH = Path(__file__).resolve().parents[2] / 'examples' / 'digits.py'


@pytest.fixture(scope='module')
def digits():
    spec = importlib.util.spec_from_file_location('digits', PATH)
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up.
    sys.modules['digits'] = module
    spec.loader.exec_module(module)
    threads = torch.get_num_threads()
    yield module
    torch.set_num_threads(threads)
    sys.modules.pop('digits', None)


def surge_names(*names):
    return [f'surge+{name}' for name in names]


def test_all_methods_of_a_seed_start_alike(digits):
    def state(method, seed=3):
        return digits.build(digits.Run(method, 2, seed)).state_dict()

    float_state = state('float')
    for method in [*METHODS, *surge_names('recu', 'irnet')]:
        mine = state(method)
        assert set(float_state) <= set(mine)
        for key, value in float_state.items():
            assert mine[key].equal(value), (method, key)
    key = '3.conv.weight'
    assert not state('ste', 4)[key].equal(float_state[key])


def test_block_is_shift_conv_norm_shortcut_prelu(digits):
    torch.manual_seed(0)
    block = digits.Block(2, dict(compensate=False)).eval()
    with torch.no_grad():
        block.conv.shift.copy_(torch.tensor([0.5, -0.5]))
        block.act.weight.copy_(torch.tensor([0.1, 0.3]))
        x = torch.randn(1, 2, 4, 4)
        sign = torch.where(x + block.conv.shift.view(2, 1, 1) >= 0, 1.0, -1.0)
        weight = block.conv.weight
        one_bit = torch.where(weight >= 0, 1.0, -1.0) * weight.abs().mean(
            (1, 2, 3), keepdim=True
        )
        y = x + nn.functional.conv2d(sign, one_bit, padding=1) / math.sqrt(
            1 + block.bn.eps
        )
        expected = torch.where(
            y >= 0, y, y * block.act.weight.view(1, 2, 1, 1)
        )
        torch.testing.assert_close(block(x), expected)


@pytest.mark.parametrize('how', ['weight', 'random', 'binary'])
def test_replica_starts_as_asked(digits, how):
    model = digits.build(digits.Run('surge', 1, 0, aux_init=how))
    ((_, layer),) = named_surge_layers(model)
    weight, aux = layer.weight, layer.aux_weight
    assert aux.equal(weight) is (how == 'weight')
    if how == 'binary':
        torch.testing.assert_close(
            aux.abs(),
            weight.abs().mean((1, 2, 3), keepdim=True).expand_as(aux),
        )
        assert ((aux > 0) == (weight >= 0)).all()
    if how == 'random':
        # Uniform in ±1/sqrt(fan in), as nn.Conv2d's own.
        assert 0.07 < aux.abs().max() <= 1 / 12
    # That is where training's first step finds it.
    before = aux.detach().clone()
    model(torch.randn(2, 1, 8, 8)).sum().backward()
    assert layer.aux_weight.equal(before)


@pytest.mark.parametrize('factor', [0.0, 1.0])
def test_aux_lr_zero_freezes_the_replicas_and_only_them(
    digits, factor, monkeypatch
):
    models, build = [], digits.build

    def spy(run):
        models.append(build(run))
        return models[-1]

    monkeypatch.setattr(digits, 'build', spy)
    run = digits.Run('surge', 1, 0, aux_lr=factor, epochs=1)
    digits.train(run)
    (_, after), (_, before) = (
        next(named_surge_layers(m)) for m in (models[0], build(run))
    )
    assert after.aux_weight.equal(before.aux_weight) is (factor == 0)
    assert not after.weight.equal(before.weight)


def test_training_learns_and_repeats_itself(digits):
    run = digits.Run('surge', 2, 0, epochs=6, batch=50)
    first, second = digits.train(run), digits.train(run)
    # Guessing gives 0.1 and a loss of ln 10 = 2.3.
    assert first['accuracy'] > 0.4
    assert first['loss'] < 1.9
    assert (first['accuracy'], first['loss']) == (
        second['accuracy'],
        second['loss'],
    )
    other = digits.train(digits.Run('ste', 2, 0, epochs=6, batch=50))
    assert other['loss'] != first['loss']


def test_fsg_trains_in_its_own_way(digits):
    pytest.importorskip('mambapy', reason="FSG's slow network")
    fsg, ste = (
        digits.train(digits.Run(method, 1, 0, epochs=1))
        for method in ('fsg', 'ste')
    )
    assert math.isfinite(fsg['loss'])
    assert fsg['loss'] != ste['loss']


def test_progress_goes_from_zero_to_one(digits, monkeypatch):
    seen = []
    monkeypatch.setattr(
        digits, 'set_progress', lambda model, p: seen.append(p)
    )
    digits.train(digits.Run('ste', 1, 0, epochs=2, batch=200))
    assert seen == [0, 0.25, 0.5, 0.75, 1]


def test_rows_are_means_and_paired_differences(digits):
    results = {}
    for seed, figures in enumerate([(0.50, 0.53), (0.60, 0.61)]):
        for run, accuracy in zip(
            (
                digits.Run('ste', 8, seed, 0.0, 0.0),
                digits.Run('surge', 8, seed, 0.3),
            ),
            figures,
        ):
            results[run] = dict(accuracy=accuracy, loss=1.0, seconds=2.0)
    ste, surge = digits.summarize(list(results), results, 'ste')
    assert (ste.label, ste.seeds, ste.difference) == ('ste', 2, None)
    # std of (50, 60) is 10 / sqrt(2).
    assert (ste.mean, ste.std) == pytest.approx((55, 7.0711), abs=1e-3)
    assert surge.label == 'surge eta=0.3'
    # Differences 3 and 1: mean 2, t(0.975, 1 df) = 12.706 times the
    # standard error 1.
    assert surge.difference == pytest.approx(2)
    assert surge.half == pytest.approx(12.706, abs=1e-3)
    assert '| +2.00 ± 12.71 | 0 | 2.0 |' in digits.table([ste, surge], 'ste')


def test_diverged_runs_are_counted(digits):
    # Guessing one of ten digits has a loss of 2.303.
    results = {
        digits.Run('ste', 8, seed): dict(accuracy=0.1, loss=loss, seconds=1.0)
        for seed, loss in enumerate([2.30, 2.31, math.nan, math.inf])
    }
    (row,) = digits.summarize(list(results), results, 'ste')
    assert row.diverged == 3


def test_baseline_has_the_same_depth_and_rate(digits):
    results = {}
    for layers, lr, base in [(8, 0.2, 0.5), (8, 0.3, 0.6), (12, 0.2, 0.7)]:
        for method, gain in (('ste', 0.0), ('float', 0.1)):
            run = digits.Run(method, layers, 0, 0.0, 0.0, lr=lr)
            results[run] = dict(accuracy=base + gain, loss=1.0, seconds=1.0)
    rows = digits.summarize(list(results), results, 'ste')
    assert [r.label for r in rows[:4]] == [
        'ste lr=0.2',
        'float lr=0.2',
        'ste lr=0.3',
        'float lr=0.3',
    ]
    floats = [row for row in rows if row.label.startswith('float')]
    assert [row.difference for row in floats] == pytest.approx([10, 10, 10])


def main(digits, out, *args):
    digits.main(
        ['--methods', 'float', 'ste', 'surge', '--eta', '0.1', '0.2']
        + ['--seeds', '2', '--layers', '1', '--epochs', '1']
        + ['--out', str(out), *args]
    )


def test_finished_runs_are_kept(digits, tmp_path, monkeypatch, capsys):
    main(digits, tmp_path)
    kept = tmp_path / 'runs.jsonl'
    lines = kept.read_text().splitlines()
    assert len(lines) == 8
    text = (tmp_path / 'table.md').read_text()
    assert text in capsys.readouterr().out
    for label in ('float', 'ste', 'surge eta=0.1', 'surge eta=0.2'):
        assert f'| {label} | 1 | 2 |' in text
    with open(tmp_path / 'runs.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    assert [(r['method'], r['eta'], r['seed']) for r in rows] == [
        (m, e, s)
        for s in '01'
        for m, e in (
            ('float', '0.0'),
            ('ste', '0.0'),
            ('surge', '0.1'),
            ('surge', '0.2'),
        )
    ]
    assert (tmp_path / 'differences.png').stat().st_size > 5_000

    # An interruption cut the last line.
    kept.write_text('\n'.join(lines)[:-10])
    again, train = [], digits.train

    def spy(run):
        again.append(run)
        return train(run)

    monkeypatch.setattr(digits, 'train', spy)
    main(digits, tmp_path)
    assert [(r.method, r.eta, r.seed) for r in again] == [('surge', 0.2, 1)]
    figures = [
        {k: v for k, v in json.loads(line).items() if k != 'seconds'}
        for line in (*lines, *kept.read_text().splitlines())
    ]
    assert figures[:8] == figures[8:]


def test_damaged_file_is_refused(digits, tmp_path, capsys):
    (tmp_path / 'runs.jsonl').write_text('{"method": "ste"}\n')
    with pytest.raises(SystemExit) as error:
        main(digits, tmp_path)
    assert error.value.code == 2
    assert 'runs.jsonl, line 1' in capsys.readouterr().err


def test_interruption_is_said(digits, tmp_path, monkeypatch, capsys):
    def interrupt(run):
        raise KeyboardInterrupt

    monkeypatch.setattr(digits, 'train', interrupt)
    with pytest.raises(SystemExit) as error:
        main(digits, tmp_path)
    assert error.value.code == 130
    assert 'goes on' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('args', 'said'),
    [
        (['--methods', 'ste', 'best'], "'best'"),
        (['--methods', 'surge'], '--baseline ste'),
        (
            ['--methods', 'surge', '--baseline', 'surge']
            + ['--eta', '0.1', '0.2'],
            'one value each',
        ),
        (['--layers', '0'], '--layers 0'),
        (['--jobs', '0'], '--jobs 0'),
        (['--seeds', '0'], '--seeds 0'),
        (['--eta', '-1'], '--eta -1'),
        (['--eta', 'nan'], '--eta nan'),
        (['--lr', '0'], '--lr 0'),
        (['--batch', '1'], '--batch 1'),
    ],
)
def test_wrong_arguments_are_refused(digits, capsys, args, said):
    with pytest.raises(SystemExit) as error:
        digits.main(args)
    assert error.value.code == 2
    assert said in capsys.readouterr().err


def test_processes_give_what_one_process_gives(digits, monkeypatch):
    # Where a worker process looks for the module.
    monkeypatch.syspath_prepend(PATH.parent)
    run = digits.Run('surge', 1, 0, epochs=1)
    stores = [digits.Store(None), digits.Store(None)]
    for jobs, store in enumerate(stores, 1):
        digits.train_all([run], store, jobs)
    one, two = (store.results[run] for store in stores)
    assert (one['accuracy'], one['loss']) == (two['accuracy'], two['loss'])


def test_runs_as_a_script(monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['digits.py', '--help'])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(PATH), run_name='__main__')
    assert end.value.code == 0
    assert '--baseline' in capsys.readouterr().out
