"""mmdet's detector around one that runs alone."""

from __future__ import annotations

from typing import Any

import torch
from mmdet.models.detectors import BaseDetector
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from torch import Tensor


class _Shared:
    """One detector for all copies of a model.

    mmengine's EMAHook copies models; a session cannot be copied.
    """

    def __init__(self, detector: Any) -> None:
        self.detector = detector

    def __deepcopy__(self, memo: dict) -> _Shared:
        return self

    def __call__(self, image: Any) -> Any:
        return self.detector(image)


class WholeDetector(BaseDetector):
    """Hands images as they are to a ``surge_runtime.Detector``.

    Args:
        detector: Takes an image (H, W, 3), blue first.
    """

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.detector = _Shared(detector)
        self.num_classes = len(detector.classes)

    def predict(
        self,
        batch_inputs: list[Tensor],
        batch_data_samples: list[DetDataSample],
        rescale: bool = True,
    ) -> list[DetDataSample]:
        """Detect in images as a pipeline without Resize gives them.

        Args:
            batch_inputs: uint8 (3, H, W) each.
            batch_data_samples: Get ``pred_instances``.
            rescale: Boxes are in the pixels of these images anyway.
        """
        for image, sample in zip(batch_inputs, batch_data_samples):
            pixels = image.permute(1, 2, 0).contiguous().cpu().numpy()
            found = self.detector(pixels)
            sample.pred_instances = InstanceData(
                bboxes=torch.from_numpy(found.boxes),
                scores=torch.from_numpy(found.scores),
                labels=torch.from_numpy(found.labels),
            )
        return batch_data_samples

    def loss(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse: it cannot be trained."""
        raise NotImplementedError('a detector of ONNX cannot be trained')

    extract_feat = _forward = loss
