# The plain straight-through twin: no replica.
_base_ = './surge_faster_rcnn_r18_coco.py'
ste = dict(compensate=False)
model = dict(
    backbone=dict(conv_cfg=ste),
    neck=dict(conv_cfg=ste),
    rpn_head=dict(conv_cfg=ste),
)
