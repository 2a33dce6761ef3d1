# The same detector for small images and two CPU cores: narrow neck and heads,
# fewer samples. The backbone is a whole ResNet-18.
_base_ = ['./surge_faster_rcnn_r18_fpn.py']

model = dict(
    data_preprocessor=dict(pad_size_divisor=16),
    neck=dict(out_channels=64),
    rpn_head=dict(
        in_channels=64,
        feat_channels=64,
        # Anchors from 16 to 256 pixels: half of mmdet's, as the images are.
        anchor_generator=dict(scales=[4]),
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=64),
        bbox_head=dict(in_channels=64, fc_out_channels=256),
    ),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=1000, max_per_img=256),
        rcnn=dict(sampler=dict(num=128)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=500, max_per_img=200)),
)
