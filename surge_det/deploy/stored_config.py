"""What a config in a file of weights may build: an allow-list.

Somebody else may have written it, and some classes of the toolbox evaluate
strings, read files or open connections. So what is built has a place in
inference and a class that is listed for the place, and all values are plain
ones. What only training needs is left out. A config of the user's own is a
program by his will; nothing here is about it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from mmdet import registry as mmdet_registry
from mmengine import registry as mmengine_registry
from mmengine.config import Config
from torch import nn
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)
from torch.nn.parameter import is_lazy

from surge_det.core.binarizers.base import BINARIZERS
from surge_det.core.estimators.base import ESTIMATORS
from surge_det.datasets.root import leaf_datasets
from surge_det.deploy.config import checked_meta, read_config
from surge_det.text import brief, shortened

# Keys of training, wherever they stand, and of how files are read.
_LEFT_OUT = {
    *('train_cfg', 'init_cfg', 'pretrained', 'assigner', 'sampler'),
    'distill_cfg',
    *('backend_args', 'file_client_args'),
    # Of bases in another package; the default scope finds all that is listed.
    '_scope_',
}

# Key, as a pattern, and where classes that may stand there are defined.
_CLASSES = {
    'model': ('mmdet.models.detectors.', 'surge_det.models.classifiers.'),
    '(rfp_)?backbone': (
        'mmdet.models.backbones.',
        'surge_det.models.backbones.',
    ),
    'neck': ('mmdet.models.necks.', 'surge_det.models.necks.'),
    r'\w+_head': (
        *('mmdet.models.dense_heads.', 'mmdet.models.roi_heads.'),
        *('mmdet.models.seg_heads.', 'surge_det.models.dense_heads.'),
        'surge_det.models.roi_heads.',
    ),
    r'\w*roi_extractor': ('mmdet.models.roi_heads.roi_extractors.',),
    r'\w+_(generator|coder)': (
        'mmdet.models.task_modules.prior_generators.',
        'mmdet.models.task_modules.coders.',
    ),
    r'\w*loss\w*': ('mmdet.models.losses.',),
    'data_preprocessor|batch_augments': (
        'mmdet.models.data_preprocessors.',
        'mmengine.model.base_model.data_preprocessor',
    ),
    r'weight_binarizer|\w+_estimator': ('surge_det.core.',),
    'dataset': ('mmdet.datasets.', 'surge_det.datasets.'),
    # Layers and what is made of them.
    r'\w+': (
        *('mmdet.models.layers.', 'mmcv.cnn.bricks.', 'mmcv.ops.'),
        *('torch.nn.modules.', 'surge_det.core.'),
        'mmengine.utils.dl_utils.parrots_wrapper',
    ),
}
# These read configs and checkpoints of their own, or download, or train.
_NOT = {
    *('KnowledgeDistillationSingleStageDetector', 'LAD', 'Detectron2Wrapper'),
    *('GLIP', 'GroundingDINO', 'ATSSVLFusionHead', 'GroundingDINOHead'),
    *('SemiBaseDetector', 'SoftTeacher'),
}
# Names that no registry has. mmcv evaluates that of an NMS as Python.
_NAMES = {
    'nms|dqs_cfg': {'nms', 'soft_nms'},
    'roi_layer': {'RoIAlign', 'RoIPool', 'SimpleRoIAlign'},
    r'\w+_trans': {'conv', 'interpolation_conv', 'last_conv'},
    'pipeline': {
        *('LoadImageFromFile', 'LoadAnnotations', 'PackDetInputs', 'Pad'),
        *('Resize', 'FixScaleResize', 'FixShapeResize'),
    },
}
# Words such as 'on_input' or 'regnetx_1.6gf', no path and no name of a file;
# names of layers with wildcards where they are what is meant.
_WORD = re.compile(r'[\w-]{0,64}(\.\d\w*)?', re.ASCII)
_PATTERN = re.compile(r'[\w.*?!\[\]-]{0,256}', re.ASCII)
_TYPE = re.compile(r'((mmdet|mmengine)\.)?\w{1,64}', re.ASCII)
# Large detectors have two thousand. A thousand takes a second.
_MODULES = 10_000
# Pixels, anchors, and any other whole number: what is computed from them
# has to fit into memory.
_LARGEST = {r'data_preprocessor|\w+_generator|pipeline': 8192, r'\w+': 100_000}

_REMEDY = (
    'A config in a file of weights builds listed classes with plain values; '
    'give your own config beside it'
)
_VISUALIZER = {'type': 'DetLocalVisualizer', 'name': 'visualizer'}


class _Place(NamedTuple):
    key: str  # The last name on the way.
    path: str
    source: str | Path
    patterns: bool = False
    largest: int = 100_000

    def at(self, key: Any) -> _Place:
        if not isinstance(key, str) or not _allowed_key(key, self.patterns):
            raise self.error(f'has the key {brief(key)}')
        patterns = self.patterns or key == 'binarize_cfg'
        limits = [n for p, n in _LARGEST.items() if re.fullmatch(p, key)]
        largest = min([self.largest, *limits])
        place = f'{self.path}.{key}'
        return _Place(key, place, self.source, patterns, largest)

    def error(self, what: str) -> ValueError:
        return ValueError(
            f'{self.source}: {shortened(self.path)} in its config {what}, '
            f'which is not allowed. {_REMEDY}'
        )


def stored_config(text: str, source: str | Path) -> Config:
    """Return what inference takes of a config that a file of weights holds.

    Args:
        text: The config, as :func:`.config.read_config` reads it.
        source: Name of the file, for messages.

    Returns:
        A config with ``default_scope``, ``model`` without training's parts,
        the test dataset's type, classes and pipeline, and mmdet's own
        visualizer.

    Raises:
        ValueError: If it has a class or a value that is not listed; says
            which, where, and what to do.
    """
    values = read_config(text, source).to_dict()
    scope = values.get('default_scope', 'mmdet')
    if scope not in ('mmdet', 'mmengine', None):
        raise ValueError(
            f'{source}: default_scope={brief(scope)} in its config is not '
            f'allowed: mmdet or mmengine. {_REMEDY}'
        )
    found = {'default_scope': scope or 'mmdet', 'visualizer': _VISUALIZER}
    if isinstance(model := values.get('model'), Mapping):
        found['model'] = _allowed(model, _Place('model', 'model', source))
    loader = values.get('test_dataloader')
    if isinstance(loader, Mapping):
        for dataset in leaf_datasets(loader.get('dataset')):
            found['test_dataloader'] = {'dataset': _dataset(dataset, source)}
            break
    return Config(found)


@contextmanager
def bounded(source: str | Path, size: int | None) -> Iterator[None]:
    """Build what :func:`stored_config` returned: errors of one kind, bounds.

    A config of a few characters can ask for more memory than there is, or
    for days. The parameters of a detector stand in its file, 1-bit ones as
    bits.

    Args:
        source: Name of the file, for messages.
        size: Its bytes, if they are known.

    Raises:
        ValueError: If something cannot be built, for whatever reason.
    """
    left = math.inf if size is None else 10_000_000 + 64 * size

    def count(module: nn.Module, name: str, value: nn.Parameter) -> None:
        nonlocal left
        left -= 0 if value is None or is_lazy(value) else value.numel()
        if left < 0:
            raise ValueError('it has more parameters than the file can hold')

    modules = 0

    def count_modules(module: nn.Module, name: str, value: Any) -> None:
        nonlocal modules
        modules += 1
        if modules > _MODULES:
            raise ValueError(f'it has more than {_MODULES:,} modules')

    hooks = [
        # Before an initializer touches the memory.
        register_module_parameter_registration_hook(count),
        register_module_module_registration_hook(count_modules),
    ]
    try:
        yield
    except Exception as error:
        raise ValueError(
            f'{source}: its config builds no detector: '
            f'{type(error).__name__}: {shortened(error)}'
        ) from error
    finally:
        for hook in hooks:
            hook.remove()


def _dataset(dataset: Mapping[str, Any], source: str | Path) -> dict[str, Any]:
    place = _Place('dataset', 'test_dataloader.dataset', source)
    kept = {
        key: dataset[key] for key in ('type', 'pipeline') if key in dataset
    }
    found = _allowed(kept, place)
    meta = dataset.get('metainfo')
    if isinstance(meta, Mapping):
        # A text would be the name of a file to read.
        kept = {
            key: meta[key]
            for key, of in (('classes', str), ('palette', (list, tuple)))
            if isinstance(meta.get(key), (list, tuple))
            and all(isinstance(each, of) for each in meta[key])
        }
        found['metainfo'] = checked_meta(kept, source)
    return found


def _allowed(value: Any, place: _Place) -> Any:
    """Return a value without training's parts, if all of it is allowed."""
    if isinstance(value, Mapping):
        if 'type' in value:
            _check_type(value['type'], place)
        found = {
            key: _allowed(item, place.at(key)) if key != 'type' else item
            for key, item in value.items()
            if key not in _LEFT_OUT
        }
        # Some detectors want to be told.
        return found | {'train_cfg': None} if 'train_cfg' in value else found
    if isinstance(value, (list, tuple)):
        return type(value)(_allowed(item, place) for item in value)
    if isinstance(value, str):
        words = _PATTERN if place.patterns else _WORD
        if not words.fullmatch(value):
            raise place.error(f'is {brief(value)}')
    elif isinstance(value, float):
        if math.isfinite(value) and abs(value) > 1e9:
            raise place.error(f'is {value}')
    elif isinstance(value, int):
        if abs(value) > place.largest:
            raise place.error(f'is more than {place.largest:,}')
    elif value is not None:
        raise place.error(f'is {brief(value)}')
    return value


