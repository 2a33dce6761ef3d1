import pytest
import torch

from surge_det.core import binary_sign

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.mark.parametrize('dtype', DTYPES)
def test_zero_of_either_sign_becomes_plus_one(dtype):
    zeros = torch.tensor([0.0, -0.0], dtype=dtype)
    assert torch.equal(binary_sign(zeros), torch.ones(2, dtype=dtype))


@pytest.mark.parametrize('dtype', DTYPES)
def test_sign_of_each_value(dtype):
    tiny = torch.finfo(dtype).tiny
    x = torch.tensor([-3.0, -tiny, tiny, 0.25, 7.0], dtype=dtype)
    wanted = torch.tensor([-1.0, -1.0, 1.0, 1.0, 1.0], dtype=dtype)
    out = binary_sign(x)
    assert out.dtype == dtype
    assert torch.equal(out, wanted)


def test_infinities():
    x = torch.tensor([float('-inf'), float('inf')])
    assert binary_sign(x).tolist() == [-1.0, 1.0]


def test_only_two_values_and_the_input_is_left_alone():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, 5)
    x[x.abs() < 0.5] = 0
    before = x.clone()
    out = binary_sign(x)
    assert set(out.unique().tolist()) == {-1.0, 1.0}
    assert out.shape == x.shape
    assert torch.equal(x, before)


def test_empty():
    assert binary_sign(torch.zeros(0, 3)).shape == (0, 3)


def test_memory_format_is_kept():
    x = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    out = binary_sign(x)
    assert out.is_contiguous(memory_format=torch.channels_last)
