"""1-bit backbones."""

from .surge_resnet import SURGEResNet

__all__ = ['SURGEResNet']
