import numpy as np
import pytest

pytest.importorskip('mmdet', reason='needs the toolbox')

import torch
from matplotlib.figure import Figure
from matplotlib.text import Text

from surge_det.cli.confusion import confusion_matrix, draw_confusion

A, B, C = [0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10]


def _pair(truth, found):
    """Boxes with labels; detections with scores besides."""
    boxes = [box for box, _, _ in found]
    instances = [
        dict(bbox=box, bbox_label=label, ignore_flag=label < 0)
        for box, label in truth
    ]
    predicted = dict(
        bboxes=torch.tensor(boxes, dtype=torch.float).reshape(-1, 4),
        labels=torch.tensor([label for _, label, _ in found], dtype=torch.int),
        scores=torch.tensor([score for _, _, score in found]),
    )
    return dict(instances=instances), dict(pred_instances=predicted)


def test_each_object_goes_to_the_surest_detection():
    half = [0, 0, 10, 5.1]
    pairs = [
        # Found; taken for 1 by the surer one, so that 0 finds nothing left.
        _pair([(A, 1), (B, 0)], [(A, 1, 0.9), (B, 0, 0.5), (B, 1, 0.8)]),
        # IoU 0.51 is enough; the score 0.2 is not.
        _pair([(A, 2), (B, 2)], [(half, 2, 0.4), (B, 2, 0.2)]),
        # One ignored object counts neither way; at C is nothing.
        _pair([(A, -1)], [(A, 0, 0.9), (A, 1, 0.9), (C, 2, 0.9)]),
        _pair([], [(A, 1, 0.3)]),
        _pair([(C, 0)], []),
        # IoU 0.49: background, and missed.
        _pair([(A, 2)], [([0, 0, 10, 4.9], 2, 0.9)]),
    ]
    expected = [
        [0, 1, 0, 1],
        [0, 1, 0, 0],
        [0, 0, 1, 2],
        [1, 1, 2, 0],
    ]
    assert confusion_matrix(pairs, 3, 0.3).tolist() == expected


def test_dollar_signs_are_drawn(tmp_path):
    # The first is no formula.
    names = [r'$\frac{$', '$a$', 'US$ bill']
    draw_confusion(np.eye(4, dtype=int), names, 'a title', tmp_path / 'a.png')
    assert (tmp_path / 'a.png').stat().st_size > 5_000


@pytest.mark.parametrize('classes', [1, 3, 80])
def test_texts_fit(tmp_path, monkeypatch, classes):
    kept = []
    savefig = Figure.savefig

    def keep(figure, *args, **kwargs):
        kept.append(figure)
        savefig(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, 'savefig', keep)
    counts = np.full((classes + 1, classes + 1), 12345)
    names = [f'a class {i}' for i in range(classes)]
    draw_confusion(counts, names, 'a title', tmp_path / 'a.png')
    (figure,) = kept
    (axes,) = figure.axes
    figure.draw_without_rendering()
    cell = axes.get_window_extent().width / len(counts)
    numbers = [Text.get_window_extent(text) for text in axes.texts]
    assert len(numbers) == (counts / counts.sum(1) >= 0.005).sum()
    assert all(box.width < cell and box.height < cell for box in numbers)
    for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
        assert len(labels) == classes + 1
        for label in labels:
            box = label.get_window_extent()
            assert min(box.x0, box.y0) >= 0
            # Six points, or twelve pixels of the file.
            assert label.get_fontsize() >= 6
            assert min(box.width, box.height) < cell
