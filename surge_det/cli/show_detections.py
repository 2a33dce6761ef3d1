"""Draw a test's detections beside the ground truth, and a confusion matrix.

PREDICTIONS is what ``surge-det test CONFIG CHECKPOINT --out PREDICTIONS``
wrote.
"""

from __future__ import annotations

import argparse

from surge_det.cli.common import (
    add_cfg_options,
    add_config,
    existing_file,
    fail,
    folder,
    load_config,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add = parser.add_argument
    add_config(parser)
    add('predictions', type=existing_file, metavar='PREDICTIONS.pkl')
    add('--out', type=folder, required=True, help="the pictures' folder")
    add('--num', type=int, default=12, help='how many images to draw')
    add(
        '--score-thr',
        type=float,
        default=0.3,
        help='leave out detections with lower scores',
    )
    add_cfg_options(parser)


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    from surge_det.cli.detection_pictures import show_detections
    from surge_det.compat.safe_load import (
        UnsafeCheckpointError,
        load_predictions,
    )

    cfg = load_config(args)
    try:
        sheet, paths = show_detections(
            cfg,
            load_predictions(args.predictions),
            args.out,
            args.num,
            args.score_thr,
            args.predictions,
        )
    except (OSError, UnsafeCheckpointError, ValueError) as error:
        fail(error)
    print(f'{len(paths)} pictures in {args.out}; a sheet of them: {sheet}')
    print(f'What is taken for what: {sheet.with_name("confusion.png")}')
