import csv
import math
import re

import pytest
import torch

pytest.importorskip('mmdet', reason='needs the toolbox')
pytest.importorskip('matplotlib', reason='needs the examples extra')

import surge_det  # noqa: F401

# isort: split
from mmdet.registry import MODELS
from mmengine.config import Config

from surge_det.cli.main import main
from surge_det.cli.probe import (
    ALL,
    conclusion,
    draw,
    load_model,
    load_state,
    set_schedules,
    show,
    summarize,
)
from surge_det.core.layers import named_surge_layers
from surge_det.core.probe import ETAS, LayerProbe

# Three layers with replicas, one of them applied at four levels.
CONFIG = """
_base_ = 'surge_det::surge_faster_rcnn_r18_demo.py'
model = dict(
    backbone=dict(
        stem_channels=8,
        base_channels=8,
        conv_cfg=dict(compensate=False),
    ),
    neck=dict(
        in_channels=[8, 16, 32],
        out_channels=8,
        conv_cfg=dict(compensate=False),
    ),
    rpn_head=dict(in_channels=8, feat_channels=8),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=8),
        bbox_head=dict(
            in_channels=8,
            fc_out_channels=8,
            linear_cfg=dict(type='SURGELinear'),
        ),
    ),
)
"""
LAYERS = [
    'rpn_head.rpn_conv.0.conv',
    'roi_head.bbox_head.shared_fcs.0.1',
    'roi_head.bbox_head.shared_fcs.1.1',
]


@pytest.fixture(scope='module')
def trained(drawn_data, tmp_path_factory):
    """A config, and a checkpoint as if it had been trained."""
    folder = tmp_path_factory.mktemp('probe')
    config = folder / 'config.py'
    config.write_text(CONFIG)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('SURGE_DATA_ROOT', str(drawn_data))
        cfg = Config.fromfile(config)
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    for _, layer in named_surge_layers(model):
        if layer.ags is not None:
            layer.begin_training()
    # Of r = 0.8 and 1.2, with the sum of weights that two passes have.
    estimates = {LAYERS[0]: [0.8 * 0.0975, 0.0975], LAYERS[1]: [1.2, 1.0]}
    checkpoint = {
        'state_dict': model.state_dict(),
        'meta': {'iter': 3},
        'optimizer': {'ags': {'estimates': estimates}},
    }
    torch.save(checkpoint, folder / 'iter_3.pth')
    return folder


@pytest.fixture(autouse=True)
def _data(drawn_data, monkeypatch):
    monkeypatch.setenv('SURGE_DATA_ROOT', str(drawn_data))


def call(trained, *args, checkpoint='iter_3.pth'):
    config = trained / 'config.py'
    return main(['probe', config, trained / checkpoint, *args])


def test_the_command(trained, capsys):
    import matplotlib.image

    state = (trained / 'iter_3.pth').read_bytes()
    call(trained, '--batches', '2', '--step', '0.2')
    said = capsys.readouterr().out
    lines = said.splitlines()
    (rpn,) = [line for line in lines if line.startswith(LAYERS[0])]
    assert rpn.split()[1] == 'x4'
    # A quarter of 0.8, in its column.
    assert rpn.split()[4] == '0.200'
    assert lines[-2].startswith('over all layers compensation ')
    table = trained / 'iter_3_probe.csv'
    with table.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * len(LAYERS) * len(ETAS)
    assert [r['layer'] for r in rows[: 3 * len(ETAS)]] == [
        name for name in LAYERS for _ in ETAS
    ]
    assert {row['eta'] for row in rows} >= {'0', '0.1', '1', 'g_a'}
    assert all(math.isfinite(float(row['decrease'])) for row in rows)
    assert any(float(row['decrease']) > 0 for row in rows)
    assert matplotlib.image.imread(table.with_suffix('.png'))[..., :3].std()
    assert (trained / 'iter_3.pth').read_bytes() == state


@pytest.mark.parametrize(
    ('says', 'args'),
    [
        ('the training data are', ['--batches', '99']),
        ("'1' is not allowed", ['--batches', '1']),
        ("'0' is not allowed", ['--step', '0']),
        (
            'has no train_dataloader',
            ['--cfg-options', 'train_dataloader=None'],
        ),
        (
            'model has no layer with a replica',
            ['--batches', '2', '--cfg-options']
            + ['model.rpn_head.conv_cfg.compensate=False']
            + ['model.roi_head.bbox_head.linear_cfg.compensate=False'],
        ),
        (
            'no gradient reaches a layer with a replica',
            ['--batches', '2', '--cfg-options']
            + [
                f'model.{head}.loss_{of}.loss_weight=0'
                for head in ('rpn_head', 'roi_head.bbox_head')
                for of in ('cls', 'bbox')
            ],
        ),
    ],
)
def test_what_cannot_be_probed(trained, capsys, says, args):
    with pytest.raises(SystemExit) as stop:
        call(trained, *args)
    assert stop.value.code == 2
    said = capsys.readouterr().err
    (line,) = [x for x in said.splitlines() if 'error:' in x]
    assert says in line


