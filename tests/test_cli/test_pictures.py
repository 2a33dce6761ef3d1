import json
import math
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

pytest.importorskip('mmdet', reason='needs the toolbox')

from mmengine.config import Config
from mmengine.fileio import dump

from surge_det.cli import plot_run as plot
from surge_det.cli.detection_pictures import show_detections
from surge_det.cli.main import main
from surge_det.datasets import shapes

ROOT = Path(__file__).parents[2]


def _log(work_dir, start, records):
    folder = work_dir / start / 'vis_data'
    folder.mkdir(parents=True)
    text = ''.join(json.dumps(r) + '\n' for r in records)
    (folder / 'scalars.json').write_text(text)
    return folder / 'scalars.json'


def _epochs(first, last, loss=1.0, score=0.5):
    """Ten iterations an epoch, logged every five."""
    for epoch in range(first, last + 1):
        for step in (10 * epoch - 5, 10 * epoch):
            yield dict(loss=loss, lr=0.1, epoch=epoch, iter=step, step=step)
        yield {'pascal_voc/mAP': score, 'pascal_voc/AP50': 0.0, 'step': epoch}


def test_curves_of_one_run(tmp_path):
    _log(tmp_path, '20250101_000000', _epochs(1, 2))
    curves = plot.read_curves(tmp_path)
    assert curves.losses == [(5, 1.0), (10, 1.0), (15, 1.0), (20, 1.0)]
    assert curves.scores == [(1, 0.5), (2, 0.5)]
    assert curves.step_name == 'epoch'


def test_resumed_run_continues_the_curve(tmp_path):
    _log(tmp_path, '20250101_000000', _epochs(1, 3))
    # Resumed from the checkpoint of epoch 2.
    _log(tmp_path, '20250102_000000', _epochs(3, 4, loss=2.0, score=0.7))
    # Killed in validation, resumed with nothing but that to do.
    _log(tmp_path, '20250102_100000', [{'pascal_voc/mAP': 0.7, 'step': 4}])
    # A test in the same folder logs no loss, and changes nothing.
    _log(tmp_path, '20250103_000000', [{'pascal_voc/mAP': 0.9, 'step': 0}])
    curves = plot.read_curves(tmp_path)
    assert curves.scores == [(1, 0.5), (2, 0.5), (3, 0.7), (4, 0.7)]
    assert [step for step, _ in curves.losses] == list(range(5, 41, 5))
    assert [loss for _, loss in curves.losses] == [1.0] * 4 + [2.0] * 4


def test_run_from_scratch_starts_a_new_curve(tmp_path):
    _log(tmp_path, '20250101_000000', _epochs(1, 3))
    _log(tmp_path, '20250102_000000', list(_epochs(1, 1, loss=2.0))[:2])
    curves = plot.read_curves(tmp_path)
    assert curves.losses == [(5, 2.0), (10, 2.0)]
    assert curves.scores == []


def test_run_by_iterations_and_coco_key(tmp_path):
    _log(
        tmp_path,
        '20250101_000000',
        [
            dict(loss=3.0, iter=10, step=10),
            {'coco/bbox_mAP': 0.2, 'coco/bbox_mAP_50': 0.4, 'step': 10},
        ],
    )
    curves = plot.read_curves(tmp_path)
    assert curves.scores == [(10, 0.2)]
    assert curves.step_name == 'iteration'


def test_another_figure_by_its_name(tmp_path):
    records = [
        dict(loss=3.0, iter=10, step=10),
        {'ags/scale/neck': 0.1, 'step': 10},
        {'coco/bbox_mAP': 0.2, 'coco/bbox_mAP_50': 0.4, 'step': 10},
    ]
    _log(tmp_path, '20250101_000000', records)
    curves = plot.read_curves(tmp_path, 'bbox_mAP_50')
    assert curves.scores == [(10, 0.4)]
    # A name, not a pattern.
    for bad in ('mAP_50', 'bbox.mAP_50'):
        with pytest.raises(
            FileNotFoundError, match=r"it has \['bbox_mAP', 'bbox_mAP_50'\]"
        ):
            plot.plot_run(tmp_path, score=bad)
    assert plot.plot_run(tmp_path, score='bbox_mAP_50').is_file()


