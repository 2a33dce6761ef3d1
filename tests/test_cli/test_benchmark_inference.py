"""The benchmark of inference: what it compares, and what it says."""

import copy
import csv
import io
import statistics
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from command_line import ROOT
from torch import nn

pytest.importorskip('mmdet', reason='needs the toolbox')
pytest.importorskip('matplotlib', reason='the benchmark draws')
pytest.importorskip('openvino', reason='needs the extra `deploy`')
pytest.importorskip('onnx', reason='needs the extra `deploy`')
pytest.importorskip('surge_runtime', reason='runtime/ is not installed')

from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.structures import InstanceData

from surge_det.cli.benchmark import (
    inference_measure,
    inference_profile,
    inference_report,
    inference_run,
    layers,
)
from surge_det.cli.benchmark.layers import Shape
from surge_det.cli.main import main
from surge_det.deploy import FORMATS
from surge_det.deploy.trained import build_detector

VOC = ROOT / 'configs' / 'surge_faster_rcnn_r18_voc.py'
FLOAT = ROOT / 'configs' / 'float_ssd300_vgg16_voc.py'
SMALL = """
_base_ = [{base!r}]
model = dict(
    backbone=dict(stem_channels=16, base_channels=16, init_cfg=None),
    neck=dict(in_channels=[16, 32, 64, 128], out_channels=16),
    rpn_head=dict(in_channels=16, feat_channels=16),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=16),
        bbox_head=dict(
            in_channels=16,
            fc_out_channels=32,
            linear_cfg=dict(type='SURGELinear'))),
    test_cfg=dict(rpn=dict(max_per_img=20)))
"""
ONCE = ['--rounds', '1', '--warmup', '0', '--no-int8']


pytestmark = pytest.mark.usefixtures('threads_as_before')


def bench(*args):
    main(['benchmark', 'inference', *map(str, args)])


@dataclass
class Report:
    """What one run of the tool has left."""

    folder: Path
    out: str
    err: str
    detector: Any

    @property
    def text(self):
        return (self.folder / 'inference.md').read_text()


@pytest.fixture(scope='module')
def report(tmp_path_factory):
    """All levels of a small detector; its export takes the time."""
    folder = tmp_path_factory.mktemp('inference')
    config = folder / 'small.py'
    config.write_text(SMALL.format(base=str(VOC)))
    shapes = [
        Shape('narrow', 16, 128, 38, 63, stride=2),
        Shape('pointwise', 16, 16, 75, 125, kernel=1),
        Shape('wide', 128, 136, 19, 32),
    ]
    detectors = []

    def keep(cfg, _, *args):
        # In a folder that stays.
        detectors.append(build(cfg, folder, *args))
        return detectors[0]

    build = inference_measure.Detector
    out, err = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        patch.setattr(inference_run, 'SHAPES', shapes)
        patch.setattr(inference_run, 'Detector', keep)
        bench(
            *(config, '--size', 64, 96, '--profile', '--no-int8'),
            *('--rounds', 3, '--warmup', 1, '--out', folder / 'out'),
        )
    return Report(folder / 'out', out.getvalue(), err.getvalue(), detectors[0])


def cells(text):
    """Rows of the Markdown tables in a text, as lists."""
    return [
        [cell.strip() for cell in line.strip('|').split('|')]
        for line in text.splitlines()
        if line.startswith('|') and '---' not in line
    ]


def records(path):
    with open(path, newline='') as file:
        return list(csv.DictReader(file))


OPENVINO = 'OpenVINO fp32', 'OpenVINO 1-bit'
RUNTIME = 'runtime fp32', 'runtime 1-bit'
# Of those that took part.
BASES = 'OpenVINO fp32', 'OpenVINO 1-bit', 'torch fp32'


def with_layouts(name, place):
    """Single layers take both layouts in OpenVINO too."""
    both = [name, f'{name}, channels_last']
    return both if place[0] == 'layers' else both[:1]


def runtime(place):
    """The runtime's maps are in one layout."""
    suffix = ', channels_last' if place[0] == 'layers' else ''
    return [f'{name}{suffix}' for name in RUNTIME]


