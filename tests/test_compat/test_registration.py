import subprocess
import sys
from importlib import import_module
from types import SimpleNamespace

import pytest

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
    (tmp_path / 'surge_parts.py').write_text(
        'from mmengine.registry import MODELS\nPart = dict\n'
    )
    registration.install(registries)
    registration.install(registries)
    assert models._locations == ['surge_parts']
    assert 'surge_parts' not in Registry('other', scope='x')._locations
    models.get('Part')
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
}


@pytest.mark.parametrize('order', ORDERS)
def test_any_order_of_imports(order):
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', ORDERS[order]],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
