# COCO 2017, five times an epoch, at 300x300 with SSD's augmentation.
_base_ = [
    'mmdet::_base_/datasets/coco_detection.py',
    '../pipelines/ssd300.py',
]

data_root = '{{$SURGE_DATA_ROOT:data}}/coco/'
train_pipeline = {{_base_.ssd_train_pipeline}}
test_pipeline = {{_base_.ssd_test_pipeline}}

train_dataloader = dict(
    batch_size=8,
    num_workers=4,
    # Of one last image the 1x1 level's BN would have no statistics.
    drop_last=True,
    batch_sampler=None,
    dataset=dict(
        _delete_=True,
        type='RepeatDataset',
        times=5,
        dataset=dict(
            type='COCOFormatDataset',
            data_root=data_root,
            ann_file='annotations/instances_train2017.json',
            data_prefix=dict(img='train2017/'),
            filter_cfg=dict(filter_empty_gt=True, min_size=32),
            pipeline={{_base_.ssd_train_pipeline}},
        ),
    ),
)
val_dataloader = dict(
    batch_size=8,
    num_workers=4,
    dataset=dict(
        type='COCOFormatDataset',
        data_root=data_root,
        pipeline={{_base_.ssd_test_pipeline}},
    ),
)
test_dataloader = val_dataloader

val_evaluator = dict(
    type='COCOFormatMetric',
    ann_file=data_root + 'annotations/instances_val2017.json',
)
test_evaluator = val_evaluator
