import json

import numpy as np
import pytest
import torch

pytest.importorskip('mmdet', reason='needs the toolbox')
pytest.importorskip('safetensors', reason='needs the extra deploy')

import surge_det  # noqa: F401

# isort: split
import mmcv
from mmdet import apis
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import HorizontalBoxes
from mmengine.structures import InstanceData
from small_detector import META, small_config, train

from surge_det.deploy import FORMATS, DetInferencer
from surge_det.deploy.trained import build_detector

pytestmark = pytest.mark.isa


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """Config's file, and the detector in two formats."""
    folder = tmp_path_factory.mktemp('files')
    cfg = small_config()
    cfg.dump(folder / 'config.py')
    model = train(build_detector(cfg))
    model.dataset_meta = META
    for name, suffix in (('packed', 'safetensors'), ('pth', 'pth')):
        FORMATS[name].save(model, folder / f'detector.{suffix}')
    return folder


@pytest.fixture(scope='module')
def image():
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (64, 96, 3), np.uint8)


def test_same_call_style_and_same_boxes(files, image, tmp_path):
    reference = apis.DetInferencer(
        str(files / 'config.py'), str(files / 'detector.pth'), 'cpu'
    )([image, image], batch_size=2)
    assert reference['predictions'][0]['scores']
    for weights in ('detector.pth', 'detector.safetensors'):
        for model in (None, str(files / 'config.py')):
            inferencer = DetInferencer(
                model, files / weights, 'cpu', show_progress=False
            )
            found = inferencer([image, image], batch_size=2)
            assert found['predictions'] == reference['predictions']
    assert isinstance(inferencer, apis.DetInferencer)
    file = tmp_path / 'image.png'
    mmcv.imwrite(image, str(file))
    found = inferencer(str(file), out_dir=str(tmp_path), no_save_pred=False)
    (prediction,) = (tmp_path / 'preds').iterdir()
    assert json.loads(prediction.read_text()) == found['predictions'][0]
    assert len(list((tmp_path / 'vis').iterdir())) == 1


def test_palette_is_the_callers(files):
    def palette(**kwargs):
        inferencer = DetInferencer(
            weights=files / 'detector.safetensors', device='cpu', **kwargs
        )
        return inferencer.visualizer.dataset_meta['palette']

    assert palette() == META['palette']
    assert palette(palette='coco') == 'coco'


def test_what_mmdet_does_alone_stays(files):
    # No weights: mmdet's own way, with its warning of random ones.
    with pytest.warns(UserWarning, match='randomly initialized'):
        inferencer = DetInferencer(str(files / 'config.py'), device='cpu')
    assert not any(
        torch.is_tensor(v) and v.dtype == torch.uint8
        for v in inferencer.model.state_dict().values()
    )


BOXES = torch.tensor([[0, 0, 10, 10], [1, 0, 10, 10], [50, 0, 60, 10.0]])


@pytest.mark.parametrize(
    ('boxes', 'drawn'),
    [
        (BOXES, [1, 2]),
        (BOXES.half(), [1, 2]),
        (HorizontalBoxes(BOXES), [1, 2]),
        (BOXES[:0], []),
        # Rotated: nothing is left out.
        (torch.cat([BOXES, torch.zeros(3, 1)], 1), [0, 1, 2]),
    ],
)
def test_pictures_have_one_box_over_one_object(
    files, image, monkeypatch, boxes, drawn
):
    seen = []
    monkeypatch.setattr(
        apis.DetInferencer,
        'visualize',
        lambda self, _, preds: seen.extend(preds),
    )
    count = len(boxes)
    sample = DetDataSample(
        pred_instances=InstanceData(
            bboxes=boxes,
            scores=torch.tensor([0.5, 0.9, 0.3])[:count],
            labels=torch.arange(count),
            masks=torch.zeros(count, 8, 8, dtype=torch.bool),
        )
    )
    panoptic = DetDataSample()
    inferencer = DetInferencer(weights=files / 'detector.pth', device='cpu')
    inferencer.visualize([image, image], [sample, panoptic])
    assert seen[0].pred_instances.labels.tolist() == drawn
    assert len(seen[0].pred_instances.masks) == len(drawn)
    assert seen[1] is panoptic
    # Predictions have all of them.
    assert len(sample.pred_instances) == count


def test_errors_name_the_file(files, tmp_path):
    with pytest.raises(FileNotFoundError, match='nowhere'):
        DetInferencer(weights=tmp_path / 'nowhere.safetensors')
    other = tmp_path / 'x.safetensors'
    other.write_bytes(b'nothing')
    with pytest.raises(ValueError, match=r'x\.safetensors'):
        DetInferencer(str(files / 'config.py'), other, 'cpu')


def test_mmdets_own_calls_refuse_what_they_cannot_load(files):
    config, packed = files / 'config.py', files / 'detector.safetensors'
    for call in (
        lambda: apis.init_detector(config, str(packed), device='cpu'),
        lambda: apis.DetInferencer(str(config), str(packed), 'cpu'),
        lambda: apis.DetInferencer(weights=str(packed), device='cpu'),
    ):
        with pytest.raises(ValueError, match='load_detector'):
            call()


@pytest.mark.parametrize('kind', ['ConcatDataset', 'RepeatDataset'])
def test_the_test_set_may_be_wrapped(files, image, tmp_path, kind):
    weights = str(files / 'detector.pth')
    expected = DetInferencer(weights=weights)(image)['predictions']
    cfg = small_config()
    leaf = cfg.test_dataloader.dataset
    inner = {
        'ConcatDataset': dict(datasets=[leaf, leaf]),
        'RepeatDataset': dict(times=2, dataset=leaf),
    }[kind]
    cfg.test_dataloader = dict(dataset=dict(type=kind, **inner))
    cfg.dump(tmp_path / 'config.py')
    model = str(tmp_path / 'config.py')
    found = DetInferencer(model, weights, 'cpu')(image)['predictions']
    assert found == expected
