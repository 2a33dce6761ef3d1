# Proof that the 80-class pipeline learns: four images by heart, from scratch.
_base_ = [
    '../_base_/models/surge_ssd300_vgg16.py',
    '../_base_/datasets/coco_4images.py',
    '../_base_/schedules/adamw_small.py',
    '../_base_/default_runtime.py',
]

# A third of 300: levels of 12, 6, 3, 2 and 1; there is no sixth.
size = (96, 96)
model = dict(
    data_preprocessor=dict(
        batch_augments=None,
        pad_size_divisor=1,
    ),
    neck=dict(
        out_channels=(512, 1024, 512, 256, 256),
        level_strides=(2, 2, 2),
        level_paddings=(1, 1, 1),
    ),
    bbox_head=dict(
        in_channels=(512, 1024, 512, 256, 256),
        anchor_generator=dict(
            _delete_=True,
            type='SSDAnchorGenerator',
            scale_major=False,
            input_size=96,
            strides=[8, 16, 32, 48, 96],
            ratios=[[2], [2, 3], [2, 3], [2, 3], [2]],
            # About SSD300's for COCO at this size.
            min_sizes=[7, 14, 32, 50, 68],
            max_sizes=[14, 32, 50, 68, 96],
        ),
    ),
)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=size, keep_ratio=False),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=size, keep_ratio=False),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(
        type='PackDetInputs',
        meta_keys=(
            'img_id',
            'img_path',
            'ori_shape',
            'img_shape',
            'scale_factor',
            'instances',
        ),
    ),
]
train_dataloader = dict(
    batch_size=4,
    dataset=dict(dataset=dict(pipeline=train_pipeline)),
)
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

train_cfg = dict(max_epochs=8)
optim_wrapper = dict(optimizer=dict(lr=0.001))
default_hooks = dict(
    logger=dict(interval=10),
    checkpoint=dict(interval=1, max_keep_ckpts=1),
)
