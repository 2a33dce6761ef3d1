"""A 1-bit network and its float twin, by torch and by OpenVINO."""

from __future__ import annotations

import copy
import logging
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mmdet.structures import DetDataSample
from mmengine.config import Config
from torch import Tensor, nn

from surge_det.core import SURGEConv2d
from surge_det.core.layers import SURGELayer, named_surge_layers
from surge_det.deploy import FORMATS, Row, load_trained
from surge_det.deploy.extra import require
from surge_det.deploy.openvino import (
    Network,
    convert,
    dense_network,
    roi_network,
)
from surge_det.deploy.openvino.conversion import exact_arithmetic
from surge_det.deploy.openvino.detector import (
    Flattened,
    install_networks,
    roi_example,
    takes_channels_last,
)
from surge_det.deploy.openvino.runtime import shared_core
from surge_det.deploy.openvino.self_check import (
    check_input,
    check_network,
    record,
)
from surge_det.deploy.trained import build_detector
from surge_det.engine.apply_method import apply_method

from .layer import Shape
from .measure import interleaved, ratio, timed
from .reference import as_reference

TORCH, TORCH_1BIT = 'torch fp32', 'torch 1-bit'
FP32, INT8, ONE_BIT = 'OpenVINO fp32', 'OpenVINO int8', 'OpenVINO 1-bit'
CONTESTANTS = [TORCH, FP32, INT8, TORCH_1BIT, ONE_BIT]
# What contestants that take both have behind their names, by layout.
LAYOUTS = {
    '': torch.contiguous_format,
    ', channels_last': torch.channels_last,
}
# The sizes that `Shape`s are given for.
FULL_SIZE = 600, 1000
# Random weights of real layers are multiples of one by this.
_GRID = 256

Runs = dict[str, Callable[[], Any]]


