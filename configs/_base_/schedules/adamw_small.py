# From scratch, in minutes: AdamW, warm-up, cosine to 0 at max_epochs. Batches
# are small because a short schedule needs many steps.
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=8, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

optim_wrapper = dict(
    type='AGSOptimWrapper',
    ags=dict(eta=0.1),
    constructor='SURGEOptimWrapperConstructor',
    optimizer=dict(type='AdamW', lr=0.002, weight_decay=0.0),
    clip_grad=dict(max_norm=10, norm_type=2),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=False, begin=0, end=100),
    dict(
        type='CosineAnnealingLR',
        by_epoch=True,
        convert_to_iter_based=True,
        begin=0,
        eta_min=0.0,
    ),
]
auto_scale_lr = dict(enable=False, base_batch_size=2)
randomness = dict(seed=0)
