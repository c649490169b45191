"""The lean implementation against the plain one: same numbers, less kept."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from test_sherl import PAIRS, TOWERS, build, wake_
from torch import Tensor

import parity
from helpers import parity_joint
from vlkit.adapters.base import AdaptedEncoder
from vlkit.adapters.lean.chunks import Chunker, busy_samples, even
from vlkit.adapters.lean.kept import Kept
from vlkit.adapters.sherl.options import SherlOptions
from vlkit.adapters.sherl.pooled import PooledSherlAdapter
from vlkit.encoders.staged import Stream
from vlkit.errors import UserError
from vlkit.memory import saved_bytes

GOLDEN = Path(__file__).parents[1] / "fixtures" / "golden"
POOLED = [(tower, flavour) for tower, flavour in PAIRS if flavour.startswith("pooled")]
TOKENS = [pair for pair in PAIRS if pair not in POOLED]


def pair(tower: str, flavour: str, dtype: torch.dtype = torch.float64, **lean: object) -> tuple[AdaptedEncoder, ...]:
    """The plain model and the lean one with the same weights, and a batch."""
    # Without dropout unless asked for: in chunks it draws other numbers than for the whole batch.
    changes = {"dropout": lean.pop("dropout", 0.0)} if flavour == "text" else {}
    plain, model = (
        build(tower, flavour, **changes, **how).to(dtype).train() for how in ({"lean": False}, {"lean": True, **lean})
    )
    with torch.random.fork_rng():
        torch.manual_seed(3)
        for parameter in plain.adapter.parameters():
            parameter.data.add_(torch.randn_like(parameter), alpha=0.05)
    wake_(plain)
    model.adapter.load_state_dict(plain.adapter.state_dict())
    x = TOWERS[tower][1]()
    return plain, model, x.to(dtype) if x.is_floating_point() else x


def run(model: AdaptedEncoder, forward: Callable[[], Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Output, and the gradients of a loss with every output in it; dropout drawn from a fixed seed."""
    model.zero_grad()
    with torch.random.fork_rng():
        torch.manual_seed(5)
        output = forward()
        (output * torch.randn(output.shape, generator=torch.Generator().manual_seed(6)).to(output)).sum().backward()
    return output.detach(), {n: p.grad.clone() for n, p in model.adapter.named_parameters() if p.grad is not None}


def assert_same(one: tuple[Tensor, dict], other: tuple[Tensor, dict], limit: float) -> None:
    """Largest difference below ``limit`` of the largest magnitude: of each tensor, or of all gradients / 1000."""
    assert (one[0] - other[0]).abs().max() <= limit * other[0].abs().max()
    # A weight that got no gradient from the one may have got zeros from the other.
    names = one[1].keys() | other[1].keys()
    floor = max(float(g.abs().max()) for g in other[1].values()) / 1000
    for name in names:
        a, b = (grads.get(name, torch.zeros(())) for grads in (one[1], other[1]))
        assert float((a - b).abs().max()) <= limit * max(float(b.abs().max()), floor), name


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
    plain, model, x = pair(tower, flavour, torch.float32)
    assert_same(run(model, lambda: model(x).pooled), run(plain, lambda: plain(x).pooled), 1e-4)


@pytest.mark.parametrize(("tower", "flavour"), POOLED)
def test_all_rows_equal_the_active_ones(tower: str, flavour: str) -> None:
    plain, model, x = pair(tower, flavour, keep="all", early_chunk=2)
    assert_same(run(model, lambda: model(x).pooled), run(plain, lambda: plain(x).pooled), 1e-9)


@pytest.mark.parametrize("chunk", [0, 2])
@pytest.mark.parametrize(("tower", "flavour"), [("vit", "text"), ("clip_text", "gated"), ("resnet", "conv")])
def test_tokens_are_those_of_the_plain_one(tower: str, flavour: str, chunk: int) -> None:
    plain, model, x = pair(tower, flavour, early_chunk=chunk)
    assert_same(run(model, lambda: model(x).tokens), run(plain, lambda: plain(x).tokens), 1e-9)
    masks = model(x).mask, plain(x).mask
    assert masks == (None, None) or torch.equal(*masks)


