"""Say whether this environment is fit to train in.

Prints one table (what is installed, whether it imports, where mmcv's ops
come from, which devices there are) and a remedy for each problem. The exit
status is 0 where training with the toolbox works and 1 where it does not.
"""

from __future__ import annotations

import argparse
import importlib
import platform
import re
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from importlib import metadata
from importlib.util import find_spec
from typing import NamedTuple

from surge_det.cli.tables import print_table
from surge_det.compat import mmcv_ops
from surge_det.compat.registration import LOCATIONS
from surge_det.version import __version__

OK, PROBLEM, ABSENT = 'ok', 'problem', 'absent'

_FLAVOURS = {
    'mmdet': {
        'mmengine': ('mmengine', 'mmengine-lite'),
        'mmcv': ('mmcv', 'mmcv-lite', 'mmcv-full'),
        'mmdet': ('mmdet',),
    },
    'onedl': {
        'mmengine': ('onedl-mmengine',),
        'mmcv': ('onedl-mmcv',),
        'mmdet': ('onedl-mmdetection',),
    },
}
_OPTIONAL = (
    *('safetensors', 'openvino', 'onnx', 'onnxruntime', 'surge_runtime'),
    'mambapy',
)
_OPENCV = (
    'opencv-python',
    'opencv-python-headless',
    'opencv-contrib-python',
    'opencv-contrib-python-headless',
)
_INSTALL_TOOLBOX = (
    'pip install "surge_det[mmdet]" or pip install "surge_det[onedl]"'
)


class Row(NamedTuple):
    """One line of the table.

    Attributes:
        item: What was looked at.
        found: Version or description, ``'-'`` where there is nothing.
        status: ``'ok'``, ``'problem'`` or ``'absent'``.
        remedy: What to do; empty where nothing needs doing. An ``absent``
            row with a remedy is needed for training.
    """

    item: str
    found: str
    status: str = OK
    remedy: str = ''


