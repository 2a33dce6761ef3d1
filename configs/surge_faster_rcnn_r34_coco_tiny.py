# The same with ResNet-34.
_base_ = './surge_faster_rcnn_r18_coco_tiny.py'

model = dict(backbone=dict(depth=34))
