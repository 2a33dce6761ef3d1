"""Read what mmengine wrote with ``weights_only`` safety, and nothing else.

Beside tensors, a checkpoint of mmengine's Runner pickles the logged values
(`HistoryBuffer`, NumPy arrays and scalars) and, through ``getattr``, a few
functions: the statistics of `HistoryBuffer` and the annealing functions of
`OneCycleParamScheduler`. torch's weights-only unpickler refuses all of them
by default, and ``getattr`` is not safe to allow. So exactly those names are
allowed, ``getattr`` as a function that knows exactly these methods. Exported
detectors, which are no checkpoints, are refused.

`install` puts `safe_load` where mmengine's checkpoint loaders call
``torch.load``. ``torch.load`` itself stays as it is.
"""

import functools
import io
import logging
import math
import os
import pickle
import re
from collections import OrderedDict
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import numpy as np
import torch

from surge_det.text import brief, shortened
from surge_det.whole_files import ZIP, fault

_BUFFER = 'mmengine.logging.history_buffer.HistoryBuffer'
_ONE_CYCLE = 'mmengine.optim.scheduler.param_scheduler.OneCycleParamScheduler'
_GETATTR_NAMES = {
    _BUFFER: ('min', 'max', 'current', 'mean'),
    _ONE_CYCLE: ('_annealing_cos', '_annealing_linear'),
}
# Logged numbers are floats and ints; names in metadata may be strings.
_DTYPE_CODES = '?bhilqBHILQefd'


# What surge_det.deploy writes besides checkpoints.
_EXPORTED = ('.onnx', '.xml')
_PACKED = b'"surge_det.packed"'


class UnsafeCheckpointError(RuntimeError):
    """A checkpoint holds something that is not allowed to be unpickled."""


def _refuse(source):
    """Refuse what would load without an error and leave wrong weights.

    torch reads damaged values, and safetensors; with these mmengine goes on
    without the keys that do not fit, which are all of the 1-bit layers.
    """
    if not isinstance(source, (str, os.PathLike)):
        return
    with open(source, 'rb') as file:
        # The metadata stand first, behind eight bytes of length.
        start = file.read(100)
    if _PACKED in start or str(source).endswith(_EXPORTED):
        raise ValueError(
            f'{source} is an exported detector, no checkpoint: it is read by '
            'surge_det.deploy.load_detector and surge_det.deploy.'
            'DetInferencer, and by surge-det test and infer'
        )
    if start.startswith(ZIP) and (reason := fault(Path(source))):
        raise ValueError(f'{source}: {reason}')


class _Named:
    """A stand-in under the name of the object it replaces in a pickle.

    Every torch since 2.4 finds an allowed object by these attributes (the
    pairs of object and name that newer ones take are unknown to 2.4).
    """

    def __init__(self, path, target):
        self.__module__, _, self.__name__ = path.rpartition('.')
        self.__qualname__ = self.__name__
        self.target = target

    def __setstate__(self, state):
        # It would hold for all files that are read later.
        raise pickle.UnpicklingError(
            f'Unsupported global: GLOBAL {self.__module__}.{self.__name__}, '
            'changed'
        )


class _NamedFunction(_Named):
    def __call__(self, *args):
        return self.target(*args)


class _NamedType(_Named):
    """A type that a pickle names and gives states, but does not call.

    torch asks by ``==`` whether an object's type is an allowed one.
    """

    def __eq__(self, other):
        return other is self or other is self.target

    __hash__ = _Named.__hash__


def _allowed_getattr(owner, name):
    for path, names in _GETATTR_NAMES.items():
        if owner is _allowed_globals()[path] and name in names:
            return getattr(_load_class(path), name)
    raise pickle.UnpicklingError(
        'Unsupported global: GLOBAL builtins.getattr('
        f'{brief(owner)}, {brief(name)})'
    )


