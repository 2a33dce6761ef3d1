"""COCO: what the tools report is what pycocotools itself reports."""

import json
import os
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import ROOT, tool

pytest.importorskip('mmdet', reason='needs the toolbox')

import surge_det  # noqa: F401

# isort: split
from mmdet.registry import METRICS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

TINY = ROOT / 'configs' / 'surge_faster_rcnn_r18_coco_tiny.py'
NAMES = ('mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l')
DATA = os.environ.get('SURGE_DATA_ROOT', 'data')
pytestmark = pytest.mark.skipif(
    not Path(DATA, 'coco_tiny').is_dir(),
    reason=f'no coco_tiny in {DATA}; set SURGE_DATA_ROOT',
)
SMALL = [
    'train_dataloader.num_workers=0',
    'train_dataloader.persistent_workers=False',
    'train_dataloader.dataset.indices=4',
    'val_dataloader.num_workers=0',
    'val_dataloader.persistent_workers=False',
    'val_dataloader.dataset.indices=6',
    'test_dataloader.num_workers=0',
    'test_dataloader.persistent_workers=False',
    'test_dataloader.dataset.indices=6',
    'train_cfg.max_epochs=1',
    'default_hooks.logger.interval=1',
    'model.neck.out_channels=16',
    'model.rpn_head.in_channels=16',
    'model.rpn_head.feat_channels=16',
    'model.roi_head.bbox_roi_extractor.out_channels=16',
    'model.roi_head.bbox_head.in_channels=16',
    'model.roi_head.bbox_head.fc_out_channels=16',
    'model.test_cfg.rcnn.score_thr=0.0',
]


def pycocotools_says(annotations, results):
    """The six figures of ``COCOeval``, called directly, to three decimals."""
    truth = COCO(annotations)
    evaluation = COCOeval(truth, truth.loadRes(str(results)), 'bbox')
    # mmdet's; the AP figures are of the 100 best boxes in both.
    evaluation.params.maxDets = [100, 300, 1000]
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return [round(float(v), 3) for v in evaluation.stats[:6]]


@pytest.fixture(scope='module')
def tested(tmp_path_factory):
    """Train a little, evaluate; the folder and both outputs."""
    folder = tmp_path_factory.mktemp('coco')
    trained = tool(
        *('train.py', TINY, '--work-dir', folder, '--cfg-options', *SMALL),
        root=os.path.abspath(DATA),
    )
    out = tool(
        *('test.py', TINY, folder / 'epoch_1.pth', '--work-dir', folder),
        *('--out', folder / 'predictions.pkl', '--cfg-options', *SMALL),
        f'test_evaluator.outfile_prefix={folder}/results',
        root=os.path.abspath(DATA),
    )
    return folder, trained, out


def figures(out):
    return [
        float(re.findall(rf'coco/bbox_{name}: (-?[\d.]+)', out)[-1])
        for name in NAMES
    ]


def test_the_tools_report_the_six_figures(tested):
    folder, trained, out = tested
    assert figures(out) == figures(trained)
    want = pycocotools_says(
        f'{DATA}/coco_tiny/annotations/instances_val2017.json',
        folder / 'results.bbox.json',
    )
    assert figures(out) == want


def test_pickle_and_json_hold_the_same_boxes(tested):
    folder, _, _ = tested
    with open(folder / 'predictions.pkl', 'rb') as file:
        pickled = pickle.load(file)
    written = json.loads((folder / 'results.bbox.json').read_text())
    assert len(pickled) == 6
    labels = COCO(f'{DATA}/coco_tiny/annotations/instances_val2017.json')
    ids = labels.getCatIds()
    assert len(ids) == 80
    boxes = 0
    for image in pickled:
        mine = [w for w in written if w['image_id'] == image['img_id']]
        instances = image['pred_instances']
        boxes += len(mine)
        assert len(mine) == len(instances['scores'])
        for i, row in enumerate(mine):
            x1, y1, x2, y2 = instances['bboxes'][i].tolist()
            np.testing.assert_allclose(
                row['bbox'], [x1, y1, x2 - x1, y2 - y1], rtol=1e-4, atol=1e-3
            )
            assert row['category_id'] == ids[int(instances['labels'][i])]
            assert row['score'] == pytest.approx(
                float(instances['scores'][i]), abs=1e-6
            )
    assert boxes


@pytest.mark.parametrize(
    'name', ['surge_faster_rcnn_r18_coco_tiny', 'surge_ssd300_vgg16_coco_tiny']
)
def test_figures_far_from_zero_agree_as_well(name, tmp_path, monkeypatch):
    # Objects moved, some lost, some with a wrong class.
    monkeypatch.setenv('SURGE_DATA_ROOT', os.path.abspath(DATA))
    init_default_scope('mmdet')
    cfg = Config.fromfile(ROOT / 'configs' / f'{name}.py')
    metric = METRICS.build(
        {**cfg.test_evaluator, 'outfile_prefix': f'{tmp_path}/results'}
    )
    truth = COCO(cfg.test_evaluator.ann_file)
    # As mmdet's dataset has them: in the order of the ids.
    ids = truth.getCatIds()
    classes = tuple(truth.cats[i]['name'] for i in ids)
    metric.dataset_meta = dict(classes=classes)
    rng = np.random.default_rng(0)
    samples = []
    for image_id, image in truth.imgs.items():
        found = truth.loadAnns(truth.getAnnIds(image_id, iscrowd=False))
        found = [a for a in found if rng.random() < 0.8]
        xywh = np.array([a['bbox'] for a in found]).reshape(-1, 4)
        xywh += rng.normal(size=xywh.shape) * xywh[:, 2:].repeat(2, 1) * 0.1
        labels = np.array([ids.index(a['category_id']) for a in found], int)
        wrong = rng.random(len(found)) < 0.1
        labels[wrong] = rng.integers(0, 80, wrong.sum())
        xyxy = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], 1)
        samples.append(
            dict(
                img_id=image_id,
                ori_shape=(image['height'], image['width']),
                pred_instances=dict(
                    bboxes=torch.tensor(xyxy),
                    labels=torch.tensor(labels),
                    scores=torch.tensor(rng.random(len(found))),
                ),
            )
        )
    metric.process({}, samples)
    got = metric.evaluate(len(samples))
    got = [got[f'coco/bbox_{name}'] for name in NAMES]
    assert min(got) > 0.1
    want = pycocotools_says(
        cfg.test_evaluator.ann_file, tmp_path / 'results.bbox.json'
    )
    assert got == want
