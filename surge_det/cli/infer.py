"""Draw the detections of a model in images.

The model is a checkpoint of training, what ``surge-det export`` wrote, or a
trained detector that is shipped: bccd (blood cells), neu (steel surfaces) or
shapes (the demo's drawings). Each image gives OUT/vis/NAME, a picture, and
OUT/preds/NAME.json, all boxes, of any score. Where boxes of several classes
are over one object (IoU above 0.5), the picture has the surest of them.

Example::

    surge-det infer images/ --model bccd
    surge-det infer images/ --model detector.safetensors --out out
"""

from __future__ import annotations

import argparse
import os
import warnings
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

from surge_det.cli.common import (
    config_file,
    fail,
    folder,
    fraction,
    model_file,
    read_config,
)
from surge_det.text import shortened


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add = parser.add_argument
    add('images', nargs='+', type=Path, help='images, and folders of images')
    add(
        '--model',
        type=model_file,
        required=True,
        metavar='FILE',
        help='checkpoint (.pth), packed file (.safetensors), ONNX file '
        '(.onnx) or OpenVINO model (.xml), or the name of a shipped model',
    )
    add(
        '--config',
        type=config_file,
        help='config file, or the name of a shipped config; default: what '
        'the model holds',
    )
    add(
        '--out',
        type=folder,
        default=Path('detections'),
        help='folder to write',
    )
    add(
        '--score-thr',
        type=fraction,
        default=0.3,
        help='draw detections with a score above this',
    )
    add(
        '--device',
        help="such as cpu or cuda:0; default: torch's, and the CPU for "
        'ONNX and OpenVINO',
    )


def find_images(paths: list[Path]) -> list[Path]:
    """Return the images that paths name, those of folders sorted.

    Raises:
        ValueError: If a path is not there, a folder has no image, or two
            other images have the same name: their pictures would be one file.
    """
    from mmdet.apis.det_inferencer import IMG_EXTENSIONS

    images = []
    for path in paths:
        found = [path]
        if path.is_dir():
            found = sorted(
                p for p in path.iterdir() if p.suffix.lower() in IMG_EXTENSIONS
            )
            if not found:
                raise ValueError(f'{path} has no images ({IMG_EXTENSIONS})')
        elif not path.is_file():
            raise ValueError(f'image {str(path)!r} does not exist')
        images += found
    # Given twice, or beside its folder, an image is taken once.
    images = [*{p.parent.resolve() / p.name: p for p in images}.values()]
    names = Counter(image.stem for image in images)
    twice = [name for name, count in names.items() if count > 1]
    if twice:
        files = [str(image) for image in images if image.stem == twice[0]]
        raise ValueError(
            f'several images are named {twice[0]!r}: what is written of one '
            f'would replace the other: {", ".join(files)}; name one of them '
            'at a time'
        )
    return images


def problem(path: Path) -> str | None:
    """Say why there can be no picture of an image, if so."""
    from mmdet.apis.det_inferencer import IMG_EXTENSIONS

    from surge_det.datasets.checked_images import Loader, image_faults

    # A colour picture cannot be written as .pgm.
    if path.suffix.lower() not in set(IMG_EXTENSIONS) - {'.pgm'}:
        return (
            f'no picture can be written as {path.suffix}'
            if path.suffix
            else 'its name has no ending to write a picture by'
        )
    try:
        Loader().load(str(path))
    except ValueError:
        return 'cannot be read as an image'
    faults = image_faults([{'img_path': str(path)}], Loader())
    return faults[0].removeprefix(f'{path} ') if faults else None


def _move(folder: Path, out: Path) -> None:
    for file in [path for path in folder.rglob('*') if path.is_file()]:
        target = out / file.relative_to(folder)
        target.parent.mkdir(exist_ok=True)
        os.replace(file, target)


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    from rich.progress import track

    from surge_det.deploy import DetInferencer

    # Of a log that is not asked for.
    warnings.filterwarnings('ignore', module=r'mmengine\.visualization')
    try:
        images = find_images(args.images)
        if args.config is not None:
            # mmdet reads it again, but says less about what is wrong.
            read_config(args.config)
        inferencer = DetInferencer(
            args.config and str(args.config),
            str(args.model),
            args.device,
            show_progress=False,
        )
        args.out.mkdir(parents=True, exist_ok=True)
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        fail(error)
    boxes, failed = 0, []
    for image in track(images, 'detecting', disable=len(images) == 1):
        why = problem(image)
        if why is None:
            try:
                # Beside what is there, until all of it is written.
                with TemporaryDirectory(dir=args.out) as part:
                    inferencer(
                        str(image),
                        out_dir=part,
                        pred_score_thr=args.score_thr,
                        no_save_pred=False,
                    )
                    _move(Path(part), args.out)
            except OSError as error:
                fail(f'{args.out} cannot be written: {error}')
            except Exception as error:
                # Whatever a model of strangers raises.
                why = f'{type(error).__name__}: {shortened(error)}'
        if why is not None:
            failed.append(f'{image}: {why}')
            continue
        found = inferencer.drawn[0].get('pred_instances', {})
        # As mmdet draws them: those above it.
        if 'scores' in found:
            boxes += int((found['scores'] > args.score_thr).sum())
    print(
        f'{boxes} detections with score above {args.score_thr:g} in '
        f'{len(images) - len(failed)} image(s) drawn: {args.out / "vis"}; '
        f'all boxes: {args.out / "preds"}'
    )
    if failed:
        fail(
            f'{len(failed)} of {len(images)} images failed, the others are '
            'done:\n' + '\n'.join(failed)
        )
