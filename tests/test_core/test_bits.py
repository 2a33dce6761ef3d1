"""Two bits per element: what goes in comes out."""

import math

import pytest
import torch

from surge_det.core.bits import pack_codes, unpack_codes


def codes(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 4, shape, dtype=torch.uint8, generator=generator)


SHAPES = [
    *((n,) for n in range(10)),
    (1023,),
    (),
    (0, 3),
    (3, 5),
    (2, 3, 7),
    (2, 3, 5, 7),
    (1, 1, 1, 1),
    (4, 64, 3, 3),
    (0, 4, 5, 5),
    (1, 2, 3, 2, 3),
]


@pytest.mark.parametrize('shape', SHAPES, ids=str)
def test_round_trip(shape):
    values = codes(*shape)
    before = values.clone()
    packed = pack_codes(values)
    assert packed.dtype == torch.uint8
    assert packed.shape == (math.ceil(values.numel() / 4),)
    out = unpack_codes(packed, values.shape)
    assert out.dtype == torch.uint8
    assert torch.equal(out, values)
    # Nothing of the arguments is written to.
    assert torch.equal(values, before)
    assert torch.equal(unpack_codes(packed, values.shape), values)


@pytest.mark.parametrize('shape', [s for s in SHAPES if len(s) == 4], ids=str)
@pytest.mark.parametrize('lies_so', [True, False])
def test_round_trip_in_channels_last(shape, lies_so):
    values = codes(*shape)
    if lies_so:
        values = values.contiguous(memory_format=torch.channels_last)
    packed = pack_codes(values, channels_last=True)
    assert packed.numel() == math.ceil(values.numel() / 4)
    out = unpack_codes(packed, values.shape, channels_last=True)
    assert torch.equal(out, values)
    assert out.is_contiguous(memory_format=torch.channels_last)


def test_every_byte():
    # All 256 combinations of four elements, each to a byte of its own.
    values = torch.cartesian_prod(*[torch.arange(4)] * 4).to(torch.uint8)
    packed = pack_codes(values)
    assert packed.unique().numel() == 256
    assert torch.equal(unpack_codes(packed, values.shape), values)
    # The first element is in the lowest bits.
    places = torch.tensor([1, 4, 16, 64])
    assert torch.equal(packed.long(), (values.long() * places).sum(1))


@pytest.mark.parametrize(
    'make',
    [
        lambda v: v.transpose(2, 3),
        lambda v: v.permute(3, 0, 2, 1),
        lambda v: v[:, 1:, ::2, 1:],
        lambda v: v[:, :1].expand(-1, 3, -1, -1),
    ],
    ids=['transposed', 'permuted', 'sliced', 'expanded'],
)
@pytest.mark.parametrize('channels_last', [True, False])
def test_any_strides(make, channels_last):
    values = make(codes(2, 3, 5, 7))
    packed = pack_codes(values, channels_last)
    assert torch.equal(
        unpack_codes(packed, values.shape, channels_last), values
    )


def test_elements_are_in_the_order_of_memory():
    values = codes(2, 8, 3, 5)
    last = values.contiguous(memory_format=torch.channels_last)
    assert torch.equal(
        pack_codes(last, channels_last=True),
        pack_codes(values.permute(0, 2, 3, 1)),
    )
