"""What OpenVINO leaves of the process that it runs in."""

import ctypes
import gc
import importlib.util
import signal
import sys
from pathlib import Path

import pytest
import torch
from command_line import python
from torch import nn

pytest.importorskip('mmdet', reason='needs the toolbox')
if importlib.util.find_spec('openvino') is None:
    pytest.skip('needs the extra deploy', allow_module_level=True)

import surge_det  # noqa: F401

# isort: split
from surge_det.deploy import extra
from surge_det.deploy.openvino import Network, convert


class _Stack(ctypes.Structure):
    _fields_ = (
        ('start', ctypes.c_void_p),
        ('flags', ctypes.c_int),
        ('size', ctypes.c_size_t),
    )


def _signal_stack():
    """Where this thread's signal handlers run, if they have a place."""
    stack = _Stack()
    libc = ctypes.CDLL(None)
    assert libc.sigaltstack(None, ctypes.byref(stack)) == 0
    return stack.start, stack.size


def _is_mapped(start, size):
    for line in Path('/proc/self/maps').read_text().splitlines():
        first, last = (int(x, 16) for x in line.split()[0].split('-'))
        if first <= start and start + size <= last:
            return True
    return False


def _used_network():
    x = torch.zeros(1, 3, 4, 4)
    network = Network(convert(nn.ReLU(), x), threads=1)
    network(x)
    network(torch.zeros(1, 3, 5, 5))
    return network


@pytest.mark.skipif(sys.platform != 'linux', reason='sigaltstack of Linux')
def test_signals_are_handled_after_networks_have_come_and_gone():
    first, second = _used_network(), _used_network()
    # Not the last one first.
    del first
    gc.collect()
    del second
    gc.collect()
    start, size = _signal_stack()
    assert start
    assert _is_mapped(start, size)
    heard = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: heard.append(1))
    try:
        signal.raise_signal(signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert heard == [1]


# Elsewhere, since a test may have imported OpenVINO by itself.
_IMPORT = """
import runpy, sys
require = runpy.run_path(sys.argv[1])['require']
require('openvino')
print(require('openvino.tools.ovc.telemetry_utils').tm.__name__)
print('openvino_telemetry' in sys.modules)
"""


def test_telemetry_stays_out():
    said = python(_IMPORT, extra.__file__).split()
    assert said == ['openvino.tools.ovc.telemetry_stub', 'False']


def test_telemetry_that_is_there_stays(monkeypatch):
    package = object()
    monkeypatch.setitem(sys.modules, 'openvino_telemetry', package)
    extra.require('openvino')
    assert sys.modules['openvino_telemetry'] is package
