"""Several processes that compute together.

They are forked from one that has imported what they need: a new Python
process takes seconds for that.
"""

import multiprocessing

import pytest
import torch.distributed as dist
import torch.multiprocessing as mp

# A module that is not installed is passed over.
multiprocessing.set_forkserver_preload(
    ['torch.distributed', 'surge_det.engine']
)

needs_gloo = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()),
    reason='needs the gloo backend',
)


def run_processes(work, folder, world=2):
    """Run `work(rank, world, folder)` in each process of a group."""
    mp.start_processes(
        _in_group,
        (work, world, str(folder)),
        nprocs=world,
        start_method='forkserver',
    )


def _in_group(rank, work, world, folder):
    # A thread each: more would wait for one another.
    import torch

    torch.set_num_threads(1)
    dist.init_process_group(
        'gloo', f'file://{folder}/store', rank=rank, world_size=world
    )
    work(rank, world, folder)
    dist.destroy_process_group()
