# Plain straight-through, and the full-precision twin as teacher.
# Train that one first: docs/distillation.md.
_base_ = './surge_faster_rcnn_r18_w16_neu.py'
ste = dict(compensate=False)
teacher = 'float_faster_rcnn_r18_w16_neu'
model = dict(
    backbone=dict(conv_cfg=ste),
    neck=dict(conv_cfg=ste),
    rpn_head=dict(conv_cfg=ste),
    distill_cfg=dict(
        teacher_config=teacher,
        teacher_ckpt=f'work_dirs/{teacher}/epoch_12.pth',
        losses=[dict(type='LogitsDistillLoss')],
    ),
)
optim_wrapper = dict(optimizer=dict(lr=0.004))
