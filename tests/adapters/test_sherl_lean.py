"""The lean implementation against the plain one: same numbers, less kept."""

from __future__ import annotations

import weakref
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import parity
from helpers import parity_joint, parity_sherl
from helpers.sherl_pairs import PAIRS, Decoded, Read, assert_same, build, pair, run
from helpers.towers import SPATIAL, TEXT, TOWERS
from vlkit.adapters.base import AdaptedEncoder, Plain, busy_samples, even
from vlkit.adapters.lean.opened import saved_packed
from vlkit.adapters.lean.recompute import Lean
from vlkit.adapters.sherl.options import SherlOptions
from vlkit.adapters.sherl.pooled import PooledSherlAdapter
from vlkit.adapters.sherl.pooled_lean import LeanPooledSherlAdapter
from vlkit.errors import UserError
from vlkit.memory import saved_bytes
from vlkit.number_formats import Packed

GOLDEN = Path(__file__).parents[1] / "fixtures" / "golden"
POOLED = [(tower, flavour) for tower, flavour in PAIRS if flavour.startswith("pooled")]
every_pair = pytest.mark.parametrize(("tower", "flavour"), PAIRS)


@every_pair
@pytest.mark.parametrize("chunk", [0, 2])
def test_lean_equals_plain_in_double_precision(tower: str, flavour: str, chunk: int) -> None:
    plain, model, x = pair(tower, flavour, early_chunk=chunk)
    expected = run(plain, lambda: plain(x).pooled)
    assert_same(run(model, lambda: model(x).pooled), expected, 1e-9)
    # Buffers too: batch norm must have counted the batch once.
    for (name, one), other in zip(model.named_buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12, msg=name)
    assert_same(run(model, lambda: model.finish(*model.read(x)).pooled), expected, 1e-9)


@every_pair
def test_lean_equals_plain_in_single_precision(tower: str, flavour: str) -> None:
    plain, model, x = pair(tower, flavour, torch.float32, tap_dtype="fp32")
    assert_same(run(model, lambda: model(x).pooled), run(plain, lambda: plain(x).pooled), 1e-4)


@pytest.mark.parametrize(("tower", "flavour", "rounds"), [("vit", "text", True), ("vit", "pooled", False)])
def test_by_default_taps_on_tokens_are_saved_in_bf16(tower: str, flavour: str, rounds: bool) -> None:
    chosen, exact, bf16 = (
        run(model, lambda model=model, x=x: model(x).pooled)
        for _, model, x in (pair(tower, flavour, torch.float32, tap_dtype=name) for name in ("auto", "fp32", "bf16"))
    )
    assert torch.equal(chosen[0], exact[0])
    assert distance(chosen, bf16 if rounds else exact) == 0 < distance(exact, bf16) < 0.05


def test_a_second_run_holds_no_opened_tap() -> None:
    """Else all taps of a chunk would be held twice, and the wider copy in full."""
    packed = Packed(torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0)), "int8")
    linear, opened = nn.Linear(8, 3), packed.open()
    with saved_packed(opened, packed):
        output = linear(opened).square()
    gone = weakref.ref(opened)
    expected = torch.autograd.grad(linear(opened).square().sum(), linear.weight)[0]
    del opened
    assert gone() is None
    assert torch.equal(torch.autograd.grad(output.sum(), linear.weight)[0], expected)


@every_pair
@pytest.mark.parametrize("chunk", [0, 2])
def test_cached_taps_give_the_plain_numbers_in_double_precision(tower: str, flavour: str, chunk: int) -> None:
    plain, model, x = pair(tower, flavour, early_chunk=chunk)
    read = Read.of(model, x)
    if tower in TEXT:  # their masks are extras, which a real cache computes for each chunk
        model.runner.chunk = 0
    assert_same(run(model, lambda: model(read).pooled), run(plain, lambda: plain(x).pooled), 1e-9)


