"""What all file formats have, and how each says what a layer becomes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from surge_det.core.binarization import KINDS
from surge_det.core.binarizers import Binarizer
from surge_det.core.layers import SURGEConv2d, SURGELayer, SURGELinear
from surge_det.core.packed_layers import PackedLayer, unpack_model
from surge_det.deploy.extra import require
from surge_det.deploy.stored_config import bounded, stored_config
from surge_det.deploy.trained import build_detector, check_classes, check_names

# Reason and remedy.
Problem = tuple[str, str]


class ExportError(ValueError):
    """A model, or a layer of it, cannot be exported as asked."""


@dataclass(frozen=True)
class Row:
    """What becomes of one module that has values of its own.

    Args:
        name: Its name in the model; of several, the first.
        kind: ``'1-bit'``, ``'weights 1-bit'``, ``'activations 1-bit'`` or
            ``'real'``.
        bits: Of weights and activations as the file's engine has them,
            such as ``'1/1'``; empty where nothing is multiplied.
        operation: What computes it.
        bytes: Of its values in the file.
        float_bytes: Of its parameters in the float twin: the same layer at
            32 bit, without replica and scale.
        problem: Why it cannot be exported, and what to do about it.
    """

    name: str
    kind: str
    bits: str
    operation: str
    bytes: int
    float_bytes: int
    problem: Problem | None = None

    @property
    def part(self) -> str:
        """First component of the name: backbone, neck, bbox_head, ..."""
        return self.name.split('.')[0]


class Format:
    """A kind of file that holds a detector.

    What is said of layers here is true of a file that holds a state dict as
    it is; formats of another kind override it.

    Attributes:
        name: What the command line calls it.
        suffix: Of the file's name.
        export_suffix: Of the name that an export gives by default.
        packages: What it needs beside mmdet's packages.
        cpu_only: Whether a loaded detector runs on the CPU only, and in one
            process.
        whole: Whether a loaded detector takes images as they are, and nothing
            can be done between its parts.
        one_bit_limits: Where binarized layers may be computed as real ones:
            who does so, and what a layer needs to be 1-bit there.
    """

    name: str
    suffix: str
    export_suffix: str
    packages: tuple[str, ...] = ()
    cpu_only = False
    whole = False
    one_bit_limits = ''

    def files(self, path: Path) -> list[Path]:
        """Return all files that an export to ``path`` may write."""
        return [path]

    def require_packages(self) -> None:
        """See that what the format needs is installed.

        Raises:
            ImportError: If it is not; says how to install it.
        """
        for package in self.packages:
            require(package)

    def save(self, model: nn.Module, path: str | Path) -> list[Path]:
        """Write a detector; files that are there are replaced.

        Args:
            model: As the format ``pth`` loads it, with ``cfg`` and
                ``dataset_meta``; not changed.
            path: File to write.

        Returns:
            The files that were written.

        Raises:
            ImportError: If a package is missing.
            OSError: If a file cannot be written.
            ExportError: If detector or layer cannot be exported; says which,
                why, and what to do. Nothing is written.
            ValueError: If ``path`` is not allowed, or config or
                ``dataset_meta`` cannot be stored.
        """
        self.require_packages()
        check(self.plan(model))
        return self._write(model, Path(path))

    def load(
        self, path: str | Path, config: Config | None = None, **options: Any
    ) -> nn.Module:
        """Restore a detector.

        Args:
            path: What :meth:`save` wrote.
            config: A whole config to build the detector from; by default the
                one in the file, as far as :func:`.stored_config` allows it.
            options: ``threads`` for OpenVINO's number of threads;
                ``replicas`` for a checkpoint's replicas to be kept.

        Returns:
            mmdet's model in eval mode, on the CPU, with ``cfg`` and
            ``dataset_meta``.

        Raises:
            ImportError: If a package is missing.
            OSError: If a file cannot be read.
            RuntimeError: If what is in it computes wrong values here.
            ValueError: If a file is damaged or of another kind, or not this
                config's; of other classes: ``ClassesError``.
        """
        if '://' not in str(path) and not Path(path).is_file():
            raise FileNotFoundError(f'{path}: there is no such file')
        stored = self._read(str(path))
        if config is None:
            text = stored['config']
            if not isinstance(text, str):
                raise ValueError(
                    f'{path}: holds no config; name one beside it'
                )
            config = stored_config(text, path)
            files = [f for f in self.files(Path(path)) if f.is_file()]
            size = sum(file.stat().st_size for file in files)
            building = bounded(path, size or None)
        else:
            check_classes(config, stored['dataset_meta'], path)
            building = nullcontext()
        model = self._build(config, stored, str(path), building, **options)
        check_names(model, path)
        return model

    def adapted(self, config: Config) -> Config:
        """Return a config whose test pipeline a loaded detector goes with.

        Args:
            config: Of the detector; not changed.
        """
        return config

    def plan(self, model: nn.Module) -> list[Row]:
        """List what would be exported, layer by layer.

        The bytes are those of the values, without names and without the
        network's description.

        Args:
            model: A detector; not changed.

        Returns:
            A row for each module that has parameters, or buffers that a state
            dict holds, in the model's order.
        """
        rows = []
        if problem := self._detector_problem(model):
            kind = type(model).__name__
            rows = [Row('(detector)', 'real', '', kind, 0, 0, problem)]
        seen: set[int] = set()
        for name, module in model.named_modules():
            if isinstance(module, Binarizer):
                # Its layer stores what it makes.
                continue
            values = {
                key: value
                for key, value in _own_values(module)
                if id(value) not in seen
            }
            seen |= {id(value) for value in values.values()}
            if values:
                rows.append(self.describe(module, name or '(model)', values))
        return rows

    def describe(
        self, layer: nn.Module, name: str, values: dict[str, Tensor]
    ) -> Row:
        """Say what becomes of a layer.

        Args:
            layer: Any module.
            name: Its name in the model.
            values: Its own parameters and buffers, as far as no layer before
                has them too.
        """
        kind, problem = 'real', None
        if isinstance(layer, SURGELayer):
            kind = KINDS[layer.weight_bits, layer.activation_bits]
        elif isinstance(layer, PackedLayer):
            kind = KINDS[1, 1 if layer.binarize_activation else 32]
            problem = 'it is packed already', '--format onnx or openvino'
        problem = problem or _problem(values) or self._problem(layer)
        known = [v for v in values.values() if not is_lazy(v)]
        sizes = {}
        if len(known) == len(values):
            sizes = self._sizes(
                layer, {k: v.nbytes for k, v in values.items()}
            )
        return Row(
            name,
            kind,
            self._bits(layer),
            self._operation(layer),
            sum(sizes.values()),
            4 * sum(v.numel() for v in known if isinstance(v, nn.Parameter)),
            problem,
        )

    # What formats differ in

    def _build(
        self,
        config: Config,
        stored: Any,
        path: str,
        building: AbstractContextManager,
        **options: Any,
    ) -> nn.Module:
        # The detector of a config, with what was read.
        with building:
            model = build_detector(config)
        self._restore(model, stored, path, **options)
        return model

    def _write(self, model: nn.Module, path: Path) -> list[Path]:
        raise NotImplementedError

    def _read(self, path: str) -> dict[str, Any]:
        # What the file holds; 'config' is the config's text.
        raise NotImplementedError

    def _restore(self, model: nn.Module, stored: Any, path: str) -> None:
        # Give what was read to the detector of a config, in place.
        raise NotImplementedError

    def _bits(self, layer: nn.Module) -> str:
        if isinstance(layer, SURGELayer):
            return f'{layer.weight_bits}/{layer.activation_bits}'
        return '32/32' * isinstance(layer, (_ConvNd, nn.Linear))

    def _operation(self, layer: nn.Module) -> str:
        suffix = ''
        if isinstance(layer, SURGELayer):
            suffix = ' on signs' * (layer.activation_bits == 1)
            suffix = ' on scaled signs' if layer.weight_bits == 1 else suffix
        if isinstance(layer, _ConvNd):
            return f'conv{layer.weight.dim() - 2}d{suffix}'
        if isinstance(layer, nn.Linear):
            return f'linear{suffix}'
        return type(layer).__name__

    def _sizes(
        self, layer: nn.Module, sizes: dict[str, int]
    ) -> dict[str, int]:
        # Bytes of a layer's values by name: in torch, and in the file.
        return sizes

    def _problem(self, layer: nn.Module) -> Problem | None:
        return None

    def _detector_problem(self, model: nn.Module) -> Problem | None:
        return None


class EngineFormat(Format):
    """A file whose networks another engine than torch runs.

    A layer of 1-bit weights and activations is its 1-bit operation, or an
    ordinary one of float32.
    """

    def save(self, model: nn.Module, path: str | Path) -> list[Path]:
        """As the base class; ``model`` may be a packed one, too."""
        return super().save(unpack_model(model), path)

    def plan(self, model: nn.Module) -> list[Row]:
        """As the base class; ``model`` may be a packed one, too."""
        return super().plan(unpack_model(model))

    def _stored_as_bits(self, layer: nn.Module) -> bool:
        raise NotImplementedError

    def _bits(self, layer: nn.Module) -> str:
        if isinstance(layer, SURGELayer):
            # It is the whole layer or nothing.
            return '1/1' if self._stored_as_bits(layer) else '32/32'
        return super()._bits(layer)

    def _sizes(
        self, layer: nn.Module, sizes: dict[str, int]
    ) -> dict[str, int]:
        # An estimate: shift, scale and norm of a layer merge.
        if self._stored_as_bits(layer):
            return {**sizes, 'weight': bytes_of_signs(layer.weight)}
        if isinstance(layer, _BatchNorm):
            # A factor and an offset, or part of a real convolution.
            return {k: v for k, v in sizes.items() if k in ('weight', 'bias')}
        return sizes

    def _problem(self, layer: nn.Module) -> Problem | None:
        return other_than_float(layer) or code_of_its_own(layer)


def check(rows: Sequence[Row]) -> None:
    """See that everything can be exported.

    Args:
        rows: From :meth:`Format.plan`.

    Raises:
        ExportError: If something cannot: name, reason and remedy of each.
    """
    problems = [row for row in rows if row.problem]
    if problems:
        lines = [
            f'  {row.name} ({row.kind}): {row.problem[0]}; remedy: '
            f'{row.problem[1]}'
            for row in problems
        ]
        raise ExportError(
            f'{len(problems)} of {len(rows)} layers cannot be exported, and '
            'nothing was written:\n' + '\n'.join(lines)
        )


def _own_values(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield what a state dict holds of a module itself, without replica."""
    for name, value in module.named_parameters(recurse=False):
        if not (isinstance(module, SURGELayer) and name == 'aux_weight'):
            yield name, value
    for name, value in module.named_buffers(recurse=False):
        if name not in module._non_persistent_buffers_set:
            yield name, value


