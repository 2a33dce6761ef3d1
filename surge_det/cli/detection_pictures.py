"""Pictures of detections beside the ground truth."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import cv2
import mmcv
import numpy as np
import torch
from mmdet.registry import DATASETS
from mmdet.visualization.palette import get_palette
from mmengine.registry import init_default_scope
from mmengine.visualization import Visualizer

from surge_det.cli.confusion import confusion_matrix, draw_confusion
from surge_det.datasets import check_data
from surge_det.deploy.inferencer import surest
from surge_det.text import brief
from surge_det.whole_files import replacing

# Images narrower than this are enlarged, so that labels are legible.
_WIDTH = 440
_FONT = 10
_SHEET_COLUMNS, _SHEET_PAIRS, _SHEET_CELL = 3, 9, 900
_STRIP, _GAP = 30, 8


def _draw(visualizer, image, boxes, labels, texts, colors):
    visualizer.set_image(image)
    if not len(boxes):
        return visualizer.get_image()
    height, width = image.shape[:2]
    # A box beyond the edge would make matplotlib shrink the image.
    boxes = np.clip(boxes, 0, [width - 1, height - 1] * 2)
    colors = [tuple(colors[label]) for label in labels]
    visualizer.draw_bboxes(boxes, edge_colors=colors, line_widths=2)
    # Each label stands on its box, except where that is outside the image.
    above = boxes[:, 1] > 2 * _FONT
    far = boxes[:, 0] > 0.8 * width
    corner = np.stack(
        [np.where(far, boxes[:, 2], boxes[:, 0]), boxes[:, 1]], 1
    )
    dark = [
        sum(c * w for c, w in zip(rgb, (3, 6, 1))) < 1400 for rgb in colors
    ]
    visualizer.draw_texts(
        texts,
        corner + np.where(above[:, None], (0, -2), (0, 3)),
        font_sizes=_FONT,
        colors=['w' if d else 'k' for d in dark],
        vertical_alignments=['bottom' if a else 'top' for a in above],
        horizontal_alignments=['right' if f else 'left' for f in far],
        bboxes=[
            dict(facecolor=[c / 255 for c in rgb], edgecolor='none', pad=1.0)
            for rgb in colors
        ],
    )
    return visualizer.get_image()


def _strip(width, titles):
    strip = np.full((_STRIP, width, 3), 255, np.uint8)
    for index, title in enumerate(titles):
        x = index * width // len(titles) + 8
        cv2.putText(
            strip,
            title,
            (x, _STRIP - 9),
            cv2.FONT_HERSHEY_SIMPLEX,
            0.6,
            (40, 40, 40),
            1,
            cv2.LINE_AA,
        )
    return strip


def draw_pair(visualizer, info, prediction, metainfo, score_thr):
    """Return an RGB picture (H, W, 3) uint8: truth left, detections right.

    Args:
        visualizer (Visualizer): mmengine's; its canvas is drawn over.
        info (dict): The image's ``get_data_info``; boxes XYXY in its pixels.
        prediction (dict): The image's entry of the predictions, with
            arrays: ``bboxes`` (N, 4), ``scores`` and ``labels`` (N,).
        metainfo (dict): ``classes``, and ``palette`` if there is one.
        score_thr (float): Detections with lower scores are left out, and
            those over an object that has a surer one.
    """
    image = mmcv.imread(info['img_path'], channel_order='rgb')
    height, width = image.shape[:2]
    scale = -(-_WIDTH // width)
    if scale > 1:
        image = cv2.resize(
            image,
            (width * scale, height * scale),
            interpolation=cv2.INTER_CUBIC,
        )
    classes = metainfo['classes']
    colors = get_palette(metainfo.get('palette'), len(classes))

    # Ignored ("difficult") objects count neither way, and are not drawn.
    truth = [i for i in info['instances'] if not i.get('ignore_flag')]
    boxes = np.array([i['bbox'] for i in truth], float).reshape(-1, 4)
    labels = [i['bbox_label'] for i in truth]
    names = [classes[label] for label in labels]
    left = _draw(visualizer, image, boxes * scale, labels, names, colors)

    pred = prediction['pred_instances']
    scores, boxes = pred['scores'], pred['bboxes']
    best = surest(torch.from_numpy(boxes), torch.from_numpy(scores))
    # The surest last, on top.
    order = [i for i in best.tolist()[::-1] if scores[i] >= score_thr]
    boxes = boxes[order]
    labels = pred['labels'][order].tolist()
    names = [f'{classes[k]} {scores[i]:.2f}' for k, i in zip(labels, order)]
    right = _draw(visualizer, image, boxes * scale, labels, names, colors)

    gap = np.full_like(left[:, :_GAP], 255)
    pair = np.concatenate([left, gap, right], 1)
    titles = (
        f'{Path(info["img_path"]).name}: ground truth ({len(truth)})',
        f'detections, score {score_thr:g} and more ({len(order)})',
    )
    return np.vstack([_strip(pair.shape[1], titles), pair])


def _sheet(pairs):
    cells = []
    for pair in pairs:
        size = (
            _SHEET_CELL,
            round(pair.shape[0] * _SHEET_CELL / pair.shape[1]),
        )
        cells.append(cv2.resize(pair, size, interpolation=cv2.INTER_AREA))
    height = max(cell.shape[0] for cell in cells)
    columns = min(_SHEET_COLUMNS, len(cells))
    rows = -(-len(cells) // columns)
    page = np.full(
        (
            rows * (height + _GAP) - _GAP,
            columns * (_SHEET_CELL + _GAP) - _GAP,
            3,
        ),
        255,
        np.uint8,
    )
    for index, cell in enumerate(cells):
        y = index // columns * (height + _GAP)
        x = index % columns * (_SHEET_CELL + _GAP)
        page[y : y + cell.shape[0], x : x + _SHEET_CELL] = cell
    return page


# What a field holds: kinds of NumPy's types, one to compute with, shape
# behind the number of boxes, words.
_FIELDS = {
    'bboxes': ('iuf', np.float64, (4,), 'numbers, XYXY'),
    'scores': ('iuf', np.float32, (), 'numbers'),
    'labels': ('iu', np.int64, (), 'whole numbers'),
}


def _arrays(
    prediction: Mapping[str, Any], score_thr: float, source: str | Path
) -> dict[str, Any]:
    """Return an image's entry of the predictions with arrays in it.

    Raises:
        ValueError: If it is of another type or shape, or has a box that
            cannot be drawn; says of which image.
    """
    image, found = prediction['img_id'], prediction['pred_instances']
    if not isinstance(image, (str, int, np.integer)):
        raise ValueError(
            f'{source}: the img_id {brief(image)} is no text and no whole '
            'number'
        )
    where = f'{source}: image {brief(image)}'
    if not isinstance(found, Mapping):
        raise ValueError(
            f'{where} has the pred_instances {brief(found)}, no dict of '
            f'{", ".join(_FIELDS)}'
        )
    absent = _FIELDS.keys() - found.keys()
    if absent:
        raise ValueError(f'{where} has no {sorted(absent)}')
    arrays = {}
    for key, (kinds, dtype, shape, words) in _FIELDS.items():
        value, array = found[key], None
        # A list may be lists in lists, more than fits into memory.
        if isinstance(value, (np.ndarray, torch.Tensor)):
            # NumPy lacks bfloat16, and does not see a GPU's memory.
            with suppress(RuntimeError, TypeError):
                array = np.asarray(value)
        if array is not None and not array.size:
            array = np.zeros((0, *shape), dtype)
        if array is None or array.dtype.kind not in kinds:
            raise ValueError(
                f'{where} has the {key} {brief(value)}: a tensor or an array '
                f'of {words} is allowed'
            )
        arrays[key] = array.astype(dtype)
    count = arrays['scores'].size
    for key, (*_, shape, words) in _FIELDS.items():
        if arrays[key].shape != (count, *shape):
            raise ValueError(
                f'{where} has {key} of shape {arrays[key].shape}, '
                f'{(count, *shape)} is allowed: {words}'
            )
    if np.isnan(arrays['scores']).any():
        raise ValueError(f'{where} has scores of NaN: numbers are allowed')
    for box in arrays['bboxes'][arrays['scores'] >= score_thr]:
        if not (box[:2] <= box[2:]).all():
            raise ValueError(
                f'{where} has the box {box.tolist()}: x1 <= x2 and y1 <= y2 '
                'must hold, without NaN'
            )
    return {'img_id': image, 'pred_instances': arrays}


def show_detections(
    cfg, predictions, out, num=12, score_thr=0.3, source='predictions'
):
    """Write pictures of ``num`` test images, and a sheet of the first nine.

    Beside them ``confusion.png``: what all test images' objects are taken for.

    Args:
        cfg (Config): The config that was tested.
        predictions (list[dict]): As mmdet's ``DumpDetResults`` writes them.
        out (str | Path): The pictures' folder.
        num (int): How many images, evenly spaced over the test set.
        score_thr (float): Detections with lower scores are left out.
        source (str | Path): Name of the predictions' file, for messages.

    Returns:
        tuple[Path, list[Path]]: The sheet, and the single pictures.

    Raises:
        ValueError: for ``num`` below 1, ``score_thr`` outside [0, 1), or
            predictions that are not of this config's images and classes.
        FileNotFoundError: for absent data.
    """
    if num < 1:
        raise ValueError(f'num={num} must be at least 1')
    if not 0 <= score_thr < 1:
        raise ValueError(f'score_thr={score_thr} must be in [0, 1)')
    if not isinstance(predictions, list) or not all(
        isinstance(p, dict) and {'img_id', 'pred_instances'} <= p.keys()
        for p in predictions
    ):
        raise ValueError(
            f'{source} must be a list of dicts with img_id and '
            'pred_instances, as surge-det test --out writes them'
        )
    predictions = [_arrays(p, score_thr, source) for p in predictions]
    check_data(cfg, ['test'])
    init_default_scope(cfg.get('default_scope') or 'mmdet')
    dataset = DATASETS.build(cfg.test_dataloader.dataset)
    dataset.full_init()
    by_id = {p['img_id']: p for p in predictions}
    if len(by_id) < len(predictions) or len(by_id) != len(dataset):
        raise ValueError(
            f'{source}: predictions of {len(by_id)} images, the test set has '
            f'{len(dataset)}: not of this config?'
        )
    classes = dataset.metainfo['classes']
    labels = np.concatenate(
        [p['pred_instances']['labels'] for p in predictions]
    )
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(classes):
        raise ValueError(
            f'{source}: labels from {labels.min()} to {labels.max()}, the '
            f'test set has {len(classes)} classes: not of this config?'
        )
    infos = [dataset.get_data_info(index) for index in range(len(dataset))]
    for info in infos:
        if info['img_id'] not in by_id:
            raise ValueError(
                f'{source}: no prediction for image {info["img_id"]!r}: not '
                'of this config?'
            )
    visualizer = Visualizer()
    num = min(num, len(dataset))
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    pairs, paths = [], []
    for index in range(num):
        info = infos[index * len(dataset) // num]
        prediction = by_id[info['img_id']]
        pair = draw_pair(
            visualizer, info, prediction, dataset.metainfo, score_thr
        )
        path = out / f'{Path(info["img_path"]).stem}.png'
        with replacing(path, sync=False) as new:
            mmcv.imwrite(pair[..., ::-1], str(new))
        paths.append(path)
        if len(pairs) < _SHEET_PAIRS:
            pairs.append(pair)
    sheet = out / 'detections.png'
    with replacing(sheet) as new:
        mmcv.imwrite(_sheet(pairs)[..., ::-1], str(new))
    draw_confusion(
        confusion_matrix(
            ((info, by_id[info['img_id']]) for info in infos),
            len(classes),
            score_thr,
        ),
        classes,
        f'percent of each row, score {score_thr:g} and more',
        out / 'confusion.png',
    )
    return sheet, paths
