"""The data folder: one setting, checked before anything is built."""

import os
import os.path as osp
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmengine.config import Config

VARIABLE = 'SURGE_DATA_ROOT'
DEFAULT = 'data'

_CHECKED_VOC = {
    'VOCDataset': 'PascalVOCDataset',
    'XMLDataset': 'VOCFormatDataset',
}
_CHECKED_COCO = {
    'CocoDataset': 'COCOFormatDataset',
    'CocoMetric': 'COCOFormatMetric',
}
_SOURCES = {
    'VOCdevkit': (
        'Pascal VOC: download VOCtrainval_06-Nov-2007.tar, '
        'VOCtest_06-Nov-2007.tar and VOCtrainval_11-May-2012.tar from '
        'http://host.robots.ox.ac.uk/pascal/VOC/ and unpack all three in '
        'the data folder; they make VOCdevkit/VOC2007 and VOCdevkit/VOC2012.'
    ),
    'coco': (
        'COCO 2017: download train2017.zip, val2017.zip and '
        'annotations_trainval2017.zip from https://cocodataset.org/#download '
        'and unpack them in the folder coco/ of the data folder.'
    ),
    'coco_tiny': (
        'coco_tiny: a few images of COCO 2017 with their annotations in '
        "COCO's layout: annotations/instances_{train,val}2017.json, "
        'train2017/ and val2017/ in the folder coco_tiny/ of the data folder.'
    ),
    'bccd': (
        'BCCD (blood cells, MIT licence): '
        'git clone https://github.com/Shenggan/BCCD_Dataset, then copy its '
        'folder BCCD to bccd/ in the data folder.'
    ),
    'neu_det': (
        "NEU-DET (surface defects of steel), in VOC's layout: JPEGImages/, "
        'Annotations/ and ImageSets/Main/{train,val,test}.txt in the folder '
        'neu_det/ of the data folder.'
    ),
    'bccd_crops': ('BCCD, cut into one image per cell: surge-det make-crops'),
    'imagenet': (
        'ImageNet (ILSVRC 2012): download ILSVRC2012_img_train.tar, '
        'ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz from '
        'https://image-net.org/download.php to imagenet/ in the data folder '
        '(an account is needed); torchvision.datasets.ImageNet(folder, split) '
        "for the splits 'train' and 'val' unpacks them to train/ and val/ "
        'with one folder per class.'
    ),
    'shapes': 'The demo dataset is drawn by: surge-det make-demo-data',
}


def data_root() -> str:
    """Return the data folder: ``$SURGE_DATA_ROOT``, by default ``data``.

    Configs say the same with ``'{{$SURGE_DATA_ROOT:data}}/...'``.

    Raises:
        ValueError: if the variable is set and empty.
    """
    root = os.environ.get(VARIABLE, DEFAULT)
    if not root.strip():
        raise ValueError(
            f'{VARIABLE}={root!r} must name a folder; unset it to use '
            f'{DEFAULT}/'
        )
    return root


def merge_options(cfg: Config, options: Mapping[str, Any] | None) -> None:
    """Merge ``--cfg-options`` into ``cfg``, in place.

    ``data_root=...`` moves every dataset and evaluator path that started with
    the config's own top-level ``data_root``: a config's text has put that
    into each of them before any option is read.

    Args:
        cfg: A config as ``Config.fromfile`` returns it.
        options: Keys with dots, and their values; None or empty does nothing.

    Raises:
        ValueError: if ``data_root`` is given and the config has none, or if
            it is no string; or if a key leads into what has no keys.
    """
    if not options:
        return
    options = dict(options)
    new = options.pop('data_root', None)
    if new is not None:
        how = 'give each *_dataloader.dataset.data_root instead'
        if not isinstance(cfg.get('data_root') or None, str):
            raise ValueError(
                f'data_root={new!r}: this config has no data_root of its '
                f'own; {how}'
            )
        if not isinstance(new, str):
            raise ValueError(f'data_root={new!r} must be a path')
        if not has_data_in(cfg, cfg.data_root):
            raise ValueError(
                f'data_root={new!r}: none of the datasets of this config is '
                f'in its data_root={cfg.data_root!r}; {how}'
            )
        _move(cfg, new)
    # After the move, so that an option for one dataset wins.
    try:
        cfg.merge_from_dict(options)
    except (KeyError, TypeError) as error:
        raise ValueError(
            f'--cfg-options {", ".join(options)}: {error.args[0]}'
        ) from error


