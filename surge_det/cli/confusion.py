"""Which class is taken for which: the confusion matrix of a test."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from mmdet.evaluation import bbox_overlaps

from surge_det.whole_files import replacing

# A detection is of the object that it overlaps most, by this IoU or more.
_IOU = 0.5


def confusion_matrix(
    pairs: Iterable[tuple[Mapping[str, Any], Mapping[str, Any]]],
    num_classes: int,
    score_thr: float,
) -> np.ndarray:
    """Count what objects are taken for.

    The surest detection chooses first, whatever its class; no object is
    chosen twice. A detection of an ignored ("difficult") object does not
    count.

    Args:
        pairs: Of each image, the dataset's ``get_data_info`` and its entry
            of the predictions; boxes XYXY, in the same pixels.
        num_classes: C.
        score_thr: Detections with lower scores are left out.

    Returns:
        (C + 1, C + 1) int: rows are objects by their class, columns what was
        detected. The last row: detections without an object. The last
        column: objects without a detection.
    """
    counts = np.zeros((num_classes + 1, num_classes + 1), int)
    for info, prediction in pairs:
        objects = info['instances']
        truth = np.array([o['bbox'] for o in objects], np.float32)
        free = [True] * len(objects)
        found = prediction['pred_instances']
        scores = np.asarray(found['scores'])
        order = [i for i in np.argsort(-scores) if scores[i] >= score_thr]
        boxes = np.asarray(found['bboxes'], np.float32).reshape(-1, 4)
        overlaps = bbox_overlaps(boxes[order], truth.reshape(-1, 4))
        labels = np.asarray(found['labels'])[order]
        for label, overlap in zip(labels, overlaps):
            overlap = np.where(free, overlap, 0)
            best = overlap.argmax() if objects else 0
            if not objects or overlap[best] < _IOU:
                counts[-1, label] += 1
            elif not objects[best].get('ignore_flag'):
                counts[objects[best]['bbox_label'], label] += 1
                free[best] = False
        for item, missed in zip(objects, free):
            if missed and not item.get('ignore_flag'):
                counts[item['bbox_label'], -1] += 1
    return counts


# A dollar sign in a name is one.
@rc_context({'text.parse_math': False})
def draw_confusion(
    counts: np.ndarray, classes: Sequence[str], title: str, path: Path
) -> None:
    """Draw the matrix, in percent of each row.

    Args:
        counts: (C + 1, C + 1), of :func:`confusion_matrix`.
        classes: Their C names.
        title: Of the picture.
        path: The picture's.
    """
    from matplotlib.figure import Figure

    sums = counts.sum(1)
    percent = 100 * counts / np.maximum(sums, 1)[:, None]
    # Cells are large enough for their numbers, and the page for its texts.
    size, font = (0.5, 9) if len(counts) <= 30 else (0.23, 6)
    side = size * len(counts) + 2.2
    figure = Figure(
        figsize=(max(side, 5.5), max(side, 4.5)), layout='constrained'
    )
    axes = figure.subplots()
    axes.imshow(percent, cmap='Blues', vmin=0, vmax=100)
    for row, column in np.argwhere(percent >= 0.5):
        value = percent[row, column]
        axes.text(
            column,
            row,
            f'{value:.0f}',
            ha='center',
            va='center',
            fontsize=font,
            color='w' if value > 55 else 'k',
        )
    places = range(len(counts))
    names = [*classes, 'no object']
    rows = [f'{name} ({n})' for name, n in zip(names, sums)]
    axes.set_xticks(places, [*classes, 'missed'], rotation=90, fontsize=font)
    axes.set_yticks(places, rows, fontsize=font)
    axes.set(xlabel='detected as', ylabel='object (how many)', title=title)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    # Lines between the cells.
    axes.set_xticks(np.arange(len(counts)) + 0.5, minor=True)
    axes.set_yticks(np.arange(len(counts)) + 0.5, minor=True)
    axes.tick_params(which='minor', length=0)
    axes.grid(which='minor', color='0.9', linewidth=0.5)
    with replacing(path) as new:
        figure.savefig(new, dpi=150)
