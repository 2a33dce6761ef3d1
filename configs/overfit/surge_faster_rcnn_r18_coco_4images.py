# Proof that the 80-class pipeline learns: four images by heart, from scratch.
_base_ = [
    '../_base_/models/surge_faster_rcnn_r18_fpn.py',
    '../_base_/datasets/coco_4images.py',
    '../_base_/schedules/adamw_small.py',
    '../_base_/default_runtime.py',
]

model = dict(
    # Images are a quarter of COCO's, so are the anchors.
    rpn_head=dict(anchor_generator=dict(scales=[3])),
    train_cfg=dict(
        rpn_proposal=dict(max_per_img=256), rcnn=dict(sampler=dict(num=128))
    ),
    test_cfg=dict(rpn=dict(max_per_img=256)),
)
train_cfg = dict(max_epochs=3)
optim_wrapper = dict(optimizer=dict(lr=0.001))
default_hooks = dict(
    logger=dict(interval=20),
    checkpoint=dict(interval=1, max_keep_ckpts=1),
)
