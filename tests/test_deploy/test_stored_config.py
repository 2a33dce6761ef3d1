"""What a config in a file of weights may do: build listed classes."""

import ast
import copy
import inspect
import re
import sys
import textwrap

import pytest

pytest.importorskip('mmdet', reason='needs the toolbox')

import surge_det  # noqa: F401

# isort: split
from mmdet.registry import MODELS, TASK_UTILS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from small_detector import (
    CONFIGS,
    META,
    same_detections,
    small_config,
    train,
)
from stock_detectors import STOCK, stock_config

from surge_det.deploy import FORMATS, DetInferencer, load_detector
from surge_det.deploy import stored_config as module
from surge_det.deploy.config import config_text
from surge_det.deploy.stored_config import stored_config
from surge_det.deploy.trained import build_detector

PACKAGES = {
    'pth': (),
    'packed': ('safetensors',),
    'onnx': ('onnx', 'onnxruntime', 'surge_runtime'),
}
FILES = {name: f'x{FORMATS[name].suffix}' for name in PACKAGES}


@pytest.fixture(scope='module')
def model():
    init_default_scope('mmdet')
    cfg = small_config()
    model = train(build_detector(cfg))
    model.dataset_meta = META
    return model


@pytest.fixture
def mark(tmp_path, monkeypatch):
    """A file that hostile code would make, also when it is imported."""
    path = tmp_path / 'ran'
    code = f'open({str(path)!r}, "w").close()\n'
    (tmp_path / 'surge_det_hostile.py').write_text(code + 'f = print\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    yield path
    sys.modules.pop('surge_det_hostile', None)


def evaluates(path):
    """A class of mmdet's that evaluates its argument."""
    code = f"open({str(path)!r}, 'w').close()"
    return dict(type='CameraMotionCompensation', warp_mode=code)


def of_training(cfg, mark):
    """Put code where only training or mmdet's tools look."""
    cfg = copy.deepcopy(cfg)
    hostile = evaluates(mark)
    cfg.model.train_cfg.rpn.assigner = hostile
    cfg.model.train_cfg.rcnn.sampler = hostile
    cfg.model.backbone.init_cfg = dict(
        type='Pretrained', checkpoint='http://127.0.0.1:9/x.pth'
    )
    cfg.model.backbone._scope_ = 'surge_det_hostile'
    cfg.model.pretrained = 'http://127.0.0.1:9/x.pth'
    cfg.custom_imports = dict(imports=['surge_det_hostile'])
    cfg.test_dataloader.collate_fn = dict(type='surge_det_hostile.f')
    cfg.test_dataloader.dataset.metainfo = dict(classes=str(mark.parent))
    cfg.test_dataloader.dataset.ann_file = 'http://127.0.0.1:9/x'
    pipeline = cfg.test_dataloader.dataset.pipeline
    pipeline[0].backend_args = dict(backend='surge_det_hostile')
    cfg.visualizer = dict(type='surge_det_hostile')
    cfg.tta_model = dict(type='surge_det_hostile')
    cfg.default_hooks = cfg.optim_wrapper = hostile
    return cfg


def test_the_code_would_run(mark):
    init_default_scope('mmdet')
    TASK_UTILS.build(evaluates(mark))
    assert mark.exists()
    mark.unlink()
    with pytest.raises(TypeError):
        MODELS.build(dict(type='surge_det_hostile'))
    assert mark.exists()


@pytest.mark.isa
@pytest.mark.parametrize('name', PACKAGES)
def test_what_is_of_training_is_left_out(name, model, mark, tmp_path):
    for package in PACKAGES[name]:
        pytest.importorskip(package, reason='needs the extra deploy')
    hostile = copy.copy(model)
    hostile.cfg = of_training(model.cfg, mark)
    path = tmp_path / FILES[name]
    FORMATS[name].save(hostile, path)
    # Without a config, and with the user's own: both never build that one.
    loaded = load_detector(path), load_detector(path, model.cfg)
    assert DetInferencer(weights=path, device='cpu').pipeline
    assert not mark.exists()
    assert 'surge_det_hostile' not in sys.modules
    if name in ('pth', 'packed'):
        assert all(same_detections(model, each) for each in loaded)
        assert 'assigner' not in str(loaded[0].cfg.model)


def change(cfg, key, value):
    *keys, last = key.split('.')
    for each in keys:
        cfg = cfg[int(each) if each.isdigit() else each]
    cfg[last] = value


EVIL = 'surge_det_hostile'
DATASET = 'test_dataloader.dataset'
REFUSED = {
    'import': ('model.backbone.type', EVIL),
    'function': ('model.backbone.type', f'{EVIL}.f'),
    'scope': ('default_scope', EVIL),
    'shell': ('model.neck.type', 'os.system'),
    'shell of mmcv': ('model.neck.type', 'mmcv.convert_video'),
    'other place': ('model.neck.type', 'ResNet'),
    'teacher': (
        'model',
        dict(
            type='KnowledgeDistillationSingleStageDetector',
            teacher_config='surge_det_hostile.py',
        ),
    ),
    'address': (
        'model',
        dict(type='SURGEDetectorFromFile', path='http://127.0.0.1:9/x.pth'),
    ),
    'evaluated': ('model.roi_head.bbox_head.bbox_coder', None),
    'evaluated NMS': (
        'model.test_cfg.rcnn.nms.type',
        f'exec(bytes([{",".join(map(str, b"import surge_det_hostile"))}]))',
    ),
    'NMS of a name': ('model.test_cfg.rpn.nms.type', 'batched_nms'),
    'operator': (
        'model.roi_head.bbox_roi_extractor.roi_layer.type',
        'deprecated_wrappers',
    ),
    'path': ('model.backbone.style', '/etc/passwd'),
    'path above': ('model.backbone.style', '..\\x'),
    'file': ('model.backbone.style', 'teacher.pth'),
    'another address': ('model.backbone.style', 'http:x'),
    'template': ('model.backbone.style', '{{fileDirname}}'),
    'lazy': ('model.backbone.style', '$x'),
    'key of configs': ('model.backbone._delete_', True),
    'library of transforms': (f'{DATASET}.pipeline.1.type', 'Albu'),
    'file of proposals': (f'{DATASET}.pipeline.1.type', 'LoadProposals'),
    'dataset': (f'{DATASET}.type', EVIL),
    'object': ('model.backbone.style', b'x'),
    'no name': ('model.backbone.type', ['ResNet']),
    'large': ('model.rpn_head.anchor_generator.scales_per_octave', 100_000),
    'larger': ('model.backbone.stem_channels', 10**12),
}


@pytest.mark.parametrize('case', REFUSED)
def test_anything_else_is_refused(case, model, mark, tmp_path):
    key, value = REFUSED[case]
    if value is None:
        value = evaluates(mark)
    cfg = copy.deepcopy(model.cfg)
    change(cfg, key, value)
    with pytest.raises(ValueError, match=r'x\.pth: .*in its config') as error:
        stored_config(config_text(cfg), 'x.pth')
    assert not mark.exists()
    text = str(error.value)
    assert re.sub(r'(\.\d)?\.\w+$', '', key) in text
    assert text.endswith('give your own config beside it')
    assert '\n' not in text
    assert len(text) < 600


@pytest.mark.parametrize(
    ('key', 'value'), [('classes', ('a\n',)), ('palette', [(1, 2)])]
)
def test_names_and_colours_are_those_that_can_be_drawn(key, value, model):
    cfg = copy.deepcopy(model.cfg)
    cfg.test_dataloader.dataset.metainfo = {key: value}
    with pytest.raises(ValueError, match=r'x\.pth: its dataset_meta has '):
        stored_config(config_text(cfg), 'x.pth')


@pytest.mark.parametrize(
    ('key', 'value', 'said'),
    [
        ('backbone.base_channels', 8_000, 'more parameters than the file'),
        ('rpn_head.num_convs', 9_000, 'more than 10,000 modules'),
        ('backbone.more', 1, 'TypeError.*more'),
        ('neck.num_outs', 'x', 'TypeError'),
    ],
)
def test_what_cannot_be_built(key, value, said, model, tmp_path):
    hostile = copy.copy(model)
    hostile.cfg = copy.deepcopy(model.cfg)
    change(hostile.cfg.model, key, value)
    path = tmp_path / 'x.pth'
    FORMATS['pth'].save(hostile, path)
    with pytest.raises(
        ValueError, match=rf'x\.pth: its config builds no detector: .*{said}'
    ) as error:
        load_detector(path)
    assert '\n' not in str(error.value)
    assert same_detections(model, load_detector(path, model.cfg))


@pytest.mark.parametrize(
    'text',
    [
        'model = ' + '-' * 500_000 + '1',
        'model = ' + '[' * 500_000,
        'model = 1' + '+1' * 200_000,
        'model = 1' + '0' * 5_000,
        'model = "' + 'x' * 2_000_000 + '"',
        'filename = 1',
    ],
    ids=['signs', 'lists', 'sum', 'number', 'text', 'reserved'],
)
def test_texts_that_exhaust_python(text):
    with pytest.raises(ValueError, match=r'x\.xml: its config') as error:
        stored_config(text, 'x.xml')
    assert len(str(error.value)) < 500


def test_a_config_without_a_pipeline(model, tmp_path):
    other = copy.copy(model)
    other.cfg = Config(dict(model=model.cfg.model))
    FORMATS['pth'].save(other, tmp_path / 'x.pth')
    assert load_detector(tmp_path / 'x.pth')
    with pytest.raises(ValueError, match='x.pth: its config has no test pip'):
        DetInferencer(weights=tmp_path / 'x.pth')


def test_a_class_of_the_users_own(model, tmp_path):
    class Registered(type(model)):
        pass

    MODELS.register_module(module=Registered, name='OfAPlugin')
    try:
        cfg = copy.deepcopy(model.cfg)
        cfg.model.type = 'OfAPlugin'
        mine = train(build_detector(cfg))
        mine.dataset_meta = META
        for name in ('pth', 'packed'):
            path = tmp_path / FILES[name]
            FORMATS[name].save(mine, path)
            assert type(load_detector(path, cfg)) is Registered
            with pytest.raises(ValueError, match=r"type='OfAPlugin'.*give"):
                load_detector(path)
    finally:
        del MODELS.module_dict['OfAPlugin']


@pytest.mark.parametrize(
    'path', sorted(CONFIGS.glob('surge_*.py')), ids=lambda path: path.stem
)
def test_shipped_configs_are_allowed(path):
    cfg = Config.fromfile(path)
    kept = stored_config(config_text(cfg), path)
    assert kept.model.type == cfg.model.type
    text = kept.pretty_text
    assert 'Pretrained' not in text
    assert 'assigner' not in text


@pytest.mark.parametrize('name', STOCK)
def test_stock_detectors_are_built_as_by_their_own_config(name):
    init_default_scope('mmdet')
    cfg = stock_config(name)
    stored = stored_config(cfg.pretty_text, name)
    wanted, found = (
        {
            key: value.shape
            for key, value in build_detector(each).state_dict().items()
        }
        for each in (cfg, stored)
    )
    assert found == wanted


# What no class that a stranger may name calls.
_CALLS = {
    *('__import__', 'import_module'),
    *('fromfile', 'fromstring', 'load', 'load_checkpoint', 'load_url'),
    *('load_from_http', 'from_pretrained', 'download', 'system', 'Popen'),
    *('list_from_file', 'get_object_from_string', 'get_file_backend'),
    *('imread', 'FileClient', 'globals'),
}
# They load what `pretrained` or `init_cfg` names, which are left out.
_LOADS_PRETRAINED = ('DetectoRS_ResNet', 'DetectoRS_ResNeXt')
_LOADS_PRETRAINED += ('PyramidVisionTransformer', 'PyramidVisionTransformerV2')
_LOADS_PRETRAINED += ('SwinTransformer', 'VGG')


def test_no_listed_class_reads_files_or_runs_texts():
    found = set()
    for kind in {
        name
        for registry in (MODELS, TASK_UTILS, MODELS.parent)
        for name in registry.module_dict
    }:
        cls = module._class(kind)
        places = [
            place
            for place, modules in module._CLASSES.items()
            if f'{cls.__module__}.'.startswith(modules)
        ]
        if not places or cls.__name__ in module._NOT:
            continue
        found.add(cls)
    assert len(found) > 200
    bases = {
        base
        for cls in found
        if inspect.isclass(cls)
        for base in cls.__mro__
        if re.match('mmdet|mmcv|surge_det', base.__module__)
    }
    for base in bases:
        tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
        calls = [n.func for n in ast.walk(tree) if isinstance(n, ast.Call)]
        bad = {getattr(call, 'attr', None) for call in calls} & _CALLS
        # Modules have methods of some of these names.
        functions = {*_CALLS, 'eval', 'exec', 'compile', 'open'}
        bad |= {getattr(call, 'id', None) for call in calls} & functions
        if base.__name__ in _LOADS_PRETRAINED:
            bad -= {'load_checkpoint'}
        assert not bad, (base, bad)
