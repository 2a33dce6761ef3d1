# 1-bit Faster R-CNN R18-FPN: VOC07+12 trainval, VOC07 test, 1000x600.
_base_ = [
    './_base_/models/surge_faster_rcnn_r18_fpn.py',
    './_base_/datasets/voc0712_1000x600.py',
    './_base_/schedules/sgd_voc.py',
    './_base_/default_runtime.py',
]

model = dict(
    backbone=dict(
        init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet18')
    ),
    roi_head=dict(bbox_head=dict(num_classes=20)),
)
