# 1-bit SSD300 on a few images in COCO's layout, from scratch: a quick look at
# the whole chain, no result.
_base_ = './surge_ssd300_vgg16_coco.py'

data_root = '{{$SURGE_DATA_ROOT:data}}/coco_tiny/'
model = dict(backbone=dict(init_cfg=None))
train_cfg = dict(max_epochs=2)
train_dataloader = dict(
    batch_size=4,
    num_workers=2,
    dataset=dict(times=1, dataset=dict(data_root=data_root)),
)
val_dataloader = dict(
    batch_size=4, num_workers=1, dataset=dict(data_root=data_root)
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/instances_val2017.json')
test_evaluator = val_evaluator

# 1e-3 is for batch 32.
optim_wrapper = dict(optimizer=dict(lr=1.25e-4))
auto_scale_lr = dict(base_batch_size=4)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=10)
]
default_hooks = dict(logger=dict(interval=5))
