"""The format ``packed``: one safetensors file, signs as bits.

Tensors have the names of the packed model's state dict: ``NAME.bits``,
``NAME.scale`` and perhaps ``NAME.bias`` and ``NAME.shift`` for a 1-bit layer
(:mod:`surge_det.core.bits` says how bits lie), everything else as in a
checkpoint. Norms that fold exactly have ``weight`` and ``bias`` only. The
metadata have one entry, ``surge_det.packed``, a JSON object:

===================  ====================================================
``version``          of the format
``surge_det``        version of the package that wrote it
``config``           the config's part for inference, Python assignments
``dataset_meta``     classes and palette, JSON
``folded``           names of the folded norms
``shared``           names of tensors that stand under another one
``arithmetic``       what :func:`.binarization_of` says of the layers
``digest``           SHA-256 of the tensors and of all other entries
===================  ====================================================

The same model gives the same bytes.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from surge_det.core.binarization import binarization_of, check_binarization
from surge_det.core.layers import SURGELayer
from surge_det.core.packed_layers import PackedLayer, pack_model
from surge_det.deploy.config import config_text, meta_text, read_meta
from surge_det.deploy.extra import require
from surge_det.deploy.norms import fold, folded, set_identity
from surge_det.text import brief, shortened
from surge_det.version import __version__
from surge_det.whole_files import replacing

from .base import Format, Problem, bytes_of_signs, code_of_its_own
from .digest import DAMAGED, digest

FORMAT = 'surge_det.packed'
VERSION = 3
# A list is one of texts, and a dict has texts as values.
_KINDS = {
    **{'config': str, 'dataset_meta': str, 'digest': str},
    **{'folded': list, 'shared': dict, 'arithmetic': dict},
}
# Counts training steps.
_UNUSED = 'num_batches_tracked'
_STATISTICS = ('running_mean', 'running_var')


class PackedFormat(Format):
    """Signs as bits, for any device of torch's.

    Every packed layer and every folded norm is compared with what it was made
    of before anything is written. Norms are folded where torch's CPU kernel
    gives the same bits; on a GPU, whose kernel computes in another order, a
    folded norm may differ in the last one. The 1-bit layers of a loaded
    detector are packed ones, which cannot be trained.
    """

    name = 'packed'
    suffix = export_suffix = '.safetensors'
    packages = ('safetensors',)

    def _write(self, model: nn.Module, path: Path) -> list[Path]:
        packed = copy.deepcopy(model).cpu()
        pack_model(packed)
        _compare(model, packed)
        norms = fold(packed)
        tensors, shared = _unique(packed, norms)
        metadata = {
            'version': VERSION,
            'surge_det': __version__,
            'config': config_text(model.cfg),
            'dataset_meta': meta_text(model.dataset_meta),
            'folded': norms,
            'shared': shared,
            'arithmetic': binarization_of(model),
        }
        metadata['digest'] = digest(tensors, metadata)
        # One entry: safetensors writes several in a random order.
        content = require('safetensors.torch').save(
            tensors, {FORMAT: json.dumps(metadata)}
        )
        with replacing(path) as new:
            # safetensors' own way to write gives files that others cannot
            # read.
            new.write_bytes(content)
        return [path]

    def _read(self, path: str) -> dict[str, Any]:
        safetensors = require('safetensors')
        try:
            with safetensors.safe_open(path, 'pt') as file:
                stored = _metadata(file.metadata() or {}, path)
                names = file.keys()
                tensors = {n: file.get_tensor(n) for n in names}
        except safetensors.SafetensorError as error:
            raise ValueError(
                f'{path}: no safetensors file, or damaged: {shortened(error)}'
            ) from error
        written = stored.pop('digest')
        if digest(tensors, stored) != written:
            raise ValueError(f'{path}: {DAMAGED}')
        meta = read_meta(stored['dataset_meta'], path)
        return {**stored, 'tensors': tensors, 'dataset_meta': meta}

    def _restore(self, model: nn.Module, stored: Any, path: str) -> None:
        # Not in the tensors.
        check_binarization(model, stored['arithmetic'], path)
        tensors = stored['tensors']
        pack_model(model)
        modules = dict(model.named_modules())
        state = {
            key: value
            for key, value in model.state_dict().items()
            if key.endswith(_UNUSED)
        }
        state.update(tensors)
        try:
            for name, first in stored['shared'].items():
                state[name] = tensors[first]
            for name in stored['folded']:
                set_identity(modules[name])
                for key in _STATISTICS:
                    state[f'{name}.{key}'] = getattr(modules[name], key)
            model.load_state_dict(state)
        except (AttributeError, KeyError, RuntimeError) as error:
            raise ValueError(
                f'{path}: does not fit this config: {shortened(error)}'
            ) from error
        model.dataset_meta = stored['dataset_meta']

    def _sizes(
        self, layer: nn.Module, sizes: dict[str, int]
    ) -> dict[str, int]:
        if isinstance(layer, SURGELayer) and layer.weight_bits == 1:
            return {**sizes, 'weight': bytes_of_signs(layer.weight)}
        if isinstance(layer, _BatchNorm):
            unused = {_UNUSED}
            if folded(layer) is not None:
                unused |= set(_STATISTICS)
            return {k: v for k, v in sizes.items() if k not in unused}
        return sizes

    def _problem(self, layer: nn.Module) -> Problem | None:
        return code_of_its_own(layer)


def _metadata(entries: dict[str, str], path: str) -> dict[str, Any]:
    if FORMAT not in entries:
        raise ValueError(
            f'{path}: no packed detector: its metadata have no {FORMAT!r}. '
            'surge-det export --format packed writes one'
        )
    try:
        metadata = json.loads(entries[FORMAT])
        version = metadata['version']
    except (KeyError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(f'{path}: damaged: {brief(error)}') from error
    if version != VERSION:
        raise ValueError(
            f'{path}: version {brief(version)} of the packed format '
            f'(surge_det {brief(metadata.get("surge_det"))} wrote it) is not '
            f'{VERSION}, which surge_det {__version__} reads. Install the '
            'other version, or export the checkpoint again'
        )
    missing = _KINDS.keys() - set(metadata)
    if missing:
        raise ValueError(f'{path}: damaged: no {sorted(missing)} in it')
    for key, kind in _KINDS.items():
        value = metadata[key]
        if not isinstance(value, kind):
            raise ValueError(f'{path}: damaged: {key} is no {kind.__name__}')
        for each in value.values() if kind is dict else value:
            if not isinstance(each, str):
                raise ValueError(
                    f'{path}: damaged: {key} has {brief(each)}, no text'
                )
    return metadata


def _unique(
    model: nn.Module, norms: list[str]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return tensors to write, and names of those that have two."""
    left_out = {f'{name}.{key}' for name in norms for key in _STATISTICS}
    tensors: dict[str, Tensor] = {}
    shared: dict[str, str] = {}
    first: dict[int, str] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        if name in left_out or name.endswith(_UNUSED):
            continue
        if id(value) in first:
            shared[name] = first[id(value)]
            continue
        first[id(value)] = name
        # Two that share memory, or a view, cannot be written.
        tensors[name] = value.detach().clone(
            memory_format=torch.contiguous_format
        )
    return tensors, shared


@torch.no_grad()
def _compare(model: nn.Module, packed: nn.Module) -> None:
    """See that packed layers compute what the layers did."""
    generator = torch.Generator().manual_seed(0)
    for name, layer in packed.named_modules():
        if not isinstance(layer, PackedLayer):
            continue
        original = copy.deepcopy(model.get_submodule(name)).cpu()
        if isinstance(original, nn.Linear):
            shape = (2, original.in_features)
        else:
            geometry = original.dilation, original.kernel_size, original.stride
            # A little more than one window.
            span = (d * k + s for d, k, s in zip(*geometry))
            shape = (2, original.in_channels, *span)
        x = torch.randn(shape, generator=generator).to(layer.scale.dtype)
        if not torch.equal(layer(x), original(x)):
            raise RuntimeError(
                f'{name}: packed, it does not compute what it did; nothing '
                'was written'
            )