@pytest.mark.parametrize(("tap_dtype", "limit"), [("fp32", 1e-5), ("auto", 0.01), ("int8", 0.03)])
@pytest.mark.parametrize("flavour", ["text", "gated"])
def test_cached_taps_are_projected_once_and_not_saved(flavour: str, tap_dtype: str, limit: float) -> None:
    plain, model, x = pair("vit", flavour, torch.float32, tap_dtype=tap_dtype)
    read = Read.of(model, x)
    expected = run(plain, lambda: plain(x).pooled)
    calls = []
    for reducer in model.adapter.reducers:
        reducer.proj.register_forward_hook(lambda *_: calls.append(1))
    found = run(model, lambda: model(read).pooled)
    assert len(calls) == len(model.adapter.reducers)
    assert torch.equal(found[0], run(model, lambda: model(x).pooled)[0])
    assert distance(found, expected) < limit
    saved = [saved_bytes(model, lambda given=given: model(given).pooled.sum()) for given in (read, x)]
    assert saved[0] < 0.75 * saved[1]  # projections of half the width, the hand-off not at all


@pytest.mark.parametrize("chunk", [0, 2])
@pytest.mark.parametrize("flavour", ["text", "gated", "mdetr"])
def test_cached_taps_without_late_blocks_run_once_and_are_not_saved(flavour: str, chunk: int) -> None:
    plain, model, x = pair("vit", flavour, reads="tokens", late=0, early_chunk=chunk)
    read, heads = Read.of(model, x), []
    model.adapter.head.proj.register_forward_hook(lambda *_: heads.append(1))
    assert_same(run(model, lambda: model(read).tokens), run(plain, lambda: plain(x).tokens), 1e-9)
    assert len(heads) == len(read.split(chunk or len(x)))
    rows = Decoded.of(model, x)
    saved = [saved_bytes(one, lambda one=one: one(rows).tokens.sum()) for one in (model, plain)]
    # Of the taps only the hand-off, which the gate multiplies (by a scalar that each chunk saves).
    less = sum(stream.hidden.nbytes for stream in read.streams(model.base)[:-2])
    assert less - 64 < saved[1] - saved[0] <= less


@pytest.mark.parametrize(("tower", "flavour"), POOLED)
def test_all_rows_equal_the_active_ones(tower: str, flavour: str) -> None:
    plain, model, x = pair(tower, flavour, keep="all", early_chunk=2)
    assert_same(run(model, lambda: model(x).pooled), run(plain, lambda: plain(x).pooled), 1e-9)


@pytest.mark.parametrize("chunk", [0, 2])
@pytest.mark.parametrize(("tower", "flavour"), [("vit", "text"), ("clip_text", "gated"), ("resnet", "conv")])
def test_tokens_are_those_of_the_plain_one(tower: str, flavour: str, chunk: int) -> None:
    plain, model, x = pair(tower, flavour, reads="tokens", early_chunk=chunk)
    assert_same(run(model, lambda: model(x).tokens), run(plain, lambda: plain(x).tokens), 1e-9)
    masks = model(x).mask, plain(x).mask
    assert masks == (None, None) or torch.equal(*masks)


@pytest.mark.parametrize("chunk", [0, 1, "auto"])
def test_frozen_tokens_behind_a_lean_pooled_hand_off_are_not_made(chunk: int | str) -> None:
    """However many chunks there are: what a head may read follows from how the encoder was built."""
    plain, model, x = pair("clip_text", "pooled", early_chunk=chunk)
    assert plain(x).tokens.shape == (3, 12, 32)
    for view in ("tokens", "grid"):
        with pytest.raises(RuntimeError, match="build the encoder with reads='tokens'"):
            getattr(model(x), view)


def test_dropout_draws_the_same_mask_again() -> None:
    plain, model, x = pair("vit", "text", early_chunk=0, dropout=0.5)
    assert_same(run(model, lambda: model(x).pooled), run(plain, lambda: plain(x).pooled), 1e-9)
    state = torch.get_rng_state()
    output = model(x).pooled
    drawn = torch.get_rng_state()
    output.sum().backward()
    assert not torch.equal(state, drawn) and torch.equal(torch.get_rng_state(), drawn)


@pytest.mark.parametrize(("tower", "flavour"), [("vit", "pooled_gated"), ("clip_text", "text"), ("resnet", "conv")])
def test_twice_in_one_graph(tower: str, flavour: str) -> None:
    plain, model, x = pair(tower, flavour, early_chunk=2)
    results = [
        run(m, lambda m=m: torch.cat([m(x).pooled, m(x.flip(0)).pooled * 2])) for m in (model, plain)
    ]  # fmt: skip
    assert_same(*results, 1e-9)


