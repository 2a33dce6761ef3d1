"""Memory formats: the values stay, the strides are those asked for."""

import itertools

import pytest
import torch

from surge_det.core.operators.memory_format import (
    MemoryFormats,
    is_channels_last,
    to_channels_last,
    to_contiguous,
)

pytestmark = pytest.mark.isa

LAST = torch.channels_last
SHAPES = list(itertools.product((0, 1, 3), (1, 2, 5), (1, 4), (1, 3)))
FORMS = {
    'rows': lambda x: x,
    'last': lambda x: x.contiguous(memory_format=LAST),
    'transposed': lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    'sliced-last': lambda x: torch.cat([x, x, x], 1).contiguous(
        memory_format=LAST
    )[:, x.shape[1] : 2 * x.shape[1]],
    'strided': lambda x: x.repeat_interleave(2, 3)[..., ::2],
    'expanded': lambda x: x[:1].expand(x.shape),
}


def numbers(shape, dtype=torch.float32):
    n = torch.Size(shape).numel()
    return torch.arange(n, dtype=dtype).view(shape)


@pytest.mark.parametrize('make', FORMS.values(), ids=FORMS)
def test_values_stay(make):
    for shape in SHAPES:
        x = make(numbers(shape))
        assert x.shape == shape
        before = x.clone()
        rows, last = to_contiguous(x), to_channels_last(x)
        assert torch.equal(rows, before)
        assert torch.equal(last, before)
        assert torch.equal(x, before)
        assert rows.is_contiguous()
        assert last.is_contiguous(memory_format=LAST)


@pytest.mark.parametrize(
    'dtype', [torch.float64, torch.bfloat16, torch.float16, torch.uint8]
)
def test_any_type(dtype):
    x = numbers((2, 3, 4, 5), dtype).contiguous(memory_format=LAST)
    rows = to_contiguous(x)
    assert rows.dtype == dtype
    assert torch.equal(rows, x)
    assert rows.is_contiguous()


def test_no_copy_of_what_lies_right():
    x = numbers((2, 3, 4, 5))
    assert to_contiguous(x).data_ptr() == x.data_ptr()
    last = x.contiguous(memory_format=LAST)
    assert to_channels_last(last).data_ptr() == last.data_ptr()


@pytest.mark.parametrize(
    ('shape', 'last'),
    [
        ((2, 3, 4, 5), True),
        ((1, 3, 4, 1), True),
        # One channel or one place: the two formats are one.
        ((2, 1, 4, 5), False),
        ((2, 3, 1, 1), False),
        ((0, 3, 4, 5), False),
    ],
)
def test_is_channels_last(shape, last):
    x = numbers(shape)
    assert not is_channels_last(x)
    assert is_channels_last(x.contiguous(memory_format=LAST)) is last


def test_neither_format():
    x = numbers((2, 3, 4, 5))
    assert not is_channels_last(x.transpose(2, 3))
    assert not is_channels_last(x.contiguous(memory_format=LAST)[:, 1:])


@pytest.mark.parametrize('make', FORMS.values(), ids=FORMS)
def test_each_format_is_made_once(make):
    x = make(numbers((2, 3, 4, 5)))
    formats = MemoryFormats(x)
    assert formats.given is x
    assert formats.contiguous is formats.contiguous
    assert formats.channels_last is formats.channels_last
    assert torch.equal(formats.contiguous, x)
    assert torch.equal(formats.channels_last, x)
    assert formats.contiguous.is_contiguous()
    assert formats.channels_last.is_contiguous(memory_format=LAST)


def test_any_dimensions_are_kept_as_given():
    x = numbers((3, 4))
    assert MemoryFormats(x).given is x
