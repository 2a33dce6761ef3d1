"""Runs surge_runtime for 64-bit ARM on another machine, with qemu."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import ROOT


def root():
    """Folder that aarch64_root.sh made; skips where qemu or it is absent."""
    if not shutil.which('qemu-aarch64-static'):
        pytest.skip('qemu-user-static is missing')
    if 'SURGE_AARCH64_ROOT' not in os.environ:
        pytest.skip(
            'SURGE_AARCH64_ROOT is not set: what '
            'tests/helpers/aarch64_root.sh made'
        )
    return Path(os.environ['SURGE_AARCH64_ROOT'])


def build_wheel(folder):
    """Build the wheel for aarch64, from a copy; return its path."""
    source = folder / 'source'
    ignored = shutil.ignore_patterns('build', '*.egg-info', '*.so')
    shutil.copytree(ROOT / 'runtime', source, ignore=ignored)
    pip = [sys.executable, '-m', 'pip', 'wheel', '--quiet', '--no-deps']
    pip += ['--no-build-isolation', '--wheel-dir', folder, source]
    subprocess.run(
        pip, env=dict(os.environ, SURGE_TARGET='aarch64'), check=True
    )
    return next(folder.glob('*.whl'))


def python(root, package, *arguments):
    """Run Python of a root, on the class of processor that NEON is for."""
    return subprocess.check_output(
        [
            *('qemu-aarch64-static', '-cpu', 'cortex-a72'),
            *('-L', root / 'root'),
            *('-E', f'PYTHONHOME={root / "root/usr"}'),
            *('-E', f'PYTHONPATH={package}:{root / "site"}'),
            root / 'root/usr/bin/python3.11',
            *arguments,
        ],
        text=True,
    )
