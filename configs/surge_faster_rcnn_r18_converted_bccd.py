# mmdet's own Faster R-CNN R18-FPN, binarized by one key (`binarize_cfg`), on
# blood cells: as small as surge_faster_rcnn_r18_bccd.py and trained as it is.
_base_ = [
    'mmdet::_base_/models/faster-rcnn_r50_fpn.py',
    './_base_/datasets/voc_bccd.py',
    './_base_/schedules/adamw_small.py',
    './_base_/default_runtime.py',
]
custom_imports = dict(imports=['surge_det'], allow_failed_imports=False)

model = dict(
    # Measured: see docs/any_detector.md.
    binarize_cfg=dict(last_norm=0.1),
    data_preprocessor=dict(pad_size_divisor=16),
    backbone=dict(
        depth=18,
        init_cfg=None,
        # Frozen layers and statistics of a float net don't fit a 1-bit one.
        frozen_stages=-1,
        norm_eval=False,
    ),
    neck=dict(in_channels=[64, 128, 256, 512], out_channels=64),
    rpn_head=dict(
        in_channels=64, feat_channels=64, anchor_generator=dict(scales=[4])
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=64),
        bbox_head=dict(in_channels=64, fc_out_channels=256, num_classes=3),
    ),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=1000, max_per_img=256),
        rcnn=dict(sampler=dict(num=128)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=500, max_per_img=200)),
)
train_cfg = dict(max_epochs=4)
default_hooks = dict(
    logger=dict(interval=20),
    checkpoint=dict(interval=1, max_keep_ckpts=1),
)
