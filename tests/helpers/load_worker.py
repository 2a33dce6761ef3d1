"""A process that loads detectors, so that its end is seen."""

import contextlib
import hashlib
import multiprocessing
import warnings

import torch


def _serve(connection):
    warnings.simplefilter('ignore')
    torch.set_num_threads(1)
    import surge_det  # noqa: F401

    # isort: split
    from mmengine.config import Config
    from small_detector import detections

    from surge_det.deploy import load_detector

    while True:
        path, config = connection.recv()
        try:
            model = load_detector(path, config and Config(config))
        except Exception as error:
            connection.send((type(error).__name__, str(error)))
            continue
        try:
            found = detections(model)
        except Exception as error:
            connection.send(('no boxes', repr(error)))
            continue
        boxes = [found[key] for key in ('bboxes', 'scores', 'labels')]
        values = b''.join(each.numpy().tobytes() for each in boxes)
        connection.send(('boxes', hashlib.sha256(values).hexdigest()))


class Worker:
    """Loads one file after another; a new process where one has died."""

    def __init__(self):
        self._context = multiprocessing.get_context('spawn')
        self._process = None

    def __call__(self, path, config=None, seconds=120):
        """Return the error's type and message, or 'boxes' and their digest.

        Raises:
            AssertionError: If the process died, or took too long.
        """
        if self._process is None:
            self._pipe, other = self._context.Pipe()
            self._process = self._context.Process(
                target=_serve, args=(other,), daemon=True
            )
            self._process.start()
            other.close()
        self._pipe.send((str(path), config))
        try:
            if self._pipe.poll(seconds):
                return self._pipe.recv()
            why = f'still busy after {seconds} s'
        except EOFError:
            self._process.join()
            why = f'ended with status {self._process.exitcode}'
        self.close()
        raise AssertionError(f'the process that loads {path} {why}')

    def close(self):
        """End the process."""
        if self._process is not None:
            with contextlib.suppress(OSError):
                self._process.kill()
            self._process.join()
            self._process = None
