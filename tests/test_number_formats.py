"""Packing tensors: what comes back, and how large it is."""

from __future__ import annotations

import pytest
import torch

from vlkit.number_formats import (
    Packed,
    bytes_of,
    dequantise,
    from_bytes,
    from_few_bits,
    pack_codes,
    quantise,
    to_bytes,
    to_few_bits,
    unpack_codes,
)


def test_zeros_left_out_come_back_exactly() -> None:
    for shape in ((1, 1), (7, 5), (3, 64), (0, 8), (2, 3, 4, 4)):
        x = torch.randn(shape).relu()
        packed = Packed(x, positive=True, sparse=True)
        assert torch.equal(packed.open(), x) and packed.open().shape == x.shape
    dense = torch.rand(9, 8) + 1
    assert Packed(dense, positive=True, sparse=True)._bits is None  # it would be larger
    assert torch.equal(Packed(dense, positive=True, sparse=True).open(), dense)


@pytest.mark.parametrize("shape", [(3, 128), (2, 5, 17), (4, 96), (2, 3, 7, 7)])
@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_int8_is_within_half_a_step(shape: tuple[int, ...], positive: bool, dtype: torch.dtype) -> None:
    x = torch.randn(shape) * torch.logspace(-3, 3, shape[-1])
    x = (x.relu() if positive else x).to(dtype)
    opened = Packed(x, "int8", positive=positive, sparse=positive).open()
    assert opened.dtype == dtype and opened.shape == x.shape
    steps = 255 if positive else 127
    flat = x.flatten(2) if x.dim() == 4 else x
    width = {128: 64, 17: 17, 96: 32, 49: 49}[flat.shape[-1]]
    largest = flat.reshape(-1, width).abs().amax(1, keepdim=True)
    off = (opened.reshape(-1, width) - x.reshape(-1, width)).abs()
    assert bool((off <= largest * (0.501 / steps + (0.01 if dtype == torch.bfloat16 else 1e-6))).all())


def test_int8_of_zeros_is_zero() -> None:
    for shape in ((2, 64), (0, 64)):  # or nothing at all
        x = torch.zeros(shape)
        assert torch.equal(Packed(x, "int8").open(), x)
        assert torch.equal(Packed(x, "int8", positive=True, sparse=True).open(), x)


def test_whole_taps_are_packed_without_a_copy() -> None:
    x = torch.randn(3, 4)
    assert Packed(x).open().data_ptr() == x.data_ptr()


def test_half_precision_is_never_packed_in_more() -> None:
    x = torch.randn(2, 64).half()
    assert Packed(x, "bf16").open().dtype == torch.float16 and torch.equal(Packed(x, "bf16").open(), x)


@pytest.mark.parametrize("stored", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("count", [1, 64, 100])
def test_bytes_come_back(stored: str, count: int) -> None:
    x = torch.randn(2, 3, count)
    data = to_bytes(x, stored)
    assert data.dtype == torch.uint8 and data.shape == (2, 3, bytes_of(count, stored))
    back = from_bytes(data, count, stored, torch.float32)
    limit = {"fp32": 0.0, "bf16": 2.0**-8 * x.abs().amax(), "int8": x.abs().amax() / 254 * 1.001}[stored]
    assert back.shape == x.shape and (back - x).abs().amax() <= limit


def test_layout_of_int8_on_the_disk() -> None:
    """Codes of whole groups, then float32 scales: caches of earlier versions must be read."""
    x = torch.zeros(70)
    x[0], x[1], x[65] = 127.0, -63.5, 2.54
    data = to_bytes(x, "int8")
    codes, scales = data[:128].view(torch.int8), data[128:].view(torch.float32)
    assert codes[:3].tolist() == [127, -64, 0] and codes[65] == 127 and not codes[66:].any()
    torch.testing.assert_close(scales, torch.tensor([1.0, 0.02]))


def test_memory_and_disk_round_alike() -> None:
    x = torch.randn(4, 128)
    codes, scales = quantise(x, 64)
    assert torch.equal(Packed(x, "int8").open(), dequantise(codes, scales, torch.float32))
    assert torch.equal(from_bytes(to_bytes(x, "int8"), 128, "int8", torch.float32), Packed(x, "int8").open())


def test_masks_are_bytes() -> None:
    mask = torch.tensor([True, False, True])
    assert to_bytes(mask, "bool").tolist() == [1, 0, 1] and bytes_of(3, "bool") == 3
    assert torch.equal(from_bytes(to_bytes(mask, "bool"), 3, "bool", torch.float32), mask)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("count", [1, 5, 63, 64, 65, 130])
def test_few_bits_stay_within_half_a_level(bits: int, count: int) -> None:
    x = torch.randn(7, count, generator=torch.Generator().manual_seed(count)) * 10
    data, bounds = to_few_bits(x, bits)
    group = min(64, count)
    spread = (bounds[..., 1].float() - bounds[..., 0].float()).repeat_interleave(group, -1)[..., :count]
    found = from_few_bits(data, bounds, bits, count)
    assert ((found - x).abs() <= spread / (2 * (2**bits - 1)) + 1e-5).all()
    assert data.shape == (7, -(-count * bits // 8)) and data.dtype == torch.uint8


def test_bounds_of_few_bits_enclose_their_group() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, 64, generator=generator) * 10 ** (2 * torch.randn(500, 1, generator=generator))
    x = x.clamp(-6e4, 6e4)
    bounds = to_few_bits(x, 4)[1].float()
    assert (bounds[:, 0, 0] <= x.amin(-1)).all() and (bounds[:, 0, 1] >= x.amax(-1)).all()
    constant = torch.tensor([[0.0] * 64, [1e-9] * 64, [-3.0] * 64, [7e4] * 64])
    found = from_few_bits(*to_few_bits(constant, 4), 4, 64)
    torch.testing.assert_close(found, constant.clamp(max=65504), rtol=1e-3, atol=1e-7)


def test_codes_pack_and_unpack() -> None:
    for bits in (1, 2, 4, 8):
        codes = torch.randint(0, 2**bits, (3, 11), dtype=torch.uint8, generator=torch.Generator().manual_seed(bits))
        assert torch.equal(unpack_codes(pack_codes(codes, bits), bits, 11), codes)
