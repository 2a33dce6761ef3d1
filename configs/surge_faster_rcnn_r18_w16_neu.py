# All channels follow the width; surge_faster_rcnn_r18_neu.py has 64.
_base_ = './surge_faster_rcnn_r18_neu.py'

width = 16
model = dict(
    backbone=dict(base_channels=width),
    neck=dict(
        in_channels=[width, 2 * width, 4 * width, 8 * width],
        out_channels=width,
    ),
    rpn_head=dict(in_channels=width, feat_channels=width),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=width),
        bbox_head=dict(in_channels=width),
    ),
)
