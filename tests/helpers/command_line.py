"""Runs the command-line tools as a user does, in processes of their own."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def run(*command, root, cwd=ROOT, ok=True):
    env = dict(
        os.environ,
        SURGE_DATA_ROOT=str(root),
        OMP_NUM_THREADS='1',
        PYTHONPATH=str(ROOT),
        PYTHON=sys.executable,
    )
    for name in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK'):
        env.pop(name, None)
    result = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=400,
    )
    assert (result.returncode == 0) is ok, result.stdout[-4000:]
    return result.stdout


def tool(name, *args, **kwargs):
    return run(sys.executable, ROOT / 'tools' / name, *args, **kwargs)