def _load_class(path):
    if path == _BUFFER:
        from mmengine.logging import HistoryBuffer

        return HistoryBuffer
    from mmengine.optim.scheduler.param_scheduler import (
        OneCycleParamScheduler,
    )

    return OneCycleParamScheduler


def _buffer_class():
    """Return what stands for `HistoryBuffer` while a file is read.

    The statistics in a file would replace those of all buffers, and an
    argument could be lists in lists, an array of more than the memory.
    """
    cls = _load_class(_BUFFER)

    class Buffer(cls):
        def __init__(self, *args, **kwargs):
            raise pickle.UnpicklingError(
                f'Unsupported global: GLOBAL {_BUFFER}(...)'
            )

        def __setstate__(self, state):
            kept = {
                key: value
                for key, value in state.items()
                if not key.endswith('statistics_methods')
            }
            super().__setstate__(kept)
            self.__class__ = cls

    Buffer.__module__, Buffer.__qualname__ = cls.__module__, cls.__name__
    Buffer.__name__ = cls.__name__
    return Buffer


def _encode_latin1(text, encoding):
    # How pickle protocol 2 writes bytes.
    if encoding != 'latin1':
        raise pickle.UnpicklingError(
            'Unsupported global: GLOBAL _codecs.encode(..., '
            f'{brief(encoding)})'
        )
    return text.encode('latin1')


class _TextType:
    """NumPy's type of texts, without what a pickle says of it later.

    A pickle may give a type another size after an array was made of it, and
    the array would read memory that is not its own. NumPy's types of numbers
    keep what they are.
    """

    def __setstate__(self, state):
        pass


def _dtype(code, align=False, copy=False):
    if isinstance(code, str) and re.fullmatch(r'U\d+', code):
        return _TextType()
    if isinstance(code, str) and np.dtype(code).kind in 'biuf':
        # Not a copy, whose fields could be changed.
        return np.dtype(code)
    raise pickle.UnpicklingError(
        f'Unsupported global: GLOBAL numpy.dtype({brief(code)})'
    )


def _scalar(dtype, data):
    multiarray = getattr(np, '_core', None) or np.core
    if isinstance(dtype, _TextType):
        return np.str_(data.decode('utf-32-le').rstrip('\0'))
    return multiarray.multiarray.scalar(dtype, data)


def _reconstruct(kind, shape, code):
    # An empty array of bytes, whose state comes next. NumPy's own would take
    # any type, and the file would say where an object lies in the memory.
    if kind == np.ndarray:
        return np.empty(0, 'b')
    raise pickle.UnpicklingError(
        'Unsupported global: GLOBAL numpy._core.multiarray._reconstruct('
        f'{brief(kind)})'
    )


@functools.lru_cache(maxsize=1)
def _allowed_globals() -> dict:
    functions = {
        'builtins.getattr': _allowed_getattr,
        'numpy.dtype': _dtype,
        # Built into torch's own list after 2.4.
        '_codecs.encode': _encode_latin1,
    }
    for package in ('numpy.core', 'numpy._core'):
        # NumPy 1 and 2 name the same functions differently.
        path = f'{package}.multiarray'
        functions[f'{path}._reconstruct'] = _reconstruct
        functions[f'{path}.scalar'] = _scalar
    allowed = {
        path: _NamedFunction(path, target)
        for path, target in functions.items()
    }
    # Only named, never built: a token that cannot be called.
    allowed[_ONE_CYCLE] = _Named(_ONE_CYCLE, _ONE_CYCLE)
    allowed['numpy.ndarray'] = _NamedType('numpy.ndarray', np.ndarray)
    classes = [_TextType, _buffer_class()]
    classes += {type(np.dtype(code)) for code in _DTYPE_CODES}
    allowed.update({_path_of(cls): cls for cls in classes})
    return allowed


def _path_of(allowed) -> str:
    if isinstance(allowed, tuple):
        return allowed[1]
    return f'{allowed.__module__}.{allowed.__name__}'


