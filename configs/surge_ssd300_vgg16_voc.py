# 1-bit SSD300 VGG-16: VOC07+12 trainval, VOC07 test, 300x300.
_base_ = [
    './_base_/models/surge_ssd300_vgg16.py',
    './_base_/datasets/voc0712_ssd300.py',
    './_base_/schedules/adam_ssd.py',
    './_base_/default_runtime.py',
]

model = dict(
    backbone=dict(
        init_cfg=dict(type='Pretrained', checkpoint='torchvision://vgg16')
    ),
    bbox_head=dict(
        num_classes=20,
        anchor_generator=dict(basesize_ratio_range=(0.2, 0.9)),
    ),
)