def test_half_last_line_is_passed_over(tmp_path):
    path = _log(tmp_path, '20250101_000000', _epochs(1, 1))
    whole = path.read_text()
    path.write_text(whole + '{"loss": 1.')
    assert len(plot.read_curves(tmp_path).losses) == 2
    path.write_text('nonsense\n' + whole)
    with pytest.raises(ValueError, match='scalars.json, line 1'):
        plot.read_curves(tmp_path)


def test_smoothing_is_unbiased_and_passes_over_nan():
    # 0.5-weighted: (1), (1*.25 + 3*.5)/.75, then unchanged by the NaN.
    result = plot.smoothed([1.0, 3.0, math.nan], 0.5)
    assert result == pytest.approx([1.0, 7 / 3, 7 / 3])


def test_a_score_in_per_cent_is_inside_the_picture(tmp_path):
    records = [{'accuracy/top1': 83.0, 'step': i} for i in (1, 2)]
    _log(tmp_path, '20250101_000000', [*_epochs(1, 2), *records])
    found = []
    for score in ('mAP', 'top1'):
        image = cv2.imread(str(plot.plot_run(tmp_path, score=score)))
        # The line's own color, in BGR.
        found.append((image == (0x1A, 0x57, 0xC2)).all(-1).sum())
    assert found[1] == pytest.approx(found[0], rel=0.1)


@pytest.mark.parametrize('scored', [True, False])
def test_picture_shows_panels(tmp_path, scored):
    records = list(_epochs(1, 5, loss=0.8))
    records[0]['loss'] = math.nan
    if not scored:
        records = [r for r in records if 'loss' in r]
    _log(tmp_path, '20250101_000000', records)
    out = plot.plot_run(tmp_path, tmp_path / 'new' / 'p.png')
    image = cv2.imread(str(out))
    assert image.shape[1] == (1248 if scored else 624)
    # Something of each line's colour is there (BGR).
    for color, there in (((159, 93, 42), True), ((26, 87, 194), scored)):
        assert (abs(image.astype(int) - color).max(-1) < 12).any() == there


def test_no_log_is_an_error(tmp_path, capsys):
    with pytest.raises(FileNotFoundError, match='no log of a training run'):
        plot.plot_run(tmp_path)
    with pytest.raises(SystemExit):
        main(['plot-run', tmp_path])
    assert 'error: no log' in capsys.readouterr().err


@pytest.fixture(scope='module')
def tested(tmp_path_factory):
    """The demo's config, and perfect predictions of its ten test images."""
    root = tmp_path_factory.mktemp('data')
    shapes.prepare_shapes(root, 6, 10)
    path = ROOT / 'configs' / '_base_' / 'datasets' / 'voc_shapes.py'
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('SURGE_DATA_ROOT', str(root))
        cfg = Config.fromfile(path)
    predictions = []
    for index in range(10):
        scene = shapes.draw_scene(0, 'test', index)
        count = len(scene.instances)
        predictions.append(
            dict(
                img_id=f'test_{index:05d}',
                pred_instances=dict(
                    bboxes=torch.tensor([i.box for i in scene.instances]),
                    labels=torch.tensor([i.label for i in scene.instances]),
                    scores=torch.full((count,), 0.9),
                ),
            )
        )
    return root, path, cfg, predictions


def test_pictures_and_sheet(tested, tmp_path):
    root, path, _, predictions = tested
    dump(predictions, tmp_path / 'p.pkl')
    out = tmp_path / 'out'
    args = ['show-detections', path, tmp_path / 'p.pkl', '--out', out]
    settings = ['--cfg-options', f'data_root={root}/shapes']
    main([*args, '--num', 5, *settings])
    names = sorted(p.name for p in out.iterdir())
    singles = [f'test_{i:05d}.png' for i in (0, 2, 4, 6, 8)]
    assert names == ['confusion.png', 'detections.png', *singles]
    sheet = cv2.imread(str(out / 'detections.png'))
    assert sheet.shape[1] > 2 * shapes.WIDTH * 3
    pair = cv2.imread(str(out / singles[0])).astype(int)
    # Enlarged three times, truth and detections side by side under one strip.
    left = pair[-3 * shapes.HEIGHT :, : 3 * shapes.WIDTH]
    right = pair[-3 * shapes.HEIGHT :, -3 * shapes.WIDTH :]
    image = cv2.imread(str(root / 'shapes' / 'JPEGImages' / 'test_00000.jpg'))
    blank = cv2.resize(
        image, None, fx=3, fy=3, interpolation=cv2.INTER_CUBIC
    ).astype(int)
    for side in (left, right):
        drawn = abs(side - blank).max(-1) > 20
        assert 0.005 < drawn.mean() < 0.5
    # The right one's labels have scores, so the two are not the same.
    assert (abs(left - right).max(-1) > 20).any()


