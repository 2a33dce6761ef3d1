import csv
import itertools
import json
import math
import runpy
import sys
from pathlib import Path

import pytest
import torch
from replicas import begin_training

pytest.importorskip('sklearn', reason='the digits come with scikit-learn')
pytest.importorskip('matplotlib', reason='draws a picture')

import digits
import digits_report as report
import digits_train as bed
from digits_scalers import SCALERS
from torch import nn

from surge_det.core import AGS
from surge_det.core.layers import named_surge_layers
from surge_det.core.methods import METHODS

PATH = Path(__file__).resolve().parents[2] / 'examples' / 'digits.py'


pytestmark = pytest.mark.usefixtures('threads_as_before')


def surge_names(*names):
    return [f'surge+{name}' for name in names]


def test_all_methods_of_a_seed_start_alike():
    def state(method, seed=3):
        return bed.build(bed.Run(method, 2, seed)).state_dict()

    float_state = state('float')
    for method in [*METHODS, *surge_names('recu', 'irnet')]:
        mine = state(method)
        assert set(float_state) <= set(mine)
        for key, value in float_state.items():
            assert mine[key].equal(value), (method, key)
    key = '3.conv.weight'
    assert not state('ste', 4)[key].equal(float_state[key])


def test_block_is_shift_conv_norm_shortcut_prelu():
    torch.manual_seed(0)
    block = bed.Block(2, dict(compensate=False)).eval()
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


@pytest.mark.parametrize('how', ['weight', 'random', 'binary', 'zeros'])
def test_replica_starts_as_asked(how):
    model = bed.build(bed.Run('surge', 1, 0, aux_init=how))
    ((_, layer),) = named_surge_layers(model)
    begin_training(layer)
    weight, aux = layer.weight, layer.aux_weight
    assert aux.equal(weight) is (how == 'weight')
    if how == 'binary':
        torch.testing.assert_close(
            aux.abs(),
            weight.abs().mean((1, 2, 3), keepdim=True).expand_as(aux),
        )
        assert ((aux > 0) == (weight >= 0)).all()
    if how == 'zeros':
        assert not aux.any()
    if how == 'random':
        # Uniform in ±1/sqrt(fan in), as nn.Conv2d's own.
        assert 0.07 < aux.abs().max() <= 1 / 12
    # That is where training's first step finds it.
    before = aux.detach().clone()
    model(torch.randn(2, 1, 8, 8)).sum().backward()
    assert layer.aux_weight.equal(before)


def gradients(scaler, seed=0):
    """Return AGS's two gradients and its lambda, and the input gradient."""
    torch.manual_seed(seed)
    layer = bed.SURGEConv2d(3, 4, 3, padding=1, eta=0.5, compensate=True)
    with torch.no_grad():
        layer.aux_weight.normal_()
    kept = {}

    class Spy(SCALERS.get(scaler, AGS)):
        def scale(self, grad_b, grad_a, dropped=None):
            kept.update(b=grad_b.clone(), a=grad_a.clone())
            kept['factor'] = super().scale(grad_b, grad_a)
            return kept['factor']

    layer.ags = Spy(0.5)
    x = (2 * torch.randn(2, 3, 5, 5)).requires_grad_()
    (layer(x) * torch.randn(2, 4, 5, 5)).sum().backward()
    return kept, x, layer.aux_weight.grad


def test_clipped_compensates_only_where_ste_clips():
    kept, x, _ = gradients('clipped')
    outside = x.detach().abs() > 1
    assert 0.3 < outside.float().mean() < 0.9
    # AGS's own formula with what is left of the replica's gradient.
    left = torch.where(outside, kept['a'], 0.0)
    factor = 0.5 * kept['b'].norm() / left.norm()
    torch.testing.assert_close(x.grad, kept['b'] + factor * left)
    assert x.grad[~outside].equal(kept['b'][~outside])


