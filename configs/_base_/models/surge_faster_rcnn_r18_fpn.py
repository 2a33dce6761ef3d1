# 1-bit Faster R-CNN, ResNet-18, FPN: what differs from mmdet's R50 model.
_base_ = ['mmdet::_base_/models/faster-rcnn_r50_fpn.py']

custom_imports = dict(imports=['surge_det'], allow_failed_imports=False)

surge = dict(type='SURGEConv2d')
model = dict(
    backbone=dict(
        _delete_=True,
        type='SURGEResNet',
        depth=18,
        out_indices=(0, 1, 2, 3),
        conv_cfg=surge,
        norm_cfg=dict(type='BN', requires_grad=True),
    ),
    neck=dict(
        type='SURGEFPN', in_channels=[64, 128, 256, 512], conv_cfg=surge
    ),
    rpn_head=dict(type='SURGERPNHead', conv_cfg=surge),
    # Real hidden layers; `linear_cfg=dict(type='SURGELinear')` binarizes
    # them.
    roi_head=dict(bbox_head=dict(type='SURGEShared2FCBBoxHead')),
)