@pytest.mark.parametrize("flavour", ["pooled", "text"])
def test_second_backward_and_changed_weights_are_refused(flavour: str) -> None:
    _, model, x = pair("vit", flavour)
    loss = model(x).pooled.sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="only once"):
        loss.backward()
    loss = model(x).pooled.sum()
    with torch.no_grad():
        next(model.adapter.parameters()).add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize(("tower", "flavour"), [("vit", "pooled"), ("clip_text", "pooled"), ("vit", "mdetr")])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(tower: str, flavour: str, dtype: torch.dtype) -> None:
    # In chunks half precision may round a product differently, and a score next to the kink of its ReLU then flips.
    plain, model, x = pair(tower, flavour, torch.float32, early_chunk=0)

    def mixed(model: AdaptedEncoder) -> Tensor:
        with torch.autocast("cpu", dtype=dtype):
            return model(x).pooled.float()

    exact = run(plain, lambda: plain(x).pooled)
    off = [distance(run(m, lambda m=m: mixed(m)), exact) for m in (model, plain)]
    assert off[0] < max(0.05, 1.5 * off[1])


def distance(one: tuple[Tensor, dict], other: tuple[Tensor, dict]) -> float:
    """Difference of all gradients together, relative."""
    flat = [torch.cat([result[1][name].flatten() for name in sorted(other[1])]) for result in (one, other)]
    return float((flat[0] - flat[1]).norm() / flat[1].norm())


@pytest.mark.parametrize(("tower", "flavour"), [("vit", "pooled"), ("clip_text", "gated"), ("bert", "text")])
def test_tap_dtype_rounds_the_gradient_alone(tower: str, flavour: str) -> None:
    plain, _, x = pair(tower, flavour, torch.float32)
    expected, kept = run(plain, lambda: plain(x).pooled), {}
    for name, most in (("fp32", 1e-5), ("bf16", 0.01), ("int8", 0.02)):
        rounded = pair(tower, flavour, torch.float32, tap_dtype=name)[1]
        result = run(rounded, lambda m=rounded: m(x).pooled)
        torch.testing.assert_close(result[0], expected[0], rtol=1e-5, atol=1e-5)
        off = distance(result, expected)
        assert off < most and (name == "fp32" or off > 1e-5)
        kept[name] = saved_bytes(rounded, lambda m=rounded: m(x).pooled.sum())
    assert kept["int8"] < kept["bf16"] < kept["fp32"]


def test_tap_dtype_leaves_the_output_of_a_grid_exact() -> None:
    plain, model, x = pair("resnet", "conv", torch.float32, tap_dtype="int8")
    torch.testing.assert_close(model(x).pooled, plain(x).pooled, rtol=1e-5, atol=1e-5)
    run(model, lambda: model(x).pooled)


@pytest.mark.parametrize("flavour", ["pooled", "text"])
def test_nothing_is_kept_without_gradient(flavour: str) -> None:
    _, model, x = pair("vit", flavour)
    with torch.no_grad():
        assert saved_bytes(model, lambda: model(x).pooled.sum()) == 0


@pytest.mark.parametrize(("tower", "flavour"), [("vit", "pooled"), ("vit", "text"), ("resnet", "conv")])
def test_taps_of_another_number_format_can_be_finished(tower: str, flavour: str) -> None:
    """As a cache of taps keeps them."""
    plain, model, x = pair(tower, flavour, torch.float32, tap_dtype="fp32")
    stream, taps = model.read(x)
    stored = [tap.replace(hidden=tap.hidden.bfloat16()) for tap in taps]
    rounded = [tap.replace(hidden=tap.hidden.float()) for tap in stored]
    expected = run(plain, lambda: plain.finish(stream, rounded).pooled)
    for cached in (rounded, stored):
        assert_same(run(model, lambda cached=cached: model.finish(stream, cached).pooled), expected, 1e-4)
    short = stream.replace(hidden=stream.hidden.bfloat16())
    assert model.finish(short, stored).pooled.isfinite().all()


# --- golden files on the other path ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sherl_clip4clip_text", "sherl_clip4clip_video_gated"])
def test_golden_files_hold_for_the_plain_pooled_block(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parity_sherl, "PooledBlock", PooledSherlAdapter)
    assert parity.check_file(GOLDEN / f"{name}.safetensors").problems == []