@pytest.mark.parametrize('scaler', ['direction', 'length'])
def test_direction_and_length_share_what_surge_does(scaler):
    kept, x, aux_grad = gradients(scaler)
    _, full, full_aux = gradients('ags')
    like, long = (
        (full.grad, kept['b'])
        if scaler == 'direction'
        else (kept['b'], full.grad)
    )
    torch.testing.assert_close(x.grad, like / like.norm() * long.norm())
    assert full.grad.norm() > 1.05 * kept['b'].norm()
    # The replica learns as in SURGE.
    torch.testing.assert_close(aux_grad, full_aux)


@pytest.mark.parametrize(
    ('scaler', 'dims'), [('per_sample', (1, 2, 3)), ('per_channel', (0, 2, 3))]
)
def test_each_part_has_a_lambda_of_its_own(scaler, dims):
    kept, x, aux_grad = gradients(scaler)
    norm_b, norm_a = (
        kept[key].square().sum(dims, keepdim=True).sqrt() for key in 'ba'
    )
    expected = kept['b'] + 0.5 * norm_b / norm_a * kept['a']
    torch.testing.assert_close(x.grad, expected)
    _, full, full_aux = gradients('ags')
    assert (x.grad - full.grad).norm() > 0.01 * full.grad.norm()
    torch.testing.assert_close(aux_grad, full_aux)


def test_smoothed_takes_the_mean_of_the_passes():
    scaler = SCALERS['smoothed'](0.5)
    one = torch.ones(1, 1, 1, 1)
    found = [scaler.scale(b * one, one).item() for b in (2.0, 4.0, 0.0)]
    means = [2.0, (0.95 * 2 + 4) / 1.95, (0.95**2 * 2 + 0.95 * 4) / 2.8525]
    assert found == pytest.approx([0.5 * mean for mean in means])


def test_where_and_when_there_is_compensation(monkeypatch):
    def etas(scaler, epochs=1):
        run = bed.Run(
            'surge', 4, 0, eta=0.2, scaler=scaler, epochs=epochs, batch=40
        )
        model, seen = bed.build(run), []
        monkeypatch.setattr(bed, 'build', lambda _: model)
        step = torch.optim.SGD.step
        layers = [layer for _, layer in named_surge_layers(model)]

        def spy(self, *args, **kwargs):
            seen.append([float(layer.ags.last_eta) for layer in layers])
            return step(self, *args, **kwargs)

        monkeypatch.setattr(torch.optim.SGD, 'step', spy)
        bed.train(run)
        monkeypatch.undo()
        return seen

    assert etas('early') == [[0.2, 0.2, 0.0, 0.0]] * 10
    assert etas('late') == [[0.0, 0.0, 0.2, 0.2]] * 10
    warm = [0.0, 0.1, *[0.2] * 8]
    assert etas('warmup') == [pytest.approx([eta] * 4) for eta in warm]
    cosine = [0.1 * (1 + math.cos(math.pi * i / 10)) for i in range(10)]
    assert etas('decay') == [pytest.approx([eta] * 4) for eta in cosine]


@pytest.mark.parametrize('scaler', [*SCALERS])
def test_experiments_stand_gradients_of_zero(scaler):
    zeros = torch.zeros(3, 2, 1, 1), torch.zeros(3, 2, 1, 1)
    SCALERS[scaler](0.2).scale(*zeros)
    assert not torch.cat(zeros).any()


def test_experiment_replaces_ags_of_every_layer():
    model = bed.build(bed.Run('surge', 2, 0, eta=0.3, scaler='length'))
    found = [layer.ags for _, layer in named_surge_layers(model)]
    assert [type(ags) for ags in found] == [SCALERS['length']] * 2
    assert [ags.eta for ags in found] == [0.3, 0.3]
    plain = bed.build(bed.Run('surge', 1, 0))
    assert type(plain[3].conv.ags) is AGS


def test_clip_norm_holds_gradients_down(monkeypatch):
    seen = []
    clip = nn.utils.clip_grad_norm_

    def spy(params, norm):
        seen.append(norm)
        return clip(params, norm)

    monkeypatch.setattr(nn.utils, 'clip_grad_norm_', spy)
    losses = {}
    for norm in (0.0, 0.01):
        run = bed.Run('ste', 1, 0, epochs=1, batch=200, clip_norm=norm)
        losses[norm] = bed.train(run)['loss']
    assert seen == [0.01, 0.01]
    assert losses[0.0] < losses[0.01]


