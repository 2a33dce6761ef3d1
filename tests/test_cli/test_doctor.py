import sys
from importlib import metadata
from types import SimpleNamespace

import pytest

from surge_det.cli import doctor
from surge_det.cli.main import main
from surge_det.compat import mmcv_ops

_GOOD = {
    'torch': '2.6.0+cpu',
    'torchvision': '0.21.0+cpu',
    'numpy': '2.1.0',
    'rich': '14.0.0',
    'opencv-python': '4.10.0',
    'setuptools': '80.0.0',
    'mmengine': '0.10.7',
    'mmcv-lite': '2.1.0',
    'mmdet': '3.3.0',
    'pycocotools': '2.0.8',
}
_MODULES = {
    'torch': 'torch',
    'torchvision': 'torchvision',
    'numpy': 'numpy',
    'rich': 'rich',
    'opencv-python': 'cv2',
    'setuptools': 'pkg_resources',
    'mmengine': 'mmengine',
    'onedl-mmengine': 'mmengine',
    'mmcv': 'mmcv',
    'mmcv-lite': 'mmcv',
    'onedl-mmcv': 'mmcv',
    'mmdet': 'mmdet',
    'onedl-mmdetection': 'mmdet',
    'pycocotools': 'pycocotools',
    'openvino': 'openvino',
}


@pytest.fixture
def environment(monkeypatch):
    """Set up a pretended environment and give the rows by item."""

    def pretend(changes=None, errors=None, ops=mmcv_ops.STAND_IN):
        versions = {**_GOOD, **(changes or {})}
        versions = {k: v for k, v in versions.items() if v is not None}
        modules = {_MODULES[name] for name in versions}

        def version(name):
            if name not in versions:
                raise metadata.PackageNotFoundError(name)
            return versions[name]

        def find_spec(name):
            return object() if name in modules else None

        def import_error(name):
            if name.partition('.')[0] not in modules | {'surge_det'}:
                return f"ModuleNotFoundError: No module named '{name}'"
            return (errors or {}).get(name, '')

        monkeypatch.setattr(doctor.metadata, 'version', version)
        monkeypatch.setattr(doctor, 'find_spec', find_spec)
        monkeypatch.setattr(doctor, '_import_error', import_error)
        monkeypatch.setattr(mmcv_ops, 'ops_source', lambda: ops)
        # Any supported interpreter may run the tests.
        monkeypatch.setattr(
            doctor, 'sys', SimpleNamespace(version_info=(3, 11, 0))
        )
        return {row.item: row for row in doctor.collect()}

    return pretend


def _needed(rows):
    return {item for item, row in rows.items() if row.remedy}


def test_good_environment(environment, capsys):
    rows = environment()
    assert _needed(rows) == set()
    assert rows['mmcv'].found == '2.1.0 (mmcv-lite)'
    assert rows['toolbox flavour'].found == 'mmdet'
    assert rows["mmcv's ops"].found == mmcv_ops.STAND_IN
    assert main(['doctor']) == 0
    assert 'What to do' not in capsys.readouterr().out


def test_fork_needs_no_pkg_resources(environment):
    rows = environment(
        {
            'mmengine': None,
            'mmcv-lite': None,
            'mmdet': None,
            'setuptools': '84.0.0',
            'onedl-mmengine': '0.10.12',
            'onedl-mmcv': '2.3.6',
            'onedl-mmdetection': '3.5.1',
        }
    )
    assert _needed(rows) == set()
    assert rows['toolbox flavour'].found == 'onedl'


def test_torch_only(environment, capsys):
    gone = {name: None for name in _GOOD if name not in ('torch', 'numpy')}
    rows = environment(gone, ops=mmcv_ops.ABSENT)
    assert rows['torch'].status == doctor.OK
    for item in ('torchvision', 'rich', 'mmengine', 'mmdet', 'pycocotools'):
        assert rows[item].status == doctor.ABSENT
        assert 'pip install' in rows[item].remedy
    assert main(['doctor']) == 1
    assert 'surge_det[mmdet]' in capsys.readouterr().out


