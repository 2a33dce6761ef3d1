"""Images in one folder per class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from mmdet.registry import DATASETS
from PIL import Image
from torchvision import datasets
from torchvision.transforms import v2

# What torchvision looks for by name. Some other formats of Pillow's run
# programs, and a name says nothing of what a file is.
_FORMATS = ('JPEG', 'PNG', 'PPM', 'BMP', 'TIFF', 'WEBP')


@DATASETS.register_module()
class ImageFolderDataset(datasets.ImageFolder):
    """torchvision's ``ImageFolder`` for mmengine's runner.

    Classes are the folders of ``data_root`` in alphabetical order; ImageNet
    lies on disk like this. Collate with mmengine's ``default_collate``.

    Args:
        data_root: Folder that holds one folder per class.
        pipeline: Configs of transforms, each a class of
            ``torchvision.transforms.v2`` by its name as ``type``, and its
            keywords. All images must leave it in one size.
        num_classes: How many classes there have to be, so that a class
            that is missing in one split does not shift the others' labels;
            ``None`` takes what is there.

    Item:
        A dict with ``inputs``, (3, H, W) uint8, RGB, and ``data_samples``,
        the class's number.

    Raises:
        ValueError: For a transform that torchvision does not have, or whose
            arguments it does not take, and for another number of classes.
        FileNotFoundError: If there is no such folder, no class in it, or a
            class without images.
    """

    def __init__(
        self,
        data_root: str,
        pipeline: Sequence[dict] = (),
        num_classes: int | None = None,
    ) -> None:
        transforms = [_transform(cfg) for cfg in pipeline]
        if not Path(data_root).is_dir():
            raise FileNotFoundError(
                f'data_root={data_root!r} is no folder (the data folder is '
                'the environment variable SURGE_DATA_ROOT)'
            )
        super().__init__(
            data_root,
            v2.Compose([*transforms, v2.PILToTensor()]),
            loader=_load,
        )
        if num_classes is not None and len(self.classes) != num_classes:
            raise ValueError(
                f'{data_root} has {len(self.classes)} class folders '
                f'({", ".join(self.classes[:3])}, ...); num_classes='
                f'{num_classes}'
            )

    @property
    def metainfo(self) -> dict:
        """What the runner tells the metrics: ``classes``, the names."""
        return dict(classes=tuple(self.classes))

    def __getitem__(self, index: int) -> dict[str, torch.Tensor | int]:
        """Load and transform one image; see the class."""
        image, label = super().__getitem__(index)
        return dict(inputs=image, data_samples=label)


def _load(path: str) -> Image.Image:
    try:
        with Image.open(path, formats=_FORMATS) as image:
            return image.convert('RGB')
    # Plugins raise errors of many types for broken files.
    except Exception as error:
        raise ValueError(
            f'{path} cannot be read as an image of {", ".join(_FORMATS)}: '
            f'{error}'
        ) from error


def _transform(cfg: dict) -> v2.Transform:
    cfg = dict(cfg)
    name = cfg.pop('type', None)
    cls = getattr(v2, name, None) if isinstance(name, str) else None
    if not (isinstance(cls, type) and issubclass(cls, v2.Transform)):
        raise ValueError(
            f'pipeline: type={name!r} is not allowed: a transform of '
            'torchvision.transforms.v2, by its name'
        )
    try:
        return cls(**cfg)
    except TypeError as error:
        raise ValueError(f'pipeline: {name}: {error}') from error
