"""A 1-bit network and its float twin: torch, OpenVINO, ONNX Runtime."""

from __future__ import annotations

import argparse
import copy
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import mmcv
import torch
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.structures import InstanceData
from torch import Tensor, nn

from surge_det.core import SURGEConv2d
from surge_det.core.layers import SURGELayer, named_surge_layers
from surge_det.datasets.root import test_pipeline
from surge_det.deploy import FORMATS
from surge_det.deploy.comparison import (
    check_input,
    check_network,
    record,
)
from surge_det.deploy.extra import require
from surge_det.deploy.networks import (
    TO_FIRST,
    TO_LAST,
    dense_network,
    roi_example,
    roi_network,
)
from surge_det.deploy.onnx.conversion import convert as convert_to_onnx
from surge_det.deploy.onnx.detector import open_session
from surge_det.deploy.onnx.rules import kind_of
from surge_det.deploy.openvino import Network, convert
from surge_det.deploy.openvino.conversion import exact_arithmetic
from surge_det.deploy.openvino.detector import (
    install_networks,
    takes_channels_last,
)
from surge_det.deploy.openvino.runtime import shared_core
from surge_det.deploy.trained import build_detector
from surge_det.engine.apply_method import apply_method

from .inference_profile import wrapped
from .inference_report import (
    CHANNELS_LAST,
    DEFAULT,
    FP32,
    INT8,
    ONE_BIT,
    RUNTIME,
    RUNTIME_FP32,
    TORCH,
    TORCH_1BIT,
    Case,
)
from .layers import FULL_SIZE, Shape
from .measure import interleaved, timed
from .reference import copy_as

LAYOUTS = {
    DEFAULT: torch.contiguous_format,
    CHANNELS_LAST: torch.channels_last,
}
# Random weights of real layers are multiples of one by this.
_GRID = 256

Runs = dict[str, Callable[[], Any]]


def take_turns(case: Case, runs: Runs, args: argparse.Namespace) -> Case:
    """Let contestants take turns; keep their seconds in the case."""

    def turn(run: Callable[[], Any]) -> Callable[[], float]:
        def take() -> float:
            # Once without a clock: threads of the one before still wait
            # actively, and the caches are its.
            run()
            return timed(run, torch.device('cpu'), args.cpu_time)

        return take

    turns = {name: turn(run) for name, run in runs.items()}
    with torch.no_grad():
        case.seconds = interleaved(turns, args, case.title)
    return case


def int8_problem() -> str | None:
    """Say why there is no int8 twin, or ``None``."""
    try:
        import nncf  # noqa: F401
    except ImportError as error:
        return f'nncf cannot be imported ({error}): pip install nncf'
    return None


def quantized(model: Any, x: Tensor) -> Any:
    """Return the int8 twin of a real ``openvino.Model``, with ranges of x."""
    import nncf

    nncf.set_log_level(logging.ERROR)
    # It shows progress where results go.
    with redirect_stdout(sys.stderr):
        data = nncf.Dataset([x.numpy()])
        return nncf.quantize(model, data, subset_size=1)