@contextmanager
def _allowing_mmengine():
    ours = _allowed_globals()
    # Someone else's entry for one of our names (the plain getattr, say)
    # must not win over ours.
    displaced = [
        entry
        for entry in torch.serialization.get_safe_globals()
        if _path_of(entry) in ours
    ]
    _replace_safe_globals(displaced, list(ours.values()))
    try:
        yield
    finally:
        _replace_safe_globals(list(ours.values()), displaced)


def _replace_safe_globals(old, new) -> None:
    # torch 2.4 can add and clear, not remove.
    serialization = torch.serialization
    kept = [e for e in serialization.get_safe_globals() if e not in old]
    serialization.clear_safe_globals()
    serialization.add_safe_globals(kept + new)


@contextmanager
def _explaining(source):
    try:
        yield
    # What a stand-in of ours cannot be used for is a TypeError of NumPy's.
    except (pickle.UnpicklingError, TypeError) as error:
        raise UnsafeCheckpointError(_refusal(source, str(error))) from None
    # A stream of opcodes that is none, or states of another kind.
    except (AttributeError, LookupError) as error:
        raise ValueError(f'{source}: no checkpoint: {brief(error)}') from error
    # Of the archive's names, which no checksum is of.
    except UnicodeError as error:
        raise ValueError(f'{source}: damaged: {error}') from None


def _refusal(source, message) -> str:
    found = re.search(
        r'GLOBAL `?(?P<name>[\w.]+(?:\(.*\))?)', message
    ) or re.search(r'WeightsUnpickler error: (?P<name>.*)', message)
    what = shortened(found['name'] if found else message)
    return (
        f'{source}: refused to unpickle {what}. Only tensors, plain Python '
        "values and the classes that mmengine's own checkpoints need are "
        'loaded, because anything else can run code. If you trust the file, '
        'rewrite it once: `c = torch.load(path, weights_only=False); '
        "torch.save({'state_dict': c['state_dict']}, new_path)`."
    )


def safe_load(f, map_location=None, weights_only=True, **kwargs):
    """``torch.load`` for checkpoints that mmengine or torch wrote.

    Loads with ``weights_only=True`` whatever is asked for, plus the classes
    and methods named in this module's description. The entry ``config`` of
    the checkpoint's ``meta``, which `Runner.resume` would execute as Python,
    is renamed to ``config_not_run``.

    Args:
        f: Path or file object.
        map_location: As for ``torch.load``.
        weights_only: Ignored; here because mmengine passes it.
        **kwargs: Further arguments of ``torch.load``.

    Returns:
        The checkpoint, usually a dict.

    Raises:
        UnsafeCheckpointError: If the pickle holds anything else. The
            message names the file, what was found and the remedy.
        ValueError: If it is damaged, or what ``surge-det export`` wrote for
            another engine than mmengine. The message names what reads it.
    """
    _refuse(f)
    source = getattr(f, 'name', None) or (
        'checkpoint' if hasattr(f, 'read') else f
    )
    with _explaining(source), _allowing_mmengine():
        checkpoint = torch.load(
            f, map_location=map_location, weights_only=True, **kwargs
        )
    return _with_safe_meta(checkpoint, source)


def load_predictions(path):
    """Read what ``surge-det test --out`` (mmdet's ``DumpDetResults``) wrote.

    Args:
        path: A pickle file.

    Returns:
        list[dict]: Tensors, arrays and plain values of each image.

    Raises:
        UnsafeCheckpointError: If it holds anything else. Nothing of it runs.
        ValueError: If it is no such file.
    """
    with open(path, 'rb') as file:
        try:
            found = _PredictionsUnpickler(file).load()
        except UnsafeCheckpointError as error:
            raise UnsafeCheckpointError(f'{path}: {error}') from None
        # A damaged stream leads to whatever comes.
        except Exception as error:
            raise ValueError(
                f'{path}: no predictions, or damaged: {brief(error)}'
            ) from error
    if not isinstance(found, list) or not all(
        isinstance(image, dict) for image in found
    ):
        raise ValueError(f'{path}: no predictions: a list of dicts is allowed')
    return found


