"""Running an exported network, and mmdet's detector around it."""

from __future__ import annotations

import copy
import hashlib
import json
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmengine.config import Config
from torch import Tensor, nn

from surge_det.deploy.checkpoint import build_detector, shortened
from surge_det.deploy.config import read_config, read_meta
from surge_det.deploy.extra import require

from .core import core
from .network import fingerprint, rebuild
from .rules import detector_problem
from .self_check import check_layers, check_network

FORMAT = 'surge_det.openvino'
VERSION = '2'
ROI_SUFFIX = '.roi.xml'
ROI_WEIGHTS = '.roi.bin'
# Of all files that an export may write.
ENDINGS = ('.xml', '.bin', ROI_SUFFIX, ROI_WEIGHTS)
# Regions that go through a network together where their number is fixed.
ROWS = 64
# Compiled sizes that are kept.
SIZES = 16


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
        if threads is not None and (
            not isinstance(threads, int) or threads < 1
        ):
            raise ValueError(
                f'threads={threads!r} is not allowed: a number > 0 or None'
            )
        self.model = model
        self.channels_last = channels_last
        self.settings = settings(threads or torch.get_num_threads())
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
        compiled = core().compile_model(model, 'CPU', self.settings)
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
        given_last = _is_channels_last(x)
        request = self._request(tuple(x.shape), given_last)
        given = x.detach().float().cpu()
        given = given.permute(_LAST) if given_last else given.contiguous()
        found = request.infer([given.numpy()], share_inputs=True)
        outputs = [torch.from_numpy(found[i]) for i in range(len(found))]
        # A runner puts images, and so what mmdet does around, on a GPU.
        return [
            (
                y.permute(_FIRST) if y.ndim == 4 and self.channels_last else y
            ).to(x.device)
            for y in outputs
        ]

    def __call__(self, x: Tensor) -> Any:
        """Run on (N, ...), N may be 0.

        Returns:
            The outputs in the detector's lists; they carry no gradient.
        """
        return rebuild(self.structure, self.tensors(x))


# Between the order of a tensor's sizes and channels_last's of its memory.
_LAST, _FIRST = (0, 2, 3, 1), (0, 3, 1, 2)


def _is_channels_last(x: Tensor) -> bool:
    return (
        x.ndim == 4
        and not x.is_contiguous()
        and x.is_contiguous(memory_format=torch.channels_last)
    )


def _use_channels_last(model: Any, inputs: bool, outputs: bool) -> None:
    """Let a model take images, or give maps, in that layout.

    Args:
        model: An ``openvino.Model``; changed in place.
        inputs: Whether its input has that layout.
        outputs: Whether its outputs of rank 4 have.
    """
    preprocess = require('openvino.preprocess')
    layout = require('openvino').Layout
    steps = preprocess.PrePostProcessor(model)
    ports = [steps.input(0)] if inputs else []
    for i, output in enumerate(model.outputs):
        rank = output.partial_shape.rank
        if outputs and rank.is_static and rank.get_length() == 4:
            ports.append(steps.output(i))
    for port in ports:
        port.model().set_layout(layout('NCHW'))
        port.tensor().set_layout(layout('NHWC'))
    steps.build()


def settings(threads: int) -> dict[str, Any]:
    """Return what networks are compiled with.

    Real layers compute in float32: by itself OpenVINO takes bfloat16 where
    the processor has it.
    """
    return {
        'INFERENCE_PRECISION_HINT': 'f32',
        'INFERENCE_NUM_THREADS': threads,
        'PERFORMANCE_HINT': 'LATENCY',
    }


def load_openvino(
    path: str | Path,
    config: Config | str | Path | None = None,
    threads: int | None = None,
) -> nn.Module:
    """Restore a detector from what :func:`export_openvino` wrote.

    Data preprocessor, anchors, decoding, NMS and RoI extractor are mmdet's
    and run in torch; the networks are OpenVINO's. Both are checked on small
    inputs first.

    Args:
        path: The ``.xml`` file; its ``.bin``, and the ``.roi.xml`` and
            ``.roi.bin`` of a two-stage detector, lie beside it.
        config: A whole config to build the detector from, or its file; by
            default the one in the file.
        threads: Number of OpenVINO's threads; ``None`` for as many as torch
            has.

    Returns:
        mmdet's model in eval mode, with ``cfg`` and ``dataset_meta``, without
        the parameters of its networks. It runs on the CPU and cannot be
        trained.

    Raises:
        ImportError: If openvino is not installed.
        OSError: If a file is missing.
        RuntimeError: If OpenVINO computes wrong values on this machine.
        ValueError: If a file is damaged, or not this config's.
    """
    path = Path(path)
    if path.name.endswith(ROI_SUFFIX):
        raise ValueError(
            f'{path}: the second network of a detector; name the first one, '
            f'{path.name.removesuffix(ROI_SUFFIX)}.xml'
        )
    info, network = _load(path, threads)
    if isinstance(config, (str, Path)):
        config = Config.fromfile(config)
    cfg = read_config(info['config'], path) if config is None else config
    model = build_detector(cfg)
    if fingerprint(model) != info['layers']:
        raise ValueError(
            f'{path}: does not fit this config, whose {type(model).__name__} '
            'has other layers, or computes them otherwise'
        )
    problem = detector_problem(model)
    if problem:
        raise ValueError(f'{path}: does not fit this config: {problem[0]}')
    if hasattr(model, 'roi_head'):
        roi_path = path.with_suffix(ROI_SUFFIX)
        roi_info, roi = _load(roi_path, threads)
        if roi_info['export'] != info['export']:
            raise ValueError(
                f'{roi_path} and {path} are of different exports: export both '
                'again'
            )
        put_networks(model, [network, roi])
    else:
        put_networks(model, [network])
    model.dataset_meta = read_meta(info['dataset_meta'], path)
    return model