def use_data_root(cfg: Config) -> None:
    """Let the variable hold for a config that does not read it, in place.

    mmdet's own configs say ``data_root = 'data/coco/'``. Where no such folder
    is, the one of that name in the data folder takes its place.
    """
    old = cfg.get('data_root')
    if isinstance(old, str) and VARIABLE in os.environ:
        name = old.removeprefix(f'{DEFAULT}/')
        if name not in ('', old) and not osp.exists(old):
            _move(cfg, osp.join(data_root(), name))


def _move(cfg: Config, new: str) -> None:
    """Move what lies in the config's ``data_root`` to another folder."""
    old = cfg.data_root

    def moved(node: Any) -> Any:
        if isinstance(node, Mapping):
            for key in list(node):
                node[key] = moved(node[key])
            return node
        if isinstance(node, list | tuple):
            return type(node)(moved(item) for item in node)
        if isinstance(node, str) and _is_in(node, old):
            return osp.join(new, '') + node[len(osp.join(old, '')) :]
        return node

    for key in _keys_of_data(cfg):
        cfg[key] = moved(cfg[key])
    cfg.data_root = new


def has_data_in(cfg: Config, folder: str) -> bool:
    """Say whether a dataset or evaluator names a path in a folder."""

    def found(node: Any) -> bool:
        if isinstance(node, Mapping):
            node = list(node.values())
        if isinstance(node, list | tuple):
            return any(map(found, node))
        return isinstance(node, str) and _is_in(node, folder)

    return any(found(cfg[key]) for key in _keys_of_data(cfg))


def _is_in(path: str, folder: str) -> bool:
    return osp.join(path, '').startswith(osp.join(folder, ''))


def _keys_of_data(cfg: Config) -> list[str]:
    return [key for key in cfg if key.endswith(('_dataloader', '_evaluator'))]


def check_data(
    cfg: Config, modes: Sequence[str] = ('train', 'val', 'test')
) -> None:
    """Raise if a dataset or an evaluator of ``cfg`` names a path that is not.

    Looks through dataset wrappers (repeated, concatenated, ...). Reads no
    annotation, so it costs nothing; addresses with ``://`` are not checked.

    Args:
        cfg: A whole config.
        modes: Which dataloaders and evaluators the caller is going to build.

    Raises:
        FileNotFoundError: The message gives path, setting and data source.
    """
    for mode in modes:
        loader = cfg.get(f'{mode}_dataloader')
        for dataset in leaf_datasets(
            loader.get('dataset') if loader else None
        ):
            for path in _dataset_paths(dataset):
                _require(path, f'{mode}_dataloader')
        for evaluator in metrics_of(cfg.get(f'{mode}_evaluator')):
            if evaluator.get('ann_file'):
                _require(evaluator['ann_file'], f'{mode}_evaluator')


def use_checked_datasets(cfg: Config) -> None:
    """Exchange mmdet's datasets of COCO and VOC for ours, in place.

    ``CocoDataset`` becomes ``COCOFormatDataset``, ``CocoMetric``
    ``COCOFormatMetric``, ``VOCDataset`` ``PascalVOCDataset`` and
    ``XMLDataset`` ``VOCFormatDataset``, also inside wrappers; subclasses stay
    as they are. Ours number the classes of COCO by their names, mmdet's by
    the file: so those of COCO are exchanged together or not at all, not
    beside a subclass of them or a ``MultiDatasetsEvaluator``.

    Args:
        cfg: A whole config.
    """
    from mmdet.datasets import CocoDataset
    from mmdet.evaluation import CocoMetric, MultiDatasetsEvaluator
    from mmdet.registry import DATASETS, EVALUATOR, METRICS

    parts, together = [], True
    for mode in ('train', 'val', 'test'):
        loader = cfg.get(f'{mode}_dataloader') or {}
        evaluator = cfg.get(f'{mode}_evaluator')
        if isinstance(evaluator, Mapping) and 'metrics' in evaluator:
            kind = class_of(EVALUATOR, evaluator.get('type', 'Evaluator'))
            together &= kind is not MultiDatasetsEvaluator
        for registry, base, found in (
            (DATASETS, CocoDataset, leaf_datasets(loader.get('dataset'))),
            (METRICS, CocoMetric, metrics_of(evaluator)),
        ):
            for part in found:
                kind = class_of(registry, part.get('type'))
                if kind is None or not kind.__module__.startswith('mmdet.'):
                    # Ours are no obstacle; others of COCO's kind are.
                    together &= (
                        kind is None
                        or kind.__module__.startswith('surge_det.')
                        or not issubclass(kind, base)
                    )
                    continue
                together &= kind is base or not issubclass(kind, base)
                parts.append((part, kind.__name__))
    exchanged = _CHECKED_VOC | (_CHECKED_COCO if together else {})
    for part, name in parts:
        if name in exchanged:
            part['type'] = exchanged[name]
            # For mmdet's own tools on the config that a run leaves.
            _import_ours(cfg)


