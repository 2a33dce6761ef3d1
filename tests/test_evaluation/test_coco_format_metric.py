import contextlib
import io
import json

import numpy as np
import pytest
import torch

pytest.importorskip('mmdet', reason='needs the toolbox')

import surge_det  # noqa: F401

# isort: split
from mmdet.evaluation import CocoMetric

from surge_det.evaluation import COCOFormatMetric

CLASSES = ('cat', 'dog', 'ox')
# Boxes of an image: name, XYWH.
IMAGES = [
    [('cat', (10, 20, 30, 40)), ('dog', (50, 10, 40, 60))],
    [('dog', (0, 0, 99, 50)), ('ox', (60, 5, 40, 40))],
    [('ox', (5, 5, 50, 50)), ('ox', (70, 60, 40, 40))],
]


def write(path, ids, order=CLASSES, **changes):
    """An annotation file whose categories have these ids, in this order."""
    annotations = [
        dict(
            id=number,
            image_id=image,
            category_id=ids[name],
            bbox=list(box),
            area=box[2] * box[3],
            iscrowd=0,
        )
        for number, (image, name, box) in enumerate(
            (i, *found) for i, image in enumerate(IMAGES) for found in image
        )
    ]
    data = dict(
        images=[
            dict(id=i, file_name=f'{i}.jpg', width=160, height=120)
            for i in range(len(IMAGES))
        ],
        annotations=annotations,
        categories=[dict(id=ids[name], name=name) for name in order],
    )
    path.write_text(json.dumps(data | changes))
    return str(path)


def perfect(classes=CLASSES):
    """Samples whose predictions are the truth."""
    samples = []
    for number, image in enumerate(IMAGES):
        image = [found for found in image if found[0] in classes]
        boxes = torch.tensor([box for _, box in image]).float().view(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        masks = torch.zeros(len(boxes), 120, 160, dtype=torch.bool)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist()):
            mask[y1:y2, x1:x2] = True
        samples.append(
            dict(
                img_id=number,
                img_path=f'images/{number}.jpg',
                ori_shape=(120, 160),
                pred_instances=dict(
                    bboxes=boxes,
                    scores=torch.ones(len(boxes)),
                    labels=torch.tensor(
                        [classes.index(name) for name, _ in image],
                        dtype=torch.long,
                    ),
                    masks=masks,
                ),
            )
        )
    return samples


def evaluated(ann_file, cls=COCOFormatMetric, samples=None, **kwargs):
    with contextlib.redirect_stdout(io.StringIO()):
        metric = cls(ann_file=ann_file, classwise=True, **kwargs)
        metric.dataset_meta = dict(classes=CLASSES)
        samples = perfect() if samples is None else samples
        metric.process({}, samples)
        return metric.evaluate(len(samples))


SORTED = dict(cat=1, dog=2, ox=3)
TURNED = dict(cat=9, dog=4, ox=0)


@pytest.mark.parametrize('ids', [SORTED, TURNED])
@pytest.mark.parametrize('order', [CLASSES, CLASSES[::-1]])
def test_the_truth_scores_one_whatever_the_order(tmp_path, ids, order):
    metrics = ['bbox', 'segm']
    scores = evaluated(write(tmp_path / 'a.json', ids, order), metric=metrics)
    assert scores['coco/bbox_mAP'] == 1
    assert scores['coco/segm_mAP'] == 1
    for name in CLASSES:
        assert scores[f'coco/{name}_precision'] == 1


@pytest.mark.parametrize('ids', [SORTED, TURNED])
def test_each_class_has_the_score_that_is_its_own(tmp_path, ids):
    """COCOeval sorts the categories by id; mmdet's table does not."""
    samples = perfect()
    for sample in samples:
        # All dogs are missed.
        found = sample['pred_instances']
        keep = found['labels'] != CLASSES.index('dog')
        for key in found:
            found[key] = found[key][keep]
    scores = evaluated(write(tmp_path / 'a.json', ids), samples=samples)
    assert [scores[f'coco/{name}_precision'] for name in CLASSES] == [1, 0, 1]
    assert scores['coco/bbox_mAP'] == pytest.approx(2 / 3, abs=1e-3)


def test_a_file_without_fault_scores_as_in_mmdet(tmp_path):
    path = write(tmp_path / 'a.json', SORTED)
    data = json.loads((tmp_path / 'a.json').read_text())
    for ann in data['annotations']:
        ann['id'] += 1
    (tmp_path / 'a.json').write_text(json.dumps(data))
    samples = perfect()
    samples[0]['pred_instances']['bboxes'] += 3
    samples[2]['pred_instances']['labels'][0] = 0
    ours, stock = (
        evaluated(path, cls, samples) for cls in (COCOFormatMetric, CocoMetric)
    )
    assert 0.1 < ours['coco/bbox_mAP'] < 0.9
    assert ours.keys() == stock.keys()
    for key, value in ours.items():
        np.testing.assert_equal(value, stock[key])


def test_results_have_the_ids_of_the_file(tmp_path):
    evaluated(
        write(tmp_path / 'a.json', TURNED),
        format_only=True,
        outfile_prefix=str(tmp_path / 'out'),
    )
    results = json.loads((tmp_path / 'out.bbox.json').read_text())
    assert [r['category_id'] for r in results] == [
        TURNED[name] for image in IMAGES for name, _ in image
    ]


def test_a_class_without_a_box_is_left_out_of_the_mean(tmp_path):
    path = write(tmp_path / 'a.json', SORTED)
    data = json.loads((tmp_path / 'a.json').read_text())
    del data['categories'][0], data['annotations'][0]
    (tmp_path / 'a.json').write_text(json.dumps(data))
    samples = perfect()
    del samples[0]['pred_instances']['masks']
    scores = evaluated(path, samples=samples)
    assert scores['coco/bbox_mAP'] == 1
    assert scores['coco/dog_precision'] == 1
    assert np.isnan(scores['coco/cat_precision'])


def test_the_truth_of_the_samples_scores_as_in_mmdet():
    samples = perfect()
    for sample, image in zip(samples, IMAGES):
        sample['instances'] = [
            dict(
                bbox=[x, y, x + w, y + h],
                bbox_label=CLASSES.index(name),
                ignore_flag=0,
            )
            for name, (x, y, w, h) in image
        ]
    assert evaluated(None, samples=samples)['coco/bbox_mAP'] == 1


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(categories=[dict(id=1, name='Cat')]), 'a.json: no category'),
        (dict(annotations=[]), 'no box is of the classes'),
        (dict(annotations={}), 'no COCO annotation file'),
    ],
)
def test_what_cannot_be_measured_is_refused_before_it(
    tmp_path, changes, message
):
    path = write(tmp_path / 'a.json', SORTED, **changes)
    with pytest.raises(ValueError, match=message):
        evaluated(path, samples=[])


def test_another_file_than_the_dataset_s_is_refused(tmp_path):
    images = [
        dict(id=i, file_name=f'other_{i}.jpg', width=160, height=120)
        for i in range(3)
    ]
    for listed, found in ((images, 'other_0.jpg'), (images[1:], 'none')):
        path = write(tmp_path / 'a.json', SORTED, images=listed)
        with pytest.raises(
            ValueError, match=f'images/0.jpg with id 0, this file {found}'
        ):
            evaluated(path)
