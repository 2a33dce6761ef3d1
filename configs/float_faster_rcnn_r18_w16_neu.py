# The full-precision twin, the teacher of kd_faster_rcnn_r18_w16_neu.py.
_base_ = './surge_faster_rcnn_r18_w16_neu.py'
real = dict(compensate=False, binarize_weight=False, binarize_activation=False)
model = dict(
    backbone=dict(conv_cfg=real),
    neck=dict(conv_cfg=real),
    rpn_head=dict(conv_cfg=real),
)
