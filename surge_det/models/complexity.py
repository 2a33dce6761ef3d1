"""What a detector costs: operations and bytes, 1-bit beside float.

The conventions, which are those of the literature on 1-bit networks:

- A *BOP* is a multiply-accumulate with a 1-bit weight and a 1-bit activation.
- A *FLOP* is any other multiply-accumulate of a convolution or a linear
  layer. Normalization, activations, pooling, additions and products of
  activations with one another (attention) are not counted.
- ``OPs = BOPs / 64 + FLOPs`` (Bi-Real Net, ECCV 2018).
- A 1-bit layer stores 1 bit per weight, rounded up to whole bytes, and 32 bit
  for each of: scale (``alpha``, one per output channel), bias. Everything
  else, BN's affine parameters among them, is 32 bit. Not stored: the replica
  ``aux_weight``, which is dropped after training, and buffers (BN's
  statistics fold into its affine parameters).
- The *float twin* has the same layers with 32-bit weights and activations
  and without ``alpha``.
"""

from __future__ import annotations

import importlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from mmdet.registry import MODELS, TRANSFORMS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.conv import _ConvNd
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from torch.utils.hooks import RemovableHandle

from surge_det.core import checks
from surge_det.core.binarizers import Binarizer
from surge_det.core.layers import SURGELayer
from surge_det.core.operators.sign_conv import signs_as_floats
from surge_det.datasets.root import test_pipeline

_LAYERS = (_ConvNd, nn.Linear)

_aten = torch.ops.aten
# The arguments that are the two factors; the second may be a layer's weight.
# With autograd and fused attention off, torch has no other products.
_FACTORS = {
    _aten.convolution: (0, 1),
    _aten.mm: (0, 1),
    _aten.bmm: (0, 1),
    _aten.addmm: (1, 2),
    _aten.baddbmm: (1, 2),
}