def _problem(values: dict[str, Tensor]) -> Problem | None:
    """Say what stands against a layer in every format."""
    for name, value in values.items():
        if is_lazy(value):
            return (
                'its shape is not known before it has run',
                'make it without lazy modules',
            )
        if (
            value.is_floating_point()
            and not value.is_meta
            and not value.isfinite().all()
        ):
            return (
                f'{name} has values that are not finite numbers',
                'export a checkpoint from before the training went wrong',
            )
    return None


def other_than_float(layer: nn.Module) -> Problem | None:
    """Say where a layer's values are not float32 on the CPU."""
    for parameter in layer.parameters(recurse=False):
        dtype, device = parameter.dtype, parameter.device
        if dtype != torch.float32:
            return f'its parameters are {dtype}', 'model.float() before'
        if device.type != 'cpu':
            return f'its parameters are on {device}', 'model.cpu() before'
    return None


def code_of_its_own(layer: nn.Module) -> Problem | None:
    """Say where a layer computes what its class alone does not tell."""
    if parametrize.is_parametrized(layer):
        return (
            'its weight is computed from other parameters',
            'torch.nn.utils.parametrize.remove_parametrizations before',
        )
    for cls in (SURGEConv2d, SURGELinear):
        if isinstance(layer, cls) and type(layer).forward is not cls.forward:
            return (
                f'{type(layer).__name__} has a forward of its own',
                f'use {cls.__name__}, or --format pth',
            )
    return None


def bytes_of_signs(weight: Tensor) -> int:
    """Return the bytes of a weight as signs.

    Whole bytes for each output channel, and its scale.
    """
    channel = -(-weight[0].numel() // 8) + weight.element_size()
    return channel * len(weight)