@pytest.fixture
def built(monkeypatch):
    """Return the list that trainings put their networks in."""
    models, build = [], bed.build

    def spy(run):
        models.append(build(run))
        return models[-1]

    monkeypatch.setattr(bed, 'build', spy)
    return models


@pytest.mark.parametrize('factor', [0.0, 1.0])
@pytest.mark.parametrize('setting', ['aux_lr', 'weight_lr'])
def test_rate_of_zero_freezes_what_it_is_of_and_only_that(
    built, setting, factor
):
    run = bed.Run('surge', 1, 0, epochs=1, **{setting: factor})
    bed.train(run)
    start = bed.build(run)
    begin_training(start)
    before, after = start.state_dict(), built[0].state_dict()
    parameters = [name for name, _ in built[0].named_parameters()]
    frozen = {name for name in parameters if after[name].equal(before[name])}
    name = {'aux_lr': '3.conv.aux_weight', 'weight_lr': '3.conv.weight'}
    assert frozen == ({name[setting]} if factor == 0 else set())


@pytest.mark.isa
def test_training_learns_and_repeats_itself():
    run = bed.Run('surge', 2, 0, epochs=6, batch=50)
    first, second = bed.train(run), bed.train(run)
    # Guessing gives 0.1 and a loss of ln 10 = 2.3.
    assert first['accuracy'] > 0.4
    assert first['loss'] < 1.9
    assert (first['accuracy'], first['loss']) == (
        second['accuracy'],
        second['loss'],
    )
    other = bed.train(bed.Run('ste', 2, 0, epochs=6, batch=50))
    assert other['loss'] != first['loss']


@pytest.mark.isa
def test_fsg_trains_in_its_own_way(built):
    pytest.importorskip('mambapy', reason="FSG's slow network")
    for method, settings in (
        ('ste', {}),
        ('fsg', {}),
        ('fsg', dict(fast_net='relu')),
        ('fsg', dict(fast_lr=1.0)),
    ):
        run = bed.Run(method, 1, 0, epochs=1, **settings)
        assert math.isfinite(bed.train(run)['loss'])
    weights = [model[3].conv.weight for model in built]
    # Not the losses: they see signs alone, as BN takes the scale out again,
    # and in these 8 steps 'relu' turns none. Two CPUs differ by 1e-7.
    for one, other in itertools.combinations(weights, 2):
        assert (one - other).abs().max() > 1e-4


def test_settings_are_given_to_the_methods_that_have_them():
    args = ['--methods', 'ste', 'surge', 'fsg', '--eta', '0.1', '0.3']
    args += ['--fast-net', 'linear', 'relu', '--fast-lr', '0.001']
    args = digits.parse_args([*args, '--weight-lr', '1', '0'])
    runs = digits.variants(args)
    shown = report.shown_settings(runs)
    labels = [report.label(run, shown) for run in runs]
    assert len(labels) == len(set(labels)) == 2 + 4 + 4
    assert labels[:2] == ['ste weight_lr=1.0', 'ste weight_lr=0.0']
    assert labels[5] == 'surge eta=0.3 weight_lr=0.0'
    assert labels[7] == 'fsg fast_net=relu fast_lr=0.001 weight_lr=1.0'


def test_progress_goes_from_zero_to_one(monkeypatch):
    seen = []
    monkeypatch.setattr(bed, 'set_progress', lambda model, p: seen.append(p))
    bed.train(bed.Run('ste', 1, 0, epochs=2, batch=200))
    assert seen == [0, 0.25, 0.5, 0.75, 1]


