"""Loading a pretrained backbone without silence about what did not load."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from mmengine.logging import print_log
from mmengine.model import BaseModule, PretrainedInit
from torch import nn


@contextmanager
def check_pretrained_convs(module: BaseModule) -> Iterator[None]:
    """Watch ``module.init_weights()`` load its pretrained checkpoint.

    mmengine loads with ``strict=False`` and lists missing keys among
    hundreds; convolutions that stay random decide results.

    Args:
        module: What initializes itself inside the context; nothing is
            watched if its ``init_cfg`` names no checkpoint.

    Raises:
        ValueError: On exit, if no convolution was in the checkpoint. Where
            only some were, a warning lists the others.
    """
    init_cfg = module.init_cfg or []
    if isinstance(init_cfg, dict):
        init_cfg = [init_cfg]
    checkpoints = [
        cfg['checkpoint']
        for cfg in init_cfg
        if cfg['type'] in ('Pretrained', PretrainedInit)
    ]
    # mmengine initializes a module once.
    if not checkpoints or module.is_init:
        yield
        return

    shapes: dict = {}

    def record(state_dict: dict, prefix: str, *args: object) -> None:
        for key, value in state_dict.items():
            if key.startswith(prefix):
                shapes[key[len(prefix) :]] = value.shape

    handle = module._register_load_state_dict_pre_hook(record)
    try:
        yield
    finally:
        handle.remove()

    convs = {
        f'{name}.weight': conv.weight.shape
        for name, conv in module.named_modules()
        if isinstance(conv, nn.Conv2d)
    }
    left = [key for key in convs if shapes.get(key) != convs[key]]
    name = type(module).__name__
    if len(left) == len(convs):
        example = ', '.join(list(shapes)[:3])
        raise ValueError(
            f'{name}: checkpoint {checkpoints[-1]!r} holds none of the '
            f'{len(convs)} convolutions; it has keys such as {example}, '
            f'expected are such as {", ".join(list(convs)[:3])} (init_cfg '
            "takes prefix='backbone.' for a detector's checkpoint)"
        )
    if left:
        print_log(
            f'{name}: checkpoint {checkpoints[-1]!r} left '
            f'{len(left)} of {len(convs)} convolutions at random weights '
            f'(missing, or of another shape): {", ".join(left)}',
            logger='current',
            level=logging.WARNING,
        )
