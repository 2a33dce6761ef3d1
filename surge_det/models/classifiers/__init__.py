"""Image classifiers, in which backbones are pretrained."""

from .surge_image_classifier import SURGEImageClassifier

__all__ = ['SURGEImageClassifier']