@dataclass
class LayerCost:
    """Cost of one weight tensor, or of a module that has other parameters.

    Args:
        name: The layer's name in the model.
        kind: Name of its class.
        weight_shape: Shape of the weight; empty where nothing is multiplied
            (norm layers, activations, embeddings).
        output_shapes: Shape of the output of each application.
        weight_bits: 1 or 32.
        activation_bits: Of the layer's input, 1 or 32.
        parameters: Weight, bias and what else the layer itself has, without
            the replica.
        macs: Multiply-accumulates of all applications.
    """

    name: str
    kind: str
    weight_shape: tuple[int, ...] = ()
    output_shapes: list[tuple[int, ...]] = field(default_factory=list)
    weight_bits: int = 32
    activation_bits: int = 32
    parameters: int = 0
    macs: int = 0

    @property
    def part(self) -> str:
        """First component of the name: backbone, neck, bbox_head, ..."""
        return self.name.split('.')[0]

    @property
    def bops(self) -> int:
        """1-bit multiply-accumulates."""
        return self.macs - self.flops

    @property
    def flops(self) -> int:
        """Real multiply-accumulates."""
        binary = self.weight_bits == self.activation_bits == 1
        return 0 if binary else self.macs

    @property
    def ops(self) -> float:
        """``BOPs / 64 + FLOPs``."""
        return self.bops / 64 + self.flops

    @property
    def bytes(self) -> int:
        """Bytes of the stored layer."""
        if self.weight_bits == 32:
            return self.float_bytes
        weights = int(np.prod(self.weight_shape))
        real = self.parameters - weights + self.weight_shape[0]
        return -(-weights // 8) + 4 * real

    @property
    def float_ops(self) -> int:
        """OPs of the float twin."""
        return self.macs

    @property
    def float_bytes(self) -> int:
        """Bytes of the stored float twin."""
        return 4 * self.parameters


TOTALS = ('parameters', 'bops', 'flops', 'ops', 'bytes')
TOTALS += ('float_ops', 'float_bytes')


def total_cost(layers: Iterable[LayerCost]) -> dict[str, float]:
    """Sum of each of ``TOTALS`` over ``layers``."""
    layers = list(layers)
    return {name: sum(getattr(c, name) for c in layers) for name in TOTALS}


@dataclass
class ModelCost:
    """Cost of a model, layer by layer.

    Args:
        layers: In the order of the model's modules.
        notes: What a reader has to know: at which input it was counted,
            what is not counted.
    """

    layers: list[LayerCost]
    notes: list[str]

    def parts(self) -> dict[str, list[LayerCost]]:
        """Layers by part (backbone, neck, ...), in the model's order."""
        parts: dict[str, list[LayerCost]] = {}
        for layer in self.layers:
            parts.setdefault(layer.part, []).append(layer)
        return parts


# mmengine's FlopAnalyzer is the reference in the tests. It does not serve
# here: its jit trace fails in the NMS of two-stage detectors, it computes the
# whole network, and it assigns the projections of nn.MultiheadAttention to no
# layer, as forward hooks do. So torch's formulas are applied operator by
# operator, and each is assigned to the weight that it takes.
class _Products(TorchDispatchMode):
    """Counts products of tensors, and does not compute them.

    Their results are zeros, so that whole detectors are counted in seconds.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.running: list[nn.Module] = []
        self.called: set[nn.Module] = set()
        self.macs: Counter[int] = Counter()
        self.output_shapes: defaultdict[int, list] = defaultdict(list)
        self.unweighted: Counter[nn.Module] = Counter()
        self._weights = {
            p.untyped_storage().data_ptr(): p
            for p in model.parameters()
            if p.dim() > 1 and not p.is_meta
        }

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple = (),
        kwargs: dict | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        places = _FACTORS.get(func.overloadpacket)
        if places is None:
            return func(*args, **kwargs)
        shapes = [a.to('meta') if isinstance(a, Tensor) else a for a in args]
        out = func(*shapes, **kwargs)
        # torch's formulas give two operations per multiply-accumulate.
        formula = flop_registry[func.overloadpacket]
        macs = formula(*shapes, **kwargs, out_val=out) // 2
        weight = self._weight([args[i] for i in places])
        if weight is None:
            if macs:
                self.unweighted[self.running[-1]] += macs
        else:
            self.macs[id(weight)] += macs
            self.output_shapes[id(weight)].append(tuple(out.shape))
        return torch.zeros_like(out, device=args[places[0]].device)

    def _weight(self, factors: list[Tensor]) -> Tensor | None:
        # A layer may compute with something made of its weight, as the 1-bit
        # ones do.
        if isinstance(self.running[-1], _LAYERS):
            return self.running[-1]._parameters.get('weight')
        for factor in reversed(factors):
            storage = factor.untyped_storage().data_ptr()
            if storage in self._weights:
                return self._weights[storage]
        return None

    def watch(self, module: nn.Module) -> list[RemovableHandle]:
        """Note when a module runs."""

        def before(module: nn.Module, args: Any) -> None:
            self.running.append(module)
            self.called.add(module)

        def after(module: nn.Module, args: Any, out: Any) -> None:
            self.running.pop()

        return [
            module.register_forward_pre_hook(before),
            module.register_forward_hook(after, always_call=True),
        ]


def count_cost(model: nn.Module, forward: Callable[[], Any]) -> ModelCost:
    """Count what one forward pass of ``model`` costs.

    Layers that are applied several times count each time; weights that are
    shared are stored once. Products are counted and not computed: what
    ``forward`` returns is meaningless.

    Args:
        model: Any module, in eval mode, not on the meta device.
        forward: Calls ``model`` with what it takes, such as ``lambda:
            model(torch.zeros(1, 3, 224, 224))``.
    """
    products = _Products(model)
    fastpath = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        for module in model.modules():
            for handle in products.watch(module):
                stack.callback(handle.remove)
        # Fused attention would hide products.
        torch.backends.mha.set_fastpath_enabled(False)
        stack.callback(torch.backends.mha.set_fastpath_enabled, fastpath)
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        for name in ('deform_conv', 'modulated_deform_conv'):
            # mmcv's kernels write where no counter sees it, and need not be
            # installed.
            owner = importlib.import_module(f'mmcv.ops.{name}')
            stack.callback(
                setattr, owner, f'{name}2d', getattr(owner, f'{name}2d')
            )
            setattr(owner, f'{name}2d', _deformable_zeros)
        stack.enter_context(signs_as_floats())
        # Calls of the root's own methods run below nothing.
        products.running.append(model)
        stack.enter_context(torch.no_grad())
        stack.enter_context(products)
        forward()
    return ModelCost(list(_layers(model, products)), _gaps(model, products))


def _own_parameters(module: nn.Module) -> dict[str, Tensor]:
    if isinstance(module, Binarizer):
        # Its learned scale is the one that its layer stores.
        return {}
    return {
        name: parameter
        for name, parameter in module.named_parameters(recurse=False)
        if not (isinstance(module, SURGELayer) and name == 'aux_weight')
    }


def _layer_name(module: str, parameter: str) -> str:
    # Multi-head attention names one `in_proj_weight`.
    if parameter == 'weight' and module:
        return module
    return f'{module}.{parameter}'.lstrip('.')


def _layers(model: nn.Module, products: _Products) -> Iterator[LayerCost]:
    seen: set[int] = set()
    for module_name, module in model.named_modules():
        kind = type(module).__name__
        bits = 32, 32
        if isinstance(module, SURGELayer):
            bits = module.weight_bits, module.activation_bits
        rows, rest = [], 0
        for name, parameter in _own_parameters(module).items():
            key = id(parameter)
            if key in seen:
                continue
            seen.add(key)
            factor = (
                name == 'weight'
                and parameter.dim() > 1
                and not isinstance(module, nn.Embedding)
            )
            if not factor and key not in products.macs:
                rest += parameter.numel()
                continue
            rows.append(
                LayerCost(
                    _layer_name(module_name, name),
                    kind,
                    tuple(parameter.shape),
                    products.output_shapes[key],
                    *bits,
                    parameter.numel(),
                    products.macs[key],
                )
            )
        if rest and not rows:
            rows = [LayerCost(module_name or '(model)', kind)]
        if rest:
            rows[0].parameters += rest
        yield from rows


def _gaps(model: nn.Module, products: _Products) -> list[str]:
    """Say what was not counted."""
    notes = []
    kinds: Counter[str] = Counter()
    for module, macs in products.unweighted.items():
        kinds[type(module).__name__] += macs
    if kinds:
        counts = ', '.join(f'{kind}: {n:.3g}' for kind, n in kinds.items())
        notes.append(
            'not in FLOPs: multiply-accumulates of activations with one '
            f'another ({counts})'
        )
    uncounted = defaultdict(list)
    for name, module in model.named_modules():
        # The weights of an embedding are looked up.
        if isinstance(module, nn.Embedding):
            continue
        key = (module in products.called, type(module).__name__)
        for own, parameter in _own_parameters(module).items():
            matrix = sum(n > 1 for n in parameter.shape) > 1
            if matrix and id(parameter) not in products.macs:
                uncounted[key].append(_layer_name(name, own))
    for (called, kind), names in uncounted.items():
        reason = 'they cannot be counted' if called else 'they did not run'
        layers = ', '.join(names[:3]) + (', ...' if len(names) > 3 else '')
        notes.append(
            f'not in FLOPs, for {reason}: {len(names)} {kind} ({layers})'
        )
    return notes


def _deformable_zeros(
    x: Tensor, offset: Tensor, *args: Any, **kwargs: Any
) -> Tensor:
    """Return zeros in the shape of a deformable convolution's output."""
    weight = next(
        t
        for t in [*args, *kwargs.values()]
        if isinstance(t, Tensor) and t.shape[2:] != offset.shape[2:]
    )
    return x.new_zeros(len(x), len(weight), *offset.shape[2:])


def detector_cost(
    cfg: Config, shape: tuple[int, int] | None = None
) -> ModelCost:
    """Count what the detector of a config costs for one image.

    The model is built, not initialized: no pretrained weights are read. Runs
    mmdet's ``mode='tensor'``: the network without post-processing, to which
    the dynamic convolutions of some mask heads belong. In a two-stage
    detector the RoI head gets as many proposals as
    ``test_cfg.rpn.max_per_img`` says.

    Args:
        cfg: A whole config of mmdet.
        shape: Height and width of the image in pixels, after resizing and
            before the padding of the data preprocessor; by default what the
            test pipeline makes of an image that fills its scale.

    Raises:
        ValueError: If ``shape`` is bad, if it is not given and the test
            pipeline has no fixed scale, or if the config has no detector
            that runs on an image alone.
        NotImplementedError: If the detector runs an op that is not
            installed.
    """
    if 'type' not in (cfg.get('model') or {}):
        raise ValueError("config has no model: 'model.type' is missing")
    init_default_scope(cfg.get('default_scope') or 'mmdet')
    height, width = image_shape(cfg) if shape is None else shape
    if min(height, width) < 1:
        checks.refuse('shape', shape, 'numbers > 0')
    model = MODELS.build(cfg.model).eval()
    if not hasattr(model, 'data_preprocessor'):
        raise ValueError(
            f'model.type={cfg.model.type!r} is no detector: it has no '
            'data_preprocessor'
        )
    if getattr(model, 'with_roi_head', False) and not model.with_rpn:
        raise ValueError(
            f'model.type={cfg.model.type!r} has no rpn_head: its proposals '
            'come with the dataset, and their number is not known'
        )
    sample = DetDataSample(
        metainfo=dict(
            img_id=0,
            img_path='',
            ori_shape=(height, width),
            img_shape=(height, width),
            scale_factor=(1.0, 1.0),
        )
    )
    # Some detectors read them in evaluation too.
    sample.gt_instances = InstanceData(
        bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long)
    )
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    data = model.data_preprocessor(dict(inputs=[image], data_samples=[sample]))
    inputs = data['inputs']
    note = (
        f'one image, without post-processing: input {height}x{width} '
        '(height x width)'
    )
    if tuple(inputs.shape[2:]) != (height, width):
        note += ', padded to {}x{}'.format(*inputs.shape[2:])
    notes = [note]
    if proposals := _fix_proposals(model):
        notes.append(
            f'RoI head at {proposals} proposals (test_cfg.rpn.max_per_img)'
        )
    cost = count_cost(
        model, lambda: model(inputs, data['data_samples'], mode='tensor')
    )
    for layer in cost.layers:
        if layer.name.startswith('roi_head.mask_head.') and layer.macs:
            notes.append(
                f"mask head at {layer.output_shapes[0][0]} boxes (mmdet's "
                "choice in mode='tensor'; test_cfg.rcnn.max_per_img is "
                f'{model.test_cfg.rcnn.max_per_img})'
            )
            break
    return ModelCost(cost.layers, notes + cost.notes)