def check_shapes(name: str, outputs: Mapping[str, Sequence[Tensor]]) -> None:
    """See that all contestants' outputs have the same shapes.

    Raises:
        RuntimeError: If they do not; names what is computed and by whom.
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


def in_runtime(
    network: nn.Module, x: Tensor, threads: int, channels_last: bool = False
) -> Callable[[], list[Tensor]]:
    """Let ONNX Runtime with our operators compute a network.

    Args:
        network: Converted for any size.
        x: What it is given, (N, C, H, W).
        threads: Number of threads.
        channels_last: Whether x is given as (N, H, W, C).
    """
    model = convert_to_onnx(network, x, channels_last)
    names = [output.name for output in model.graph.output]
    session = open_session(model.SerializeToString(), threads)
    given = (x.permute(TO_LAST) if channels_last else x).contiguous().numpy()

    def run() -> list[Tensor]:
        found = session.run(names, {'data': given})
        return [torch.from_numpy(y).permute(TO_FIRST) for y in found]

    return run


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
    twin = copy_as(layer, nn.Conv2d)
    models = {FP32: convert(twin, x)}
    if int8:
        models[INT8] = quantized(models[FP32], x)
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
    # It has maps in that layout only.
    for name, module in ((RUNTIME_FP32, twin), (RUNTIME, layer)):
        runs[name + CHANNELS_LAST] = in_runtime(module, x, threads, True)
    check_layer(shape.name, layer, x, runs)
    return runs


def check_layer(name: str, layer: SURGEConv2d, x: Tensor, runs: Runs) -> None:
    """See that contestants compute a layer alike, the 1-bit one exactly.

    Raises:
        RuntimeError: If one does not; names it.
    """
    outputs = {key: _outputs(run) for key, run in runs.items()}
    check_shapes(name, outputs)
    with torch.no_grad(), exact_arithmetic(layer):
        expected = layer(x)
    wanted = {
        ONE_BIT: (expected, 0),
        FP32: (outputs[TORCH][0], 1e-4),
        RUNTIME: (expected, 0),
        RUNTIME_FP32: (outputs[TORCH][0], 1e-4),
        # Torch sums scaled signs, so that the last digits differ.
        TORCH_1BIT: (expected, 1e-5),
    }
    for contestant, (right, tolerance) in wanted.items():
        names = (contestant + layout for layout in LAYOUTS)
        for key in (name for name in names if name in runs):
            off = (outputs[key][0] - right).abs().max() / right.abs().max()
            if not off <= tolerance:
                raise RuntimeError(
                    f'{name}: {key} differs from what torch computes by '
                    f'{off.item():.3g} of the largest value; allowed is '
                    f'{tolerance:g}'
                )


# Detectors


class Detector:
    """A config's 1-bit detector and its float twin, by all contestants.

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
        parts = [(dense_network(self.twin), torch.randn(1, 3, *size))]
        roi = roi_network(self.twin)
        if roi is not None:
            parts.append((roi, roi_example(self.twin)))
        # As OpenVINO has them by itself: faster, and no sign can flip.
        self._twins = {
            FP32: [
                convert(network, x, network is not roi, fold_norms=True)
                for network, x in parts
            ]
        }
        if int8:
            self._twins[INT8] = [
                quantized(model, x)
                for model, (_, x) in zip(self._twins[FP32], parts)
            ]
        self._structures = [network.structure for network, _ in parts]
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
        for name, model in (
            (RUNTIME_FP32, self.twin),
            (RUNTIME, self.one_bit),
        ):
            runs[name] = in_runtime(dense_network(model), x, threads)
        outputs = {name: _outputs(run) for name, run in runs.items()}
        check_shapes('network', outputs)
        for name, model in (
            (FP32, self.twin),
            (RUNTIME_FP32, self.twin),
            (ONE_BIT, self.one_bit),
            (RUNTIME, self.one_bit),
        ):
            with torch.no_grad(), exact_arithmetic(model):
                expected = dense_network(model)(x)
            check_network(
                lambda _, name=name: outputs[name],
                [record(shape, expected)],
                name,
            )
        return runs

    def detector_runs(
        self, data: dict, threads: int
    ) -> tuple[Runs, dict[str, list[int]]]:
        """Return what each contestant does from image to boxes.

        That is mmdet's ``test_step``: data preprocessor with normalization
        and padding, networks, proposals, RoI extractor, decoding, NMS.
        Reading and resizing are not in it.

        Args:
            data: What ``test_step`` takes.
            threads: Of OpenVINO.

        Returns:
            What they do, and how many proposals (with two stages) and boxes
            each finds: it depends on the weights.

        Raises:
            RuntimeError: If what they find is of different kinds.
        """
        models = dict(self._torch)
        for name, converted in self._twins.items():
            models[name] = self._around(converted, threads)
        models[ONE_BIT] = self.exported(threads)
        size = tuple(data['inputs'][0].shape[1:])
        for name, model in (
            (RUNTIME_FP32, self.twin),
            (RUNTIME, self.one_bit),
        ):
            models[name] = self._whole(model, size)
        runs: Runs = {
            name: partial(model.test_step, data)
            for name, model in models.items()
        }
        counts, kinds = {}, {}
        for name, model in models.items():
            counts[name], found = _detect(model, data)
            # Of one box: how many there are depends on the weights.
            kinds[name] = [v.new_empty(v.shape[1:]) for v in found.values()]
        check_shapes('detector', kinds)
        return runs, counts

    def exported(self, threads: int) -> nn.Module:
        """Load the 1-bit detector from its files."""
        return FORMATS['openvino'].load(self.files[1], threads=threads)

    def _whole(self, model: nn.Module, size: tuple[int, int]) -> nn.Module:
        """Return a detector as one file, for images that need no resizing."""
        model = copy.copy(model)
        model.cfg = copy.deepcopy(model.cfg)
        for step in test_pipeline(model.cfg):
            if kind_of(step) == 'Resize':
                step['scale'] = size[::-1]
        format = FORMATS['onnx']
        (path,) = format.save(model, self.folder / 'whole.onnx')
        return format.load(path)

    def _around(self, converted: Sequence[Any], threads: int) -> nn.Module:
        model = build_detector(self.float_cfg)
        networks = [
            Network(one, structure, threads)
            for one, structure in zip(converted, self._structures)
        ]
        install_networks(model, networks)
        return model

    def sizes(self) -> list[tuple[str, int, int]]:
        """Bytes of 1-bit layers and of files: what, 1-bit, float twin."""
        save_model = require('openvino').save_model
        twins = []
        for number, model in enumerate(self._twins[FP32]):
            path = self.folder / f'float{number}.xml'
            save_model(model, path, compress_to_fp16=False)
            twins += [path, path.with_suffix('.bin')]
        rows = FORMATS['openvino'].plan(self.one_bit)
        rows = [row for row in rows if row.bits == '1/1']
        values = sum(row.bytes for row in rows)
        float_values = sum(row.float_bytes for row in rows)
        files, float_files = (
            sum(file.stat().st_size for file in written)
            for written in (self.files, twins)
        )
        return [
            (f'{len(rows)} 1-bit layers, values', values, float_values),
            ('all files for OpenVINO', files, float_files),
        ]


