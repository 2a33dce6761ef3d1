"""1-bit detectors, small in width, as training leaves them behind."""

from pathlib import Path

import torch
from mmdet.structures import DetDataSample
from mmengine.config import Config
from torch import nn

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
META = {
    'classes': ('RBC', 'WBC', 'Platelets'),
    'palette': [(220, 60, 60), (70, 110, 240), (250, 200, 60)],
}

NARROW = dict(
    backbone=dict(base_channels=16),
    neck=dict(in_channels=[16, 32, 64, 128], out_channels=16),
)


def small_config(**conv_cfg):
    """BCCD's config, 16 channels wide, with a 1-bit hidden layer.

    Keywords are those of the backbone's layers.
    """
    cfg = Config.fromfile(CONFIGS / 'surge_faster_rcnn_r18_bccd.py')
    cfg.model.backbone.stem_channels = 16
    cfg.model.backbone.base_channels = 16
    cfg.model.backbone.conv_cfg.update(conv_cfg)
    cfg.model.neck.in_channels = [16, 32, 64, 128]
    cfg.model.neck.out_channels = 16
    cfg.model.rpn_head.in_channels = 16
    cfg.model.rpn_head.feat_channels = 16
    cfg.model.roi_head.bbox_roi_extractor.out_channels = 16
    cfg.model.roi_head.bbox_head.update(
        in_channels=16, fc_out_channels=24, linear_cfg={'type': 'SURGELinear'}
    )
    cfg.model.test_cfg.rcnn.score_thr = 0.0
    cfg.test_dataloader.dataset.pipeline[1].scale = (96, 64)
    return cfg


def small_one_stage():
    """mmdet's RetinaNet, binarized by one key."""
    cfg = Config.fromfile(CONFIGS / 'surge_retinanet_r50_coco.py')
    cfg.merge_from_dict(
        dict(
            model=dict(
                backbone=dict(
                    depth=18,
                    init_cfg=None,
                    stem_channels=16,
                    **NARROW['backbone'],
                ),
                neck=NARROW['neck'],
                bbox_head=dict(
                    in_channels=16,
                    feat_channels=16,
                    stacked_convs=1,
                    num_classes=3,
                ),
            )
        )
    )
    return cfg


def train(model):
    """Move everything a training moves to where a seed says."""
    generator = torch.Generator().manual_seed(0)

    def normal(value, mean, std):
        value.copy_(mean + std * torch.randn(value.shape, generator=generator))

    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                normal(module.weight, 1, 0.4)
                normal(module.bias, 0, 0.5)
                normal(module.running_mean, 0, 3)
                normal(module.running_var, 0, 5)
                module.running_var.abs_().add_(0.1)
                module.num_batches_tracked.fill_(7)
        for name, parameter in model.named_parameters():
            if name.endswith(('shift', 'bias')):
                normal(parameter, 0, 0.1)
            elif name.endswith('aux_weight'):
                normal(parameter, 0, 1)
    return model


def detections(model, seed=1, size=(64, 96)):
    """Detections of a model in one random image, through `test_step`."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (3, *size), generator=generator)
    sample = DetDataSample(
        metainfo=dict(
            img_shape=size, ori_shape=size, scale_factor=(1.0, 1.0), img_id=0
        )
    )
    with torch.no_grad():
        (result,) = model.test_step(
            {'inputs': [image.byte()], 'data_samples': [sample]}
        )
    return result.pred_instances


def same_detections(model, other, **kwargs):
    """Whether two models detect the same, bit for bit, and anything."""
    first, second = detections(model, **kwargs), detections(other, **kwargs)
    return len(first.bboxes) > 0 and all(
        torch.equal(first[key], second[key])
        for key in ('bboxes', 'scores', 'labels')
    )
