# Proof that a stock detector learns when it is binarized by `binarize_cfg`:
# four images by heart, from scratch.
_base_ = [
    'mmdet::_base_/models/retinanet_r50_fpn.py',
    '../_base_/datasets/coco_4images.py',
    '../_base_/schedules/adamw_small.py',
    '../_base_/default_runtime.py',
]
custom_imports = dict(imports=['surge_det'], allow_failed_imports=False)

model = dict(
    binarize_cfg={},
    # From scratch, so nothing is frozen.
    backbone=dict(
        depth=18,
        frozen_stages=-1,
        norm_eval=False,
        init_cfg=None,
    ),
    neck=dict(in_channels=[64, 128, 256, 512]),
    bbox_head=dict(
        # A stack of 1-bit convolutions needs norms between them.
        norm_cfg=dict(type='GN', num_groups=32),
        # Images are a third of COCO's, so are the anchors.
        anchor_generator=dict(octave_base_scale=2),
    ),
)
train_cfg = dict(max_epochs=4)
optim_wrapper = dict(optimizer=dict(lr=0.001))
default_hooks = dict(
    logger=dict(interval=20),
    checkpoint=dict(interval=1, max_keep_ckpts=1),
)
