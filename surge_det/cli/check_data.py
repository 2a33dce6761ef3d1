"""Say what data a config needs, and whether it is there.

Example::

    surge-det check-data surge_faster_rcnn_r18_voc
"""

from __future__ import annotations

import argparse
from pathlib import Path

from surge_det.cli.common import (
    add_cfg_options,
    add_config,
    fail,
    load_config,
)
from surge_det.cli.tables import print_table

MODES = ('train', 'val', 'test')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_config(parser)
    add_cfg_options(parser)


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    from surge_det.datasets.root import check_data, leaf_datasets

    cfg = load_config(args)
    rows = []
    missing = None
    for mode in MODES:
        try:
            check_data(cfg, [mode])
        except FileNotFoundError as error:
            missing = missing or error
        loader = cfg.get(f'{mode}_dataloader') or {}
        for dataset in leaf_datasets(loader.get('dataset')):
            root = Path(dataset.get('data_root') or '')
            listed = dataset.get('ann_file') or ''
            count = count_images(root, listed)
            rows.append((mode, dataset.type, root, listed or '-', count))
    print_table(('for', 'dataset', 'folder', 'list', 'images'), rows, left=4)
    if missing:
        fail(missing)


def count_images(root: Path, listed: str) -> str:
    """Count the images of a dataset, as its list has them.

    Args:
        root: The dataset's folder.
        listed: Its list: a text file with an image on each line, or COCO's
            JSON; where there is none, all files below the folder count.

    Returns:
        str: The number; ``'missing'`` where there is no such file, ``'?'``
        where it is not such a list, ``'-'`` where neither is named.
    """
    from mmengine.fileio import load

    path = root / listed
    if path == Path():
        return '-'
    if not path.exists():
        return 'missing'
    if path.is_dir():
        return f'{sum(file.is_file() for file in path.rglob("*")):,}'
    try:
        if path.suffix == '.json':
            return f'{len(load(path)["images"]):,}'
        lines = path.read_text().splitlines()
        return f'{sum(map(bool, map(str.strip, lines))):,}'
    except (KeyError, TypeError, ValueError):
        return '?'