def test_rows_are_means_and_paired_differences():
    results = {}
    for seed, figures in enumerate([(0.50, 0.53), (0.60, 0.61)]):
        for run, accuracy in zip(
            (
                report.Run('ste', 8, seed, 0.0, 0.0),
                report.Run('surge', 8, seed, 0.3),
            ),
            figures,
        ):
            results[run] = dict(accuracy=accuracy, loss=1.0, seconds=2.0)
    ste, surge = report.summarize(list(results), results, 'ste')
    assert (ste.label, ste.accuracies, ste.differences) == (
        'ste',
        [50, 60],
        None,
    )
    assert surge.label == 'surge eta=0.3'
    assert surge.differences == pytest.approx([3, 1])
    assert report.table([ste, surge], 'ste').splitlines() == [
        '| method | 1-bit layers | seeds | accuracy % | minus ste | diverged '
        '| CPU s |',
        '|---|---|---|---|---|---|---|',
        # std of (50, 60) is 10 / sqrt(2).
        '| ste | 8 | 2 | 55.00 ± 7.07 | — | 0 | 2.0 |',
        # Mean 2, t(0.975, 1 df) = 12.706 times the standard error 1.
        '| surge eta=0.3 | 8 | 2 | 57.00 ± 5.66 | +2.00 ± 12.71 | 0 | 2.0 |',
    ]


def test_each_depth_is_drawn_beside_its_own_labels(tmp_path, monkeypatch):
    pyplot = pytest.importorskip('matplotlib.pyplot')
    rows = [
        report.Row(label, layers, [accuracy], differences, 0, 1.0)
        for label, layers, accuracy, differences in (
            ('ste lr=0.1', 1, 50, None),
            ('surge', 1, 52, [2.0]),
            ('ste lr=0.03', 3, 60, None),
            ('surge', 3, 63, [3.0]),
        )
    ]
    figures, close = [], pyplot.close
    monkeypatch.setattr(pyplot, 'close', figures.append)
    report.draw(rows, 'ste', tmp_path / 'differences.png')
    shallow, deep = figures[0].axes
    labels = [text.get_text() for text in shallow.get_yticklabels()]
    assert labels == ['ste lr=0.1', 'surge', 'ste lr=0.03']
    drawn = [
        {labels[text.xy[1]]: text.get_text() for text in axes.texts}
        for axes in (shallow, deep)
    ]
    assert drawn == [
        {'ste lr=0.1': '50.0', 'surge': '52.0'},
        {'ste lr=0.03': '60.0', 'surge': '63.0'},
    ]
    close(figures[0])


def test_diverged_runs_are_counted():
    # Guessing one of ten digits has a loss of 2.303.
    results = {
        report.Run('ste', 8, seed): dict(accuracy=0.1, loss=loss, seconds=1.0)
        for seed, loss in enumerate([2.30, 2.31, math.nan, math.inf])
    }
    (row,) = report.summarize(list(results), results, 'ste')
    assert row.diverged == 3


def test_baseline_has_the_same_depth_and_rate():
    results = {}
    for layers, lr, base in [(8, 0.2, 0.5), (8, 0.3, 0.6), (12, 0.2, 0.7)]:
        for method, gain in (('ste', 0.0), ('float', 0.1)):
            run = report.Run(method, layers, 0, 0.0, 0.0, lr=lr)
            results[run] = dict(accuracy=base + gain, loss=1.0, seconds=1.0)
    rows = report.summarize(list(results), results, 'ste')
    assert [r.label for r in rows[:4]] == [
        'ste lr=0.2',
        'float lr=0.2',
        'ste lr=0.3',
        'float lr=0.3',
    ]
    floats = [row for row in rows if row.label.startswith('float')]
    assert [row.differences for row in floats] == [[pytest.approx(10)]] * 3


def test_baseline_at_its_own_rate_and_first_setting():
    results = {}
    for lr, eta, accuracy in [(0.4, 0.2, 0.8), (0.2, 0.1, 0.7)]:
        run = report.Run('surge', 8, 0, eta, lr=lr)
        results[run] = dict(accuracy=accuracy, loss=1.0, seconds=1.0)
    first, second = report.summarize(list(results), results, 'surge')
    assert first.differences is None
    assert second.differences == [pytest.approx(-10)]


