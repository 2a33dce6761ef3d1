"""Stock detectors of mmdet that tests binarize."""

from mmengine.config import Config

# Narrow and shallow, and of the stock config in everything else.
RESNET = {
    'backbone.depth': 18,
    'backbone.style': 'pytorch',
    'neck.in_channels': [64, 128, 256, 512],
}
DETR = {
    **RESNET,
    'neck.in_channels': [128, 256, 512],
    'num_queries': 50,
    'encoder.num_layers': 2,
    'decoder.num_layers': 2,
}
STOCK = {
    'retinanet/retinanet_r50_fpn_1x_coco': RESNET,
    'fcos/fcos_r50-caffe_fpn_gn-head_1x_coco': RESNET,
    'atss/atss_r50_fpn_1x_coco': RESNET,
    'gfl/gfl_r50_fpn_1x_coco': RESNET,
    'cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco': {
        **RESNET,
        # Large anchors count only if they are inside the image, a small one.
        'train_cfg.rpn.allowed_border': -1,
    },
    'swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco': {},
    'yolox/yolox_tiny_8xb8-300e_coco': {},
    'rtmdet/rtmdet_tiny_8xb32-300e_coco': {},
    'yolo/yolov3_mobilenetv2_8xb24-320-300e_coco': {},
    'deformable_detr/deformable-detr_r50_16xb2-50e_coco': DETR,
    'dino/dino-4scale_r50_8xb2-12e_coco': DETR,
}


def stock_config(name):
    """Return the config of one of them, changed as the table says."""
    cfg = Config.fromstring(f"_base_ = 'mmdet::{name}.py'", '.py')
    cfg.merge_from_dict(
        {f'model.{key}': value for key, value in STOCK[name].items()}
    )
    return cfg