def _fix_proposals(model: nn.Module) -> int | None:
    """Make the RPN return the same number of proposals for every image."""
    settings = getattr(model, 'test_cfg', None) or {}
    number = (settings.get('rpn') or {}).get('max_per_img')
    if not number or not hasattr(model, 'rpn_head'):
        return None
    predict = model.rpn_head.predict

    def predict_number(*args: Any, **kwargs: Any) -> list:
        # How many survive NMS depends on the image.
        return [
            result[torch.arange(number) % len(result)]
            for result in predict(*args, **kwargs)
        ]

    model.rpn_head.predict = predict_number
    return number


def image_shape(cfg: Config) -> tuple[int, int]:
    """Height and width of an image after the test pipeline.

    Raises:
        ValueError: If the pipeline has no fixed scale.
    """
    steps = [
        step
        for step in test_pipeline(cfg)
        if isinstance(step, Mapping)
        and str(step.get('type')).endswith(('Resize', 'Pad'))
    ]
    scale = next((s['scale'] for s in steps if s.get('scale')), None)
    if scale is None:
        raise ValueError(
            "config's test pipeline (test_dataloader.dataset.pipeline) has no "
            'Resize with a scale; give the shape of the image (--shape, '
            'or --size in a benchmark)'
        )
    width, height = (scale, scale) if isinstance(scale, int) else scale
    results = dict(
        img=np.zeros((height, width, 3), np.uint8), img_shape=(height, width)
    )
    for step in steps:
        results = TRANSFORMS.build(step)(results)
    return tuple(results['img'].shape[:2])