def test_the_table_is_what_was_measured(report):
    out = report.folder
    for word in {w for row in cells(report.text) for w in row}:
        assert word in report.out
    assert 'detector, small, 64x96, 1 thread' in report.err
    assert (out / 'inference.png').stat().st_size > 10_000

    taken = {}
    for row in records(out / 'inference.csv'):
        assert (row['rows'], row['columns']) == ('64', '96')
        case = taken.setdefault((row['level'], row['what']), {})
        case.setdefault(row['contestant'], []).append(float(row['ms']))
    assert list(taken) == [
        ('layers', 'narrow'),
        ('layers', 'wide'),
        ('network', 'small'),
        ('detector', 'small'),
    ]
    rows = cells(report.text)
    ratios = {}
    for place, case in taken.items():
        assert list(case) == [
            'torch fp32',
            'torch fp32, channels_last',
            'torch 1-bit',
            'torch 1-bit, channels_last',
            *with_layouts('OpenVINO fp32', place),
            *with_layouts('OpenVINO 1-bit', place),
            *runtime(place),
        ]
        assert all(len(ms) == 3 and min(ms) > 0 for ms in case.values())
        row = next(row for row in rows if tuple(row[:2]) == place)
        best = {}
        for name in ('torch fp32', 'torch 1-bit', *OPENVINO, *RUNTIME):
            layouts = [
                case[key]
                for key in (name, f'{name}, channels_last')
                if key in case
            ]
            best[name] = min(layouts, key=statistics.median)
            shown = row[rows[0].index(f'{name}, ms')]
            assert ('(cl)' in shown) == (best[name] is not case.get(name))
            assert float(shown.split()[0]) == pytest.approx(
                statistics.median(best[name]), rel=0.01
            )
        assert row[rows[0].index('OpenVINO int8, ms')] == '—'
        mine = best['runtime 1-bit']
        ratios[place] = [
            statistics.median(a / b for a, b in zip(base, mine))
            for base in (best[name] for name in BASES)
        ]
        assert row[-3] == '—'
        found = [float(c) for c in (row[-4], *row[-2:])]
        assert found == pytest.approx(ratios[place], rel=0.01)
    means = {row[0]: row for row in rows if row[1:3] == ['64x96', '1']}
    narrow, wide = ratios['layers', 'narrow'], ratios['layers', 'wide']
    for name, wanted in (
        ('all (2)', [(a * b) ** 0.5 for a, b in zip(narrow, wide)]),
        ('≥ 128 channels (1)', wide),
    ):
        row = means[name]
        found = [float(cell) for cell in (row[-4], *row[-2:])]
        assert found == pytest.approx(wanted, rel=0.01)


def plan(report):
    rows = FORMATS['openvino'].plan(report.detector.one_bit)
    return [row for row in rows if row.bits == '1/1']


def test_bytes_are_those_of_layers_and_files(report):
    rows = plan(report)
    names = [row.name for row in rows]
    assert 'backbone.layer1.0.conv1' in names
    assert any(name.startswith('roi_head.bbox_head.shared') for name in names)
    layers, files = (
        [int(cell.replace(',', '')) for cell in row[2:4]]
        for row in cells(report.text)
        if row[-1].startswith('1/')
    )
    assert layers == [
        sum(row.bytes for row in rows),
        sum(row.float_bytes for row in rows),
    ]
    first = rows[names.index('backbone.layer1.0.conv1')]
    # Bits, then the scales.
    assert first.bytes == 16 * 16 * 9 // 8 + 4 * 16
    assert layers[0] < files[0] < files[1]


def test_notes_say_what_numbers_depend_on(report):
    rows = cells(report.text)
    (counts,) = [
        row
        for row in rows
        if row[0] == 'small' and '/' in row[3] and len(row) == 10
    ]
    counts = dict(zip(inference_report.CONTESTANTS, counts[3:]))
    assert counts.pop('OpenVINO int8') == '—'
    for name, cell in counts.items():
        *proposals, boxes = map(int, cell.split(' / '))
        assert len(proposals) == (name not in RUNTIME)
        assert all(0 < number <= 20 for number in proposals)
        assert 0 <= boxes <= 100
    assert 'No OpenVINO int8: --no-int8.' in report.text
    assert 'weights are random, the image is noise' in report.text


