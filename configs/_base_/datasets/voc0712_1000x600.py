# Train on VOC 2007+2012 trainval, three times an epoch, at three scales; test
# on VOC 2007 test at 1000x600 with the 11-point mAP. IDa-Det's recipe.
_base_ = 'mmdet::_base_/datasets/voc0712.py'

data_root = '{{$SURGE_DATA_ROOT:data}}/VOCdevkit/'

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(
        type='RandomChoiceResize',
        scales=[(1500, 900), (1000, 600), (666, 400)],
        keep_ratio=True,
    ),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
# mmdet 3's bbox_min_size=32 would leave smaller objects out of training.
filter_cfg = dict(filter_empty_gt=True, min_size=32)

train_dataloader = dict(
    batch_size=4,
    num_workers=4,
    dataset=dict(
        dataset=dict(
            datasets=[
                dict(
                    type='PascalVOCDataset',
                    data_root=data_root,
                    ann_file='VOC2007/ImageSets/Main/trainval.txt',
                    data_prefix=dict(sub_data_root='VOC2007/'),
                    filter_cfg=filter_cfg,
                    pipeline=train_pipeline,
                ),
                dict(
                    type='PascalVOCDataset',
                    data_root=data_root,
                    ann_file='VOC2012/ImageSets/Main/trainval.txt',
                    data_prefix=dict(sub_data_root='VOC2012/'),
                    filter_cfg=filter_cfg,
                    pipeline=train_pipeline,
                ),
            ]
        )
    ),
)
val_dataloader = dict(
    dataset=dict(type='PascalVOCDataset', data_root=data_root)
)
test_dataloader = val_dataloader
