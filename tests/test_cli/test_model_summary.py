import contextlib
import csv
import io
from pathlib import Path

import pytest
from matplotlib.figure import Figure

pytest.importorskip('mmdet', reason='needs the toolbox')

import cv2
import numpy as np

from surge_det.cli import summary
from surge_det.cli.main import main
from surge_det.models.complexity import TOTALS, LayerCost, ModelCost

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / 'configs' / 'surge_faster_rcnn_r18_bccd.py'
FLOAT = ROOT / 'configs' / 'float_faster_rcnn_r18_bccd.py'


def run(capsys, *args):
    main(['summary', *args])
    return capsys.readouterr().out


@pytest.fixture(scope='module')
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp('out') / 'new'
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        main(['summary', CONFIG, '--shape', 64, 96, '--out', out])
    with open(out / f'{CONFIG.stem}.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    return printed.getvalue(), rows, out


def columns(line):
    return [cell for cell in line.split('  ') if cell.strip()]


def test_csv_and_table_have_the_same_totals(written):
    text, (*rows, last), _ = written
    assert last['part'] == 'total'
    for key in TOTALS:
        assert sum(float(row[key]) for row in rows) == float(last[key]) > 0
    assert float(last['ops']) == float(last['bops']) / 64 + float(
        last['flops']
    )
    (total,) = (
        line for line in text.splitlines() if line.startswith('total ')
    )
    cells = [cell.strip() for cell in columns(total)]
    ops, float_ops = float(last['ops']), float(last['float_ops'])
    small, large = float(last['bytes']), float(last['float_bytes'])
    assert cells[1:] == [
        '25 of 35',
        *(
            summary.short(int(last[k]))
            for k in ('parameters', 'bops', 'flops')
        ),
        summary.short(ops),
        summary.short(float_ops),
        f'{float_ops / ops:.2f}x',
        summary.short(small),
        summary.short(large),
        f'{large / small:.2f}x',
    ]


def test_table_shows_layers_by_part(written):
    text, rows, _ = written
    lines = {
        line.split()[0]: line.split()
        for line in text.splitlines()
        if line.startswith(('backbone.', 'rpn_head.'))
    }
    assert lines['backbone.layer1.0.conv1'][1:4] == [
        '64x64x3x3',
        '1x64x16x24',
        '1/1',
    ]
    assert lines['rpn_head.rpn_cls'][1:5] == [
        '3x64x1x1',
        '1x3x16x24',
        '+4',
        '32/32',
    ]
    assert 'input 64x96' in text
    assert '200 proposals' in text
    shared = next(r for r in rows if r['layer'] == 'rpn_head.rpn_cls')
    assert shared['output_shapes'].split() == [
        '1x3x16x24',
        '1x3x8x12',
        '1x3x4x6',
        '1x3x2x3',
        '1x3x1x2',
    ]


def test_picture_shows_both_bars_of_each_part(written):
    _, _, out = written
    image = cv2.imread(str(out / f'{CONFIG.stem}.png')).astype(int)
    assert image.shape[1] == 1040
    widths = []
    # Red of roi_head, the fourth part (BGR): where it stands in each bar.
    red = (abs(image - (40, 39, 214)).max(-1) < 8).sum(1)
    bars = np.flatnonzero(red > 0)
    for bar in np.split(bars, np.flatnonzero(np.diff(bars) > 5) + 1):
        widths.append(red[bar].max())
    # Two of OPs, two of bytes, one in the legend. The RoI head is real, so
    # it is as wide in this config as in the float twin.
    assert len(widths) == 5
    assert widths[0] == pytest.approx(widths[1], abs=2)
    assert widths[2] == pytest.approx(widths[3], abs=2)
    assert min(widths) > 10
    # The backbone is not.
    blue = (abs(image - (180, 119, 31)).max(-1) < 8).sum(1)
    assert blue[bars[0] : bars[0] + 20].max() * 5 < blue.max()


def test_float_config_and_out_file(tmp_path, capsys):
    text = run(
        capsys,
        FLOAT,
        *('--shape', 64, 64, '--depth', 2, '--out', tmp_path / 'x.png'),
        *('--cfg-options', 'model.test_cfg.rpn.max_per_img=3'),
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ['x.csv', 'x.png']
    assert '3 proposals' in text
    assert 'backbone.layer4' in text
    assert 'backbone.layer4.0' not in text
    total = next(x for x in text.splitlines() if x.startswith('total '))
    assert '0 of 35' in total
    assert total.count('1.00x') == 2


def test_long_tables_are_shortened(capsys, monkeypatch):
    monkeypatch.setattr(summary, 'LONG', 20)
    text = run(capsys, CONFIG, '--shape', 64, 64)
    assert 'backbone.layer2.0  ' in text
    assert 'backbone.layer2.0.conv1' not in text
    line = next(
        x for x in text.splitlines() if x.startswith('backbone.layer2.0 ')
    )
    assert '3 layers' in line
    assert 'mixed' in line


@pytest.mark.parametrize(
    ('number', 'text'),
    [
        (0, '0'),
        (999, '999'),
        (27.5, '27.5'),
        (999.6, '1.00K'),
        (1234, '1.23K'),
        (999600, '1.00M'),
        (163985408, '164M'),
        (9.262e10, '92.6G'),
        (2.5e15, '2.50e+03T'),
    ],
)
def test_short_numbers(number, text):
    assert summary.short(number) == text


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['nowhere.py'], "'nowhere.py' does not exist"),
        ([CONFIG, '--depth', '0'], "--depth: '0' is not allowed"),
        ([CONFIG, '--shape', '0', '64'], "--shape: '0' is not allowed"),
        ([CONFIG, '--cfg-options', 'model=None'], 'config has no model'),
        (
            [CONFIG, '--cfg-options', 'test_dataloader.dataset.pipeline=[]'],
            'give the shape of the image',
        ),
    ],
)
def test_bad_input_is_a_clear_error(capsys, args, message):
    with pytest.raises(SystemExit) as error:
        main(['summary', *args])
    assert error.value.code == 2
    assert message in capsys.readouterr().err


def test_out_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / 'file').write_text('')
    with pytest.raises(SystemExit):
        run(
            capsys,
            *(CONFIG, '--shape', 64, 64, '--out', tmp_path / 'file'),
        )
    assert 'error: --out' in capsys.readouterr().err


def test_legend_fits_and_names_what_is_seen(tmp_path, monkeypatch):
    kept = []
    savefig = Figure.savefig

    def keep(figure, *args, **kwargs):
        kept.append(figure)
        savefig(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, 'savefig', keep)
    shape = (1, 1)
    names = [f'quite_a_long_name_{i}' for i in range(9)]
    layers = [
        LayerCost(f'{name}.a', 'Linear', shape, [], 32, 32, 100, 100)
        for name in names
    ]
    layers += [
        LayerCost(f'tiny_{i}.a', 'Linear', shape, [], 32, 32, 1, 1)
        for i in range(5)
    ]
    summary.draw(ModelCost(layers, []), 'title', tmp_path / 'a.png')
    (figure,) = kept
    (legend,) = figure.legends
    texts = [text.get_text() for text in legend.get_texts()]
    assert texts == [*names, 'others']
    box, page = legend.get_window_extent(), figure.bbox
    assert page.x0 <= box.x0 < box.x1 <= page.x1
    assert page.y0 <= box.y0
