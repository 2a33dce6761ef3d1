# Step 1 of two-step training, as ReActNet's: real weights, 1-bit activations,
# some weight decay (in Adam, where it acts through the gradient).
_base_ = '../surge_faster_rcnn_r18_bccd.py'
step1 = dict(binarize_weight=False)
model = dict(
    backbone=dict(conv_cfg=step1),
    neck=dict(conv_cfg=step1),
    rpn_head=dict(conv_cfg=step1),
)
optim_wrapper = dict(optimizer=dict(type='Adam', weight_decay=1e-5))