def test_score_threshold_empties_the_right_side(tested, tmp_path):
    _, _, cfg, predictions = tested
    empty = [dict(p) for p in predictions]
    empty[0]['pred_instances'] = dict(
        bboxes=torch.zeros(0, 4),
        labels=torch.zeros(0, dtype=torch.long),
        scores=torch.zeros(0),
    )

    def picture(folder, entries, score_thr):
        _, (path,) = show_detections(
            cfg, entries, tmp_path / folder, num=1, score_thr=score_thr
        )
        return cv2.imread(str(path))[-3 * shapes.HEIGHT :]

    nothing = picture('empty', empty, 0.95)
    assert np.array_equal(picture('high', predictions, 0.95), nothing)
    assert not np.array_equal(picture('low', predictions, 0.5), nothing)


def test_one_box_over_one_object(tested, tmp_path):
    _, _, cfg, predictions = tested

    def picture(folder, boxes, scores):
        found = [dict(p) for p in predictions]
        found[0]['pred_instances'] = dict(
            bboxes=torch.tensor(boxes),
            labels=torch.arange(len(boxes)),
            scores=torch.tensor(scores),
        )
        _, (path,) = show_detections(cfg, found, tmp_path / folder, num=1)
        return cv2.imread(str(path))[-3 * shapes.HEIGHT :]

    box = [20.0, 20.0, 60.0, 60.0]
    one = picture('one', [box], [0.9])
    # IoU 0.75 with another class, less sure.
    covered = [20.0, 20.0, 60.0, 50.0]
    assert np.array_equal(picture('two', [box, covered], [0.9, 0.8]), one)
    # IoU 0.5: another object.
    beside = [20.0, 20.0, 60.0, 40.0]
    assert not np.array_equal(picture('far', [box, beside], [0.9, 0.8]), one)


def test_box_over_the_edge_does_not_shrink_the_image(tested, tmp_path):
    _, _, cfg, predictions = tested
    wide = [dict(p) for p in predictions]
    wide[0]['pred_instances'] = dict(
        bboxes=torch.tensor([[-40.0, -30.0, 400.0, 300.0]]),
        labels=torch.tensor([0]),
        scores=torch.tensor([0.9]),
    )
    _, (path,) = show_detections(cfg, wide, tmp_path, num=1)
    right = cv2.imread(str(path))[-3 * shapes.HEIGHT :, -3 * shapes.WIDTH :]
    assert not (right[5:-5, 5:-5] == 255).all(-1).all(0).any()
    assert np.ptp(right[10:-10, 10:-10].astype(int)) > 50


@pytest.mark.parametrize(
    ('changes', 'match'),
    [
        (dict(num=0), 'num=0'),
        (dict(score_thr=1.0), 'score_thr=1.0'),
        (dict(predictions={}), 'must be a list of dicts'),
        (dict(predictions=[]), 'predictions of 0 images'),
    ],
)
def test_bad_arguments_are_refused(tested, tmp_path, changes, match):
    _, _, cfg, predictions = tested
    arguments = dict(cfg=cfg, predictions=predictions, out=tmp_path)
    with pytest.raises(ValueError, match=match):
        show_detections(**dict(arguments, **changes))


def test_label_beyond_the_classes_is_refused(tested, tmp_path):
    _, _, cfg, predictions = tested
    wrong = [dict(p) for p in predictions]
    wrong[9]['pred_instances'] = dict(
        bboxes=torch.zeros(1, 4),
        labels=torch.tensor([5]),
        scores=torch.tensor([0.1]),
    )
    with pytest.raises(ValueError, match='to 5, the test set has 5 classes'):
        show_detections(cfg, wrong, tmp_path)


