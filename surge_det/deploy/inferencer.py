"""mmdet's inferencer for every file that holds a detector."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from mmcv.ops import nms
from mmdet import apis
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import get_box_tensor
from mmengine.config import Config
from torch import Tensor, nn

from surge_det.datasets.root import test_datasets, test_pipeline
from surge_det.deploy.formats import format_of
from surge_det.deploy.loading import load_detector
from surge_det.deploy.stored_config import bounded

# Boxes that overlap more are those of one object in pictures, as for the NMS
# of two-stage heads among boxes of one class.
_ONE_OBJECT = 0.5


def surest(boxes: Tensor, scores: Tensor) -> Tensor:
    """Return the places of boxes without a surer one over the same object.

    A detector's own NMS keeps boxes of different classes over one another.

    Args:
        boxes: (N, 4), XYXY in pixels.
        scores: (N,).

    Returns:
        (M,) int64, the surest first.
    """
    # mmcv's compiled op reads float32 only.
    boxes, scores = (x.float().contiguous() for x in (boxes, scores))
    return nms(boxes, scores, _ONE_OBJECT)[1]


def _for_a_picture(sample: DetDataSample) -> DetDataSample:
    found = sample.get('pred_instances', {})
    if 'bboxes' not in found or 'scores' not in found or not len(found):
        return sample
    boxes = get_box_tensor(found.bboxes)
    if boxes.shape[-1] != 4:  # rotated
        return sample
    drawn = sample.clone()
    drawn.pred_instances = found[surest(boxes, found.scores)]
    return drawn


class DetInferencer(apis.DetInferencer):
    """mmdet's ``DetInferencer`` that takes all exported files.

    Called as mmdet's::

        inferencer = DetInferencer(weights='detector.safetensors')
        inferencer('image.jpg', out_dir='out')['predictions']

    Pictures have the surest of boxes over one object only; predictions have
    all of them. ``drawn`` has, after a call, what the pictures of the last
    batch are of: a list of ``DetDataSample``, as far as scores allow.

    Args:
        model: Config, its file or its name in mmdet; by default what
            ``weights`` hold.
        weights: What :func:`~.loading.load_detector` reads: a checkpoint, a
            packed file (``.safetensors``), an ONNX file (``.onnx``) or an
            OpenVINO model (``.xml``).
        device: By default mmengine's choice; the CPU for ONNX and OpenVINO.
        kwargs: ``scope``, ``palette`` and ``show_progress``, as mmdet's.

    Raises:
        ValueError: As :func:`~.loading.load_detector`, like other errors.
    """

    def __init__(
        self,
        model: Any = None,
        weights: str | Path | None = None,
        device: str | None = None,
        **kwargs: Any,
    ) -> None:
        self._loaded = None
        if weights is not None:
            weights = str(weights)
            if device is None and format_of(weights).cpu_only:
                device = 'cpu'
            if model is None:
                self._loaded = load_detector(weights, device=device or 'cpu')
                model = self._loaded.cfg
                if not test_pipeline(model):
                    raise ValueError(
                        f'{weights}: its config has no test pipeline; give '
                        'your own config beside it'
                    )
        building = nullcontext()
        if self._loaded is not None:
            building = bounded(weights, None)
        with building:
            super().__init__(model, weights, device, **kwargs)

    def _init_model(
        self, cfg: Any, weights: str | None, device: str = 'cpu'
    ) -> nn.Module:
        model = self._loaded
        if model is None:
            # Names and addresses are mmdet's affair.
            if weights is None or '://' in weights:
                return super()._init_model(cfg, weights, device)
            model = load_detector(weights, Config(cfg.to_dict()), device)
        if self.palette != 'none':
            model.dataset_meta['palette'] = self.palette
        return model.to(device)

    def _init_pipeline(self, cfg: Any) -> Any:
        cfg = copy.deepcopy(cfg)
        # mmdet does not look into wrappers here.
        if datasets := test_datasets(cfg):
            cfg.test_dataloader.dataset = datasets[0]
        return super()._init_pipeline(cfg)

    def visualize(
        self, inputs: Any, preds: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """Draw as mmdet's does, but one box over one object."""
        self.drawn = [_for_a_picture(sample) for sample in preds]
        return super().visualize(inputs, self.drawn, *args, **kwargs)
