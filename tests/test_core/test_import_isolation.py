import ast
import sys
import textwrap

import pytest
from command_line import ROOT, python

CORE = ROOT / 'surge_det' / 'core'

SCRIPT = textwrap.dedent(
    """
    import importlib.util
    import sys

    # None in sys.modules is how an import fails as if nothing were there.
    ABSENT = (
        'mmengine', 'mmcv', 'mmdet', 'torchvision', 'cv2', 'pycocotools',
        'matplotlib', 'scipy', 'PIL',
    )
    sys.modules.update(dict.fromkeys(ABSENT))
    assert importlib.util.find_spec('mmengine') is None
    try:
        import mmengine.registry
    except ModuleNotFoundError:
        pass
    else:
        raise SystemExit('the block does not hold')

    import torch

    from surge_det.core import (
        AGS, STE, SURGEConv2d, SURGELinear, binary_sign
    )

    net = torch.nn.Sequential(
        SURGEConv2d(3, 4, 3, activation_estimator=dict(type='STE', clip=1.0)),
        torch.nn.Flatten(),
        SURGELinear(4, 2, weight_estimator=STE(clip=1.0)),
    )
    net(torch.randn(2, 3, 3, 3)).sum().backward()
    assert all(p.grad is not None for p in net.parameters())
    assert net[0].ags.last_scale > 0
    assert isinstance(net[0].ags, AGS)
    assert binary_sign(torch.zeros(1)).item() == 1
    SURGEConv2d.from_float(torch.nn.Conv2d(3, 4, 3)).strip()
    found = [
        name
        for name, module in sys.modules.items()
        if name.split('.')[0] in ABSENT and module is not None
    ]
    assert not found, found
    print('works alone')
    """
)


def test_core_works_where_only_torch_is_installed():
    assert python(SCRIPT, cwd=ROOT).strip().endswith('works alone')


FILES = sorted(CORE.rglob('*.py'))


def imported_roots(tree):
    """Absolute imports' top names; relative ones by their level."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name.split('.')[0], 0, alias.name
        elif isinstance(node, ast.ImportFrom):
            name = node.module or ''
            yield name.split('.')[0], node.level, name


@pytest.mark.parametrize('path', FILES, ids=lambda p: str(p.relative_to(CORE)))
def test_core_imports_torch_and_the_standard_library_only(path):
    tree = ast.parse(path.read_text(encoding='utf-8'))
    depth = len(path.relative_to(CORE).parts)
    for root, level, name in imported_roots(tree):
        if level:
            assert level <= depth, f'{name} leaves the core'
        elif root == 'surge_det':
            assert name.startswith('surge_det.core'), name
        else:
            assert root == 'torch' or root in sys.stdlib_module_names, name


def test_the_core_was_found():
    assert {'sign.py', 'ags.py', 'layers.py'} <= {p.name for p in FILES}


COMMANDS = """
import contextlib, io, sys
from surge_det.cli.main import COMMANDS, main

for command in COMMANDS:
    for args, status in (['--help'], 0), (['--no-such-flag'], 2):
        try:
            with contextlib.redirect_stdout(io.StringIO()) as out:
                with contextlib.redirect_stderr(out):
                    main([command, *args])
        except SystemExit as error:
            assert error.code == status, command
            assert f'usage: surge-det {command}' in out.getvalue(), command
HEAVY = ('torch', 'numpy', 'mmengine', 'mmcv', 'mmdet', 'matplotlib', 'rich')
print([name for name in HEAVY if name in sys.modules])
import surge_det.core
print([name for name in HEAVY[2:] if name in sys.modules])
"""


def test_commands_answer_before_anything_heavy_is_imported():
    assert python(COMMANDS, cwd=ROOT).splitlines() == ['[]', '[]']
