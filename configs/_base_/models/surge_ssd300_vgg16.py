# 1-bit SSD300, VGG-16: what differs from mmdet's model.
_base_ = ['mmdet::_base_/models/ssd300.py']

custom_imports = dict(imports=['surge_det'], allow_failed_imports=False)

surge = dict(type='SURGEConv2d')
norm = dict(type='BN', requires_grad=True)
model = dict(
    # torchvision's normalization, not Caffe's.
    data_preprocessor=dict(std=[58.395, 57.12, 57.375]),
    backbone=dict(
        _delete_=True,
        type='SURGESSDVGG',
        depth=16,
        conv_cfg=surge,
        norm_cfg=norm,
    ),
    neck=dict(type='SURGESSDNeck', conv_cfg=surge, norm_cfg=norm),
)
