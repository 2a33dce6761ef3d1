import pytest
import torch
from torch import nn

pytest.importorskip('mmdet', reason='needs the toolbox')

from surge_det.deploy.norms import fold, folded

pytestmark = pytest.mark.isa


def norm(channels=33, **kwargs):
    torch.manual_seed(0)
    module = nn.BatchNorm2d(channels, **kwargs).eval()
    with torch.no_grad():
        if module.weight is not None:
            module.weight.normal_()
            module.bias.normal_()
        module.running_mean.normal_(0, 3)
        module.running_var.uniform_(0.01, 9)
    return module


@pytest.mark.parametrize('layout', ['contiguous_format', 'channels_last'])
@pytest.mark.parametrize('eps', [1e-5, 1e-3])
def test_folded_norm_has_the_same_bits(eps, layout):
    model = nn.Sequential(norm(eps=eps))
    x = 20 * torch.randn(2, 33, 7, 5)
    x = x.contiguous(memory_format=getattr(torch, layout))
    expected = model(x)
    weight = model[0].weight / torch.sqrt(model[0].running_var + eps)
    assert fold(model) == ['0']
    assert torch.equal(model(x), expected)
    assert model[0].eps == 0
    assert not model[0].running_mean.any()
    assert model[0].running_var.eq(1).all()
    torch.testing.assert_close(model[0].weight, weight)


def test_what_does_not_fold_stays():
    # No parameters to fold into; statistics that no two vectors stand for.
    bare, broken = norm(affine=False), norm()
    broken.running_var[3] = float('nan')
    assert folded(bare) is None
    assert folded(broken) is None
    model = nn.Sequential(bare, broken, nn.GroupNorm(1, 33))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    assert fold(model) == []
    for key, value in model.state_dict().items():
        torch.testing.assert_close(
            value, before[key], rtol=0, atol=0, equal_nan=True
        )