def test_rate_is_the_best_mean_over_the_tuning_seeds():
    figures = {
        # A diverged run counts.
        'ste': {0.1: (0.5, 0.6), 0.2: (0.9, 0.1), 0.4: (0.5, 0.5)},
        # The lower of equals.
        'surge': {0.1: (0.5, 0.5), 0.2: (0.7, 0.8), 0.4: (0.8, 0.7)},
    }
    results = {
        digits.Run(method, 8, 1000 + i, lr=lr): dict(
            accuracy=accuracy, loss=5.0 if accuracy == 0.1 else 1.0
        )
        for method, rates in figures.items()
        for lr, both in rates.items()
        for i, accuracy in enumerate(both)
    }
    rates, text = digits.choose_rates(list(results), results)
    assert {run.method: lr for run, lr in rates.items()} == {
        'ste': 0.1,
        'surge': 0.2,
    }
    assert text.splitlines() == [
        '| method | 0.1 | 0.2 | 0.4 |',
        '|---|---|---|---|',
        '| ste (best at an edge) | **55.0** | 50.0! | 50.0 |',
        '| surge | 50.0 | **75.0** | 75.0 |',
    ]


def tuned(monkeypatch, best, *args):
    """Return the runs of a training that has a best rate for each method."""
    trained = []

    def train(run):
        trained.append(run)
        accuracy = 0.9 - abs(math.log(run.lr / best[run.method])) / 20
        return dict(accuracy=accuracy, loss=1.0, seconds=1.0)

    monkeypatch.setattr(digits, 'train', train)
    digits.main(
        ['--methods', *best, '--seeds', '2', '--tune-seeds', '2']
        + ['--lr-grid', '0.4', '0.2', '0.1', *args]
    )
    runs = {(r.method, r.layers, r.seed, r.lr) for r in trained}
    assert len(runs) == len(trained)
    tuning = {run for run in runs if run[2] >= 1000}
    return tuning, runs - tuning


def test_own_rates_are_used_at_every_depth(tmp_path, monkeypatch):
    best = {'ste': 0.2, 'surge': 0.05}
    tuning, runs = tuned(
        monkeypatch, best, '--layers', '3', '2', '--out', str(tmp_path)
    )
    assert tuning == {
        (method, 3, seed, lr)
        for method, grid in (
            ('ste', (0.1, 0.2, 0.4)),
            # Widened until the best is inside.
            ('surge', (0.025, 0.05, 0.1, 0.2, 0.4)),
        )
        for seed in (1000, 1001)
        for lr in grid
    }
    assert runs == {
        (method, layers, seed, lr)
        for method, lr in best.items()
        for layers in (3, 2)
        for seed in (0, 1)
    }
    text = (tmp_path / 'rates.md').read_text()
    assert '| ste |  |  | 86.5 | **90.0** | 86.5 |' in text
    assert '| ste lr=0.2 | 2 | 2 |' in (tmp_path / 'table.md').read_text()
    # All that was trained.
    with open(tmp_path / 'runs.csv', newline='') as file:
        assert len(list(csv.DictReader(file))) == 24


def test_grid_is_not_widened_for_ever(monkeypatch, capsys):
    tuning, _ = tuned(monkeypatch, {'ste': 1e9})
    assert sorted({run[3] for run in tuning}) == [
        *(0.1, 0.2, 0.4, 0.8, 1.6, 3.2)
    ]
    assert '| ste (best at an edge) |' in capsys.readouterr().out


def main(out, *args):
    digits.main(
        ['--methods', 'float', 'ste', 'surge', '--eta', '0.1', '0.2']
        + ['--seeds', '2', '--layers', '1', '--epochs', '1']
        + ['--out', str(out), *args]
    )