def test_the_profile_is_of_the_1_bit_network(report):
    rows = cells(report.text)
    operations = [
        row for row in rows if len(row) == 5 and row[-1].endswith('%')
    ]
    number = sum(
        int(row[2]) for row in operations if row[0] == 'BinaryConvolution'
    )
    dense = [row for row in plan(report) if not row.name.startswith('roi')]
    # The RPN's runs on five levels.
    assert number == len(dense) + 4
    assert operations[-1][0] == 'all'
    shares = [float(row[-1][:-1]) for row in operations]
    # Each is rounded to a tenth.
    rounding = 0.05 * len(shares)
    assert sum(shares[:-1]) == pytest.approx(100, abs=rounding)


def test_the_profile_counts_operations_too_short_for_the_clock():
    def info(kind, execution, microseconds):
        return SimpleNamespace(
            node_type=kind,
            exec_type=execution,
            real_time=timedelta(microseconds=microseconds),
        )

    class Request:
        profiling_info = [
            info('BinaryConvolution', 'jit', 3),
            info('BinaryConvolution', 'jit', 0),
            info('PRelu', 'undef', 0),
        ]

        def infer(self, inputs):
            pass

    compiled = SimpleNamespace(create_infer_request=Request)
    network = SimpleNamespace(settings={}, compiled=lambda shape: compiled)
    found = inference_profile.profile_network(network, torch.ones(1), runs=2)
    assert found == [('BinaryConvolution', 'jit', 2, pytest.approx(3e-6))]


def test_the_profile_is_of_all_stages_of_the_detector(report):
    rows = cells(report.text)
    stages = [row for row in rows if len(row) == 3 and row[-1].endswith('%')]
    assert [row[0] for row in stages] == [
        'data preprocessor',
        'dense network',
        'proposals',
        'RoI extractor',
        'RoI network',
        'boxes of RoIs',
        'rest',
        'all',
    ]
    times = [float(row[1]) for row in stages]
    assert min(times) > 0
    assert sum(times[:-1]) == pytest.approx(times[-1], rel=0.02)


def test_stages_of_a_detector_are_what_it_spends_in_them():
    class Part(nn.Module):
        def predict_by_feat(self):
            time.sleep(0.02)

    class Detector(nn.Module):
        def __init__(self):
            super().__init__()
            self.data_preprocessor, self.bbox_head = nn.Identity(), Part()

        def extract_feat(self):
            time.sleep(0.04)

        def test_step(self, data):
            self.data_preprocessor(data)
            self.extract_feat()
            self.bbox_head.predict_by_feat()
            time.sleep(0.01)

    model = Detector()
    # As where a network was put in place of it.
    model.extract_feat = own = model.extract_feat
    found = dict(inference_profile.profile_stages(model, {}, 3))
    names = ['data preprocessor', 'dense network', 'boxes', 'rest']
    assert list(found) == names
    for name, least in zip(names, (0, 0.04, 0.02, 0.01)):
        assert least <= found[name] < least + 0.5
    # It is left as it was.
    assert model.extract_feat is own
    assert 'predict_by_feat' not in vars(model.bbox_head)


def test_the_twin_has_the_latent_weights_of_a_checkpoint(tmp_path):
    path = tmp_path / 'small.py'
    path.write_text(SMALL.format(base=str(VOC)))
    cfg = Config.fromfile(path)
    trained = build_detector(cfg)
    with torch.no_grad():
        trained.neck.fpn_convs[0].conv.weight += 0.25
    # As training leaves it: the config in it is that of a 1-bit detector.
    torch.save(
        {
            'state_dict': trained.state_dict(),
            'meta': {'dataset_meta': {}, 'cfg': cfg.pretty_text},
        },
        tmp_path / 'x.pth',
    )
    detector = inference_measure.Detector(
        cfg, tmp_path, False, (64, 96), str(tmp_path / 'x.pth')
    )
    state = trained.state_dict()
    for model in (detector.one_bit, detector.twin):
        for name, value in model.state_dict().items():
            assert value.equal(state[name]), name
    assert not detector.twin.neck.fpn_convs[0].conv.binarize_weight


