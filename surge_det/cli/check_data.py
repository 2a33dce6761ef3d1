"""Say what data a config needs, whether it is there, and what it holds.

Reads the annotations of all splits and the header of every image. Ends with
status 1 if anything is wrong, and with a line for each fault.

Example::

    surge-det check-data surge_faster_rcnn_r18_voc
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from surge_det.cli.common import (
    add_cfg_options,
    add_config,
    load_config,
    print_error,
)
from surge_det.cli.tables import print_table

if TYPE_CHECKING:
    from mmengine.config import Config

MODES = ('train', 'val', 'test')
TITLES = ('for', 'images', 'boxes', 'ignored', 'dropped')
TITLES += ('without boxes', 'sizes')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_config(parser)
    add_cfg_options(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from mmengine.registry import init_default_scope

    from surge_det.datasets.root import check_data, leaf_datasets

    cfg = load_config(args)
    init_default_scope(cfg.get('default_scope') or 'mmdet')
    needs, rows, boxes, read, built = [], [], {}, [], []
    # Dicts, to have each once.
    faults, hints = {}, {}

    def is_there(part: Mapping) -> bool:
        try:
            check_data(part)
        except FileNotFoundError as error:
            fault, *more = str(error).splitlines()
            faults[fault] = None
            hints.update(dict.fromkeys(more))
            return False
        return True

    for mode in MODES:
        key = f'{mode}_dataloader'
        for leaf in leaf_datasets((cfg.get(key) or {}).get('dataset')):
            folder, listed = leaf.get('data_root'), leaf.get('ann_file')
            needs.append((mode, leaf['type'], folder or '-', listed or '-'))
            if not is_there({key: {'dataset': leaf}}):
                continue
            # Validation and test are often on the same.
            known = [result for other, result in read if other == leaf]
            result = known[0] if known else read_dataset(leaf, key)
            read.append((leaf, result))
            dataset, cells, counts, wrong = result
            if dataset is not None:
                built.append((mode, dataset))
            rows.append((mode, *cells))
            boxes.setdefault(mode, Counter()).update(counts)
            faults.update(dict.fromkeys(wrong))
        key = f'{mode}_evaluator'
        is_there({key: cfg.get(key)})
    faults.update(dict.fromkeys(class_faults(cfg, built)))
    print_table(('for', 'dataset', 'folder', 'list'), needs, left=4)
    if rows:
        print()
        print_table(TITLES, rows)
        print()
        names = dict.fromkeys(name for of in boxes.values() for name in of)
        print_table(
            ('class', *boxes),
            [(n, *(f'{of[n]:,}' for of in boxes.values())) for n in names],
        )
    for fault in faults:
        print_error(fault)
    for hint in hints:
        print(hint, file=sys.stderr)
    return int(bool(faults))


def read_dataset(
    leaf: Mapping, key: str
) -> tuple[Any, Sequence[str], Counter, list[str]]:
    """Read a dataset's annotations, and the header of each of its images.

    Args:
        leaf: Its config.
        key: What of the whole config it is in, for messages.

    Returns:
        The dataset, None where it cannot be read; the cells of a table's
        row; boxes of each class (of an image folder, images); and what is
        wrong, in lines.
    """
    from mmdet.registry import DATASETS
    from mmengine.dataset import BaseDataset
    from rich.progress import track

    from surge_det.datasets.checked_images import (
        Loader,
        image_faults,
        is_local,
    )
    from surge_det.datasets.root import class_of

    bar = partial(track, description=f'images of {key}')
    faults = []
    try:
        kind = class_of(DATASETS, leaf['type'])
        if kind is not None and issubclass(kind, BaseDataset):
            dataset = DATASETS.build({**leaf, 'lazy_init': True})
            dataset.track = bar
            # Not full_init(), which leaves out images without boxes.
            infos = dataset.load_data_list()
            loader = Loader.of(dataset)
            checked = hasattr(dataset, 'check_sample')
            if loader and not checked and is_local(dataset):
                faults = image_faults(infos, loader, bar)
        else:
            dataset = DATASETS.build(leaf)
            infos = [
                dict(img_path=path, instances=[dict(bbox_label=label)])
                for path, label in dataset.samples
            ]
            loader = Loader('color_ignore_orientation', 'pillow')
            faults = image_faults(infos, loader, bar)
    except (FileNotFoundError, ValueError) as error:
        return None, '-' * 6, Counter(), str(error).splitlines()
    except Exception as error:
        # Whatever a dataset of another package raises.
        reason = f'{key}: {type(error).__name__}: {error}'
        return None, '-' * 6, Counter(), [reason]
    return dataset, *contents(dataset, infos), faults


def class_faults(
    cfg: Config, datasets: Sequence[tuple[str, Any]]
) -> list[str]:
    """Say where classes of datasets and heads do not fit, in lines.

    Args:
        cfg: A whole config.
        datasets: Modes and the datasets read for them.
    """
    from mmdet.registry import MODELS
    from torch import nn

    from surge_det.engine.hooks.check_hook import check_classes

    try:
        # Without one, datasets are still compared.
        model = MODELS.build(cfg.model) if 'model' in cfg else nn.Identity()
        check_classes(model, datasets)
    except Exception as error:
        # Whatever a config raises that is no model.
        return str(error).splitlines()
    return []


def contents(
    dataset: Any, infos: Sequence[Mapping]
) -> tuple[list[str], Counter]:
    """Return the cells of a table's row, and the boxes of each class."""
    names = tuple((dataset.metainfo or {}).get('classes') or ())
    boxes = Counter(dict.fromkeys(names, 0))
    ignored, without, sizes = 0, 0, set()
    for info in infos:
        instances = info.get('instances', ())
        used = [item for item in instances if not item.get('ignore_flag')]
        boxes.update(names[item['bbox_label']] for item in used)
        ignored += len(instances) - len(used)
        without += not used
        if 'width' in info:
            sizes.add((info['width'], info['height']))
    ends = sorted(sizes, key=lambda size: size[0] * size[1])
    ends = [f'{width}x{height}' for width, height in (*ends[:1], *ends[-1:])]
    dropped = dataset.dropped.counts() if hasattr(dataset, 'dropped') else {}
    cells = [
        f'{len(infos):,}',
        f'{sum(boxes.values()):,}',
        f'{ignored:,}',
        ', '.join(f'{n:,} {why}' for why, n in dropped.items()) or '0',
        f'{without:,}',
        ' to '.join(dict.fromkeys(ends)) or '-',
    ]
    return cells, boxes
