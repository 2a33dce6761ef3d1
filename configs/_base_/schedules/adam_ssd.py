# BiDet's recipe for SSD300 (CVPR 2020): Adam 1e-3 for batch 32, no weight
# decay, steps after 30k, 80k and 200k of 300k iterations (here epochs of ten
# times VOC07+12); the warm-up and the clipping are ours.
# The learning rate must fall with the batch: at batch 16, 1e-3 diverges.
# --auto-scale-lr does that.
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=58, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

optim_wrapper = dict(
    type='AGSOptimWrapper',
    ags=dict(eta=0.1),
    constructor='SURGEOptimWrapperConstructor',
    optimizer=dict(type='Adam', lr=1e-3, weight_decay=0.0),
    clip_grad=dict(max_norm=10, norm_type=2),
)
param_scheduler = [
    dict(
        type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500
    ),
    dict(type='MultiStepLR', milestones=[6, 15, 39], gamma=0.1),
]
# 4 GPUs with 8 images each.
auto_scale_lr = dict(enable=False, base_batch_size=32)
