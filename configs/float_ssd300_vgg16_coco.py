# The full-precision twin: the same architecture, nothing binarized.
_base_ = './surge_ssd300_vgg16_coco.py'
real = dict(compensate=False, binarize_weight=False, binarize_activation=False)
model = dict(backbone=dict(conv_cfg=real), neck=dict(conv_cfg=real))
