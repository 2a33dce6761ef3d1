"""Runs the command-line tools as a user does, in processes of their own."""

import functools
import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT = 400


def environment(root):
    # Two workers may start tools/dist_train.sh at the same time.
    with socket.create_server(('127.0.0.1', 0)) as server:
        port = server.getsockname()[1]
    env = dict(
        os.environ,
        PORT=str(port),
        SURGE_DATA_ROOT=str(root),
        OMP_NUM_THREADS='1',
        PYTHONPATH=str(ROOT),
        PYTHON=sys.executable,
    )
    for name in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK'):
        env.pop(name, None)
    return env


def run(*command, root, cwd=ROOT, ok=True):
    result = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env=environment(root),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=TIMEOUT,
    )
    assert (result.returncode == 0) is ok, result.stdout[-4000:]
    return result.stdout


def python(code, *args, **kwargs):
    """Run code in a Python of its own; what it prints."""
    done = subprocess.run(
        [sys.executable, '-c', code, *map(str, args)],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        **kwargs,
    )
    assert done.returncode == 0, done.stdout[-400:] + done.stderr[-4000:]
    return done.stdout


@functools.cache
def warm_python():
    """Start what saves each tool five seconds of imports."""
    return subprocess.Popen(
        [sys.executable, Path(__file__).with_name('warm_python.py')],
        env=environment('data'),
        text=True,
        bufsize=1,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


def tool(name, *args, root, cwd=ROOT, ok=True):
    """Run a script of ``tools/`` with the toolbox imported already."""
    python = warm_python()
    with tempfile.NamedTemporaryFile('r') as out:
        request = dict(
            argv=[str(ROOT / 'tools' / name), *map(str, args)],
            cwd=str(cwd),
            env=environment(root),
            out=out.name,
            timeout=TIMEOUT,
        )
        print(json.dumps(request), file=python.stdin, flush=True)
        status = int(python.stdout.readline())
        output = out.read()
    assert (status == 0) is ok, output[-4000:]
    return output