def flipped(layer):
    layer.weight.data[1, 2, 0, 0] *= -1


def scaled(layer):
    layer.weight.data[3] *= 1.01


def strided(layer):
    layer.stride = (1, 1)


@pytest.mark.parametrize(
    ('function', 'kind', 'spoil', 'message'),
    [
        ('convert', 'SURGEConv2d', flipped, 'small: OpenVINO 1-bit differs'),
        ('convert', 'SURGEConv2d', scaled, 'small: OpenVINO 1-bit differs'),
        ('convert', 'SURGEConv2d', strided, 'OpenVINO 1-bit has outputs of'),
        ('convert', 'Conv2d', flipped, 'small: OpenVINO fp32 differs'),
        ('_in_layouts', 'SURGEConv2d', flipped, 'small: torch 1-bit differs'),
        ('in_runtime', 'SURGEConv2d', scaled, 'small: runtime 1-bit, '),
        ('in_runtime', 'Conv2d', flipped, 'small: runtime fp32, '),
    ],
)
def test_a_layer_that_computes_something_else_is_not_timed(
    function, kind, spoil, message, monkeypatch
):
    right = getattr(inference_measure, function)

    def wrong(*args):
        args = copy.deepcopy(args)
        for arg in args:
            if type(arg).__name__ == kind:
                spoil(arg)
        return right(*args)

    monkeypatch.setattr(inference_measure, function, wrong)
    with pytest.raises(RuntimeError, match=message):
        inference_measure.layer_runs(
            Shape('small', 16, 24, 7, 9, stride=2), 1, False
        )


@pytest.mark.parametrize('kind', ['twin', 'one_bit'])
def test_a_network_that_computes_something_else_is_not_timed(report, kind):
    detector = report.detector
    names = {'twin': 'OpenVINO fp32', 'one_bit': 'OpenVINO 1-bit'}
    bias = getattr(detector, kind).rpn_head.rpn_reg.bias.data
    bias += 1
    with pytest.raises(RuntimeError, match=f'{names[kind]}: output .* wrong'):
        detector.network_runs((64, 96), 1)
    bias -= 1


def test_detectors_that_find_other_things_are_not_timed(report, monkeypatch):
    class Other(nn.Module):
        def test_step(self, data):
            found = InstanceData(bboxes=torch.zeros(2, 4))
            return [DetDataSample(pred_instances=found)]

    detector, name = report.detector, 'torch 1-bit'
    monkeypatch.setitem(detector._torch, name, Other())
    data = inference_measure.picture(None, (64, 96))
    with pytest.raises(RuntimeError, match=f'^detector: {name} has outputs'):
        detector.detector_runs(data, 1)


def test_the_faster_layout_counts():
    case = inference_report.Case('layers', 'one', (2, 3), 1)
    case.seconds = {
        'torch fp32': [3.0, 4.0, 20.0],
        'torch fp32, channels_last': [5.0, 5.0, 5.0],
        'runtime 1-bit': [1.0, 1.0, 2.0],
    }
    assert case.best('torch fp32') == 'torch fp32'
    assert case.times_faster('torch fp32') == 4
    assert case.best('OpenVINO int8') is None
    assert case.times_faster('OpenVINO int8') is None


def test_short_turns_are_written_down_as_exactly_as_long_ones():
    case = inference_report.Case('layers', 'one', (2, 3), 1)
    case.seconds = {'a': [8.12345e-6, 8.12345]}
    rows = inference_report.turns([case]).rows
    assert [float(row[-1]) for row in rows] == [8.12345e-3, 8123.45]