@dataclass
class Case:
    """One thing that all contestants compute, and how long they took.

    Args:
        level: layers, network or detector.
        name: Of the layer or the config.
        size: Rows and columns of the image.
        threads: Number of threads.
        channels: The smaller number of a layer's channels.
        seconds: Contestant -> seconds of its turns; in both layouts, where it
            takes both.
        counts: Contestant -> number of proposals, with two stages, and of
            boxes, where there are any.
    """

    level: str
    name: str
    size: tuple[int, int]
    threads: int
    channels: int = 0
    seconds: dict[str, list[float]] = field(default_factory=dict)
    counts: dict[str, list[int]] = field(default_factory=dict)

    @property
    def shape(self) -> str:
        """Size as text."""
        return 'x'.join(map(str, self.size))

    @property
    def title(self) -> str:
        """One line that says what is measured."""
        threads = f'{self.threads} thread{"s" * (self.threads > 1)}'
        return f'{self.level}, {self.name}, {self.shape}, {threads}'

    def best(self, contestant: str) -> tuple[str, list[float]] | None:
        """Return a contestant's faster layout and its seconds, if any."""
        found = [
            (
                layout.lstrip(', ') or 'default',
                self.seconds[contestant + layout],
            )
            for layout in LAYOUTS
            if contestant + layout in self.seconds
        ]
        return min(
            found, key=lambda one: statistics.median(one[1]), default=None
        )

    def times_faster(self, base: str, mine: str = ONE_BIT) -> float | None:
        """Median of the ratios of paired turns, the base's time by mine."""
        first, second = self.best(base), self.best(mine)
        if first is None or second is None:
            return None
        return ratio(first[1], second[1])

    def measure(
        self,
        runs: Runs,
        rounds: int,
        warmup: int,
        tick: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Let contestants take turns and keep their seconds.

        Args:
            runs: What each does.
            rounds: Turns of each that count.
            warmup: Turns before, which don't.
            tick: Called after every round.
            clock: ``time.process_time`` for the CPU time of all threads.
        """

        def turn(run: Callable[[], Any]) -> Callable[[], float]:
            def take() -> float:
                # Once without a clock: threads of the one before still wait
                # actively, and the caches are its.
                run()
                return timed(run, torch.device('cpu'), clock)

            return take

        turns = {name: turn(run) for name, run in runs.items()}
        with torch.no_grad():
            self.seconds = interleaved(turns, rounds, warmup, tick)


def int8_problem() -> str | None:
    """Say why there is no int8 twin, or ``None``."""
    try:
        import nncf  # noqa: F401
    except ImportError as error:
        return f'nncf cannot be imported ({error}): pip install nncf'
    return None


def quantized(model: Any, inputs: Sequence[Tensor]) -> Any:
    """Return the int8 twin of a real ``openvino.Model``.

    Args:
        model: Not changed.
        inputs: Its ranges come from these; times do not depend on them.
    """
    import nncf

    nncf.set_log_level(logging.ERROR)
    # It shows progress where results go.
    with redirect_stdout(sys.stderr):
        return nncf.quantize(
            model,
            nncf.Dataset([x.numpy() for x in inputs]),
            subset_size=len(inputs),
        )


def check_shapes(name: str, outputs: Mapping[str, Sequence[Tensor]]) -> None:
    """See that contestants compute outputs of the same shapes.

    Args:
        name: Of what they compute.
        outputs: By contestant.

    Raises:
        RuntimeError: If one does not; names it.
    """
    shapes = {
        contestant: [tuple(tensor.shape) for tensor in tensors]
        for contestant, tensors in outputs.items()
    }
    first = next(iter(shapes))
    for contestant, found in shapes.items():
        if found != shapes[first]:
            raise RuntimeError(
                f'{name}: {contestant} has outputs of shapes {found}, '
                f'{first} has {shapes[first]}'
            )


def _in_layouts(name: str, module: nn.Module) -> dict[str, nn.Module]:
    return {
        name + suffix: copy.deepcopy(module).to(memory_format=layout)
        for suffix, layout in LAYOUTS.items()
    }


def _outputs(run: Callable[[], Any]) -> Sequence[Tensor]:
    with torch.no_grad():
        found = run()
    return [found] if isinstance(found, Tensor) else found


# Layers


def at_size(shape: Shape, size: tuple[int, int]) -> Shape:
    """Return a layer of ``FULL_SIZE`` as it is for another size of images."""
    # 2, 4, 8, ...: what the network has divided the image by.
    step = 1
    while -(-FULL_SIZE[0] // step) > shape.height:
        step *= 2
    return shape._replace(
        height=-(-size[0] // step), width=-(-size[1] // step)
    )


def layer_runs(shape: Shape, threads: int, int8: bool) -> Runs:
    """Return what each contestant does with one convolution.

    Binarization, the scale, and what the engine needs of other layouts are
    part of it. Each takes its input in both of torch's layouts.

    Args:
        shape: The layer and its input.
        threads: Of OpenVINO.
        int8: Whether that one takes part.

    Raises:
        RuntimeError: If they do not compute the same.
    """
    torch.manual_seed(0)
    layer = SURGEConv2d(
        shape.c_in,
        shape.c_out,
        shape.kernel,
        shape.stride,
        shape.kernel // 2,
        bias=False,
        compensate=False,
    ).eval()
    x = torch.randn(1, shape.c_in, shape.height, shape.width)
    # Where a sign is easily wrong.
    x.view(-1)[::7] = 0
    twin = as_reference(layer, nn.Conv2d)
    models = {FP32: convert(twin, x)}
    if int8:
        models[INT8] = quantized(models[FP32], [x])
    models[ONE_BIT] = convert(layer, x)
    runs: Runs = {}
    for name, module in ((TORCH, twin), (TORCH_1BIT, layer)):
        for key, copied in _in_layouts(name, module).items():
            layout = LAYOUTS[key.removeprefix(name)]
            runs[key] = partial(copied, x.contiguous(memory_format=layout))
    for name, model in models.items():
        network = Network(model, threads=threads)
        for suffix, layout in LAYOUTS.items():
            given = x.contiguous(memory_format=layout)
            runs[name + suffix] = partial(network.tensors, given)
    check_layer(shape.name, layer, x, runs)
    return runs


def check_layer(name: str, layer: SURGEConv2d, x: Tensor, runs: Runs) -> None:
    """See that contestants compute a layer alike, the 1-bit one exactly.

    Args:
        name: Of the layer.
        layer: The layer in torch.
        x: Its input.
        runs: What each contestant does with it.

    Raises:
        RuntimeError: If one does not; names it.
    """
    outputs = {key: _outputs(run) for key, run in runs.items()}
    check_shapes(name, outputs)
    with torch.no_grad(), exact_arithmetic(layer):
        expected = layer(x)
    # Torch sums scaled signs, so that the last digits differ.
    wanted = {}
    for layout in LAYOUTS:
        wanted[ONE_BIT + layout] = expected, 0
        wanted[FP32 + layout] = outputs[TORCH][0], 1e-4
        wanted[TORCH_1BIT + layout] = expected, 1e-5
    for key, (right, tolerance) in wanted.items():
        difference = (outputs[key][0] - right).abs().max() / right.abs().max()
        if not difference <= tolerance:
            raise RuntimeError(
                f'{name}: {key} differs from what torch computes by '
                f'{difference.item():.3g} of the largest value; allowed is '
                f'{tolerance:g}'
            )


# Detectors


class Detector:
    """A config's 1-bit detector and its float twin, in torch and OpenVINO.

    Args:
        cfg: The config; not changed.
        folder: Where OpenVINO's files go.
        int8: Whether there is an int8 twin too.
        size: Rows and columns of the images that it takes its ranges from.
        checkpoint: Of the 1-bit detector; ``None`` for random weights.
        float_checkpoint: Of the twin; ``None`` for the latent weights in
            ``checkpoint``.

    Raises:
        ExportError: If the detector cannot be exported.
        OSError: If a checkpoint cannot be read.
        ValueError: If it is not this config's, or the config is not 1-bit.
    """

    def __init__(
        self,
        cfg: Config,
        folder: Path,
        int8: bool,
        size: tuple[int, int],
        checkpoint: str | None = None,
        float_checkpoint: str | None = None,
    ) -> None:
        self.folder = folder
        self.float_cfg = apply_method(cfg, 'float')
        self.one_bit = _detector(cfg, checkpoint)
        layers = [layer for _, layer in named_surge_layers(self.one_bit)]
        if not any(layer.binarize_weight for layer in layers):
            raise ValueError('nothing in it is 1-bit; give another config')
        self.twin = _detector(self.float_cfg, float_checkpoint)
        if checkpoint and not float_checkpoint:
            self.twin.load_state_dict(self.one_bit.state_dict())
        self.files = FORMATS['openvino'].save(
            self.one_bit, folder / 'one_bit.xml'
        )
        dense = dense_network(self.twin)
        example = torch.randn(1, 3, *size)
        self._twins = {FP32: [_converted(dense, example)]}
        if int8:
            self._twins[INT8] = [quantized(self._twins[FP32][0], [example])]
        self._structures = [dense.structure]
        roi = roi_network(self.twin)
        if roi is not None:
            example = roi_example(self.twin)
            real = _converted(roi, example, False)
            self._twins[FP32].append(real)
            if int8:
                self._twins[INT8].append(quantized(real, [example]))
            self._structures.append(roi.structure)
        self._torch = {
            **_in_layouts(TORCH, self.twin),
            **_in_layouts(TORCH_1BIT, self.one_bit),
        }

    def network(self, threads: int) -> Network:
        """Return the 1-bit dense network as it was exported."""
        model = shared_core().read_model(self.files[1])
        return self._dense(model, threads)

    def _dense(self, model: Any, threads: int) -> Network:
        # Maps as the detector takes them.
        last = takes_channels_last(self.one_bit)
        return Network(model, threads=threads, channels_last=last)

    def network_runs(self, size: tuple[int, int], threads: int) -> Runs:
        """Return what each contestant does with an image's dense part.

        That is backbone, neck and dense head, on an image as the data
        preprocessor leaves it; no padding is added.

        Raises:
            RuntimeError: If they do not compute the same.
        """
        shape = (1, 3, *size)
        x = check_input(shape)
        runs: Runs = {
            name: partial(dense_network(model), x)
            for name, model in self._torch.items()
        }
        networks = {
            name: self._dense(models[0], threads)
            for name, models in self._twins.items()
        }
        networks[ONE_BIT] = self.network(threads)
        for name, network in networks.items():
            runs[name] = partial(network.tensors, x)
        outputs = {name: _outputs(run) for name, run in runs.items()}
        check_shapes('network', outputs)
        for name, model in ((FP32, self.twin), (ONE_BIT, self.one_bit)):
            with torch.no_grad(), exact_arithmetic(model):
                expected = dense_network(model)(x)
            check_network(
                lambda _, name=name: outputs[name],
                [record(shape, expected)],
                name,
            )
        return runs

    def detector_runs(
        self, image: Tensor, threads: int
    ) -> tuple[Runs, dict[str, list[int]]]:
        """Return what each contestant does from image to boxes.

        That is mmdet's ``test_step``: data preprocessor with normalization
        and padding, networks, proposals, RoI extractor, decoding, NMS.
        Reading and resizing are not in it.

        Args:
            image: (3, H, W), uint8.
            threads: Of OpenVINO.

        Returns:
            What they do, and how many proposals (with two stages) and boxes
            each has found.

        Raises:
            RuntimeError: If their results are of different kinds.
        """
        models = dict(self._torch)
        for name, converted in self._twins.items():
            models[name] = self._around(converted, threads)
        models[ONE_BIT] = self.exported(threads)
        data = _data(image)
        runs: Runs = {
            name: partial(model.test_step, data)
            for name, model in models.items()
        }
        kinds, counts = {}, {}
        for name, model in models.items():
            with torch.no_grad(), _counting(model) as proposals:
                found = runs[name]()[0].pred_instances
            counts[name] = [*proposals, len(found)]
            # How many there are depends on the weights.
            kinds[name] = [
                value.new_empty(value.shape[1:]) for value in found.values()
            ]
        check_shapes('detector', kinds)
        return runs, counts

    def exported(self, threads: int) -> nn.Module:
        """Load the 1-bit detector from its files."""
        return FORMATS['openvino'].load(self.files[1], threads=threads)

    def _around(self, converted: Sequence[Any], threads: int) -> nn.Module:
        model = build_detector(self.float_cfg)
        networks = [
            Network(one, structure, threads)
            for one, structure in zip(converted, self._structures)
        ]
        install_networks(model, networks)
        return model

    def layer_sizes(self) -> list[Row]:
        """List the 1-bit layers with the bytes of their values."""
        rows = FORMATS['openvino'].plan(self.one_bit)
        return [row for row in rows if row.bits == '1/1']

    def file_sizes(self) -> tuple[int, int]:
        """Bytes of all files, 1-bit and of the float twin."""
        ov = require('openvino')
        twins = []
        for number, model in enumerate(self._twins[FP32]):
            path = self.folder / f'float{number}.xml'
            ov.save_model(model, path, compress_to_fp16=False)
            twins += [path, path.with_suffix('.bin')]
        one, other = (
            sum(file.stat().st_size for file in files)
            for files in (self.files, twins)
        )
        return one, other


def _detector(cfg: Config, checkpoint: str | None) -> nn.Module:
    if checkpoint is not None:
        return load_trained(cfg, checkpoint)
    torch.manual_seed(0)
    model = build_detector(cfg)
    model.dataset_meta = {}
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and not isinstance(
            module, SURGELayer
        ):
            # Sums of the first layer are exact then, in whatever order: what
            # one sign differs grows from layer to layer of random weights.
            for parameter in module.parameters():
                parameter.data.mul_(_GRID).round_().div_(_GRID)
    return model


def _converted(
    network: Flattened, example: Tensor, sizes_vary: bool = True
) -> Any:
    # As OpenVINO has it by itself: faster, and no sign can flip.
    return convert(network, example, sizes_vary, fold_norms=True)


def _data(image: Tensor) -> dict[str, list]:
    size = tuple(image.shape[1:])
    sample = DetDataSample(
        metainfo=dict(
            img_id=0, img_shape=size, ori_shape=size, scale_factor=(1.0, 1.0)
        )
    )
    return dict(inputs=[image], data_samples=[sample])


@contextmanager
def _counting(model: nn.Module) -> Iterator[list[int]]:
    """Collect the number of proposals that an RPN makes."""
    counts: list[int] = []
    if not hasattr(model, 'rpn_head'):
        yield counts
        return
    head = model.rpn_head
    predict = head.predict

    def counted(*args: Any, **kwargs: Any) -> list:
        found = predict(*args, **kwargs)
        counts.extend(map(len, found))
        return found

    head.predict = counted
    try:
        yield counts
    finally:
        del head.predict


# What takes the time


@dataclass
class Operation:
    """Operations of one kind in a network, executed one way.

    Args:
        kind: Of operation, such as Convolution.
        execution: What executes it, such as ``brgconv_avx512_f32``.
        count: How many there are.
        seconds: Of all of them, the median over the runs.
    """

    kind: str
    execution: str
    count: int
    seconds: float


def profile(network: Network, x: Tensor, runs: int) -> list[Operation]:
    """Say how long a network's operations take, by kind and execution.

    Args:
        network: Not compiled yet.
        x: Its input.
        runs: How often it runs; one more comes before.

    Returns:
        The longest first.
    """
    network.settings['PERF_COUNT'] = True
    request = network.compiled(tuple(x.shape)).create_infer_request()
    seen = []
    for _ in range(runs + 1):
        request.infer([x.numpy()])
        groups = defaultdict(list)
        for info in request.profiling_info:
            if info.status == info.Status.EXECUTED:
                taken = info.real_time.total_seconds()
                groups[info.node_type, info.exec_type].append(taken)
        seen.append(groups)
    operations = [
        Operation(
            *key,
            # One too short for the clock may count as not executed.
            max(len(groups[key]) for groups in seen),
            statistics.median(sum(groups[key]) for groups in seen[1:]),
        )
        for key in seen[0]
    ]
    return sorted(operations, key=lambda one: -one.seconds)


# Stages of test_step -> where a detector has them, if it does.
_STAGES = {
    'data preprocessor': ['data_preprocessor', 'forward'],
    'dense network': ['extract_feat'],
    'proposals': ['rpn_head', 'predict'],
    'RoI extractor': ['roi_head', 'bbox_roi_extractor', 'forward'],
    'RoI network': ['roi_head', 'bbox_head', 'forward'],
    'boxes of RoIs': ['roi_head', 'bbox_head', 'predict_by_feat'],
    'boxes': ['bbox_head', 'predict_by_feat'],
}


def profile_stages(
    model: nn.Module, image: Tensor, runs: int
) -> list[tuple[str, float]]:
    """Say how long the stages from image to boxes take.

    Args:
        model: The detector.
        image: (3, H, W), uint8.
        runs: How often it runs; one more comes before.

    Returns:
        Names and seconds, the median over the runs, in the order of the
        detector; the last one is what no other stage has.
    """
    seen: list[dict[str, float]] = []
    with ExitStack() as stack:
        for name, (*path, method) in _STAGES.items():
            owner: Any = model
            for part in path:
                owner = getattr(owner, part, None)
            if hasattr(owner, method):
                stack.enter_context(_clocked(owner, method, name, seen))
        for _ in range(runs + 1):
            seen.append({})
            start = time.perf_counter()
            model.test_step(_data(image))
            total = time.perf_counter() - start
            seen[-1]['rest'] = total - sum(seen[-1].values())
    return [
        (name, statistics.median(taken[name] for taken in seen[1:]))
        for name in seen[0]
    ]


@contextmanager
def _clocked(
    owner: Any, method: str, name: str, seen: list[dict[str, float]]
) -> Iterator[None]:
    """Add what a method takes to the last of ``seen``."""
    call, own = getattr(owner, method), vars(owner).get(method)

    def clocked(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        result = call(*args, **kwargs)
        taken = time.perf_counter() - start
        seen[-1][name] = seen[-1].get(name, 0.0) + taken
        return result

    setattr(owner, method, clocked)
    try:
        yield
    finally:
        if own is None:
            delattr(owner, method)
        else:
            setattr(owner, method, own)
