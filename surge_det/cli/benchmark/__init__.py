"""Measure time, memory, size and accuracy of layers, trainings, detectors."""

from __future__ import annotations

import argparse

from . import arguments, ddp, front, inference, layers, train

_COMMANDS = dict(
    layers=layers, train=train, ddp=ddp, inference=inference, front=front
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add a command for each benchmark."""
    parser.add_argument(
        '--cuda-check',
        action='store_true',
        help='instead of these: see that all works on a GPU, in a report',
    )
    parser.set_defaults(benchmark=None)
    commands = parser.add_subparsers(metavar='|'.join(_COMMANDS))
    for name, module in _COMMANDS.items():
        head, _, rest = (module.__doc__ or '').partition('\n')
        command = commands.add_parser(
            name,
            help=head,
            description=head,
            epilog=rest,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(command)
        command.set_defaults(benchmark=module.run)


def run(args: argparse.Namespace) -> int | None:
    """Run the benchmark that was asked for."""
    if args.cuda_check == (args.benchmark is not None):
        args.error(f'one of {", ".join(_COMMANDS)} or --cuda-check')
    if args.cuda_check:
        from . import cuda_check

        return cuda_check.run()
    arguments.prepare(args)
    args.benchmark(args)
    return None
