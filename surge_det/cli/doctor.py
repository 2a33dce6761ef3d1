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
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec

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
_OPENCV = (
    'opencv-python',
    'opencv-python-headless',
    'opencv-contrib-python',
    'opencv-contrib-python-headless',
)
_INSTALL_TOOLBOX = 'pip install -e ".[mmdet]" or pip install -e ".[onedl]"'


@dataclass(frozen=True)
class Row:
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
    """Look at the environment, without ever raising.

    Returns:
        list[Row]: The table from top to bottom.
    """
    return [
        _python(),
        Row('surge_det', __version__),
        _torch(),
        _torchvision(),
        _package('numpy', ('numpy',), 'numpy', 'pip install numpy'),
        _package('opencv', _OPENCV, 'cv2', 'pip install opencv-python'),
        _setuptools(),
        *(_toolbox_package(name) for name in ('mmengine', 'mmcv', 'mmdet')),
        _package(
            'pycocotools',
            ('pycocotools',),
            'pycocotools.mask',
            'pip install pycocotools',
        ),
        *(_optional(n) for n in ('safetensors', 'openvino', 'mambapy')),
        _flavour(),
        _mmcv_ops(),
        _registration(),
        _cpu(),
        *_cuda(),
    ]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments: it has none."""


def run(args: argparse.Namespace) -> int:
    """Print the table; status 1 where something needs doing."""
    rows = collect()
    print_table(
        ('item', 'found', 'status'),
        [(row.item, row.found, row.status) for row in rows],
        left=3,
    )
    remedies = [f'- {row.item}: {row.remedy}' for row in rows if row.remedy]
    if remedies:
        print('\nWhat to do:', *remedies, sep='\n')
    return int(bool(remedies))


def _installed(names) -> dict[str, str]:
    versions = {}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
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


def _package(item, distributions, module, remedy) -> Row:
    versions = _installed(distributions)
    found = ', '.join(
        version if name == item else f'{version} ({name})'
        for name, version in versions.items()
    )
    if not versions and find_spec(module.partition('.')[0]) is None:
        return Row(item, '-', ABSENT, remedy)
    error = _import_error(module)
    if error:
        return Row(
            item,
            found or 'unknown version',
            PROBLEM,
            f'importing {module} fails ({error}). Reinstall it: {remedy}',
        )
    return Row(item, found or 'unknown version')


def _optional(name: str) -> Row:
    """Say what is there of what training does without; nothing is imported."""
    version = _installed((name,)).get(name)
    return Row(name, version or '- (optional)', OK if version else ABSENT)


def _python() -> Row:
    version = platform.python_version()
    if (3, 10) <= sys.version_info[:2] <= (3, 12):
        return Row('python', version)
    return Row('python', version, PROBLEM, 'use Python 3.10, 3.11 or 3.12')


def _torch() -> Row:
    row = _package('torch', ('torch',), 'torch', 'pip install "torch>=2.4"')
    if row.status == OK and _numbers(row.found) < (2, 4):
        return Row(
            'torch',
            row.found,
            PROBLEM,
            'pip install "torch>=2.4" with the torchvision made for it',
        )
    return row


def _torchvision() -> Row:
    remedy = 'pip install torchvision (the release made for your torch)'
    row = _package('torchvision', ('torchvision',), 'torchvision', remedy)
    if row.status != OK:
        return row
    versions = _installed(('torch', 'torchvision'))
    if len(versions) < 2:
        return row
    torch, torchvision = map(
        _numbers, (versions['torch'], versions['torchvision'])
    )
    # torchvision 0.(n + 15) belongs to torch 2.n.
    if torch[0] == 2 and torchvision != (0, torch[1] + 15):
        return Row(
            'torchvision',
            row.found,
            PROBLEM,
            f'it does not belong to torch {versions["torch"]}: '
            f'pip install "torchvision==0.{torch[1] + 15}.*"',
        )
    return row


def _setuptools() -> Row:
    item = 'setuptools (pkg_resources)'
    version = _installed(('setuptools',)).get('setuptools')
    if not _installed(_FLAVOURS['mmdet']['mmengine']):
        # The fork reads importlib.metadata instead.
        return Row(item, version or '-', OK if version else ABSENT)
    remedy = 'pip install "setuptools<81" (mmengine imports pkg_resources)'
    if version is None:
        return Row(item, '-', ABSENT, remedy)
    if _numbers(version)[0] >= 81 or find_spec('pkg_resources') is None:
        return Row(item, version, PROBLEM, remedy)
    return Row(item, version)


def _toolbox_package(name: str) -> Row:
    distributions = [d for f in _FLAVOURS.values() for d in f[name]]
    versions = _installed(distributions)
    found = ', '.join(f'{v} ({d})' for d, v in versions.items())
    if not versions and find_spec(name) is None:
        return Row(name, '-', ABSENT, _INSTALL_TOOLBOX)
    found = found or 'unknown version'
    if len(versions) > 1:
        return Row(
            name,
            found,
            PROBLEM,
            f'{" and ".join(versions)} install the same files: '
            f'pip uninstall -y {" ".join(versions)}, then '
            f'{_INSTALL_TOOLBOX}',
        )
    module = 'mmengine.runner' if name == 'mmengine' else name
    error = _import_error(module)
    if not error:
        return Row(name, found)
    return Row(
        name,
        found,
        PROBLEM,
        f'importing {module} fails ({error}). {_import_remedy(name, error)}',
    )


def _import_remedy(name: str, error: str) -> str:
    if 'pkg_resources' in error:
        return 'pip install "setuptools<81"'
    needed = re.search(
        r'install (mmcv|mmengine)(>=[\w.]+), ?(<[\w.]*\w)', error
    )
    if needed:
        package = 'mmcv-lite' if needed[1] == 'mmcv' else needed[1]
        return f'pip install "{package}{needed[2]},{needed[3]}"'
    return f'Mend what it names, or reinstall {name}: {_INSTALL_TOOLBOX}'


def _flavour() -> Row:
    used = {
        flavour: _installed([d for names in parts.values() for d in names])
        for flavour, parts in _FLAVOURS.items()
    }
    present = [flavour for flavour, found in used.items() if found]
    if not present:
        return Row('toolbox flavour', '-', ABSENT)
    if len(present) == 1:
        return Row('toolbox flavour', present[0])
    everything = ' '.join(d for found in used.values() for d in found)
    return Row(
        'toolbox flavour',
        'mixed: ' + ' and '.join(present),
        PROBLEM,
        'packages of both flavours are installed: '
        f'pip uninstall -y {everything}, then {_INSTALL_TOOLBOX}',
    )


def _mmcv_ops() -> Row:
    item = "mmcv's ops"
    source = mmcv_ops.ops_source()
    if source == mmcv_ops.ABSENT:
        return Row(item, '-', ABSENT)
    if source == mmcv_ops.MISSING:
        return Row(
            item,
            source,
            PROBLEM,
            'pip install torchvision, or an mmcv with compiled ops',
        )
    error = _import_error('mmcv.ops')
    if error:
        remedy = 'Solve the problems above first'
        if source == mmcv_ops.COMPILED:
            remedy = (
                'Compiled ops must be built for your torch; without them, '
                'mmcv-lite is enough: pip uninstall -y mmcv && '
                'pip install "mmcv-lite>=2.0.0,<2.2.0"'
            )
        return Row(
            item,
            source,
            PROBLEM,
            f'importing mmcv.ops fails ({error}). {remedy}',
        )
    return Row(item, source)


def _registration() -> Row:
    item = 'surge_det in mmdet'
    if any(find_spec(n) is None for n in ('mmengine', 'mmcv', 'mmdet')):
        return Row(item, '-', ABSENT)
    for module in dict.fromkeys(LOCATIONS.values()):
        error = _import_error(module)
        if error:
            return Row(
                item,
                'not registered',
                PROBLEM,
                f'importing {module} fails ({error}). Solve the problems '
                'above first',
            )
    return Row(item, 'registered')


def _cpu() -> Row:
    if _import_error('torch'):
        return Row('cpu', '-', ABSENT)
    import torch

    return Row('cpu', f'{torch.get_num_threads()} threads')


def _cuda() -> list[Row]:
    if _import_error('torch'):
        return [Row('cuda', '-', ABSENT)]
    import torch

    if not torch.cuda.is_available():
        return [Row('cuda', '-', ABSENT)]
    return [
        Row(f'cuda:{i}', torch.cuda.get_device_name(i))
        for i in range(torch.cuda.device_count())
    ]
