"""What a detector computes of a batch, for losses between two of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from mmengine.config import ConfigDict
from torch import Tensor, nn


@dataclass
class Seen:
    """What one detector computed.

    Attributes:
        head: As :func:`head_of` says.
        sizes: Of the batch's images after preprocessing, each (H, W).
        shape: (H, W) of the padded batch.
        features: Of the neck (or backbone), finest first, each (N, C, H, W).
        dense: What ``head`` returned: scores and deltas of each level, each
            (N, A·K, H, W), and what else it emits.
        rois: (R, 5), of the second stage: the image's index, then a box in
            pixels; ``None`` without.
        roi: Scores (R, classes + 1) and deltas (R, 4 or 4·classes) of the
            second stage; ``None`` without.
        roi_head: The module that returned ``roi``.
    """

    head: nn.Module | None
    sizes: Sequence[tuple[int, int]] = ()
    shape: tuple[int, int] = (0, 0)
    features: Sequence[Tensor] = ()
    dense: Sequence[Sequence[Tensor]] | None = None
    rois: Tensor | None = None
    roi: tuple[Tensor, Tensor] | None = None
    roi_head: nn.Module | None = None

    @torch.no_grad()
    def proposals(self, score: float, iou: float) -> list[Tensor]:
        """Return what ``head`` takes for objects, each (boxes, 4), in pixels.

        Args:
            score: The least score.
            iou: Of two that overlap more, the one with the lower score is
                left out.
        """
        cfg = ConfigDict(
            nms_pre=200,
            score_thr=score,
            min_bbox_size=0,
            max_per_img=100,
            nms=dict(type='nms', iou_threshold=iou),
        )
        found = self.head.predict_by_feat(
            *self.dense,
            batch_img_metas=[{'img_shape': size} for size in self.sizes],
            cfg=cfg,
            rescale=False,
        )
        return [each.bboxes[each.scores > score] for each in found]


def head_of(model: nn.Module) -> nn.Module | None:
    """Return a detector's RPN or one-stage head, if it has anchors or points.

    What heads with queries emit has no order that two detectors share.
    """
    for name in ('rpn_head', 'bbox_head'):
        head = getattr(model, name, None)
        if hasattr(head, 'prior_generator'):
            return head
    return None


def second_stage(model: nn.Module) -> tuple[nn.Module, nn.Module] | None:
    """Return extractor and head of a second stage that is a single one."""
    roi_head = getattr(model, 'roi_head', None)
    parts = [
        getattr(roi_head, name, None)
        for name in ('bbox_roi_extractor', 'bbox_head')
    ]
    # A cascade has lists of them.
    if any(p is None or isinstance(p, nn.ModuleList) for p in parts):
        return None
    return tuple(parts)


@contextmanager
def watch(model: nn.Module) -> Iterator[Seen]:
    """See what a detector computes as long as the context lasts."""
    seen = Seen(head_of(model))

    def features(module: nn.Module, args: tuple, output: Sequence) -> None:
        seen.features = list(output)

    def dense(module: nn.Module, args: tuple, output: Sequence) -> None:
        seen.dense = output

    def rois(module: nn.Module, args: tuple) -> None:
        seen.rois = args[1]

    def roi(module: nn.Module, args: tuple, output: Sequence) -> None:
        seen.roi, seen.roi_head = tuple(output), module

    with ExitStack() as stack:

        def add(handle) -> None:
            stack.callback(handle.remove)

        neck = getattr(model, 'neck', None) or model.backbone
        add(neck.register_forward_hook(features))
        if seen.head is not None:
            add(seen.head.register_forward_hook(dense))
        if (second := second_stage(model)) is not None:
            add(second[0].register_forward_pre_hook(rois))
            add(second[1].register_forward_hook(roi))
        yield seen
