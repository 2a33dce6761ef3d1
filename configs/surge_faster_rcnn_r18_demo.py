# 1-bit Faster R-CNN R18 on the drawn shapes of `make demo`, from scratch.
_base_ = [
    './_base_/models/surge_faster_rcnn_r18_fpn_small.py',
    './_base_/datasets/voc_shapes.py',
    './_base_/schedules/adamw_small.py',
    './_base_/default_runtime.py',
]

model = dict(roi_head=dict(bbox_head=dict(num_classes=5)))
train_cfg = dict(max_epochs=5)
optim_wrapper = dict(optimizer=dict(lr=0.001))
default_hooks = dict(
    logger=dict(interval=25),
    checkpoint=dict(interval=1, max_keep_ckpts=1),
    # Truth and detections in some images after each epoch.
    visualization=dict(draw=True, interval=5, score_thr=0.5),
)