def _detector(cfg: Config, checkpoint: str | None) -> nn.Module:
    if checkpoint is not None:
        return FORMATS['pth'].load(checkpoint, cfg)
    torch.manual_seed(0)
    model = build_detector(cfg)
    head = getattr(model, 'bbox_head', None) or model.roi_head.bbox_head
    names = [f'class {i}' for i in range(head.num_classes)]
    model.dataset_meta = dict(classes=names)
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and not isinstance(
            module, SURGELayer
        ):
            # Sums of the first layer are exact then, in whatever order: what
            # one sign differs grows from layer to layer of random weights.
            for parameter in module.parameters():
                parameter.data.mul_(_GRID).round_().div_(_GRID)
    return model


def _detect(model: nn.Module, data: dict) -> tuple[list[int], InstanceData]:
    """Detect; count proposals, if there is an RPN, and boxes."""
    counts: list[int] = []

    def counted(predict: Callable) -> Callable:
        def call(*args: Any, **kwargs: Any) -> list:
            found = predict(*args, **kwargs)
            counts.extend(map(len, found))
            return found

        return call

    with torch.no_grad(), ExitStack() as stack:
        if hasattr(model, 'rpn_head'):
            stack.enter_context(wrapped(model.rpn_head, 'predict', counted))
        found = model.test_step(data)[0].pred_instances
    return [*counts, len(found)], found


def picture(path: Path | None, size: tuple[int, int]) -> dict[str, list]:
    """Make what ``test_step`` takes of an image file, or of noise."""
    if path is None:
        generator = torch.Generator().manual_seed(0)
        image = torch.randint(0, 256, (3, *size), generator=generator).byte()
    else:
        array = mmcv.imread(path)
        if array is None:
            raise ValueError(f'--image {str(path)!r}: no image')
        array = mmcv.imresize(array, size[::-1])
        image = torch.from_numpy(array).permute(2, 0, 1).contiguous()
    sample = DetDataSample()
    sample.set_metainfo(dict(img_id=0, img_shape=size, ori_shape=size))
    sample.set_metainfo(dict(scale_factor=(1.0, 1.0)))
    return dict(inputs=[image], data_samples=[sample])
