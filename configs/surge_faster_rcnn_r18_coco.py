# 1-bit Faster R-CNN R18-FPN: COCO 2017, 1333x800, 1x.
_base_ = [
    './_base_/models/surge_faster_rcnn_r18_fpn.py',
    './_base_/datasets/coco_1333x800.py',
    './_base_/schedules/sgd_coco_1x.py',
    './_base_/default_runtime.py',
]

model = dict(
    backbone=dict(
        init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet18')
    )
)