def test_frozen_tokens_behind_a_pooled_hand_off_can_be_asked_for_after_chunks() -> None:
    plain, model, x = pair("clip_text", "pooled", early_chunk=1)
    torch.testing.assert_close(model(x).tokens, plain(x).tokens, rtol=1e-12, atol=1e-12)
    assert torch.equal(model(x).mask, plain(x).mask)


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
    plain, model, x = pair(tower, flavour, torch.float32)
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
    monkeypatch.setattr(PooledSherlAdapter, "lean", False)
    assert parity.check_file(GOLDEN / f"{name}.safetensors").problems == []


@pytest.mark.parametrize("keep", ["active", "all"])
def test_golden_files_hold_for_the_lean_pooled_block(keep: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PooledSherlAdapter, "keep", keep)
    assert parity.check_file(GOLDEN / "sherl_clip4clip_video_gated.safetensors").problems == []


def test_golden_files_hold_for_lean_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parity_joint, "AdaptedEncoder", partial(AdaptedEncoder, recompute="fp32"))
    assert parity.check_file(GOLDEN / "sherl_clipvil_joint.safetensors").problems == []


# --- what is kept ----------------------------------------------------------------------------------------------------


def test_zeros_left_out_come_back_exactly() -> None:
    for shape in ((1, 1), (7, 5), (3, 64), (0, 8), (2, 3, 4, 4)):
        x = torch.randn(shape).relu()
        kept = Kept(x, positive=True, sparse=True)
        assert torch.equal(kept.open(), x) and kept.open().shape == x.shape
    dense = torch.rand(9, 8) + 1
    assert Kept(dense, positive=True, sparse=True)._bits is None  # it would be larger
    assert torch.equal(Kept(dense, positive=True, sparse=True).open(), dense)


@pytest.mark.parametrize("shape", [(3, 128), (2, 5, 17), (4, 96), (2, 3, 7, 7)])
@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_int8_is_within_half_a_step(shape: tuple[int, ...], positive: bool, dtype: torch.dtype) -> None:
    x = torch.randn(shape) * torch.logspace(-3, 3, shape[-1])
    x = (x.relu() if positive else x).to(dtype)
    opened = Kept(x, "int8", positive=positive, sparse=positive).open()
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
        assert torch.equal(Kept(x, "int8").open(), x)
        assert torch.equal(Kept(x, "int8", positive=True, sparse=True).open(), x)


def test_whole_taps_are_kept_without_a_copy() -> None:
    x = torch.randn(3, 4)
    assert Kept(x).open().data_ptr() == x.data_ptr()


def test_half_precision_is_never_kept_in_more() -> None:
    x = torch.randn(2, 64).half()
    assert Kept(x, "bf16").open().dtype == torch.float16 and torch.equal(Kept(x, "bf16").open(), x)


# --- chunks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "size", "chunk"), [(32, 8, 8), (32, 10, 8), (9, 8, 5), (1, 8, 1), (5, 100, 5)])
def test_chunks_are_even(count: int, size: int, chunk: int) -> None:
    assert even(count, size) == chunk


def test_automatic_chunks_follow_device_and_shape() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert busy_samples(50 * 768, cpu) < busy_samples(50 * 768, cuda)
    assert busy_samples(257 * 1280, cpu) < busy_samples(50 * 768, cpu)
    assert busy_samples(10**9, cpu) == 4
    assert busy_samples(50 * 768, cpu) == 16 and busy_samples(50 * 768, cpu, late=True) == 8
    model = build("vit", "pooled")
    x = TOWERS["vit"][1]()
    chunker = Chunker(model.base, "auto")
    assert len(chunker.split(x)) == 1 and chunker.samples(x) == busy_samples(17 * 32, cpu)
    assert [len(chunk) for chunk in Chunker(model.base, 2).split(torch.cat([x, x]))] == [2, 2, 2]
    assert Chunker(model.base, 2).split({"ids": x})[0]["ids"] is x
    assert [s.stop for s in Chunker(model.base, 2).slices(Stream(torch.zeros(3, 1, 1)))] == [2, 4]


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
    with pytest.raises(ValueError, match="early_chunk"):
        AdaptedEncoder(model.base, model.adapter, early_chunk=2)


@pytest.mark.parametrize("flavour", ["pooled", "text"])
def test_parts_that_do_not_train_get_no_gradient(flavour: str) -> None:
    _, model, x = pair("vit", flavour)
    frozen = model.adapter.reducers[0].requires_grad_(False)
    _, found = run(model, lambda: model(x).pooled)
    assert all(p.grad is None for p in frozen.parameters()) and found
    model.adapter.requires_grad_(False)
    assert not model(x).pooled.requires_grad
