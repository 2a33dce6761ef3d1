"""For the tests of ``surge-det compare``."""

import csv
import os
import signal
import threading
import time

from surge_det.cli.compare.command import check
from surge_det.cli.main import main, parse_args


def rows(out):
    """What is in the CSV of a comparison."""
    with open(out / 'runs.csv', newline='') as file:
        return list(csv.DictReader(file))


def arguments(args):
    """Parse and check a command line."""
    parsed = parse_args(['compare', *args])
    check(parsed)
    return parsed


def compare(args):
    """Run the command; return its status."""
    return main(['compare', *args])


def interrupt(args, mark):
    """Run the tool and kill it politely once a process has left its mark."""

    def kill():
        deadline = time.monotonic() + 60
        # It exists before its content does.
        while time.monotonic() < deadline:
            if mark.exists() and mark.read_text():
                break
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=kill)
    thread.start()
    status = compare(args)
    thread.join()
    pid = int(mark.read_text())
    mark.unlink()
    return status, pid
