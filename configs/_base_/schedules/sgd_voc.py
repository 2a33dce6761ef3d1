# IDa-Det's recipe (ECCV 2022): SGD 0.004 for batch 4, 12 epochs over the
# dataset repeated three times.
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=12, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

optim_wrapper = dict(
    type='AGSOptimWrapper',
    ags=dict(eta=0.1),
    constructor='SURGEOptimWrapperConstructor',
    optimizer=dict(type='SGD', lr=0.004, momentum=0.9, weight_decay=1e-4),
    clip_grad=dict(max_norm=35, norm_type=2),
)
param_scheduler = [
    dict(
        type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=200
    ),
    dict(type='MultiStepLR', begin=0, end=12, milestones=[8, 11], gamma=0.1),
]
# Learning rate must fall with the batch size; --auto-scale-lr does that.
auto_scale_lr = dict(enable=False, base_batch_size=4)
