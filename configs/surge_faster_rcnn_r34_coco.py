# 1-bit Faster R-CNN R34-FPN: COCO 2017, 1333x800, 1x.
_base_ = './surge_faster_rcnn_r18_coco.py'

model = dict(
    backbone=dict(
        depth=34,
        init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet34'),
    )
)
