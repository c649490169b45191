"""The fused kernels of SHERL on the pooled embedding against the operations.

On a GPU: ``pytest tests/adapters/fused_kernels.py``. Without one, Triton's interpreter runs the kernels if
``TRITON_INTERPRET=1`` is set; Triton reads it when it is imported, so ``test_sherl_fused.py`` runs this file in its own
process.
"""

import os

import pytest
import torch
from torch import Tensor

from vlkit.adapters.sherl import pooled_kernels as kernels
from vlkit.adapters.sherl.pooled_lean import LeanPooledSherlAdapter
from vlkit.encoders.staged import Stream

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"


def adapter(**options) -> LeanPooledSherlAdapter:
    torch.manual_seed(0)
    widths, layers = (20, 20, 24), (0, 1, 2)
    made = LeanPooledSherlAdapter(widths, 12, 8, layers, True, "published", keep="all", **options)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return made.to(DEVICE)


def inputs(batch: int, mask: bool, summary: bool, dtype: torch.dtype) -> tuple[list[Tensor], Tensor, Stream]:
    generator = torch.Generator().manual_seed(1)
    taps = [torch.randn(batch, length, width, generator=generator) for length, width in ((7, 20), (7, 20), (7, 24))]
    last = torch.randn(batch, 12, generator=generator)
    lengths = torch.arange(batch) % 6 + 2
    real = torch.arange(7).expand(batch, 7) < lengths.unsqueeze(1) if mask else None
    ends = lengths - 1 if summary else None
    real, ends = (None if each is None else each.to(DEVICE) for each in (real, ends))
    return [tap.to(DEVICE, dtype) for tap in taps], last.to(DEVICE), Stream(None, real, ends)


def step(made: LeanPooledSherlAdapter, taps: list[Tensor], last: Tensor, stream: Stream) -> list[Tensor]:
    """Output and gradients of every weight, and of the taps that want one."""
    last = last.clone().requires_grad_()
    out = made.join([made.merge(list(taps), last, stream)])
    wanted = [last, *made.parameters(), *(tap for tap in taps if tap.requires_grad)]
    target = torch.randn(out.shape, generator=torch.Generator().manual_seed(2)).to(DEVICE)
    return [out.detach(), *torch.autograd.grad((out * target).sum(), wanted)]


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    """Equal to float32's precision, on the scale of all: where one token alone has a score, gradients cancel."""
    scale = max(float(theirs.abs().max()) for theirs in expected)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6 * scale)


@pytest.mark.parametrize("mask, summary", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("tap_dtype", ["fp32", "bf16", "int8"])
def test_equal_to_the_operations(monkeypatch, mask, summary, tap_dtype):
    monkeypatch.setattr(kernels, "TILE", 64)  # two tokens at once: several tiles, and a last one that is not full
    monkeypatch.setattr(kernels, "PROGRAMS", 12)
    batch = inputs(5, mask, summary, torch.float32)
    assert kernels.usable(batch[0][0])
    calls = []
    monkeypatch.setattr(kernels, "pool", lambda *given, run=kernels.pool: calls.append(1) or run(*given))
    expected = step(adapter(tap_dtype=tap_dtype, fused=False), *batch)
    assert not calls
    found = step(adapter(tap_dtype=tap_dtype), *batch)
    assert len(calls) == 3
    assert_same(found, expected)


def test_gradients_of_taps():
    taps, last, stream = inputs(3, True, True, torch.float32)
    taps = [tap.requires_grad_() for tap in taps]
    assert_same(step(adapter(), taps, last, stream), step(adapter(fused=False), taps, last, stream))


def test_several_chunks():
    whole, last, stream = inputs(5, True, True, torch.float32)

    def both(made: LeanPooledSherlAdapter) -> list[Tensor]:
        ends = [(slice(0, 2), 2), (slice(2, 5), 3)]
        parts = [
            made.merge([tap[at] for tap in whole], last[at], Stream(None, stream.mask[at], stream.summary[at]))
            for at, _ in ends
        ]
        out = made.join(parts)
        return [out.detach(), *torch.autograd.grad(out.square().sum(), list(made.parameters()))]

    assert_same(both(adapter()), both(adapter(fused=False)))


def test_taps_in_bfloat16():
    """bf16 taps are read as they are, summed in float32."""
    taps, last, stream = inputs(4, False, True, torch.bfloat16)
    assert_same(step(adapter(), taps, last, stream), step(adapter(fused=False), taps, last, stream))


def test_where_they_run():
    assert kernels.usable(torch.ones(2, 3, 4, device=DEVICE))
    assert not kernels.usable(torch.ones(2, 3, 4, dtype=torch.float64, device=DEVICE))
    assert not kernels.usable(torch.ones(2, 4, 3, device=DEVICE).transpose(1, 2))  # a grid: channels far apart
    assert not kernels.usable(torch.ones(1, 1, kernels.WIDEST + 1, device=DEVICE))


def test_not_on_the_cpu(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert not kernels.usable(torch.ones(2, 3, 4))


def test_a_kernel_that_cannot_be_built_is_logged_once(monkeypatch, caplog):
    def fails(*_):
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(kernels, "pool", fails)
    kernels._compiles.cache_clear()
    tap = torch.ones(2, 3, 4, device=DEVICE)
    assert not kernels.usable(tap) and not kernels.usable(tap)
    assert [r.message for r in caplog.records].count(caplog.records[0].message) == 1
    assert "Failed to find C compiler" in caplog.text
    kernels._compiles.cache_clear()


@pytest.mark.parametrize("shape", [(128, 257, 1024), (3, 50, 768), (2, 77, 1664)])
def test_shapes_of_real_towers(shape):
    """Every value of a sample is read once and every sum is whole, whatever the grid."""
    if DEVICE == "cpu":
        shape = (2, min(shape[1], 60), shape[2])
    generator = torch.Generator().manual_seed(0)
    tap, query = (torch.randn(size, generator=generator).to(DEVICE) for size in (shape, (shape[0], shape[2])))
    base = torch.full(shape[:2], 1 / shape[1], device=DEVICE)
    x, constant = tap.double().relu(), torch.zeros(shape[0], device=DEVICE)
    expected = torch.einsum("bld,bd->bl", x, query.double()).relu()
    factor = torch.full((1,), 0.5, device=DEVICE)
    found = kernels.pool(tap, query, constant, base, None, factor, 1e-6, True)
    total = expected.sum(1) + 1e-6
    mean = torch.einsum("bl,bld->bd", expected, x) / total.unsqueeze(1) + 0.5 * x.mean(1)
    for ours, theirs in zip(found, (expected, total, mean, x.mean(1)), strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))
