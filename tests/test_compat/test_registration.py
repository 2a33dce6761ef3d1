import sys
from importlib import import_module
from types import SimpleNamespace

import pytest
from command_line import python

pytest.importorskip('mmdet', reason='needs the toolbox')

from mmdet import registry as mmdet_registry
from mmengine.registry import Registry, root

from surge_det.compat import registration


@pytest.mark.parametrize('module', [root, mmdet_registry])
def test_what_we_register_is_found_where_it_is_looked_for(module):
    for location in registration.LOCATIONS.values():
        import_module(location)
    found = 0
    for name, registry in vars(module).items():
        if isinstance(registry, Registry) and not name.startswith('MMENGINE'):
            ours = [
                cls.__module__
                for cls in registry._module_dict.values()
                if cls.__module__.startswith('surge_det.')
                # What stands in for a model in a config that we write.
                and cls.__module__ != 'surge_det.deploy.loading'
            ]
            for origin in ours:
                # Layers of the core get their names in the models' module.
                if not origin.startswith('surge_det.core.'):
                    assert origin.startswith(registration.LOCATIONS[name])
            found += len(ours)
    assert found > 5


@pytest.fixture
def registries(monkeypatch):
    """Registries as mmengine makes them, with one list of locations."""
    monkeypatch.setattr(registration, 'LOCATIONS', {'MODELS': 'surge_parts'})
    return SimpleNamespace(MODELS=Registry('model', scope='surge_test'))


def test_a_registry_that_has_looked_looks_again(
    registries, monkeypatch, tmp_path
):
    monkeypatch.syspath_prepend(tmp_path)
    models = registries.MODELS
    assert models.get('Part') is None
    monkeypatch.setitem(sys.modules, 'surge_registries', registries)
    (tmp_path / 'surge_parts.py').write_text(
        'from surge_registries import MODELS\n'
        "MODELS.register_module('Part', module=dict)\n"
    )
    registration.install(registries)
    registration.install(registries)
    assert models._locations == ['surge_parts']
    assert 'surge_parts' not in Registry('other', scope='x')._locations
    assert models.get('Part') is dict
    assert sys.modules.pop('surge_parts')


def test_an_error_of_our_import_is_the_users(registries, monkeypatch):
    monkeypatch.setitem(sys.modules, 'surge_parts', None)
    registration.install(registries)
    with pytest.raises(ModuleNotFoundError, match='surge_parts'):
        registries.MODELS.get('Part')


ORDERS = {
    # The key is seen by the very first build.
    'first': """
import surge_det
from mmengine.registry import MODELS
cfg = dict(type='mmdet.ResNet', depth=18, norm_eval=False, binarize_cfg={})
assert 'SURGEConv2d' in str(MODELS.build(cfg))
assert MODELS.get('SURGEConv2d')
""",
    # As mmdet's own tools: the config asks for surge_det.
    'late': """
from mmengine.registry import HOOKS, init_default_scope
assert HOOKS.get('AGSHook') is None
from mmdet.registry import DATASETS, METRICS, MODELS
from mmengine.utils import import_modules_from_strings
import_modules_from_strings(['surge_det'])
assert HOOKS.get('AGSHook')
init_default_scope('mmdet')
for registry, name in (
    (DATASETS, 'VOCFormatDataset'), (METRICS, 'TopKAccuracy'),
    (MODELS, 'SURGEResNet'), (HOOKS, 'SURGEProgressHook'),
):
    assert registry.get(name), name
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS
assert OPTIM_WRAPPERS.get('AGSOptimWrapper')
assert OPTIM_WRAPPER_CONSTRUCTORS.get('SURGEOptimWrapperConstructor')
from mmdet.models import SSDHead
assert SSDHead.__new__(SSDHead).loss_cls is None
from mmengine.runner import checkpoint
assert checkpoint.torch.load.__name__ == 'safe_load'
""",
    'direct': """
from surge_det.models import SURGEResNet
from mmdet.registry import MODELS
assert MODELS.get('SURGEResNet') is SURGEResNet
assert MODELS.get('FasterRCNN')
""",
    # Another package's registry is asked before the root or mmdet's.
    'child': """
import surge_det
from mmengine.registry import MODELS, Registry
child = Registry('model', parent=MODELS, scope='mmother', locations=['json'])
grandchild = Registry('model', parent=child, scope='mmthird')
assert grandchild.get('SURGEConv2d') is child.get('SURGEConv2d') is not None
""",
    'child made before': """
from mmengine.registry import MODELS, Registry
child = Registry('model', parent=MODELS, scope='mmother', locations=['json'])
assert child.get('SURGEConv2d') is None
import surge_det
assert child.get('SURGEConv2d')
assert child.get('mmdet.SURGEResNet')
""",
    # An older package: mmengine calls its register_all_modules.
    'no locations': """
import sys, types
import surge_det
from mmengine.registry import MODELS, Registry
child = Registry('model', parent=MODELS, scope='mmcls')
def register_all_modules(init_default_scope):
    child.register_module('Part', module=dict)
sys.modules['mmcls'] = types.ModuleType('mmcls')
sys.modules['mmcls.utils'] = types.SimpleNamespace(
    register_all_modules=register_all_modules)
assert child.get('Part') is dict
""",
    'imported twice': """
import sys
import surge_det
for name in [n for n in sys.modules if n.startswith('surge_det')]:
    del sys.modules[name]
import surge_det
from mmengine.registry import MODELS
assert MODELS.get('SURGEConv2d')
""",
    'reloaded': """
import importlib, sys
import surge_det
importlib.reload(sys.modules['surge_det.compat.after_import'])
importlib.reload(surge_det.compat)
importlib.reload(surge_det)
from mmengine.registry import MODELS
assert MODELS.get('SURGEConv2d')
""",
}


@pytest.mark.parametrize('order', ORDERS)
def test_any_order_of_imports(order):
    python(ORDERS[order])
