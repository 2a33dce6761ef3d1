"""1-bit backbones."""

from .surge_resnet import SURGEResNet
from .surge_ssd_vgg import SURGESSDVGG

__all__ = ['SURGEResNet', 'SURGESSDVGG']