def test_every_turn_has_a_call_that_does_not_count(monkeypatch):
    case = inference_report.Case('layers', 'one', (2, 3), 1)
    order, clock = [], iter(range(100))
    monkeypatch.setattr('time.process_time', lambda: next(clock))
    inference_measure.take_turns(
        case,
        {name: lambda name=name: order.append(name) for name in 'ab'},
        SimpleNamespace(rounds=2, warmup=1, cpu_time=True),
    )
    assert ''.join(order) == 'aabb' * 3
    assert case.seconds == {'a': [1, 1], 'b': [1, 1]}


def test_layers_have_the_size_of_the_image():
    at_size = inference_measure.at_size
    for shape in layers.SHAPES:
        assert at_size(shape, (600, 1000)) == shape
    small = [at_size(s, (240, 320))[3:5] for s in layers.SHAPES]
    assert set(small) == {(60, 80), (30, 40), (15, 20), (8, 10)}


def test_a_config_with_one_size_is_run_at_it():
    folder = ROOT / 'configs'
    for name, sizes in (
        ('surge_ssd300_vgg16_voc.py', [(300, 300)]),
        (VOC.name, [(240, 320), (600, 1000)]),
    ):
        cfg = Config.fromfile(folder / name)
        assert inference_run.config_sizes(cfg) == sizes
    leaf = Config.fromfile(folder / 'surge_ssd300_vgg16_voc.py')
    leaf = leaf.test_dataloader.dataset
    cfg.test_dataloader = dict(
        dataset=dict(type='ConcatDataset', datasets=[leaf])
    )
    assert inference_run.config_sizes(cfg) == [(300, 300)]
    leaf.pipeline = [dict(type='Resize', scale=640)]
    assert inference_run.config_sizes(cfg) == [(640, 640)]
    leaf.pipeline = [dict(type='Resize', scale_factor=0.5)]
    with pytest.raises(ValueError, match='no Resize with a scale'):
        inference_run.config_sizes(cfg)


def test_an_int8_twin_takes_part_where_it_can_be_made(
    monkeypatch,
):
    monkeypatch.setitem(sys.modules, 'nncf', None)
    assert 'pip install nncf' in inference_measure.int8_problem()
    monkeypatch.undo()
    pytest.importorskip('nncf', reason='makes the int8 twin')
    assert inference_measure.int8_problem() is None
    small = Shape('small', 16, 24, 7, 9)
    runs = inference_measure.layer_runs(small, 1, True)
    (got,), expected = runs['OpenVINO int8'](), runs['torch fp32']()
    difference = (got - expected).abs().max() / expected.abs().max()
    assert 0 < difference < 0.05


def test_without_openvino_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'openvino', None)
    with pytest.raises(SystemExit) as end:
        bench('--levels', 'layers', *ONCE)
    assert end.value.code == 2
    assert 'pip install "surge_det[deploy]"' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ([], 'CONFIG is missing'),
        (['--levels', 'layers', '--profile'], 'CONFIG is missing'),
        (['no.py'], "'no.py' does not exist"),
        ([VOC, '--levels', 'boxes'], 'boxes'),
        ([VOC, '--threads', '0'], "--threads: '0'"),
        ([VOC, '--threads', '1', '10000'], '--threads 10000: '),
        ([VOC, '--threads', '1', '1', '--cpu-time'], '--cpu-time'),
        ([VOC, '--size', '0', '32'], "--size: '0'"),
        ([VOC, '--rounds', '0'], "--rounds: '0'"),
        ([VOC, '--warmup', '-1'], '--warmup -1'),
        ([VOC, '--image', 'no.jpg'], "--image: 'no.jpg' does not exist"),
        ([VOC, '--checkpoint', 'no.pth'], "--checkpoint: 'no.pth'"),
        ([VOC, VOC, '--checkpoint', VOC], '--checkpoint: with one CONFIG'),
        ([VOC, '--float-checkpoint', VOC], 'with --checkpoint only'),
        (
            [FLOAT, '--levels', 'network', *ONCE],
            'float_ssd300_vgg16_voc.py: nothing in it is 1-bit',
        ),
    ],
)
def test_bad_arguments_are_named(arguments, message, capsys):
    with pytest.raises(SystemExit) as end:
        bench(*arguments)
    assert end.value.code == 2
    assert message in capsys.readouterr().err