def class_of(registry: Any, kind: Any) -> type | None:
    """Return what a ``type`` of a config stands for, if it is a class."""
    found = registry.get(kind) if isinstance(kind, str) else kind
    return found if isinstance(found, type) else None


def _import_ours(cfg: Config) -> None:
    imports = cfg.setdefault('custom_imports', dict(imports=[]))
    names = imports['imports']
    names = [names] if isinstance(names, str) else list(names)
    if 'surge_det' not in names:
        imports['imports'] = [*names, 'surge_det']


def metrics_of(evaluator: Any) -> list[Mapping]:
    """Return the metrics of an evaluator's config, None allowed."""
    if isinstance(evaluator, Mapping):
        evaluator = evaluator.get('metrics', evaluator)
    if isinstance(evaluator, Mapping):
        evaluator = [evaluator]
    return list(evaluator or [])


def leaf_datasets(dataset: Any) -> Iterator[Mapping]:
    """Yield the datasets inside wrappers: repeated, concatenated, ...

    Args:
        dataset: What a dataloader's ``dataset`` is, or None.
    """
    if isinstance(dataset, list | tuple):
        for item in dataset:
            yield from leaf_datasets(item)
    elif isinstance(dataset, Mapping):
        inner = dataset.get('dataset', dataset.get('datasets'))
        if inner is None:
            yield dataset
        else:
            yield from leaf_datasets(inner)


def test_datasets(cfg: Config) -> list[Mapping]:
    """Return the datasets, without wrappers, that a config tests on."""
    loader = cfg.get('test_dataloader') or {}
    return list(leaf_datasets(loader.get('dataset')))


def test_pipeline(cfg: Config) -> Sequence[Mapping]:
    """Return the steps of a config's test pipeline; may be changed.

    Of several test datasets the first one's; empty where there is none.
    """
    datasets = test_datasets(cfg)
    return (datasets[0].get('pipeline') if datasets else None) or []


def _dataset_paths(dataset: Mapping) -> Iterator[str]:
    root = dataset.get('data_root') or ''
    if root:
        yield root
    prefixes = dict(dataset.get('data_prefix') or {}).values()
    for name in [dataset.get('ann_file'), *prefixes]:
        if name and isinstance(name, str):
            # An absolute name, or an address, stands for itself.
            yield name if '://' in name else osp.join(root, name)


def _require(path: str, key: str) -> None:
    if '://' in path or osp.exists(path):
        return
    value = os.environ.get(VARIABLE)
    state = 'not set' if value is None else repr(value)
    setting = f'the environment variable {VARIABLE} ({state}; default '
    if _is_in(path, data_root()):
        origin = f'The data folder is {setting}{DEFAULT}/).'
    else:
        origin = f'That path is not in the data folder, {setting}{DEFAULT}/).'
    message = (
        f'no data at {osp.normpath(path)} (absolute: {osp.abspath(path)}), '
        f'which {key} of the config names.\n{origin} For one run, '
        '--cfg-options data_root=... names the folder of this dataset itself.'
    )
    parts = osp.normpath(path).split(os.sep)
    for folder, source in _SOURCES.items():
        if folder in parts:
            message += f'\n{source}'
    raise FileNotFoundError(message)
