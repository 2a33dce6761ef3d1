"""A training step never waits for a GPU: no value is read on the way.

There need not be one: what would make the CPU wait is seen by the operators
that are called, and the layers' ways for GPUs run on tensors that only pretend
to be there.
"""

import pytest
import torch
from torch import nn
from waits import only_there, pretended_gpu, run_backward, waits

from surge_det.core import SURGEConv2d, SURGELinear
from surge_det.core.fsg import FSG
from surge_det.core.fsg.fast_net import FastNet

KEYWORDS = [
    {},
    {'eta': 'auto'},
    {'compensate': False},
    {'activation_estimator': {'type': 'STE', 'leak': 0.1}},
    {'activation_estimator': {'type': 'ReSTE'}, 'eta': 'auto'},
    {'activation_estimator': {'type': 'ApproxSign'}},
    {'activation_estimator': {'type': 'EDE'}},
    {'weight_binarizer': {'type': 'IRNet'}},
    {'normalize_input': True, 'shift': 0.1},
    {'aux_dtype': 'bfloat16', 'eta': 'auto'},
]
LAYERS = [
    (SURGEConv2d, (4, 6, 3, 2, 1), {}, (2, 4, 9, 8)),
    (SURGEConv2d, (4, 6, 3, 1, 1), {'pad_value': 1}, (2, 4, 9, 8)),
    (SURGEConv2d, (4, 6, 1), {'groups': 2}, (0, 4, 9, 8)),
    (SURGELinear, (4, 6), {}, (3, 4)),
]
# It reads the weights when it is made, so it is made of real ones.
RECU = {'weight_binarizer': {'type': 'ReCU'}}
cases = pytest.mark.parametrize('keywords', KEYWORDS, ids=str)
layers = pytest.mark.parametrize(('kind', 'sizes', 'own', 'shape'), LAYERS)


@cases
@layers
@pytest.mark.parametrize('dtype', [torch.float32, torch.float16])
def test_on_a_gpu_nothing_is_read_or_copied(
    kind, sizes, own, shape, keywords, dtype
):
    with pretended_gpu():
        layer = kind(*sizes, **own, **keywords, device='cuda', dtype=dtype)
        layer.begin_training()
        layer.watches = True
        x = torch.randn(shape, device='cuda', dtype=dtype).requires_grad_()
        for _ in range(2):
            with only_there():
                gradients = run_backward(layer(x))
        assert gradients[0].is_cuda
        assert gradients[0].dtype == dtype


def test_what_the_guard_is_for_is_seen():
    with pretended_gpu():
        x = torch.ones(3, device='cuda')
        with only_there(), pytest.raises(AssertionError, match='not on the'):
            x.new_tensor([1.0, 2.0])
        with pytest.raises(RuntimeError):
            bool(x.isfinite().all())
    layer = SURGELinear(3, 2)
    with waits() as found:
        # The first pass of a loop that did not begin the training.
        layer(torch.ones(1, 3))
    assert found == ['layers.py:_begin_if_zero']


@pytest.mark.parametrize('keywords', [*KEYWORDS, RECU], ids=str)
@pytest.mark.parametrize('narrow', [False, True])
def test_a_step_reads_nothing(keywords, narrow):
    model = nn.Sequential(
        SURGEConv2d(4, 6, 3, **keywords), nn.Flatten(), nn.LazyLinear(8)
    )
    model.append(SURGELinear(8, 2, **keywords))
    x = torch.randn(2, 4, 9, 8)
    model(x)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with waits() as found:
        with torch.autocast('cpu', torch.bfloat16, enabled=narrow):
            loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
    assert found == []


@pytest.mark.parametrize('nonlinearity', [None, 'relu', 'tanh'])
def test_fsgs_fast_network_copies_nothing(nonlinearity):
    with pretended_gpu(), torch.device('cuda'):
        net = FastNet(4, nonlinearity)
        values = torch.randn(2, 5)
        with only_there():
            assert net(*values).is_cuda


def test_an_update_of_fsg_reads_nothing():
    pytest.importorskip('mambapy')
    model = nn.Sequential(SURGELinear(6, 4), SURGELinear(4, 2))
    slow = {'block_size': 8, 'd_model': 2, 'expand': 2, 'independent': True}
    fsg = FSG(model, slow=slow)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    x = torch.randn(3, 6)
    model(x)
    with waits() as found:
        for _ in range(3):
            fsg.begin(optimizer)
            model(x).square().mean().backward()
            fsg.finish()
            optimizer.step()
            optimizer.zero_grad()
    assert found == []
