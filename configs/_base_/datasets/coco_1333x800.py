# COCO 2017 in mmdet's layout and pipelines; the data folder is one setting.
_base_ = 'mmdet::_base_/datasets/coco_detection.py'

data_root = '{{$SURGE_DATA_ROOT:data}}/coco/'
train_dataloader = dict(
    dataset=dict(type='COCOFormatDataset', data_root=data_root)
)
val_dataloader = dict(
    dataset=dict(type='COCOFormatDataset', data_root=data_root)
)
test_dataloader = val_dataloader
val_evaluator = dict(
    type='COCOFormatMetric',
    ann_file=data_root + 'annotations/instances_val2017.json',
)
test_evaluator = val_evaluator
