"""How often a training step of ours waits for a GPU."""

from collections import Counter

import pytest
import torch
from waits import waits

pytest.importorskip('mmdet', reason='needs the toolbox')

# isort: split
from mmdet.registry import MODELS
from mmdet.testing import demo_mm_inputs
from mmengine.device import get_device
from mmengine.hooks import CheckpointHook
from small_detector import small_config, small_one_stage

from surge_det.engine import AGSOptimWrapper, SURGECheckpointHook
from surge_det.engine.apply_method import apply_method

pytestmark = pytest.mark.skipif(
    get_device() != 'cpu', reason='mmengine trains on the accelerator here'
)
HOOKS = ['AGSHook', 'SURGEProgressHook', 'SURGEFiniteHook', 'SURGESeedHook']
HOOKS += ['BroadcastBuffersHook', 'SURGECheckHook']


def test_hooks_wait_twice_an_iteration_for_numbers_to_be_finite(
    make_model, make_runner
):
    found = {}
    for epochs in (1, 2):
        runner = make_runner(
            make_model(eta='auto'),
            max_epochs=epochs,
            work_dir=f'run{epochs}',
            interval=100,
            custom_hooks=[{'type': name} for name in HOOKS],
        )
        # To save a checkpoint is to wait.
        (stock,) = (h for h in runner.hooks if isinstance(h, CheckpointHook))
        runner.hooks.remove(stock)
        runner.register_hook(SURGECheckpointHook(100, save_last=False))
        with waits() as each:
            runner.train()
        found[epochs] = Counter(each)
    # What an epoch of six iterations adds.
    found[2].subtract(found[1])
    assert {name: n for name, n in found[2].items() if n} == {
        # Gradients before a step, losses after it.
        'finite.py:all_finite': 12,
        # It logs at the end of an epoch.
        'ags_hook.py:_read': 1,
    }


@pytest.mark.parametrize('make', [small_config, small_one_stage])
def test_a_detectors_step_waits_for_nothing_of_ours(make):
    cfg = apply_method(make(), 'surge_auto')
    cfg.model.backbone.pop('init_cfg', None)
    torch.manual_seed(0)
    model = MODELS.build(cfg.model).train()
    wrapper = AGSOptimWrapper(
        optimizer=torch.optim.AdamW(model.parameters(), 1e-4)
    )
    batch = demo_mm_inputs(
        batch_size=1, image_shapes=[(3, 64, 96)], num_items=[4], num_classes=3
    )
    model.train_step(batch, wrapper)
    with waits() as found:
        model.train_step(batch, wrapper)
    # A number is rounded on the CPU, where mmcv has no compiled operators.
    assert set(found) <= {'torchvision_ops.py:_float32'}
