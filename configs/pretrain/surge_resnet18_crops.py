# The same on a folder of small images, in minutes on one CPU core: the cells
# of BCCD, which `python tools/make_crops.py --max-per-class 150` cuts out.
_base_ = './surge_resnet18_imagenet.py'

num_classes = 3
model = dict(num_classes=num_classes)

data_root = '{{$SURGE_DATA_ROOT:data}}/bccd_crops/'
train_dataloader = dict(
    batch_size=16,
    num_workers=1,
    dataset=dict(
        data_root=data_root + 'train',
        num_classes=num_classes,
        pipeline=[
            dict(type='RandomResizedCrop', size=64, scale=(0.5, 1.0)),
            dict(type='RandomHorizontalFlip'),
        ],
    ),
)
val_dataloader = dict(
    batch_size=64,
    num_workers=1,
    dataset=dict(
        data_root=data_root + 'val',
        num_classes=num_classes,
        pipeline=[dict(type='Resize', size=(64, 64))],
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(topk=(1,), per_class=True)
test_evaluator = val_evaluator

train_cfg = dict(max_epochs=5)
param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=1.0,
        end_factor=0.0,
        begin=0,
        end=5,
        by_epoch=True,
        convert_to_iter_based=True,
    ),
]
auto_scale_lr = dict(base_batch_size=16)
randomness = dict(seed=0)
default_hooks = dict(
    logger=dict(interval=10), checkpoint=dict(save_best='accuracy/mean_class')
)
