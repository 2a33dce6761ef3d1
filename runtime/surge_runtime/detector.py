"""The detector: one file, from image to boxes."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime as ort

from .images import to_array
from .library import kernel_path, library_path
from .model_file import read_model_file

if TYPE_CHECKING:
    from PIL.Image import Image

_OUTPUTS = {
    'boxes': 'tensor(float)',
    'scores': 'tensor(float)',
    'labels': 'tensor(int64)',
}


@dataclass(frozen=True)
class Detections:
    """What was found in an image, in the order of the detector.

    Attributes:
        boxes: float32 (N, 4), XYXY in the image's pixels.
        scores: float32 (N), from 0 to 1.
        labels: int64 (N), numbers of classes.
        classes: The names of all classes.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]

    def __len__(self):
        return len(self.scores)

    @property
    def names(self) -> list[str]:
        """The N classes' names."""
        return [self.classes[label] for label in self.labels]


class Detector:
    """A detector, loaded from the file that ``surge-det export`` wrote.

    Examples:
        >>> detector = Detector('detector.onnx')
        >>> found = detector('image.jpg')
        >>> found.boxes, found.scores, found.names

    It may be called from several threads at once.

    Args:
        path: The file.
        threads: How many threads compute; by default as many as processors
            are allowed to this process.

    Attributes:
        classes: The names of the classes.
        threads: How many threads compute.
        engine: Name and version of the engine.
        kernels: For which instruction set the 1-bit kernels are.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is not a detector's, was changed, or needs
            what this installation lacks; for ``threads`` below 1.
    """

    def __init__(self, path: str | Path, threads: int | None = None):
        if threads is None:
            threads = len(os.sched_getaffinity(0))
        if not isinstance(threads, int) or threads < 1:
            raise ValueError(
                f'threads={threads!r} must be a whole number of at least 1'
            )
        self.path = str(path)
        self.threads = threads
        self.engine = f'ONNX Runtime {ort.__version__}'
        self.kernels = kernel_path()
        data, self.classes = read_model_file(path)
        options = ort.SessionOptions()
        options.register_custom_ops_library(library_path())
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Threads that wait in a loop cost more than they gain where others
        # want the processor too.
        options.add_session_config_entry(
            'session.intra_op.allow_spinning', '0'
        )
        # The engine would take bytes that begin as its own format does for
        # that: another model than the one that was checked.
        options.add_session_config_entry('session.load_model_format', 'ONNX')
        # One block for all maps of a run is larger than blocks used again.
        options.enable_mem_pattern = False
        # Errors are raised; what it would log of them is said twice.
        options.log_severity_level = 4
        try:
            self._session = ort.InferenceSession(
                data, options, providers=['CPUExecutionProvider']
            )
        # The engine's errors have no common type.
        except Exception as error:
            raise ValueError(
                f'model {self.path!r}: {self.engine} refuses it: '
                f'{_one_line(error)}'
            ) from None
        self._check_interface()

    def _check_interface(self) -> None:
        inputs = [(i.name, i.type) for i in self._session.get_inputs()]
        outputs = {o.name: o.type for o in self._session.get_outputs()}
        if inputs != [('image', 'tensor(uint8)')] or outputs != _OUTPUTS:
            raise ValueError(
                f'model {self.path!r}: no detector: takes {inputs}, gives '
                f'{outputs}'
            )

    def __call__(self, image: str | Path | Image | np.ndarray) -> Detections:
        """Detect objects in an image.

        Args:
            image: A file, a Pillow image, or a uint8 array (H, W, 3) with
                channels blue, green, red, as OpenCV and mmdet have them.

        Raises:
            FileNotFoundError, TypeError: As the argument is.
            ValueError: If it is no image; if the model fails at it.
        """
        pixels = to_array(image)
        try:
            found = self._session.run(list(_OUTPUTS), {'image': pixels})
        except Exception as error:
            raise ValueError(
                f'model {self.path!r}: {_one_line(error)}'
            ) from None
        found = Detections(*found, self.classes)
        count = found.scores.size
        shapes = [found.boxes.shape, found.scores.shape, found.labels.shape]
        if shapes != [(count, 4), (count,), (count,)]:
            raise ValueError(
                f'model {self.path!r}: gave arrays {shapes}, not (N, 4), '
                '(N) and (N)'
            )
        if count and not (
            0 <= found.labels.min() <= found.labels.max() < len(self.classes)
        ):
            raise ValueError(
                f'model {self.path!r}: gave class {found.labels.max()}, its '
                f'list has {len(self.classes)}'
            )
        return found

    def __repr__(self):
        return (
            f'Detector({self.path!r}: {len(self.classes)} classes, '
            f'{self.engine}, kernels {self.kernels}, threads {self.threads})'
        )


def _one_line(error: Exception) -> str:
    """Return an error's message in one line, without the engine's codes."""
    text = ' '.join(str(error).split())
    codes = r'^\[ONNXRuntimeError\] : \d+ : \w+ : (Non-zero .* Message: )?'
    return re.sub(codes, '', text)
