# 1-bit SSD300 VGG-16: COCO 2017, 300x300.
_base_ = [
    './_base_/models/surge_ssd300_vgg16.py',
    './_base_/datasets/coco_ssd300.py',
    './_base_/schedules/adam_ssd.py',
    './_base_/default_runtime.py',
]

model = dict(
    backbone=dict(
        init_cfg=dict(type='Pretrained', checkpoint='torchvision://vgg16')
    )
)
# BiDet's steps after 40k, 80k and 200k of 400k iterations, in epochs.
train_cfg = dict(max_epochs=22)
param_scheduler = [
    dict(
        type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500
    ),
    dict(type='MultiStepLR', milestones=[2, 4, 11], gamma=0.1),
]
