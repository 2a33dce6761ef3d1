import pytest

pytest.importorskip('mmdet', reason='needs the toolbox')

from mmengine.config import Config

from surge_det import shipped


def test_a_shipped_config_as_base(tmp_path):
    path = tmp_path / 'mine.py'
    path.write_text(
        "_base_ = 'surge_det::overfit/surge_ssd300_vgg16_coco_4images.py'\n"
        'train_cfg = dict(max_epochs=3)\n'
    )
    cfg = Config.fromfile(path)
    assert cfg.train_cfg.max_epochs == 3
    name = 'overfit/surge_ssd300_vgg16_coco_4images'
    base = Config.fromfile(shipped.shipped_config(name))
    assert cfg.model == base.model


def test_a_base_that_is_not_shipped(tmp_path):
    path = tmp_path / 'mine.py'
    path.write_text("_base_ = 'surge_det::surge_faster_rcnn_r18_coc.py'\n")
    with pytest.raises(ValueError, match='surge_faster_rcnn_r18_coco'):
        Config.fromfile(path)


def test_names_of_shipped_configs():
    names = shipped.config_names()
    assert 'surge_faster_rcnn_r18_voc' in names
    assert 'pretrain/surge_resnet18_crops' in names
    assert not any('_base_' in name for name in names)
    base = next(shipped.CONFIGS.glob('_base_/**/*.py'))
    base = base.relative_to(shipped.CONFIGS).as_posix()
    for name in (
        'pretrain/surge_resnet18_crops',
        'ste_ssd300_vgg16_voc',
        base,
    ):
        assert shipped.shipped_config(name).is_file()
    with pytest.raises(ValueError, match='not among'):
        shipped.shipped_config('../tools/train')
