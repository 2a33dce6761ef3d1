"""Several processes of a training, one of which fails."""

import subprocess
import sys
import time

import pytest
from command_line import ROOT, environment
from processes import needs_gloo

pytest.importorskip('mmdet', reason='needs the toolbox')

from surge_det.datasets.shapes import prepare_shapes

CONFIG = """
_base_ = ['{root}/configs/surge_faster_rcnn_r18_demo.py']
custom_imports = dict(imports=['surge_det', 'failing'])
custom_hooks = [dict(type='Failing', way='{way}')]
train_dataloader = dict(
    batch_size=1, num_workers=0, persistent_workers=False)
"""
HOOK = """
import os, signal, time
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

@HOOKS.register_module()
class Failing(Hook):
    def __init__(self, way):
        self.way = way

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if batch_idx == 1 and get_rank() == 1:
            print('failed at', time.time(), flush=True)
            if self.way == 'killed':
                os.kill(os.getpid(), signal.SIGKILL)
            raise RuntimeError('no image is left')
"""


@needs_gloo
@pytest.mark.parametrize(
    ('way', 'said'),
    [
        ('raises', ['RuntimeError: no image is left', 'exitcode  : 1']),
        ('killed', ['exitcode  : -9', 'Signal 9 (SIGKILL) received']),
    ],
)
def test_a_process_that_fails_ends_the_job(tmp_path, way, said):
    prepare_shapes(tmp_path, 8, 5, 0)
    (tmp_path / 'failing.py').write_text(HOOK)
    config = tmp_path / 'failing_cfg.py'
    config.write_text(CONFIG.format(root=ROOT.as_posix(), way=way))
    env = environment(tmp_path)
    env['PYTHONPATH'] += f':{tmp_path}'
    result = subprocess.run(
        [
            *(sys.executable, '-m', 'torch.distributed.run'),
            *('--nproc_per_node', '2', '--standalone'),
            *(ROOT / 'tools' / 'train.py', config, '--launcher', 'pytorch'),
            *('--work-dir', tmp_path / 'work'),
        ],
        cwd=tmp_path,
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=300,
    )
    ended = time.time()
    assert result.returncode != 0
    for text in (*said, 'local_rank: 1'):
        assert text in result.stdout, result.stdout[-4000:]
    (failed,) = (
        float(line.split()[-1])
        for line in result.stdout.splitlines()
        if line.startswith('failed at')
    )
    assert ended - failed < 60