@pytest.mark.parametrize("keep", ["active", "all"])
def test_golden_files_hold_for_the_lean_pooled_block(keep: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parity_sherl, "PooledBlock", partial(LeanPooledSherlAdapter, keep=keep))
    assert parity.check_file(GOLDEN / "sherl_clip4clip_video_gated.safetensors").problems == []


def test_golden_files_hold_for_lean_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parity_joint, "AdaptedEncoder", partial(AdaptedEncoder, runner=Lean()))
    assert parity.check_file(GOLDEN / "sherl_clipvil_joint.safetensors").problems == []


# --- chunks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "size", "chunk"), [(32, 8, 8), (32, 10, 8), (9, 8, 5), (1, 8, 1), (5, 100, 5)])
def test_chunks_are_even(count: int, size: int, chunk: int) -> None:
    assert even(count, size) == chunk


def test_automatic_chunks_follow_device_and_shape() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert busy_samples(50 * 768, cpu) < busy_samples(50 * 768, cuda)
    assert busy_samples(257 * 1280, cpu) < busy_samples(50 * 768, cpu)
    assert busy_samples(10**9, cpu) == 4
    assert busy_samples(50 * 768, cpu) == 16 and busy_samples(50 * 768, cpu, Lean().busy) == 8
    model = build("vit", "pooled")
    x = TOWERS["vit"][1]()
    assert model._values_of(x) == 17 * 32 and len(model._chunks(x)) == 1
    few = AdaptedEncoder(model.base, model.adapter, Plain(2))
    assert [len(chunk) for chunk in few._chunks(torch.cat([x, x]))] == [2, 2, 2]
    assert few._chunks({"ids": x})[0]["ids"] is x


@pytest.mark.parametrize("flavour", ["pooled", "text"])
def test_a_single_sample(flavour: str) -> None:
    plain, model, x = pair("vit", flavour, early_chunk=2)
    assert_same(run(model, lambda: model(x[:1]).pooled), run(plain, lambda: plain(x[:1]).pooled), 1e-9)


# --- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"early_chunk": -1}, "--adapter.early_chunk -1"),
        ({"handoff": "tokens", "keep": "all"}, "--adapter.keep: belongs to --adapter.handoff pooled"),
        ({"lean": False, "tap_dtype": "int8"}, "--adapter.tap_dtype: belongs to --adapter.lean true"),
        ({"lean": False, "early_chunk": 4}, "--adapter.early_chunk: belongs to --adapter.lean true"),
    ],
)
def test_wrong_lean_options(changes: dict, says: str) -> None:
    with pytest.raises(UserError) as raised:
        SherlOptions(**changes)
    assert str(raised.value).startswith(says) and "\n" not in str(raised.value)


def test_chunks_of_a_plain_token_adapter_are_refused() -> None:
    model = build("vit", "text", lean=False)
    with pytest.raises(ValueError, match="chunk 2"):
        AdaptedEncoder(model.base, model.adapter, Plain(2))
    for runner in (Plain, Lean):
        with pytest.raises(ValueError, match="chunks of -1 samples"):
            runner(-1)


@pytest.mark.parametrize("flavour", ["pooled", "text"])
def test_parts_that_do_not_train_get_no_gradient(flavour: str) -> None:
    _, model, x = pair("vit", flavour)
    frozen = model.adapter.reducers[0].requires_grad_(False)
    _, found = run(model, lambda: model(x).pooled)
    assert all(p.grad is None for p in frozen.parameters()) and found
    model.adapter.requires_grad_(False)
    assert not model(x).pooled.requires_grad


@pytest.mark.parametrize("tower", sorted(SPATIAL))
def test_a_cache_stores_grids_in_the_size_of_the_deepest(tower: str) -> None:
    """Half of a pooled map, which pooling gives back in full: bit for bit what the raw map gives."""
    _, model, x = pair(tower, "conv")
    stream, stored = model.read(x)
    size = stream.hidden.shape[-2:]
    with torch.no_grad():
        raw = [tap for number, tap in model._early(x) if number is not None]
    for reducer, tap, other in zip(model.adapter.reducers, raw, stored, strict=True):
        assert other.hidden.shape[-2:] == size
        assert torch.equal(reducer.pool(other.hidden, size), reducer.pool(tap.hidden, size))
