"""Which builds of torch `make install` asks for; pip only notes it."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Makes the environment, which holds another of its kind.
PYTHON = """#!/bin/sh
echo "$@" >> {calls}
case "$*" in
*venv*) mkdir -p {venv}/bin; cp "$0" {venv}/bin/python;;
*+cpu*) exit {status};;
esac
"""
UNAME = """#!/bin/sh
case "$*" in ''|-s) echo {0};; -m) echo {1};; *) echo {0} {1};; esac
"""

pytestmark = pytest.mark.skipif(
    not shutil.which('make') or not (ROOT / 'Makefile').is_file(),
    reason='needs make and the sources',
)


def _install(folder, system, processor, gpu=False, status=0):
    """Return the lines that pip was called with, and what was printed."""
    tools, venv, calls = folder / 'bin', folder / 'venv', folder / 'calls'
    tools.mkdir()
    scripts = {
        'uname': UNAME.format(system, processor),
        'python': PYTHON.format(calls=calls, venv=venv, status=status),
    }
    if gpu:
        scripts['nvidia-smi'] = '#!/bin/sh\n'
    for name, text in scripts.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    for name in ('cp', 'make', 'mkdir', 'sed', 'touch'):
        (tools / name).symlink_to(shutil.which(name))
    command = ['make', f'VENV={venv}', f'PYTHON={tools}/python']
    done = subprocess.run(
        [*command, f'{venv}/.installed'],
        cwd=ROOT,
        env=dict(os.environ, PATH=str(tools), MAKEFLAGS=''),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (venv / '.installed').is_file()
    lines = calls.read_text().splitlines()
    assert '-m pip install -r requirements/mmdet.txt' in lines
    return [line for line in lines if '+cpu' in line], done.stdout


@pytest.mark.parametrize('processor', ['x86_64', 'aarch64'])
def test_linux_without_a_gpu_takes_the_cpu_builds(tmp_path, processor):
    (line,), printed = _install(tmp_path, 'Linux', processor)
    assert 'torch==' in line
    assert 'torchvision==' in line
    assert 'note:' not in printed


def test_index_without_cpu_builds_ends_no_install(tmp_path):
    lines, printed = _install(tmp_path, 'Linux', 'x86_64', status=1)
    assert len(lines) == 1
    assert 'note: no CPU build of torch' in printed


@pytest.mark.parametrize(
    ('system', 'gpu'), [('Linux', True), ('Darwin', False)]
)
def test_usual_build_elsewhere(tmp_path, system, gpu):
    lines, printed = _install(tmp_path, system, 'arm64', gpu)
    assert lines == []
    assert 'note:' not in printed
