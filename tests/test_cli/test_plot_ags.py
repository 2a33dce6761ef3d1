import json
import math

import pytest

pytest.importorskip('matplotlib', reason='needs the examples extra')

from surge_det.cli import plot_ags as plot
from surge_det.cli.main import main

LAYERS = ('backbone.layer1.0.conv1', 'neck.conv/odd', 'head')


def write(work_dir, rows, run='20260101_000000', tail=''):
    folder = work_dir / run / 'vis_data'
    folder.mkdir(parents=True)
    lines = [json.dumps({'loss': 1.0, 'iter': 1})]
    lines += [json.dumps({**row, 'step': step}) for step, row in rows.items()]
    (folder / 'scalars.json').write_text('\n'.join(lines) + '\n' + tail)


def fine(step):
    row = {'ags/slope/act': 0.25}
    for place, name in enumerate(LAYERS):
        for figure, value in {
            'scale': 0.1 * (place + 1),
            'eta': 0.1,
            'norm_b': 1.0,
            'norm_a': 2.0,
            'cosine': -0.3,
            'missed': 0.4,
            'clipped': 0.3,
            'flipped': 0.01 if step > 5 else 0.0,
            'outside': 0.0,
            'distance': 0.5,
        }.items():
            row[f'ags/{figure}/{name}'] = value
    return row


def test_a_run_and_what_it_resumed(tmp_path):
    write(tmp_path, {5: fine(5), 10: fine(10), 15: {'ags/scale/head': 9.0}})
    later = {step: fine(step) | {'ags/scale/head': 7.0} for step in (15, 20)}
    write(tmp_path, later, '20260102_000000', tail='{"half')
    figures = plot.read_figures(tmp_path)
    assert list(figures['scale']) == list(LAYERS)
    assert figures['scale']['head'] == pytest.approx(
        {5: 0.3, 10: 0.3, 15: 7.0, 20: 7.0}
    )
    assert list(figures['slope']) == ['act']
    assert list(plot.findings(figures)) == []


def test_layers_are_in_the_models_order(tmp_path):
    late, gone, *_ = LAYERS
    rows = {step: fine(step) for step in (10, 20, 30)}
    rows[10] = {k: v for k, v in rows[10].items() if not k.endswith(late)}
    rows[30] = {k: v for k, v in rows[30].items() if not k.endswith(gone)}
    write(tmp_path, rows)
    for figure, series in plot.read_figures(tmp_path).items():
        if figure != 'slope':
            assert list(series) == list(LAYERS)
            assert list(series[late]) == [20, 30]
            assert list(series[gone]) == [10, 20]


@pytest.mark.parametrize(
    ('figure', 'values', 'told'),
    [
        ('norm_b', [1.0, 0.0, 0.0], 'no gradient arrives'),
        ('norm_b', [0.0, 1.0, 0.0], None),
        # Of the other gradient λ is enormous, or 0 with eta='auto'.
        ('norm_a', [0.0, 0.0, 0.0], 'no gradient arrives'),
        ('norm_b norm_a', [1.0, 0.0, 0.0], 'no gradient arrives'),
        ('norm_a', [1.0, 0.1, 0.009], 'λ / η has grown a hundredfold'),
        ('norm_a', [0.0, 1.0, 0.009], 'λ / η has grown a hundredfold'),
        ('norm_a', [1.0, 0.009, 0.1], None),
        # Its η may have grown.
        ('scale', [0.001, 0.1, 0.2], None),
        ('scale', [0.1, math.nan, 0.1], 'λ was not finite'),
        ('scale', [0.1, 0.1, math.inf], 'λ was not finite'),
        # Measured where NEU-DET lost 0.2 mAP, and where a run went well.
        ('clipped', [0.1, 0.5, 0.96], 'the estimator clips nearly the whole'),
        ('clipped', [0.1, 0.5, 0.64], None),
        ('clipped', [0.995, 0.5, 0.1], None),
        ('norm_b norm_a', [0.1, 1.0, 31.5], '‖g_b‖ has grown a hundredfold'),
        ('norm_b', [0.1, 1.0, 0.46], None),
        ('flipped', [0.0, 0.0, 0.0], 'no weight has changed its sign'),
        ('slope', [0.25, 1.0, 30.0], 'a slope of a PReLU has grown'),
        ('slope', [0.0, 0.25, 30.0], 'a slope of a PReLU has grown'),
    ],
)
def test_what_looks_wrong(tmp_path, figure, values, told):
    name = 'act' if figure == 'slope' else LAYERS[1]
    rows = {
        step: fine(step)
        | {f'ags/{key}/{name}': value for key in figure.split()}
        for step, value in zip((10, 20, 30), values)
    }
    write(tmp_path, rows)
    found = list(plot.findings(plot.read_figures(tmp_path)))
    if told is None:
        assert found == []
        return
    (text,) = found
    assert text.startswith(told)
    of = 1 if figure == 'slope' else 3
    assert text.endswith(f', in 1 of {of}: {name}')


@pytest.mark.parametrize('case', ['replica', 'zero', 'no replica'])
def test_the_sheet(tmp_path, capsys, case):
    import matplotlib.image

    row = fine(10)
    layers = 3
    if case == 'zero':
        layers = 1
        row = {
            'ags/scale/head': 0.0,
            'ags/eta/head': 0.0,
            'ags/cosine/head': math.nan,
        }
    if case == 'no replica':
        own = ('clipped', 'flipped', 'outside', 'slope')
        row = {k: v for k, v in row.items() if k.split('/')[1] in own}
    write(tmp_path, {10: row})
    main(['plot-ags', tmp_path])
    said = capsys.readouterr().out
    assert f'what {layers} layers did' in said
    assert 'nothing looks wrong' in said
    picture = matplotlib.image.imread(tmp_path / 'ags.png')
    assert picture.shape[0] > 200
    # More than a white page.
    assert picture[..., :3].std() > 0.05


def test_nothing_to_draw(tmp_path, capsys):
    write(tmp_path, {})
    with pytest.raises(SystemExit):
        main(['plot-ags', tmp_path])
    assert 'has no log of 1-bit layers' in capsys.readouterr().err