class _PredictionsUnpickler(pickle.Unpickler):
    def find_class(self, module, name):
        path = f'{module}.{name}'
        if path in _PLAIN:
            return _PLAIN[path]
        if module.startswith('numpy') and path in _allowed_globals():
            return _allowed_globals()[path]
        raise UnsafeCheckpointError(
            f'refused to unpickle {path}: predictions are tensors, arrays and '
            'plain values'
        )


def _storage(data):
    try:
        return torch.load(io.BytesIO(data), weights_only=True)
    except pickle.UnpicklingError:
        raise UnsafeCheckpointError(
            'refused to unpickle what stands where values of a tensor should'
        ) from None


def _tensor(storage, offset, size, stride, *others):
    # Strides of 0 make a tensor of any size out of one value, and a copy of
    # it may be more than the memory. A small one may be a detector's.
    if math.prod(size) > max(storage.size(), 1 << 20):
        raise UnsafeCheckpointError(
            f'refused to unpickle a tensor of shape {brief(tuple(size))} out '
            f'of {storage.nbytes()} bytes'
        )
    return torch._utils._rebuild_tensor_v2(
        storage, offset, size, stride, *others
    )


_PLAIN = {
    path: _NamedFunction(path, target)
    for path, target in {
        '_codecs.encode': _encode_latin1,
        'torch._utils._rebuild_tensor_v2': _tensor,
        'torch.storage._load_from_bytes': _storage,
    }.items()
}
_PLAIN['collections.OrderedDict'] = OrderedDict


def safe_load_url(url, *args, **kwargs):
    """Download like ``torch.hub.load_state_dict_from_url``, then `safe_load`.

    Args:
        url: Where the checkpoint is.
        *args: Further arguments of ``torch.hub.load_state_dict_from_url``.
        **kwargs: Likewise; ``weights_only`` is always True.

    Returns:
        The checkpoint, usually a dict.

    Raises:
        UnsafeCheckpointError: As `safe_load` does.
    """
    kwargs['weights_only'] = True
    with _explaining(url), _allowing_mmengine():
        checkpoint = torch.hub.load_state_dict_from_url(url, *args, **kwargs)
    return _with_safe_meta(checkpoint, url)


def _with_safe_meta(checkpoint, source):
    meta = checkpoint.get('meta') if isinstance(checkpoint, dict) else None
    # A parameter of a plain state dict may have that name.
    if not isinstance(meta, (dict, torch.Tensor, type(None))):
        raise ValueError(
            f'{source}: its meta is a {type(meta).__name__}, a dict is allowed'
        )
    if isinstance(meta, dict) and 'config' in meta:
        from mmengine.logging import print_log

        meta['config_not_run'] = meta.pop('config')
        print_log(
            f"{source}: the config stored in this checkpoint's meta is kept "
            "as 'config_not_run' and not executed on resume.",
            logger='current',
            level=logging.WARNING,
        )
    return checkpoint


class _TorchForLoaders(ModuleType):
    """``torch`` as mmengine's checkpoint module sees it: a safe ``load``."""

    load = staticmethod(safe_load)

    def __getattr__(self, name):
        return getattr(torch, name)


def install(module: ModuleType) -> None:
    """Make every checkpoint loader of the installed mmengine a safe one.

    All of them (local files, http, torchvision://, open-mmlab://, object
    stores) reach ``torch.load`` or ``load_url`` through the globals of
    mmengine's checkpoint module; replacing these there covers every scheme
    of mmengine and of its fork. Idempotent.

    Args:
        module: ``mmengine.runner.checkpoint``.
    """
    module.torch = _TorchForLoaders('torch')
    module.load_url = safe_load_url
    if hasattr(module, '_safe_torch_load'):
        # The fork's own loader falls back to weights_only=False.
        module._safe_torch_load = safe_load
