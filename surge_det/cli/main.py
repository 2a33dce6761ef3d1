"""The command ``surge-det``: one subcommand for each task.

A command is a module with ``add_arguments(parser)``, which imports nothing
heavy, and ``run(args)``, which imports what it needs and returns the exit
status or None. Only the module of the chosen command is imported, so that
``--help`` and a mistyped flag answer at once.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import logging
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from surge_det.cli.common import fail

# What each command is for, in the order of a detector's life.
COMMANDS = {
    'doctor': 'say what is installed, and what is amiss',
    'config': 'print the path of a shipped config, or start one from it',
    'check-data': 'check the data of a config, and count what it holds',
    'summary': 'list layers, operations and bytes of a detector',
    'preflight': 'show what every sign sees on one training image',
    'train': 'train a detector',
    'test': 'evaluate a detector',
    'compare': 'train one detector by several methods, side by side',
    'plot-run': 'draw loss and mAP of a training',
    'plot-ags': 'draw what each 1-bit layer did, and say what looks wrong',
    'probe': 'measure what compensation does to the loss, layer by layer',
    'show-detections': 'draw detections beside the ground truth',
    'export': 'write a trained detector as a file that runs',
    'infer': 'draw the detections of a model in images',
    'benchmark': 'measure time, memory and size',
    'convert': "bring a published backbone's checkpoint into one of ours",
    'make-crops': 'cut the boxes of a dataset into an image folder',
    'make-demo-data': "draw the demo's dataset",
    'demo': 'draw a dataset, train on it, evaluate, show',
    'run': 'run a script of the toolbox, with its gaps closed',
}
# Those whose module is `command` in a package.
PACKAGES = ('compare',)
# What the system says where a file cannot be written.
_UNWRITABLE = {
    getattr(errno, name)
    for name in ('EACCES', 'EDQUOT', 'EEXIST', 'EFBIG', 'EISDIR', 'ENOSPC')
    + ('ENOTDIR', 'EPERM', 'EROFS')
    if hasattr(errno, name)
}
# Those that may train or test in several processes.
DISTRIBUTED = ('train', 'test', 'benchmark')


def build_parser(command: str | None = None) -> argparse.ArgumentParser:
    """Build the parser, with the arguments of one command only.

    Args:
        command: The command that is going to be parsed.
    """
    parser = argparse.ArgumentParser(
        prog='surge-det', description='1-bit object detectors with SURGE.'
    )
    parser.set_defaults(error=parser.error)
    commands = parser.add_subparsers(
        dest='command', metavar='COMMAND', required=True
    )
    for name, help_text in COMMANDS.items():
        subparser = commands.add_parser(name, help=help_text)
        if name == command:
            module_name = f'surge_det.cli.{name.replace("-", "_")}'
            if name in PACKAGES:
                module_name += '.command'
            module = importlib.import_module(module_name)
            text, _, more = (module.__doc__ or '').partition('\n\n')
            subparser.description = text
            subparser.epilog = more
            subparser.formatter_class = argparse.RawDescriptionHelpFormatter
            module.add_arguments(subparser)
            subparser.set_defaults(run=module.run, error=subparser.error)
    return parser


def parse_args(argv: Sequence[object]) -> argparse.Namespace:
    """Parse a command and its arguments."""
    argv = list(map(str, argv))
    parser = build_parser(argv[0] if argv else None)
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        # The parser itself would show its own usage, not the command's.
        args.error(f'unrecognized arguments: {" ".join(unknown)}')
    if getattr(args, 'cfg_options', None):
        args.cfg_options = dict(args.cfg_options)
    return args


def main(argv: Sequence[object]) -> int:
    """Run a command, given with its arguments; return the exit status."""
    try:
        args = parse_args(argv)
        return args.run(args) or 0
    except OSError as error:
        if error.errno in _UNWRITABLE and error.filename:
            fail(error)
        raise
    except ModuleNotFoundError as error:
        if error.name in ('torch', 'mmengine', 'mmcv', 'mmdet', 'yaml'):
            fail(f'{error}; `surge-det doctor` says what to install')
        raise


def script(*command: str) -> NoReturn:
    """Run a command as the whole program.

    Args:
        command: What stands before the arguments of the process.
    """
    argv = [*command, *sys.argv[1:]]
    try:
        try:
            status = main(argv)
        finally:
            print(end='', flush=True)
    except BrokenPipeError:
        _end_if_unread()
        raise
    if argv[0] in DISTRIBUTED and _uses_gloo():
        # A process with gloo's threads sometimes aborts at its normal end.
        if status == 0:
            sys.modules['torch'].distributed.barrier()
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def _end_if_unread() -> None:
    """End quietly, as by SIGPIPE, where nobody reads the output any more."""
    try:
        # Another pipe may have broken, such as a worker's.
        print(flush=True)
    except BrokenPipeError:
        # What is left would be written at the end of the process.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + 13)  # SIGPIPE


def _uses_gloo() -> bool:
    torch = sys.modules.get('torch')
    dist = torch.distributed if torch else None
    return (
        dist is not None
        and dist.is_available()
        and dist.is_initialized()
        and dist.get_backend() == 'gloo'
    )