@pytest.mark.parametrize(
    ('changes', 'match'),
    [
        (dict(bboxes=torch.tensor([[5.0, 5, math.nan, 9]])), 'nan.*NaN'),
        (dict(bboxes=torch.tensor([[9.0, 5, 5, 9]])), '9.0, 5.0, 5.0, 9.0'),
        (dict(bboxes=torch.zeros(1, 5)), r'\(1, 5\), \(1, 4\) is allowed'),
        (dict(scores=None), r"no \['scores'\]"),
    ],
)
def test_what_is_no_box_is_refused(tested, tmp_path, changes, match):
    _, _, cfg, predictions = tested
    found = dict(
        bboxes=torch.tensor([[5.0, 5, 9, 9]]),
        labels=torch.tensor([0]),
        scores=torch.tensor([0.9]),
    )
    found = {k: v for k, v in {**found, **changes}.items() if v is not None}
    wrong = [*predictions]
    wrong[9] = dict(predictions[9], pred_instances=found)
    image = predictions[9]['img_id']
    with pytest.raises(ValueError, match=f'image {image!r} has.*{match}'):
        show_detections(cfg, wrong, tmp_path)
    if 'scores' in found:
        # It would not be drawn.
        found['scores'] = torch.tensor([0.1])
        found['bboxes'] = found['bboxes'][:, :4]
        show_detections(cfg, wrong, tmp_path, num=1)


@pytest.mark.parametrize(
    ('changes', 'match'),
    [
        (dict(scores=torch.ones(1, 1)), r'scores of .* \(1, 1\), \(1,\) is'),
        (dict(scores=torch.tensor(0.9)), r'scores of shape \(\), \(1,\) is'),
        (dict(scores='ab'), "the scores 'ab': a tensor"),
        (dict(scores=[None]), r'the scores \[None\]: a tensor'),
        (dict(scores=torch.ones(1) > 0), r'the scores tensor\(\[True\]\): '),
        (dict(scores=torch.ones(1).bfloat16()), 'the scores tensor'),
        (dict(scores=torch.zeros(0)), r'\(1, 4\), \(0, 4\) is allowed'),
        (dict(scores=torch.tensor([float('nan')])), 'scores of NaN'),
        (dict(labels=torch.tensor([])), r'labels of shape \(0,\), \(1,\) is'),
        (dict(labels=torch.tensor([0, 0])), r'labels of shape \(2,\), \(1,\)'),
        (
            dict(labels=torch.tensor([[0]])),
            r'labels of shape \(1, 1\), \(1,\)',
        ),
        (dict(labels=torch.tensor([0.0])), 'labels tensor.* of whole numbers'),
        (dict(labels=np.array(['a'])), r"labels array\(\['a'\].* of whole"),
        (dict(bboxes='abc'), "the bboxes 'abc': a tensor"),
        (dict(bboxes=[[1], [1, 2]]), r'the bboxes \[\[1\], \[1, 2\]\]: a'),
        (dict(bboxes=torch.ones(1, 4) * 1j), 'the bboxes tensor.* of numbers'),
    ],
)
def test_a_field_of_another_kind_is_refused(tested, tmp_path, changes, match):
    _, _, cfg, predictions = tested
    found = dict(
        bboxes=torch.tensor([[5.0, 5, 9, 9]]),
        labels=torch.tensor([0]),
        scores=torch.tensor([0.9]),
    )
    wrong = [*predictions]
    wrong[9] = dict(predictions[9], pred_instances={**found, **changes})
    image = predictions[9]['img_id']
    with pytest.raises(ValueError, match=f'image {image!r} has.*{match}'):
        show_detections(cfg, wrong, tmp_path)


@pytest.mark.parametrize(
    ('changes', 'match'),
    [
        (dict(img_id=['a']), r"p.pkl: the img_id \['a'\] is no text"),
        (dict(img_id=None), 'p.pkl: the img_id None is no text'),
        (dict(pred_instances=[1]), r'p.pkl: image .* \[1\], no dict of bb'),
        (dict(pred_instances=None), 'p.pkl: image .* None, no dict of bb'),
    ],
)
def test_what_is_no_prediction_is_refused(
    tested, tmp_path, changes, match, capsys
):
    root, path, _, predictions = tested
    wrong = [*predictions]
    wrong[9] = dict(predictions[9], **changes)
    dump(wrong, tmp_path / 'p.pkl')
    with pytest.raises(SystemExit):
        main(
            ['show-detections', path, tmp_path / 'p.pkl']
            + ['--out', tmp_path / 'out']
            + ['--cfg-options', f'data_root={root}/shapes']
        )
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(match, line)
    assert not (tmp_path / 'out').exists()


def test_predictions_of_other_images_are_refused(tested, tmp_path):
    _, _, cfg, predictions = tested
    other = [dict(p, img_id=f'x{i}') for i, p in enumerate(predictions)]
    with pytest.raises(ValueError, match="no prediction for image 'test_"):
        show_detections(cfg, other, tmp_path)
