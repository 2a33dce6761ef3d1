# Train on VOC 2007+2012 trainval, ten times an epoch, with SSD's augmentation;
# test on VOC 2007 test with the 11-point mAP, all at 300x300.
_base_ = ['mmdet::_base_/datasets/voc0712.py', '../pipelines/ssd300.py']

data_root = '{{$SURGE_DATA_ROOT:data}}/VOCdevkit/'
train_pipeline = {{_base_.ssd_train_pipeline}}
test_pipeline = {{_base_.ssd_test_pipeline}}
# mmdet 3's bbox_min_size=32 would leave smaller objects out of training.
filter_cfg = dict(filter_empty_gt=True, min_size=32)

train_dataloader = dict(
    batch_size=8,
    num_workers=4,
    # Of one last image the 1x1 level's BN would have no statistics.
    drop_last=True,
    batch_sampler=None,
    dataset=dict(
        times=10,
        dataset=dict(
            datasets=[
                dict(
                    type='PascalVOCDataset',
                    data_root=data_root,
                    ann_file='VOC2007/ImageSets/Main/trainval.txt',
                    data_prefix=dict(sub_data_root='VOC2007/'),
                    filter_cfg=filter_cfg,
                    pipeline={{_base_.ssd_train_pipeline}},
                ),
                dict(
                    type='PascalVOCDataset',
                    data_root=data_root,
                    ann_file='VOC2012/ImageSets/Main/trainval.txt',
                    data_prefix=dict(sub_data_root='VOC2012/'),
                    filter_cfg=filter_cfg,
                    pipeline={{_base_.ssd_train_pipeline}},
                ),
            ]
        ),
    ),
)
val_dataloader = dict(
    batch_size=8,
    num_workers=4,
    dataset=dict(
        type='PascalVOCDataset',
        data_root=data_root,
        pipeline={{_base_.ssd_test_pipeline}},
    ),
)
test_dataloader = val_dataloader
