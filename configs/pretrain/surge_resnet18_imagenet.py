# 1-bit SURGEResNet-18 on ImageNet, in one step: the recipe of ReActNet's
# ResNet (Adam, 128 epochs, batch 512, linear to 0, weight decay 0) with
# Bi-Real Net's smoothed labels in place of a teacher, and SURGE's gradients.
_base_ = '../_base_/default_runtime.py'

custom_imports = dict(imports=['surge_det'], allow_failed_imports=False)

model = dict(
    type='SURGEImageClassifier',
    # Values of RGB, which is what the dataset gives; mmdet's detectors
    # subtract the same.
    data_preprocessor=dict(
        type='ImgDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
    ),
    backbone=dict(
        type='SURGEResNet',
        depth=18,
        out_indices=(3,),
        conv_cfg=dict(type='SURGEConv2d'),
        norm_cfg=dict(type='BN', requires_grad=True),
    ),
    in_channels=512,
    num_classes=1000,
    label_smooth=0.1,
)

dataset_type = 'ImageFolderDataset'
data_root = '{{$SURGE_DATA_ROOT:data}}/imagenet/'
train_dataloader = dict(
    batch_size=512,
    num_workers=16,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type=dataset_type,
        data_root=data_root + 'train',
        num_classes=1000,
        pipeline=[
            dict(type='RandomResizedCrop', size=224, scale=(0.08, 1.0)),
            dict(type='RandomHorizontalFlip'),
        ],
    ),
)
val_dataloader = dict(
    batch_size=256,
    num_workers=8,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type=dataset_type,
        data_root=data_root + 'val',
        num_classes=1000,
        pipeline=[
            dict(type='Resize', size=256),
            dict(type='CenterCrop', size=224),
        ],
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='TopKAccuracy', topk=(1, 5))
test_evaluator = val_evaluator

train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=128, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    type='AGSOptimWrapper',
    ags=dict(eta=0.1),
    constructor='SURGEOptimWrapperConstructor',
    optimizer=dict(type='Adam', lr=2.5e-3, weight_decay=0.0),
)
param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=1.0,
        end_factor=0.0,
        begin=0,
        end=128,
        by_epoch=True,
        convert_to_iter_based=True,
    ),
]
auto_scale_lr = dict(enable=False, base_batch_size=512)
default_hooks = dict(
    logger=dict(interval=100),
    checkpoint=dict(
        interval=1, max_keep_ckpts=2, save_best='accuracy/top1', rule='greater'
    ),
)
log_processor = dict(window_size=100)
