# DETR R50 of mmdet, the linear layers of its encoder binarized by
# `binarize_cfg`. Not run here.
_base_ = 'mmdet::detr/detr_r50_8xb2-150e_coco.py'
custom_imports = dict(imports=['surge_det'], allow_failed_imports=False)

# `self_attn` is left out: nn.MultiheadAttention uses the weights of its
# projections without calling a layer. The backbone stays real, and so may
# stay frozen as stock has it.
model = dict(binarize_cfg=dict(include=['encoder.layers.*.ffn.*']))

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
