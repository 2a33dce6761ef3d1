# 1-bit Faster R-CNN on the drawn shapes of `make demo`, from scratch in
# minutes: half of ResNet-18's channels, and three of its four stages, which
# see enough of objects of at most 73 pixels.
_base_ = [
    './_base_/models/surge_faster_rcnn_r18_fpn_small.py',
    './_base_/datasets/voc_shapes.py',
    './_base_/schedules/adamw_small.py',
    './_base_/default_runtime.py',
]

width, width_of_heads = 32, 48
model = dict(
    backbone=dict(
        base_channels=width,
        stem_channels=width,
        num_stages=3,
        strides=(1, 2, 2),
        dilations=(1, 1, 1),
        out_indices=(0, 1, 2),
    ),
    neck=dict(
        in_channels=[width, 2 * width, 4 * width],
        out_channels=width_of_heads,
        num_outs=4,
    ),
    rpn_head=dict(
        in_channels=width_of_heads,
        feat_channels=width_of_heads,
        anchor_generator=dict(strides=[4, 8, 16, 32]),
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(
            roi_layer=dict(sampling_ratio=2),
            out_channels=width_of_heads,
            featmap_strides=[4, 8, 16],
        ),
        bbox_head=dict(in_channels=width_of_heads, num_classes=5),
    ),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=300, max_per_img=100),
        rcnn=dict(sampler=dict(num=64)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=300, max_per_img=100)),
)
train_cfg = dict(max_epochs=5)
optim_wrapper = dict(optimizer=dict(lr=0.003))
default_hooks = dict(
    logger=dict(interval=25),
    checkpoint=dict(interval=1, max_keep_ckpts=1),
    # Truth and detections in some images after each epoch.
    visualization=dict(draw=True, interval=5, score_thr=0.5),
)
