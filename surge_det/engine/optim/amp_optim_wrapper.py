"""Automatic mixed precision on every device."""

from __future__ import annotations

import torch
from mmengine.device import get_device
from mmengine.optim import AmpOptimWrapper, OptimWrapper

from surge_det.core import checks


class AnyDeviceAmpOptimWrapper(AmpOptimWrapper):
    """mmengine's ``AmpOptimWrapper``, which asserts an accelerator.

    On CPU autocast is in bfloat16, and there is no loss scale: bfloat16 has
    float32's range.

    Args:
        loss_scale: As in ``AmpOptimWrapper``; has no effect on CPU.
        dtype: As in ``AmpOptimWrapper``; on CPU ``'bfloat16'`` or ``None``.
        use_fsdp: As in ``AmpOptimWrapper``; has no effect on CPU.
        **kwargs: Arguments of ``OptimWrapper``.

    Raises:
        ValueError: If training runs on CPU and ``dtype`` is another.
    """

    def __init__(
        self,
        loss_scale: float | str | dict = 'dynamic',
        dtype: str | torch.dtype | None = None,
        use_fsdp: bool = False,
        **kwargs,
    ) -> None:
        if get_device() != 'cpu':
            super().__init__(loss_scale, dtype, use_fsdp, **kwargs)
            return
        if dtype not in (None, 'bfloat16', torch.bfloat16):
            checks.refuse('dtype', dtype, "on CPU 'bfloat16' or None")
        OptimWrapper.__init__(self, **kwargs)
        self.loss_scaler = torch.amp.GradScaler('cpu', enabled=False)
        self._scale_update_param = None
        self.cast_dtype = torch.bfloat16

    def state_dict(self) -> dict:
        """As the base class does, without the state of no loss scale."""
        state = super().state_dict()
        # An enabled scaler that resumes would refuse the empty state.
        if not state['loss_scaler']:
            del state['loss_scaler']
        return state
