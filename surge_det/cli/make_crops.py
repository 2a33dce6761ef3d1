"""Cut the boxes of a dataset in Pascal VOC format into an image folder.

Writes OUT/train/CLASS/*.png and OUT/val/CLASS/*.png, what
``ImageFolderDataset`` reads. By default the boxes of BCCD go to
``bccd_crops`` in the data folder, on which the config
``pretrain/surge_resnet18_crops`` trains.

Example::

    surge-det make-crops --max-per-class 150
"""

from __future__ import annotations

import argparse
import random
from collections import defaultdict
from pathlib import Path

from surge_det.cli.common import fail, folder, not_negative, positive_int
from surge_det.whole_files import replacing


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add = parser.add_argument
    add(
        '--source',
        type=Path,
        help='folder with Annotations, ImageSets/Main and JPEGImages; '
        'default: bccd in the data folder',
    )
    add(
        '--out',
        type=folder,
        help='folder to make; default: bccd_crops in the data folder',
    )
    add('--train', default='train', help='split that becomes OUT/train')
    add('--val', default='val', help='split that becomes OUT/val')
    add(
        '--margin',
        type=not_negative,
        default=0.1,
        help="what is added on each side, in parts of the box's own size",
    )
    add(
        '--min-size',
        type=int,
        default=8,
        metavar='PIXELS',
        help='leave out boxes whose longer side is shorter',
    )
    add(
        '--max-per-class',
        type=positive_int,
        metavar='N',
        help='of OUT/train keep at most N crops of a class, drawn at random, '
        'so that a frequent class does not drown the others; OUT/val is '
        'always whole',
    )


def class_names(source: Path) -> list[str]:
    """Return the names of all classes that the annotations have, sorted."""
    from surge_det.datasets.voc_format import parse_annotation, text_of

    names = set()
    for path in sorted((source / 'Annotations').glob('*.xml')):
        root = parse_annotation(path.read_bytes(), path)
        names |= {text_of(item, 'name') for item in root.findall('object')}
    names -= {''}
    if unfit := [n for n in names if n in ('.', '..') or set(n) & {*'/\\'}]:
        raise ValueError(
            f'{source}: classes {sorted(unfit)} cannot be names of folders, '
            'into which crops are sorted; rename them in the annotations'
        )
    return sorted(names)


def find_boxes(source: Path, split: str, classes: list[str]) -> dict:
    """Return the boxes of a split: class -> list of (image, number, box).

    Boxes are XYXY in pixels, 0-based, the far corner inclusive.
    """
    from surge_det.datasets import VOCFormatDataset

    dataset = VOCFormatDataset(
        data_root=str(source),
        ann_file=f'ImageSets/Main/{split}.txt',
        metainfo=dict(classes=classes),
        test_mode=True,
        pipeline=[],
    )
    boxes = defaultdict(list)
    for i in range(len(dataset)):
        info = dataset.get_data_info(i)
        for number, instance in enumerate(info['instances']):
            name = classes[instance['bbox_label']]
            boxes[name].append((info['img_path'], number, instance['bbox']))
    return boxes


def cut(
    boxes: dict, folder: Path, margin: float, min_size: int
) -> dict[str, int]:
    """Write one PNG per box and return how many each class got."""
    import mmcv
    from PIL import Image
    from rich.progress import track

    by_image = defaultdict(list)
    for name, items in boxes.items():
        for path, number, box in items:
            by_image[path].append((name, number, box))
    counts = dict.fromkeys(sorted(boxes), 0)
    for path, items in track(sorted(by_image.items()), 'cutting'):
        # As in training: EXIF may turn it.
        image = Image.fromarray(mmcv.imread(path, channel_order='rgb'))
        for name, number, (x1, y1, x2, y2) in items:
            width, height = x2 + 1 - x1, y2 + 1 - y1
            if max(width, height) < min_size:
                continue
            area = (
                max(round(x1 - margin * width), 0),
                max(round(y1 - margin * height), 0),
                min(round(x2 + 1 + margin * width), image.width),
                min(round(y2 + 1 + margin * height), image.height),
            )
            target = folder / name / f'{Path(path).stem}_{number}.png'
            target.parent.mkdir(parents=True, exist_ok=True)
            with replacing(target, sync=False) as new:
                image.crop(area).save(new)
            counts[name] += 1
    return counts


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    from surge_det.datasets import data_root

    try:
        root = Path(data_root())
        source = args.source or root / 'bccd'
        out = args.out or root / 'bccd_crops'
        if not (source / 'Annotations').is_dir():
            fail(f'{source} has no folder Annotations; --source names another')
        if out.exists() and any(out.iterdir()):
            fail(f'{out} is not empty; delete it or give another --out')
        classes = class_names(source)
        for split, name in ((args.train, 'train'), (args.val, 'val')):
            boxes = find_boxes(source, split, classes)
            if name == 'train' and args.max_per_class:
                draw = random.Random(0)
                for cls, items in boxes.items():
                    if len(items) > args.max_per_class:
                        boxes[cls] = draw.sample(items, args.max_per_class)
            counts = cut(boxes, out / name, args.margin, args.min_size)
            crops = ', '.join(f'{cls} {n}' for cls, n in counts.items())
            print(f'{out / name}: {crops}')
    except (FileNotFoundError, ValueError) as error:
        fail(error)
