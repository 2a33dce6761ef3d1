# 1-bit Faster R-CNN R18 on steel surfaces (NEU-DET), 240x240, from scratch.
_base_ = [
    './_base_/models/surge_faster_rcnn_r18_fpn_small.py',
    './_base_/datasets/voc_neu.py',
    './_base_/schedules/adamw_small.py',
    './_base_/default_runtime.py',
]

# Without a norm the inputs of the neck's output convolutions leave the window
# in which the estimator passes gradients: docs/results/neu.md.
model = dict(
    neck=dict(norm_cfg=dict(type='BN')),
    roi_head=dict(bbox_head=dict(num_classes=6)),
)
# Three times the epochs of BCCD; neither these nor the rate were chosen here.
train_cfg = dict(max_epochs=12)
default_hooks = dict(
    logger=dict(interval=20),
    checkpoint=dict(interval=1, max_keep_ckpts=1),
)
