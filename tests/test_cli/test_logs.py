"""What of the toolbox's log is shown; more is in test_train_and_evaluate."""

import io
import logging
import os
import sys

import pytest

pytest.importorskip('mmdet', reason='needs the toolbox')

import surge_det  # noqa: F401

# isort: split
from command_line import ROOT, run
from mmengine.logging import MMLogger

from surge_det.cli.logs import shorten


@pytest.fixture
def logger(tmp_path):
    logger = MMLogger('shortened', log_file=str(tmp_path / 'log'))
    yield logger
    for handler in logger.handlers:
        handler.close()


def test_only_the_terminal_is_shortened(logger, tmp_path, capsys):
    stream = logger.handlers[0]
    stream.setStream(sys.stdout)
    shorten(logger)
    shorten(logger)
    said = [
        (logging.INFO, 'Config:\nmodel = None'),
        (logging.INFO, 'Using env variable `SURGE_DATA_ROOT` with value of x'),
        (logging.WARNING, 'Config:\nis not what it was'),
        (logging.INFO, 'Config: of a user, in one line'),
        (logging.INFO, 'loss: %s', 0.5),
        # logging tells of the mistake and goes on.
        (logging.INFO, 'step: %d', 'none'),
    ]
    for record in said:
        logger.log(*record)
    shown, errors = capsys.readouterr()
    assert 'Logging error' in errors
    log = (tmp_path / 'log').read_text()
    for words in ('is not what it was', 'of a user', 'loss: 0.5'):
        assert words in shown
        assert words in log
    for words in ('model = None', 'Using env variable'):
        assert words not in shown
        assert words in log


def test_a_terminal_that_nobody_reads(logger, tmp_path, capsys):
    reader, writer = os.pipe()
    os.close(reader)
    shorten(logger)
    # Unbuffered, so that nothing is left to write.
    with io.TextIOWrapper(open(writer, 'wb', 0), write_through=True) as stream:
        logger.handlers[0].setStream(stream)
        logger.info('loss: 0.5')
    assert capsys.readouterr().err == ''
    assert 'loss: 0.5' in (tmp_path / 'log').read_text()


def test_functions_are_found_without_a_warning():
    code = (
        'import surge_det\n'
        'from mmengine.registry import FUNCTIONS, init_default_scope\n'
        "init_default_scope('mmdet')\n"
        'with FUNCTIONS.switch_scope_and_registry(None) as found:\n'
        "    print(found.scope, found.get('pseudo_collate').__name__)\n"
        'with FUNCTIONS.switch_scope_and_registry("nowhere") as found:\n'
        '    pass\n'
    )
    out = run(sys.executable, '-c', code, root=ROOT)
    assert 'mmdet pseudo_collate' in out
    # Another scope that is not there is warned of as before.
    assert out.count('Failed to search registry') == 1
    assert 'nowhere' in out
