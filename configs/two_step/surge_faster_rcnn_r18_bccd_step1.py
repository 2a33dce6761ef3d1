# Step 1 of two-step training (ReActNet): real weights, binary activations.
_base_ = '../surge_faster_rcnn_r18_bccd.py'
step1 = dict(binarize_weight=False)
model = dict(
    backbone=dict(conv_cfg=step1),
    neck=dict(conv_cfg=step1),
    rpn_head=dict(conv_cfg=step1),
)
optim_wrapper = dict(optimizer=dict(weight_decay=1e-5))
