"""Float models, in the form in which toolboxes put them together."""

import torch
from torch import nn

from surge_det.core.layers import named_surge_layers


def block(channels, out, size=3, **kwargs):
    """A convolution, its norm and a ReLU, as toolboxes put them together."""
    layers = {
        'conv': nn.Conv2d(channels, out, size, padding=size // 2, **kwargs),
        'bn': nn.BatchNorm2d(out),
        'activate': nn.ReLU(inplace=True),
    }
    module = nn.Module()
    for name, layer in layers.items():
        module.add_module(name, layer)
    module.forward = lambda x: layers['activate'](
        layers['bn'](layers['conv'](x))
    )
    return module


class BoxHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList([block(8, 8), block(8, 8)])
        self.cls = nn.Conv2d(8, 3, 1)
        self.reg = nn.Sequential(
            nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.Sigmoid()
        )
        self.relu = nn.ReLU()


class Detector(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(block(3, 8), block(8, 8))
        self.neck = nn.Sequential(nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3))
        self.bbox_head = BoxHead()


def plain():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3),
        nn.ReLU6(),
        nn.Flatten(),
        nn.Linear(16, 5),
    )


def surge_names(model):
    return [name for name, _ in named_surge_layers(model)]
