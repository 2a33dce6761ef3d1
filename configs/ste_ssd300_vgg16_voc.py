# The plain straight-through twin: no replica.
_base_ = './surge_ssd300_vgg16_voc.py'
ste = dict(compensate=False)
model = dict(backbone=dict(conv_cfg=ste), neck=dict(conv_cfg=ste))
