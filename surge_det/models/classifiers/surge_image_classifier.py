"""A backbone, pooled, with one linear layer."""

from __future__ import annotations

from mmdet.registry import MODELS
from mmengine.model import BaseModel
from torch import Tensor, nn
from torch.nn import functional as F

from surge_det.core import checks


@MODELS.register_module()
class SURGEImageClassifier(BaseModel):
    """Classifier in which a backbone is pretrained.

    The backbone's last output, averaged over all places, goes through one
    real linear layer. A detector takes the trained backbone by
    ``init_cfg=dict(type='Pretrained', checkpoint=..., prefix='backbone.')``.

    Args:
        backbone: Config of the backbone; its last output is used.
        num_classes: K, at least 2.
        in_channels: C, of the backbone's last output.
        label_smooth: Share of the target that is spread over all classes,
            in [0, 1).
        data_preprocessor: As in mmengine; ``ImgDataPreprocessor`` serves.
        init_cfg: Initialization, as in mmengine.

    Shape:
        - Input: (N, 3, H, W), what ``data_preprocessor`` makes of images.
        - Output: logits, (N, K).

    Raises:
        ValueError: If ``num_classes``, ``in_channels`` or ``label_smooth``
            is not allowed.
    """

    def __init__(
        self,
        backbone: dict,
        num_classes: int,
        in_channels: int,
        label_smooth: float = 0.0,
        data_preprocessor: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        checks.integer('num_classes', num_classes, 2)
        checks.integer('in_channels', in_channels, 1)
        checks.number('label_smooth', label_smooth, low=0)
        if label_smooth >= 1:
            checks.refuse('label_smooth', label_smooth, 'a number < 1')
        super().__init__(data_preprocessor, init_cfg)
        self.backbone = MODELS.build(backbone)
        self.fc = nn.Linear(in_channels, num_classes)
        self.label_smooth = label_smooth

    def forward(
        self,
        inputs: Tensor,
        data_samples: Tensor | None = None,
        mode: str = 'tensor',
    ) -> Tensor | dict[str, Tensor] | list[dict[str, Tensor]]:
        """Compute logits, the loss or predictions.

        Args:
            inputs: (N, 3, H, W).
            data_samples: Labels, (N,) int64; not needed for ``'tensor'``.
            mode: ``'tensor'``, ``'loss'`` or ``'predict'``, as in mmengine.

        Returns:
            For ``'tensor'`` logits, (N, K); for ``'loss'`` a dict with
            ``loss``, a scalar; for ``'predict'`` one dict per image with
            ``scores``, the logits (K,), and ``label``, a scalar, if
            ``data_samples`` are given, both on the CPU.

        Raises:
            ValueError: For another mode, or labels that are missing.
        """
        checks.one_of('mode', mode, ('tensor', 'loss', 'predict'))
        x = self.backbone(inputs)[-1]
        logits = self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))
        if mode == 'tensor':
            return logits
        if mode == 'loss':
            if data_samples is None:
                raise ValueError("mode='loss' needs labels as data_samples")
            loss = F.cross_entropy(
                logits, data_samples, label_smoothing=self.label_smooth
            )
            return dict(loss=loss)
        # One transfer for the batch; a metric reads image by image.
        results = [dict(scores=scores) for scores in logits.cpu()]
        if data_samples is not None:
            for result, label in zip(results, data_samples.cpu()):
                result['label'] = label
        return results
