"""Where our code would wait for a GPU, seen without one."""

import traceback
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import surge_det

OURS = str(Path(surge_det.__file__).parent)
TORCH = str(Path(torch.__file__).parent)
aten = torch.ops.aten
# Results that Python, or the size of a tensor, depends on.
READING = {
    aten._local_scalar_dense.default,
    aten.equal.default,
    aten.masked_select.default,
    aten.nonzero.default,
    aten.repeat_interleave.Tensor,
}
# Those that on a CPU no operator is called for.
METHODS = {Tensor.cpu, Tensor.numpy, Tensor.tolist}


def _caller():
    """The function of ours that asked for it itself, or None."""
    for frame in traceback.extract_stack()[::-1]:
        # Optimizers count their steps on the CPU.
        if frame.filename.startswith(f'{TORCH}/optim/'):
            return None
        if not frame.filename.startswith((TORCH, __file__)):
            break
    if not frame.filename.startswith(OURS):
        return None
    return f'{Path(frame.filename).name}:{frame.name}'


class _Operators(TorchDispatchMode):
    def __init__(self, found):
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        # A mask as an index is made places.
        masked = func in (aten.index.Tensor, aten.index_put_.default) and any(
            i is not None and i.dtype == torch.bool for i in args[1]
        )
        if func in READING or masked:
            self.found.append(_caller())
        return func(*args, **kwargs)


class _Methods(TorchFunctionMode):
    def __init__(self, found):
        super().__init__()
        self.found = found

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in METHODS:
            self.found.append(_caller())
        return func(*args, **(kwargs or {}))


@contextmanager
def waits():
    """List the functions of ours that read a tensor's values, each time."""
    found = []
    with _Operators(all_found := []), _Methods(all_found):
        yield found
    found += filter(None, all_found)


class _OneDevice(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tensors = [
            t for t in tree_leaves((args, kwargs, out)) if torch.is_tensor(t)
        ]
        assert all(t.is_cuda for t in tensors), f'{func}: not on the GPU'
        return out


@contextmanager
def pretended_gpu():
    """Let `device='cuda'` be tensors without values, on a GPU that is none.

    To read a value is an error of torch's. What comes out of a layer has no
    `backward()`: see `run_backward`. Tensors are made in it, those of
    `only_there()` must be on the GPU.
    """
    with FakeTensorMode():
        yield


def only_there():
    """Refuse operators with a tensor of the CPU, as copies have."""
    return _OneDevice()


@torch.no_grad()
def run_backward(out):
    """Run the backward pass of the last function alone; its gradients."""
    return out.grad_fn.apply(torch.ones_like(out))
