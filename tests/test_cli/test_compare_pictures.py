from pathlib import Path

import pytest

pytest.importorskip('mmdet', reason='needs the toolbox')

from matplotlib.figure import Figure
from matplotlib.text import Text
from mmengine.config import Config

from surge_det.cli.compare import pictures
from surge_det.cli.compare.candidates import Candidate
from surge_det.cli.compare.runs import Run, TrainingResult


@pytest.fixture
def drawn(monkeypatch):
    """Draw, and return the axes with what is in them."""
    kept = []
    savefig = Figure.savefig

    def keep(figure, *args, **kwargs):
        kept.append(figure)
        savefig(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, 'savefig', keep)

    def draw(finals, out, what, *args, epochs=2):
        candidates, cfg = [], Config({})
        for name, of_seeds in finals.items():
            runs = [Run(Path(), cfg, name, 0.1, seed) for seed in of_seeds]
            for run in runs:
                final = of_seeds[run.seed]
                scores = [(1, final / 2), (2, final)][-epochs:]
                run.result = TrainingResult(
                    scores, 'epoch', 1, 1, 1, None, False
                )
            candidates.append(Candidate(name, [runs], [], chosen=0))
        getattr(pictures, what)(candidates, *args, out)
        assert out.stat().st_size > 5_000
        (axes,) = kept[-1].axes
        return axes

    return draw


def test_differences_are_drawn(drawn, tmp_path):
    finals = dict(
        float={0: 0.55, 1: 0.57, 2: 0.56},
        ste={0: 0.5, 1: 0.5, 2: 0.5, 5: 0.9},
        surge={0: 0.51, 1: 0.53, 2: 0.52, 4: 0.1},
        fsg={0: 0.01, 1: 0.01, 2: 0.01},
        ede={},
    )
    out = tmp_path / 'differences.png'
    axes = drawn(finals, out, 'draw_differences', 'ste')
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ['float (n=3)', 'ste', 'surge (n=3)', 'fsg (n=3)'] + [
        'ede (n=0)'
    ]
    # The first of the table is at the top.
    assert axes.get_ylim()[0] > axes.get_ylim()[1]
    # t(0.975, 2 df) = 4.303 times 0.01 / sqrt(3).
    texts = {text.get_text(): text.xy for text in axes.texts}
    assert set(texts) == {'+0.060 ± 0.025', '+0.020 ± 0.025', '-0.490'}
    assert texts['+0.020 ± 0.025'] == pytest.approx((0.02, 2))
    # A collapsed method doesn't squeeze the others.
    left, right = axes.get_xlim()
    assert left < texts['-0.490'][0] < 0
    assert left > -0.49
    assert right > 0.085
    dots = [list(line.get_xdata()) for line in axes.lines]
    assert pytest.approx([0.01, 0.03, 0.02]) in dots
    (interval,) = [
        c.get_segments()[0][:, 0]
        for c in axes.collections
        if c.get_segments()[0][0, 1] == 2
    ]
    assert list(interval) == pytest.approx([-0.00484, 0.04484], abs=1e-5)


def test_eleven_curves_can_be_told_apart(drawn, tmp_path):
    finals = {f'm{i}': {0: 0.8 + 0.002 * i, 1: 0.8} for i in range(11)}
    finals['float'] = {0: 0.9}
    axes = drawn(finals, tmp_path / 'curves.png', 'draw_curves')
    lines = {line.get_color(): line for line in axes.lines}
    assert len(lines) == len(axes.lines) == 12
    labels = sorted(axes.texts, key=lambda text: text.xyann[1])
    # In the order of what they stand for, without touching.
    assert [t.get_text() for t in labels] == [
        f'm{i} {0.8 + 0.001 * i:.3f} (n=2)' for i in range(11)
    ] + ['float 0.900 (n=1)']
    for text, line in zip(labels, axes.lines):
        assert text.get_color() == line.get_color()
        assert text.xy == (2, line.get_ydata()[-1])
    # Without their lines to the curves.
    boxes = [Text.get_window_extent(text) for text in labels]
    for below, above in zip(boxes, boxes[1:]):
        assert below.y1 < above.y0 + 3
    low, high = axes.get_ylim()
    assert all(low <= text.xyann[1] <= high for text in labels)


@pytest.mark.parametrize('finals', [{}, {0: 0.5}])
def test_little_is_drawn_too(drawn, tmp_path, finals):
    both = dict(ste=finals, surge=finals)
    drawn(both, tmp_path / 'a.png', 'draw_curves')
    drawn(both, tmp_path / 'b.png', 'draw_differences', 'ste')


def test_one_epoch_shows_points_with_their_names(drawn, tmp_path):
    finals = dict(float={0: 0.9}, ste={0: 0.8, 1: 0.84}, surge={})
    out = tmp_path / 'curves.png'
    axes = drawn(finals, out, 'draw_curves', epochs=1)
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert labels == ['float 0.900 (n=1)', 'ste 0.820 (n=2)']
    assert axes.get_xlabel() == 'epoch 2'
    points = [line for line in axes.lines if line.get_marker() in 'os']
    heights = [p.get_ydata().item() for p in points]
    assert heights == pytest.approx([0.9, 0.82])
    left, right = axes.get_xlim()
    assert left < 0 < 1 < right
    # The standard deviation of two values.
    ends = axes.collections[-1].get_segments()[0][:, 1]
    assert list(ends) == pytest.approx([0.82 - 0.02828, 0.82 + 0.02828], 1e-3)
