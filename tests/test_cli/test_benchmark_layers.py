"""The layer benchmark: what it says is what it measured."""

import csv
import math
import statistics
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip('matplotlib', reason='the benchmark draws')
pytest.importorskip('rich', reason='the benchmark shows tables')

from surge_det.cli.benchmark import growth, layers, measure, reference, report
from surge_det.cli.main import main

LAYERS = ['layer1', 'lateral4']
SMALL = ['--shrink', '30', '--rounds', '1', '--warmup', '0', '--layers']
# A narrow replica's gradients are its type's, the others float32's.
SMALL_ERROR, NARROW_ERROR = 1e-5, 2e-2


pytestmark = pytest.mark.usefixtures('threads_as_before')


@pytest.fixture
def quick(monkeypatch):
    # All modules of a test session are looked through each time.
    monkeypatch.setattr('gc.collect', lambda: 0)
    monkeypatch.setattr(layers, 'draw_bars', lambda _, path: path.touch())


def bench(*args):
    main(['benchmark', 'layers', *args])


def records(folder):
    with open(folder / 'layers.csv', newline='') as file:
        return list(csv.DictReader(file))


def by_contestant(rows, column):
    """Values of a column by layer and contestant."""
    values = {}
    for row in rows:
        own = values.setdefault(row['layer'], {})
        own[row['contestant']] = float(row[column] or 'nan')
    return values


def test_table_csv_and_picture(tmp_path, capsys):
    bench(*SMALL, *LAYERS, '--out', tmp_path, '--threads', '1')
    printed = capsys.readouterr().out
    rows = records(tmp_path)
    contestants = [
        'float',
        'reference STE',
        'reference SURGE',
        'SURGEConv2d',
        'SURGEConv2d aux bf16',
        'SURGEConv2d STE',
    ]
    assert [(r['layer'], r['contestant']) for r in rows] == [
        (layer, name) for layer in LAYERS for name in contestants
    ]
    for row in rows:
        times = [float(row[f'{q}, ms']) for q in ('forward', 'backward')]
        assert all(t > 0 for t in times)
        # One round: the median of sums is the sum of medians.
        assert float(row['both, ms']) == pytest.approx(sum(times), rel=2e-3)
        assert float(row['evaluation, ms']) > 0
        narrow = row['contestant'] == 'SURGEConv2d aux bf16'
        error = float(row['gradient error'])
        assert 0 < error < (NARROW_ERROR if narrow else SMALL_ERROR)
        assert narrow is (error > SMALL_ERROR)

    text = (tmp_path / 'layers.md').read_text()
    assert (tmp_path / 'layers.png').read_bytes()[:4] == b'\x89PNG'
    seen = 0
    quantities = {
        'time, forward and backward': 'both, ms',
        'time, evaluation': 'evaluation, ms',
        'bytes kept for backward': 'kept, MiB',
        'peak memory': 'peak, MiB',
    }
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip('|').split('|')]
        if len(cells) != 4 or ' / ' not in cells[0]:
            continue
        seen += 1
        assert cells[0] in printed
        mine, base = cells[0].split(' / ')
        quantity = quantities[cells[1]]
        values = by_contestant(rows, quantity).values()
        one = [v[mine] / v[base] if v[base] else math.nan for v in values]
        if cells[2] == '—' or quantity == 'peak, MiB':
            # Peaks this small come in pages, or are not to be had.
            continue
        mean = statistics.geometric_mean(one)
        low, high = map(float, cells[3].split(' to '))
        assert float(cells[2]) == pytest.approx(mean, abs=0.011, rel=2e-3)
        assert low == pytest.approx(min(one), abs=0.011, rel=2e-3)
        assert high == pytest.approx(max(one), abs=0.011, rel=2e-3)
    assert seen == len(layers.RATIOS)