def test_finished_runs_are_kept(tmp_path, monkeypatch, capsys):
    main(tmp_path)
    kept = tmp_path / 'runs.jsonl'
    lines = kept.read_text().splitlines()
    assert len(lines) == 8
    text = (tmp_path / 'table.md').read_text()
    assert text in capsys.readouterr().out
    for label in ('float', 'ste', 'surge eta=0.1', 'surge eta=0.2'):
        assert f'| {label} | 1 | 2 |' in text
    with open(tmp_path / 'runs.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    assert [(r['method'], r['seed'], r['eta']) for r in rows] == [
        (m, s, e)
        for m, etas in (
            ('float', ['0.0']),
            ('ste', ['0.0']),
            ('surge', ['0.1', '0.2']),
        )
        for s in '01'
        for e in etas
    ]
    assert (tmp_path / 'differences.png').stat().st_size > 5_000

    # An interruption cut the last line.
    kept.write_text('\n'.join(lines)[:-10])
    again, train = [], digits.train

    def spy(run):
        again.append(run)
        return train(run)

    monkeypatch.setattr(digits, 'train', spy)
    main(tmp_path)
    assert [(r.method, r.eta, r.seed) for r in again] == [('surge', 0.2, 1)]
    figures = [
        {k: v for k, v in json.loads(line).items() if k != 'seconds'}
        for line in (*lines, *kept.read_text().splitlines())
    ]
    assert figures[:8] == figures[8:]

    # As it was written before a setting came up.
    old = [json.loads(line) for line in kept.read_text().splitlines()]
    for record in old:
        del record['weight_lr'], record['fast_net']
    kept.write_text(''.join(json.dumps(record) + '\n' for record in old))
    again.clear()
    main(tmp_path)
    assert not again


def test_damaged_file_is_refused(tmp_path, capsys):
    (tmp_path / 'runs.jsonl').write_text('{"method": "ste"}\n')
    with pytest.raises(SystemExit) as error:
        main(tmp_path)
    assert error.value.code == 2
    assert 'runs.jsonl, line 1' in capsys.readouterr().err


def test_interruption_is_said(tmp_path, monkeypatch, capsys):
    def interrupt(run):
        raise KeyboardInterrupt

    monkeypatch.setattr(digits, 'train', interrupt)
    with pytest.raises(SystemExit) as error:
        main(tmp_path)
    assert error.value.code == 130
    assert 'goes on' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('args', 'said'),
    [
        (['--methods', 'ste', 'best'], "'best'"),
        (['--methods', 'surge', '--baseline', 'ste'], '--baseline ste'),
        (
            ['--methods', 'ste', 'surge', 'surge+recu', '--scaler']
            + ['ags', 'clipped'],
            "scaler='clipped'",
        ),
        (['--scaler', 'longer'], "scaler='longer'"),
        (
            ['--methods', 'surge', '--eta', 'auto', '--scaler', 'decay'],
            "scaler='decay'",
        ),
        (['--aux-init', 'ones'], "aux_init='ones'"),
        (['--lr-grid', '0.1', '0'], 'lr=0.0'),
        (['--lr-grid', '0.1', '0.1'], '--lr-grid [0.1, 0.1]'),
        (['--lr-grid', '0.1', '--lr', '0.1'], '--lr'),
        (['--tune-seeds', '0'], '--tune-seeds 0'),
        (['--lr-grid', '0.1', '1', '--seeds', '5', '1003'], '--seeds [1003]'),
        (['--clip-norm', '-1'], 'clip_norm=-1.0'),
        (['--clip-norm', 'inf'], 'clip_norm=inf'),
        (['--layers', '0'], 'layers=0'),
        (['--jobs', '0'], '--jobs 0'),
        (['--seeds', '0'], '--seeds 0'),
        (['--eta', '-1'], 'eta=-1.0'),
        (['--eta', 'nan'], 'eta=nan'),
        (['--lr', '0'], 'lr=0.0'),
        (['--batch', '401'], 'batch=401'),
        (['--seeds', '1', '-1'], 'seed=-1'),
        (['--batch', '1'], 'batch=1'),
    ],
)
def test_wrong_arguments_are_refused(capsys, args, said):
    with pytest.raises(SystemExit) as error:
        digits.main(args)
    assert error.value.code == 2
    assert said in capsys.readouterr().err


def test_processes_give_what_one_process_gives():
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
