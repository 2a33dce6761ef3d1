# Mask R-CNN R50-FPN of mmdet, binarized by `binarize_cfg`. Not run here.
_base_ = 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'
custom_imports = dict(imports=['surge_det'], allow_failed_imports=False)

model = dict(
    binarize_cfg={},
    # Stock freezes the first stage and every BatchNorm. A 1-bit layer that
    # keeps float weights and float statistics passes on nothing useful.
    backbone=dict(frozen_stages=-1, norm_eval=False),
)

optim_wrapper = dict(
    type='AGSOptimWrapper',
    ags=dict(eta=0.1),
    constructor='SURGEOptimWrapperConstructor',
)
custom_hooks = [
    dict(type='AGSHook'),
    dict(type='SURGEProgressHook'),
    dict(type='BroadcastBuffersHook'),
    dict(type='SURGECheckHook'),
    dict(type='SURGEFiniteHook'),
    dict(type='SURGESeedHook'),
]

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