def _allowed_key(key: str, patterns: bool) -> bool:
    if patterns:
        return bool(_PATTERN.fullmatch(key))
    # Those that begin with _ tell mmengine's registries and configs what to
    # do.
    return key.isidentifier() and not key.startswith('_')


def _check_type(kind: Any, place: _Place) -> None:
    if isinstance(kind, str) and _TYPE.fullmatch(kind):
        for pattern, names in _NAMES.items():
            if re.fullmatch(pattern, place.key):
                if kind.rpartition('.')[2] in names:
                    return
                raise place.error(f'has type={kind!r}')
        cls = _class(kind)
        for pattern, modules in _CLASSES.items():
            if re.fullmatch(pattern, place.key):
                name = getattr(cls, '__name__', None)
                module = f'{getattr(cls, "__module__", "")}.'
                if module.startswith(modules) and name not in _NOT:
                    return
                break
    raise place.error(f'has type={brief(kind)}')


def _class(kind: str) -> Any:
    """Return what registries have under a name; nothing is imported by it."""
    scope, _, name = kind.rpartition('.')
    where: list[Mapping[str, Any]] = []
    for package in (mmdet_registry, mmengine_registry):
        for each in ('MODELS', 'TASK_UTILS', 'DATASETS'):
            registry = getattr(package, each)
            # Its own modules: the toolbox's and ours.
            registry.import_from_location()
            if scope in ('', registry.scope):
                where.append(registry.module_dict)
    if not scope:
        where += [ESTIMATORS, BINARIZERS]
    return next((found[name] for found in where if name in found), None)