def test_checkpoints_that_do_not_fit(trained):
    cfg = Config.fromfile(trained / 'config.py')
    good = torch.load(trained / 'iter_3.pth', weights_only=False)
    state = good['state_dict']
    path = trained / 'odd.pth'
    for left_out, says in (
        (
            'aux_weight',
            f'has no replica for 3 of 3 layers, such as {LAYERS[0]}',
        ),
        (
            f'{LAYERS[1]}.aux_weight',
            f'has no replica for 1 of 3 layers, such as {LAYERS[1]}',
        ),
        ('neck', 'no checkpoint of this config'),
    ):
        content = {k: v for k, v in state.items() if left_out not in k}
        torch.save({'state_dict': content, 'meta': {}}, path)
        with pytest.raises(ValueError, match=re.escape(says)):
            load_model(cfg, path)
    with pytest.raises(ValueError, match='an export has no replicas'):
        load_model(cfg, trained / 'x.safetensors')
    for other in (
        *(
            {'meta': {'iter': value}}
            for value in ('x', [1], math.inf, torch.ones(3))
        ),
        *(
            {'optimizer': {'ags': {'estimates': estimates}}}
            for estimates in (
                *([1.0], {'x': 'y'}, {'x': [1.0]}, {'x': None}),
                *({'x': [[1.0, 2.0]] * 2}, {'x': [10**400, 1]}),
            )
        ),
    ):
        torch.save({**good, **other}, path)
        with pytest.raises(ValueError, match='odd.pth: meta.iter is no num'):
            load_state(path)
    torch.save({'state_dict': state}, path)
    assert load_state(path) == (0, {})


def probed(*ratios, scale=1.0):
    """A layer that falls by these ratios for η of 0.1, 0.5 and the rest."""
    etas = (0.0, 0.1, 0.5, math.inf)
    falls = [scale * ratio for ratio in (1.0, *ratios, 0.5)]
    return LayerProbe(
        dict(zip(etas, falls)), dict.fromkeys(etas, 0.1), 0.5, 2.0, 1
    )


def told(*batches):
    return conclusion(summarize(batches))


def test_what_is_concluded():
    layers = {'a': probed(1.3, 0.7), 'b': probed(1.31, 1.0)}
    other = {'a': probed(1.31, 0.71), 'b': probed(1.3, 1.01)}
    text = told(layers, other)
    assert text.startswith(
        'over all layers compensation helps at η = 0.1 (1.305 ± 0.000) and '
        'hurts at η = 0.5 (0.855 ± 0.064)'
    )
    assert 'it helps at η = 0.1 in 2 of 2 layers (a, b)' in text
    assert text.endswith('it hurts at η = 0.5 in 1 of 2 layers (a)')


def test_noise_is_no_difference():
    batches = [{'a': probed(0.8, 0.7)}, {'a': probed(1.3, 1.2)}]
    text = told(*batches)
    assert 'makes no difference up to η = 0.5 that can be told' in text
    assert 'in 0 of 1 layers' in text


def test_layers_that_do_not_fall_have_no_ratio(capsys):
    batches = [
        {'a': probed(1.0, 0.9), 'b': probed(1.0, 1.0, scale=-0.1)},
        {'a': probed(1.0, 0.9), 'b': probed(1.0, 1.0, scale=0.1)},
        # And of those that no gradient reaches there is less.
        {'a': probed(1.0, 0.9)},
    ]
    rows = summarize(batches)
    assert list(rows) == ['a', 'b', ALL]
    assert {*rows['b'].ratios.values()} == {None}
    assert rows['a'].ratios[0.5][0] == pytest.approx(0.9)
    show(rows, {})
    (line,) = [
        line
        for line in capsys.readouterr().out.splitlines()
        if line.startswith('b ')
    ]
    assert line.split()[-3:] == ['?', '?', '?']


@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize('other', [0.1, -0.1])
def test_what_does_not_fall_together_is_shown(tmp_path, capsys, other):
    import matplotlib.image

    batch = {
        'a': probed(1.0, 0.9, scale=-1.0),
        'b': probed(0.8, 0.7, scale=other),
    }
    assert 'does not lower the loss' in told(batch, batch)
    rows = summarize([batch, batch])
    show(rows, {})
    lines = capsys.readouterr().out.splitlines()
    (b,) = [line for line in lines if line.startswith('b ')]
    shown = ['0.80-', '0.70-', '0.50-'] if other > 0 else ['?', '?', '?']
    assert b.split()[-3:] == shown
    (together,) = [line for line in lines if line.startswith(ALL)]
    assert together.split()[-3:] == ['?', '?', '?']
    draw(rows, {}, 'title', tmp_path / 'x.png')
    assert matplotlib.image.imread(tmp_path / 'x.png')[..., :3].std() > 0


def test_schedules_stand_where_the_checkpoint_was(trained):
    cfg = Config.fromfile(trained / 'config.py')
    cfg.model.rpn_head.conv_cfg.activation_estimator = {'type': 'ReSTE'}
    model = MODELS.build(cfg.model)
    estimator = model.rpn_head.rpn_conv[0].conv.activation_estimator
    # Iteration 3 of five epochs of three.
    set_schedules(model, cfg, 3, 3)
    assert estimator.progress == 0.2
    cfg.train_cfg = {'type': 'IterBasedTrainLoop', 'max_iters': 4}
    set_schedules(model, cfg, 3, 3)
    assert estimator.progress == 0.75