@pytest.mark.parametrize(
    ('changes', 'item', 'remedy'),
    [
        ({'torch': '2.3.1', 'torchvision': '0.18.1'}, 'torch', 'torch>=2.4'),
        ({'torchvision': '0.20.1'}, 'torchvision', 'torchvision==0.21.*'),
        (
            {'setuptools': '81.0.0'},
            'setuptools (pkg_resources)',
            '"setuptools<81"',
        ),
        (
            {'setuptools': None},
            'setuptools (pkg_resources)',
            '"setuptools<81"',
        ),
        ({'mmcv': '2.1.0'}, 'mmcv', 'uninstall -y mmcv mmcv-lite'),
        ({'onedl-mmcv': '2.3.6'}, 'mmcv', 'install the same files'),
        ({'onedl-mmcv': '2.3.6'}, 'toolbox flavour', 'both flavours'),
        (
            {'mmcv-lite': None, 'onedl-mmcv': '2.3.6'},
            'toolbox flavour',
            'both flavours',
        ),
        ({'pycocotools': None}, 'pycocotools', 'pip install pycocotools'),
    ],
)
def test_problem_and_remedy(environment, changes, item, remedy):
    rows = environment(changes)
    assert rows[item].status != doctor.OK
    assert remedy in rows[item].remedy
    assert main(['doctor']) == 1


@pytest.mark.parametrize(
    ('module', 'error', 'item', 'remedy'),
    [
        (
            'mmdet',
            'AssertionError: MMCV==2.2.0 is used but incompatible. '
            'Please install mmcv>=2.0.0rc4, <2.2.0.',
            'mmdet',
            'pip install "mmcv-lite>=2.0.0rc4,<2.2.0"',
        ),
        (
            'mmengine.runner',
            "ModuleNotFoundError: No module named 'pkg_resources'",
            'mmengine',
            'pip install "setuptools<81"',
        ),
        (
            'mmcv',
            "AttributeError: module 'numpy' has no attribute 'bool'",
            'mmcv',
            "has no attribute 'bool'",
        ),
        (
            'cv2',
            'ImportError: libGL.so.1: cannot open shared object file',
            'opencv',
            'libGL.so.1',
        ),
        (
            'mmcv.ops',
            'ImportError: undefined symbol: _ZN2at',
            "mmcv's ops",
            'undefined symbol',
        ),
        (
            'surge_det.models',
            'ImportError: no',
            'surge_det in mmdet',
            'surge_det.models',
        ),
    ],
)
def test_broken_import_is_the_problem(
    environment, module, error, item, remedy
):
    rows = environment(errors={module: error})
    assert _needed(rows) == {item}
    assert rows[item].status == doctor.PROBLEM
    assert remedy in rows[item].remedy


def test_mmcv_without_any_ops(environment):
    rows = environment({'torchvision': None}, ops=mmcv_ops.MISSING)
    assert rows["mmcv's ops"].status == doctor.PROBLEM
    assert 'torchvision' in rows["mmcv's ops"].remedy


def test_ops_compiled_for_another_torch(environment):
    error = {'mmcv.ops': 'ImportError: undefined symbol: _ZN2at'}
    rows = environment(errors=error, ops=mmcv_ops.COMPILED)
    assert 'mmcv-lite>=2.0.0,<2.2.0' in rows["mmcv's ops"].remedy


def test_table_and_remedies(monkeypatch, capsys):
    rows = [
        doctor.Row('a', '1'),
        doctor.Row('longer', '22', doctor.PROBLEM, 'mend it'),
    ]
    monkeypatch.setattr(doctor, 'collect', lambda: rows)
    assert main(['doctor']) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[2:4]] == [
        ['a', '1', 'ok'],
        ['longer', '22', 'problem'],
    ]
    assert lines[4:] == ['', 'What to do:', '- longer: mend it']


def test_import_error_is_one_line(monkeypatch, tmp_path):
    (tmp_path / 'broken_for_doctor.py').write_text(
        "raise OSError('one\\n   two')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert doctor._import_error('broken_for_doctor') == 'OSError: one two'
    assert doctor._import_error('json') == ''


def test_this_environment_is_reported(capsys):
    status = main(['doctor'])
    printed = capsys.readouterr().out
    assert f'{sys.version_info[0]}.{sys.version_info[1]}.' in printed
    assert status == int('What to do' in printed)


def test_optional_packages_are_told_and_not_asked_for(environment):
    rows = environment({'openvino': '2026.4.1'})
    assert rows['openvino'].found == '2026.4.1'
    assert (rows['openvino'].status, rows['openvino'].remedy) == ('ok', '')
    assert rows['mambapy'].found == '- (optional)'
    assert (rows['mambapy'].status, rows['mambapy'].remedy) == ('absent', '')
