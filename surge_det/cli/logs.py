"""What of mmengine's log is for the file and not for the terminal."""

from __future__ import annotations

import logging
import sys
from functools import partial

# How messages about the environment, the whole config and the order of hooks
# begin: hundreds of lines in front of the first loss.
_CHATTER = (
    'Using env variable `',
    f'\n{"-" * 60}\nSystem environment:',
    'Config:\n',
    'Hooks will be executed in the following order:',
    'Distributed training is not used, all SyncBatchNorm',
)


def is_news(record: logging.LogRecord) -> bool:
    """Tell whether a record is for the terminal; warnings always are."""
    # As it was written: what is put into it may not fit, and an error here,
    # other than one of a handler's, would end the training.
    return record.levelno > logging.INFO or not str(record.msg).startswith(
        _CHATTER
    )


def _passed_over(handler: logging.Handler, record: logging.LogRecord) -> None:
    # Nobody reads the terminal any more (`| head`); the file has it all.
    if not isinstance(sys.exc_info()[1], BrokenPipeError):
        logging.Handler.handleError(handler, record)


def shorten(logger: logging.Logger) -> None:
    """Keep from the terminal what is no news; files have all of it.

    Args:
        logger: One of mmengine's, which has its own handlers.
    """
    for handler in logger.handlers:
        # A file's handler is a stream's too.
        if type(handler) is logging.StreamHandler:
            handler.addFilter(is_news)
            handler.handleError = partial(_passed_over, handler)
