"""Validation with several processes, of the network that is saved."""

from __future__ import annotations

from mmengine.dist import broadcast
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner


@HOOKS.register_module()
class BroadcastBuffersHook(Hook):
    """Gives every process the buffers of the first before validation.

    BatchNorm's running statistics are buffers. Each process has its own, from
    its own images, and the first one's are saved; without this hook the others
    validate with theirs, and the mAP is of no checkpoint. mmengine's
    ``SyncBuffersHook`` averages them, which changes what is saved, and leaves
    out those of an EMA model. With one process it does nothing.
    """

    # After EMAHook (NORMAL) has put the averaged model in place.
    priority = 'BELOW_NORMAL'

    def before_val_epoch(self, runner: Runner) -> None:
        """Send the buffers."""
        for buffer in runner.model.buffers():
            broadcast(buffer)