def collect() -> list[Row]:
    """Look at the environment, without ever raising; the table's rows."""
    return [
        _row('python', platform.python_version(), _python_problem()),
        Row('surge_det', __version__),
        _package('torch', 'pip install "torch>=2.4"', check=_torch_problem),
        _package(
            'torchvision',
            'pip install torchvision (the release made for your torch)',
            check=_torchvision_problem,
        ),
        _package('numpy', 'pip install numpy'),
        _package('rich', 'pip install rich'),
        _package('opencv', 'pip install opencv-python', 'cv2', _OPENCV),
        _setuptools(),
        *(
            _package(
                name,
                _INSTALL_TOOLBOX,
                'mmengine.runner' if name == 'mmengine' else name,
                [d for flavour in _FLAVOURS.values() for d in flavour[name]],
                _several_problem,
            )
            for name in ('mmengine', 'mmcv', 'mmdet')
        ),
        _package('pycocotools', 'pip install pycocotools', 'pycocotools.mask'),
        *map(_optional, _OPTIONAL),
        _flavour(),
        _mmcv_ops(),
        _registration(),
        *_devices(),
    ]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments: it has none."""


def run(args: argparse.Namespace) -> int:
    """Print the table; status 1 where something needs doing."""
    rows = collect()
    cells = [row[:3] for row in rows]
    if find_spec('rich') is None:
        print(*map('  '.join, cells), sep='\n')
    else:
        print_table(('item', 'found', 'status'), cells, left=3)
    remedies = [f'- {row.item}: {row.remedy}' for row in rows if row.remedy]
    if remedies:
        print('\nWhat to do:', *remedies, sep='\n')
    return int(bool(remedies))


def _row(item: str, found: str, problem: str) -> Row:
    return Row(item, found, PROBLEM if problem else OK, problem)


def _installed(names: Iterable[str]) -> dict[str, str]:
    versions = {}
    for name in names:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def _import_error(module: str) -> str:
    """Why a module cannot be imported, in one line; empty if it can."""
    try:
        importlib.import_module(module)
    except Exception as error:
        # A broken package raises anything: a missing shared library, an
        # assertion on a version, an attribute that NumPy dropped.
        text = ' '.join(str(error).split())
        return f'{type(error).__name__}: {text}'
    return ''


def _numbers(version: str) -> tuple[int, ...]:
    """First two numbers of a version, as far as it has them."""
    return tuple(int(n) for n in re.findall(r'\d+', version)[:2])


def _package(
    item: str,
    remedy: str,
    module: str = '',
    distributions: Iterable[str] = (),
    check: Callable[[dict[str, str]], str] = lambda versions: '',
) -> Row:
    """Look at a package.

    Args:
        item: What the table calls it.
        remedy: How to install it.
        module: What to import; by default the item.
        distributions: Under which names it may be installed.
        check: Returns what is wrong with the versions that are installed.
    """
    module = module or item
    versions = _installed(distributions or [item])
    if not versions and find_spec(module.partition('.')[0]) is None:
        return Row(item, '-', ABSENT, remedy)
    found = ', '.join(
        version if name == item else f'{version} ({name})'
        for name, version in versions.items()
    )
    problem = check(versions)
    error = '' if problem else _import_error(module)
    if error:
        problem = f'importing {module} fails ({error}). ' + _import_remedy(
            error, remedy
        )
    return _row(item, found or 'unknown version', problem)


def _import_remedy(error: str, remedy: str) -> str:
    if 'pkg_resources' in error:
        return 'pip install "setuptools<81"'
    needed = re.search(
        r'install (mmcv|mmengine)(>=[\w.]+), ?(<[\w.]*\w)', error
    )
    if needed:
        package = 'mmcv-lite' if needed[1] == 'mmcv' else needed[1]
        return f'pip install "{package}{needed[2]},{needed[3]}"'
    return f'Mend what it names, or reinstall it: {remedy}'


def _torch_problem(versions: dict[str, str]) -> str:
    if _numbers(versions.get('torch', '2.4')) < (2, 4):
        return 'pip install "torch>=2.4" with the torchvision made for it'
    return ''


def _torchvision_problem(versions: dict[str, str]) -> str:
    torch = _installed(['torch']).get('torch')
    if not torch or not versions:
        return ''
    # torchvision 0.(n + 15) belongs to torch 2.n.
    major, minor = _numbers(torch)
    wanted = (0, minor + 15)
    if major == 2 and _numbers(versions['torchvision']) != wanted:
        return (
            f'it does not belong to torch {torch}: pip install '
            f'"torchvision==0.{wanted[1]}.*"'
        )
    return ''


def _several_problem(versions: dict[str, str]) -> str:
    if len(versions) < 2:
        return ''
    return (
        f'{" and ".join(versions)} install the same files: pip uninstall -y '
        f'{" ".join(versions)}, then {_INSTALL_TOOLBOX}'
    )


def _optional(name: str) -> Row:
    """Say what is there of what training does without; nothing is imported."""
    version = _installed((name,)).get(name)
    return Row(name, version or '- (optional)', OK if version else ABSENT)


def _python_problem() -> str:
    if (3, 10) <= sys.version_info[:2] <= (3, 12):
        return ''
    return 'use Python 3.10, 3.11 or 3.12'


def _setuptools() -> Row:
    item = 'setuptools (pkg_resources)'
    version = _installed(('setuptools',)).get('setuptools')
    status, remedy = OK if version else ABSENT, ''
    # The fork reads importlib.metadata instead.
    if _installed(_FLAVOURS['mmdet']['mmengine']) and (
        version is None
        or _numbers(version)[0] >= 81
        or find_spec('pkg_resources') is None
    ):
        remedy = 'pip install "setuptools<81" (mmengine imports pkg_resources)'
        status = PROBLEM if version else ABSENT
    return Row(item, version or '-', status, remedy)


def _flavour() -> Row:
    used = {
        flavour: _installed([d for names in parts.values() for d in names])
        for flavour, parts in _FLAVOURS.items()
    }
    present = [flavour for flavour, found in used.items() if found]
    if len(present) < 2:
        found = ''.join(present)
        return Row('toolbox flavour', found or '-', OK if found else ABSENT)
    everything = ' '.join(d for found in used.values() for d in found)
    return _row(
        'toolbox flavour',
        'mixed: ' + ' and '.join(present),
        'packages of both flavours are installed: '
        f'pip uninstall -y {everything}, then {_INSTALL_TOOLBOX}',
    )


def _mmcv_ops() -> Row:
    item = "mmcv's ops"
    source = mmcv_ops.ops_source()
    if source == mmcv_ops.ABSENT:
        return Row(item, '-', ABSENT)
    problem = ''
    if source == mmcv_ops.MISSING:
        problem = 'pip install torchvision, or an mmcv with compiled ops'
    elif error := _import_error('mmcv.ops'):
        problem = f'importing mmcv.ops fails ({error}). ' + (
            'Compiled ops must be built for your torch; without them, '
            'mmcv-lite is enough: pip uninstall -y mmcv && '
            'pip install "mmcv-lite>=2.0.0,<2.2.0"'
            if source == mmcv_ops.COMPILED
            else 'Solve the problems above first'
        )
    return _row(item, source, problem)


def _registration() -> Row:
    item = 'surge_det in mmdet'
    if any(find_spec(n) is None for n in ('mmengine', 'mmcv', 'mmdet')):
        return Row(item, '-', ABSENT)
    for module in dict.fromkeys(LOCATIONS.values()):
        if error := _import_error(module):
            return _row(
                item,
                'not registered',
                f'importing {module} fails ({error}). Solve the problems '
                'above first',
            )
    return Row(item, 'registered')


def _devices() -> list[Row]:
    if _import_error('torch'):
        return [Row('cpu', '-', ABSENT), Row('cuda', '-', ABSENT)]
    import torch

    cpu = Row('cpu', f'{torch.get_num_threads()} threads')
    if not torch.cuda.is_available():
        return [cpu, Row('cuda', '-', ABSENT)]
    return [cpu] + [
        Row(f'cuda:{i}', torch.cuda.get_device_name(i))
        for i in range(torch.cuda.device_count())
    ]