@pytest.mark.usefixtures('quick')
def test_bytes_kept_are_those_of_the_tensors(tmp_path):
    bench(*SMALL, 'layer1', '--out', tmp_path)
    kept = by_contestant(records(tmp_path), 'kept, MiB')['layer1']
    x = 2 * 64 * (150 // 30) * (250 // 30)
    weights = 64 * 64 * 9
    per_channel = 64 * 4
    # Beside the input: its sign, and the weights' (float32 each).
    wanted = {
        'float': 4 * x,
        'reference STE': 4 * (2 * x + weights) + per_channel,
        'SURGEConv2d': 4 * x + per_channel,
        'SURGEConv2d aux bf16': 2 * x + x / 4 + per_channel,
        'SURGEConv2d STE': x / 4 + per_channel,
    }
    for name, size in wanted.items():
        assert kept[name] * 2**20 == pytest.approx(size, rel=1e-3), name
    assert kept['reference SURGE'] >= kept['reference STE']


@pytest.mark.usefixtures('quick')
@pytest.mark.parametrize('format_', [[], ['--channels-last']])
def test_autocast_and_formats(tmp_path, format_):
    args = ['--out', tmp_path, '--dtype', 'autocast', *format_]
    bench(*SMALL, 'layer2.0', *args, '--shrink', '40', '--batch', '1')
    errors = by_contestant(records(tmp_path), 'gradient error')['layer2.0']
    assert len(errors) == 6
    for name, error in errors.items():
        assert 1e-5 < error < 0.05, name
    text = (tmp_path / 'layers.md').read_text()
    last = 'channels_last' if format_ else 'default format'
    assert f'batch 1, autocast, cpu, {last}' in text


WRONG = {
    'input': lambda g, x: [1.1 * g[0], *g[1:]],
    'weights': lambda g, x: [g[0], 1.1 * g[1], *g[2:]],
    'replica': lambda g, x: [*g[:-1], 1.1 * g[-1]],
    'no-window': lambda g, x: [g[0] + (x.abs() > 1) * g[0].std(), *g[1:]],
    'one-element': lambda g, x: [
        g[0]
        .flatten()
        .index_add(0, torch.tensor([3]), g[0].max()[None])
        .view(g[0].shape),
        *g[1:],
    ],
    'not-a-number': lambda g, x: [g[0] * float('nan'), *g[1:]],
}


@pytest.mark.usefixtures('quick')
@pytest.mark.parametrize('spoil', WRONG.values(), ids=WRONG)
def test_a_wrong_kernel_shows(tmp_path, monkeypatch, spoil):
    from surge_det.core import SURGEConv2d

    right = SURGEConv2d._run

    class Spoilt(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, weight, aux_weight, layer):
            ctx.save_for_backward(x, weight, aux_weight)
            ctx.layer = layer
            with torch.enable_grad():
                leaf = x.detach().requires_grad_()
                out = right(layer, leaf)
            ctx.leaf, ctx.out = leaf, out
            return out.detach()

        @staticmethod
        def backward(ctx, grad):
            leaves = [ctx.leaf, *ctx.layer.parameters()]
            got = list(torch.autograd.grad(ctx.out, leaves, grad))
            got = spoil(got, ctx.leaf.detach())
            return (*got, None)

    def run(layer, x):
        if (
            not layer.training
            or not layer.compensate
            or layer.aux_dtype is not None
            or not torch.is_grad_enabled()
        ):
            return right(layer, x)
        return Spoilt.apply(x, layer.weight, layer.aux_weight, layer)

    monkeypatch.setattr(SURGEConv2d, '_run', run)
    bench(*SMALL, 'lateral5', '--out', tmp_path)
    errors = by_contestant(records(tmp_path), 'gradient error')['lateral5']
    wrong = errors.pop('SURGEConv2d')
    assert not wrong <= NARROW_ERROR
    for name, error in errors.items():
        assert error <= NARROW_ERROR, name


@pytest.mark.parametrize(
    ('args', 'named'),
    [
        (['--rounds', '0'], "--rounds: '0'"),
        (['--warmup', '-1'], '--warmup -1'),
        (['--batch', '0'], "--batch: '0'"),
        (['--shrink', '0'], "--shrink: '0'"),
        (['--threads', '0'], "--threads: '0'"),
        (['--cpu-time'], '--cpu-time'),
        (['--growth', '--layers', 'fpn5'], '--growth'),
        (['--device', 'gpu'], "--device 'gpu'"),
        (['--dtype', 'float16'], 'float16'),
        (['--layers', 'layer9'], 'layer9'),
    ],
)
def test_bad_arguments_are_named(capsys, args, named):
    with pytest.raises(SystemExit) as stop:
        bench(*args)
    assert stop.value.code == 2
    assert named in capsys.readouterr().err


def test_growth_finds_the_exponent(tmp_path, monkeypatch, capsys):
    assert growth.exponent([1, 2, 4], [3, 12, 48]) == pytest.approx(2)
    monkeypatch.setattr(
        growth, 'SWEEPS', {'area': [1, 4], 'channels': [8, 16]}
    )
    bench(
        *('--growth', '--shrink', '4', '--rounds', '1', '--warmup', '0'),
        *('--out', tmp_path),
    )
    with open(tmp_path / 'growth.csv', newline='') as file:
        assert len(list(csv.DictReader(file))) == 2 * 2 * len(growth.SHOWN)
    # What SURGE keeps is the input and nothing that does not grow with it.
    slopes = {
        tuple(cells[1:3]): float(cells[4])
        for cells in (
            [c.strip() for c in line.split('|')]
            for line in (tmp_path / 'growth.md').read_text().splitlines()[2:]
        )
    }
    assert slopes['area', 'SURGEConv2d'] == pytest.approx(1, abs=0.05)
    assert slopes['channels', 'SURGEConv2d'] == pytest.approx(1, abs=0.05)
    assert 'area' in capsys.readouterr().out
    assert (tmp_path / 'growth.png').stat().st_size > 10_000


# What the benchmarks share


def test_turns_are_taken(capsys):
    order = []

    def turn(name):
        def run():
            order.append(name)
            return (len(order),)

        return run

    args = SimpleNamespace(rounds=2, warmup=1)
    turns = {'a': turn('a'), 'b': turn('b')}
    taken = measure.interleaved(turns, args)
    assert ''.join(order) == 'ababab'
    assert taken == {'a': [(3,), (5,)], 'b': [(4,), (6,)]}
    assert capsys.readouterr() == ('', '')
    # Brackets of a file's name are no markup.
    measure.interleaved(turns, args, 'two [red] of them[/x]')
    out, err = capsys.readouterr()
    assert not out
    assert 'two [red] of them[/x]' in err


def test_ratios_are_of_pairs():
    assert report.ratio([1, 20, 3], [2, 10, 1]) == 2
    with pytest.raises(ValueError, match='zip'):
        report.ratio([1, 2], [1])


def test_kept_storages_count_once():
    linear = torch.nn.Linear(5, 3, bias=False)
    x = torch.randn(7, 5, requires_grad=True)

    def run():
        # Both keep x; exp keeps its own result.
        return linear(x).exp() + (x * x).sum()

    kept = (x.nbytes + 7 * 3 * 4) / 2**20
    assert measure.kept_mib(run, linear) == kept
    weight = linear.weight.nbytes / 2**20
    assert measure.kept_mib(run, torch.nn.Identity()) == kept + weight
    with torch.no_grad():
        assert measure.kept_mib(run, torch.nn.Identity()) == 0


def test_peak_is_what_a_call_adds():
    peak = measure.peak_mib(
        lambda: torch.ones(64 * 2**20, dtype=torch.uint8), torch.device('cpu')
    )
    if peak is None:
        pytest.skip('this system does not say')
    assert 64 * 0.9 < peak < 64 * 1.3


def test_references_are_the_formula():
    from reference import expected, relative_error

    from surge_det.core import SURGEConv2d

    torch.manual_seed(0)
    layer = SURGEConv2d(4, 6, 3, stride=2, padding=1).double()
    with torch.no_grad():
        layer.aux_weight.normal_()
    x = torch.randn(2, 4, 9, 8, dtype=torch.float64)
    for cls in (
        reference.ReferenceSTEConv2d,
        reference.ReferenceSURGEConv2d,
    ):
        copy = reference.copy_as(layer, cls)
        leaf = x.clone().requires_grad_()
        out = copy(leaf)
        grad = torch.randn_like(out)
        out.backward(grad)
        # With eta such that lambda is the constant.
        eta = 0.0
        aux = layer.aux_weight
        weights = layer.weight, aux, layer.bias
        geometry = dict(stride=2, padding=1)
        if cls is reference.ReferenceSURGEConv2d:
            # It starts from the layer's weights, as a replica does.
            aux = copy.aux_weight
            assert torch.equal(aux, layer.weight)
            weights = layer.weight, aux, layer.bias
            eta = 0.2 / expected(x, *weights, grad, 1.0, **geometry).scale
            eta = eta.item()
        want = expected(x, *weights, grad, eta, **geometry)
        assert relative_error(out, want.out) <= 1e-12
        assert relative_error(leaf.grad, want.x) <= 1e-12
        assert relative_error(copy.weight.grad, want.weight) <= 1e-12
        assert relative_error(copy.bias.grad, want.bias) <= 1e-12
        if eta:
            mine = copy.aux_weight.grad
            assert relative_error(mine, want.aux_weight) <= 1e-12
