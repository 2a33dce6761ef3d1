"""Running a network in OpenVINO."""

from __future__ import annotations

import copy
import functools
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor

from surge_det.core import checks
from surge_det.core.operators.memory_format import is_channels_last
from surge_det.deploy.extra import require
from surge_det.deploy.networks import TO_FIRST, TO_LAST, rebuild

# Regions that go through a network together where their number is fixed.
ROWS = 64
# Compiled sizes that are kept.
SIZES = 16


@functools.cache
def shared_core() -> Any:
    """Return the one ``openvino.Core`` of this process.

    OpenVINO's CPU plugin, of which each ``Core`` has its own, puts up a stack
    for signal handlers (``sigaltstack``) when it comes, and the one it has
    found when it goes. Of two that come and go in turn, the last one puts up
    the first one's, which is unmapped by then, and the next signal that
    Python handles, be it Ctrl-C or the end of a data loading process, is a
    segmentation fault. So there is one, and it stays.

    Raises:
        ImportError: If openvino is not installed.
    """
    return require('openvino').Core()


class Network:
    """A network that OpenVINO runs on the CPU.

    ``BinaryConvolution`` wants static shapes. So a network of images is
    compiled, in a fraction of a second, for each size that it meets, and runs
    on the images of a batch one by one; the last ``SIZES`` sizes are kept. A
    data preprocessor with a larger ``pad_size_divisor`` gives fewer sizes. A
    network of regions runs on ``ROWS`` of them at a time, the last ones
    filled up, or, without 1-bit layers, on any number.

    Maps come out in ``torch.channels_last``, and images in that layout are
    taken as they are: OpenVINO's own layouts are near to it, and to rearrange
    large maps takes longer than many a 1-bit layer. Where the standard layout
    is wanted, OpenVINO rearranges faster than torch.

    Args:
        model: An ``openvino.Model`` with one input.
        structure: Its outputs as the detector wants them, numbers for
            tensors.
        threads: Number of threads; ``None`` for as many as torch has.
        channels_last: Whether maps come out in that layout.

    Raises:
        ImportError: If openvino is not installed.
        ValueError: If ``threads`` is not allowed.
    """

    def __init__(
        self,
        model: Any,
        structure: Any = None,
        threads: int | None = None,
        channels_last: bool = True,
    ) -> None:
        if threads is not None:
            checks.integer('threads', threads, 1)
        self.model = model
        self.channels_last = channels_last
        self.settings = {
            # By itself OpenVINO takes bfloat16 where the processor has it.
            'INFERENCE_PRECISION_HINT': 'f32',
            'INFERENCE_NUM_THREADS': threads or torch.get_num_threads(),
            'PERFORMANCE_HINT': 'LATENCY',
        }
        count = len(model.outputs)
        self.structure = list(range(count)) if structure is None else structure
        # Regions have a fixed height and width.
        self.of_regions = all(
            size.is_static for size in model.input(0).partial_shape[1:]
        )
        self._is_static = not self.of_regions or any(
            node.get_type_name() == 'BinaryConvolution'
            for node in model.get_ordered_ops()
        )
        self._requests: OrderedDict[tuple[int, ...], Any] = OrderedDict()

    def __deepcopy__(self, memo: dict) -> Network:
        # As mmengine's EMAHook copies models; a request cannot be copied.
        twin = copy.copy(self)
        twin._requests = OrderedDict()
        return twin

    def compiled(self, shape: tuple[int, ...]) -> Any:
        """Return the ``openvino.CompiledModel`` for an input shape.

        Its maps come out as (N, H, W, C) where they are in channels_last.
        """
        return self._request(tuple(shape)).get_compiled_model()

    def _request(
        self, shape: tuple[int, ...], given_last: bool = False
    ) -> Any:
        layouts = given_last, self.channels_last
        key = (*(shape if self._is_static else ()), *layouts)
        if key in self._requests:
            self._requests.move_to_end(key)
            return self._requests[key]
        model = self.model.clone()
        if self._is_static:
            try:
                model.reshape(list(shape))
            except RuntimeError as error:
                raise RuntimeError(
                    f'input of shape {tuple(shape)}: the network does not run '
                    'on this size in OpenVINO, such as where a pool is larger '
                    'than what it sees'
                ) from error
        _use_channels_last(model, *layouts)
        compiled = shared_core().compile_model(model, 'CPU', self.settings)
        self._requests[key] = compiled.create_infer_request()
        if len(self._requests) > SIZES:
            self._requests.popitem(last=False)
        return self._requests[key]

    def tensors(self, x: Tensor) -> list[Tensor]:
        """Run on (N, ...); return the outputs in their order, as float32."""
        size = len(x)
        if not self._is_static:
            step = max(size, 1)
        else:
            step = ROWS if self.of_regions else 1
        missing = -size % step or step * (size == 0)
        if missing:
            x = torch.cat([x, x.new_zeros(missing, *x.shape[1:])])
        parts = [self._infer(part) for part in x.split(step)]
        if len(parts) == 1:
            # Another copy of large maps would cost a tenth of the whole.
            return [output[:size] for output in parts[0]]
        return [torch.cat(pieces)[:size] for pieces in zip(*parts)]

    def _infer(self, x: Tensor) -> list[Tensor]:
        given_last = x.ndim == 4 and is_channels_last(x)
        request = self._request(tuple(x.shape), given_last)
        given = x.detach().float().cpu()
        given = given.permute(TO_LAST) if given_last else given.contiguous()
        found = request.infer([given.numpy()], share_inputs=True)
        outputs = []
        for i in range(len(found)):
            y = torch.from_numpy(found[i])
            if y.ndim == 4 and self.channels_last:
                y = y.permute(TO_FIRST)
            # A runner puts images, and so what mmdet does around, on a GPU.
            outputs.append(y.to(x.device))
        return outputs

    def __call__(self, x: Tensor) -> Any:
        """Run on (N, ...), N may be 0.

        Returns:
            The outputs in the detector's lists; they carry no gradient.
        """
        return rebuild(self.structure, self.tensors(x))


def _use_channels_last(model: Any, inputs: bool, outputs: bool) -> None:
    """Let a model take images, or give maps, in that layout; in place."""
    layout = require('openvino').Layout
    steps = require('openvino.preprocess').PrePostProcessor(model)
    ports = [steps.input(0)] if inputs else []
    for i, output in enumerate(model.outputs):
        rank = output.partial_shape.rank
        if outputs and rank.is_static and rank.get_length() == 4:
            ports.append(steps.output(i))
    for port in ports:
        port.model().set_layout(layout('NCHW'))
        port.tensor().set_layout(layout('NHWC'))
    steps.build()