def read_openvino_config(path: str | Path) -> Config:
    """Read the config in a file of :func:`export_openvino`.

    Raises:
        ImportError: If openvino is not installed.
        OSError: If the file is missing.
        ValueError: If it is damaged, or another kind of file.
    """
    return read_config(_info(_read(Path(path)), Path(path))['config'], path)


def _load(path: Path, threads: int | None) -> tuple[dict[str, str], Network]:
    model = _read(path)
    info = _info(model, path)
    weights = path.with_suffix('.bin')
    if digest(weights) != info['weights']:
        raise ValueError(
            f'{weights}: damaged, or of another export than {path}: export '
            'again, or copy both files again'
        )
    network = Network(model, json.loads(info['outputs']), threads)
    check_layers(model, network.settings)
    check_network(network.tensors, json.loads(info['check']), str(path))
    return info, network


def digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with open(path, 'rb') as file:
        found = hashlib.sha256()
        while block := file.read(2**20):
            found.update(block)
    return found.hexdigest()


def _read(path: Path) -> Any:
    for file in (path, path.with_suffix('.bin')):
        if not file.is_file():
            raise FileNotFoundError(f'{file}: there is no such file')
    try:
        return core().read_model(path)
    except RuntimeError as error:
        raise ValueError(
            f'{path}: OpenVINO cannot read it, or {path.stem}.bin: '
            f'{shortened(error)}'
        ) from error


_KEYS = (
    'format',
    'version',
    'surge_det',
    'export',
    'layers',
    'config',
    'dataset_meta',
    'outputs',
    'check',
    'weights',
)


def _info(model: Any, path: Path) -> dict[str, str]:
    if not model.has_rt_info(['surge_det', 'format']):
        raise ValueError(
            f'{path}: not written by tools/export.py --format openvino'
        )
    found = {
        key: model.get_rt_info(['surge_det', key]).astype(str)
        for key in ('format', 'version')
    }
    if found != {'format': FORMAT, 'version': VERSION}:
        raise ValueError(
            f'{path}: format {found["format"]!r}, version '
            f'{found["version"]!r}; this surge_det reads {FORMAT!r}, version '
            f'{VERSION!r}: export again'
        )
    missing = [k for k in _KEYS if not model.has_rt_info(['surge_det', k])]
    if missing:
        raise ValueError(f'{path}: damaged, {missing} are missing in it')
    return {
        key: model.get_rt_info(['surge_det', key]).astype(str) for key in _KEYS
    }


def put_networks(model: nn.Module, networks: Sequence[Network]) -> None:
    """Let networks compute what a detector's own layers do, and drop these.

    Args:
        model: Changed in place.
        networks: The dense part; of a two-stage detector, the RoI head too.
    """
    networks[0].channels_last = takes_channels_last(model)
    put = _put_one_stage if len(networks) == 1 else _put_two_stage
    put(model, *networks)


def takes_channels_last(model: nn.Module) -> bool:
    """Say whether a detector's dense network gives maps in that layout.

    mmdet's usual decoding permutes maps to it. Decoding of another kind, such
    as CenterNet's, may view them in the standard layout, which RoIAlign wants
    too.
    """
    if hasattr(model, 'roi_head'):
        return False
    head = type(model.bbox_head)
    return head.predict_by_feat is BaseDenseHead.predict_by_feat


class _Features(tuple):
    """Features of the neck, and what the RPN makes of them."""

    rpn: Any


def _put_one_stage(model: nn.Module, network: Network) -> None:
    # What the head has to do is done: it is handed its own outputs.
    model.extract_feat = network
    model.bbox_head.forward = _identity
    _drop_network(model)
    _drop_parameters(model.bbox_head)


def _put_two_stage(model: nn.Module, network: Network, roi: Network) -> None:
    def extract_feat(x: Tensor) -> _Features:
        features, rpn = network(x)
        features = _Features(features)
        features.rpn = rpn
        return features

    model.extract_feat = extract_feat
    model.rpn_head.forward = _rpn_outputs
    model.roi_head.bbox_head.forward = roi
    _drop_network(model)
    _drop_parameters(model.rpn_head)
    _drop_parameters(model.roi_head.bbox_head)


def _identity(outputs: Any) -> Any:
    return outputs


def _rpn_outputs(features: _Features) -> Any:
    return features.rpn


def _drop_network(model: nn.Module) -> None:
    model.backbone = nn.Identity()
    if model.with_neck:
        model.neck = None


def _drop_parameters(head: nn.Module) -> None:
    for name, child in list(head.named_children()):
        # What decoding has without parameters, such as GFL's integral, stays.
        if next(child.parameters(), None) is not None:
            delattr(head, name)
    for name in list(head._parameters):
        delattr(head, name)
