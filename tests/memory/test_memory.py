"""Bytes of saved activations, peaks, predictions and the table of methods."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from open_clip.model import CLIP
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from helpers import tiny
from helpers.scripts import call, launch, load_script
from vlkit.adapters import ADAPTERS
from vlkit.adapters.dtl import DtlOptions
from vlkit.adapters.sherl.options import SherlOptions
from vlkit.adapters.sherl.pooled_lean import TOGETHER
from vlkit.adapters.tuning import BitfitOptions, FullOptions, LoraOptions
from vlkit.encoders.load import load_base
from vlkit.encoders.stage import stage_text, stage_vision
from vlkit.encoders.staged import StagedEncoder, freeze
from vlkit.errors import UserError
from vlkit.memory import (
    LiveBytes,
    StepMemory,
    Times,
    fake_copy,
    fake_tensors,
    largest_batch,
    measure_step,
    peak_bytes,
    saved_bytes,
    shape_base,
    time_ratio,
    times_in_turns,
)
from vlkit.tasks.contrastive import gather_pairs, info_nce
from vlkit.tasks.retrieval.step_bench import ContrastiveBench

SCRIPT = "tasks/memory.py"
FLOAT = 4  # bytes
CPU = torch.device("cpu")
INT8 = {"tap_dtype": "int8", "early_chunk": 3}
METHODS = [
    *(options() for options in ADAPTERS.values()),
    SherlOptions(tap_dtype="int8", early_chunk=8),
    SherlOptions(lean=False),
    SherlOptions(handoff="tokens"),
    SherlOptions(handoff="tokens", tap_dtype="int8", early_chunk=8),
    SherlOptions(handoff="tokens", lean=False),
    LoraOptions(checkpointing=True),
]
# What these keep does not depend on the data.
PREDICTABLE = [
    *(options for options in METHODS if options.kind != "sherl" or options.handoff == "tokens" or not options.lean),
    FullOptions(saved="int4"),
    DtlOptions(saved="int8"),
    SherlOptions(keep="all"),
    SherlOptions(keep="all", early_chunk=2),
    SherlOptions(keep="all", tap_dtype="int8", early_chunk=0),
    SherlOptions(keep="all", tap_dtype="bf16", base_gate=True, reduction=2),
    SherlOptions(handoff="tokens", tap_dtype="bf16", early_chunk=1),
    SherlOptions(handoff="tokens", flavour="gated", late=2, early_chunk=2),
    SherlOptions(handoff="tokens", flavour="mdetr", early_chunk=0),
]


def name_of(options: Any) -> str:
    return load_script(SCRIPT).label(options)


def three_layers() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))


# --- what a forward keeps --------------------------------------------------------------------------------------------


def test_kept_of_two_layers_is_the_state_between_them():
    model, x = three_layers(), torch.randn(5, 8)
    # ReLU keeps its output, the second layer its input: one storage. The input itself was there before.
    assert saved_bytes(model, lambda: model(x).sum()) == 5 * 16 * FLOAT


def test_kept_of_frozen_layers_is_less_and_without_gradient_nothing():
    model, x = three_layers(), torch.randn(5, 8)
    model[0].requires_grad_(False)
    assert saved_bytes(model, lambda: model(x).sum()) == 5 * 16 * FLOAT
    model[2].requires_grad_(False)
    assert saved_bytes(model, lambda: model(x).sum()) == 0
    with torch.no_grad():
        assert saved_bytes(three_layers(), lambda: model(x).sum()) == 0


def test_a_view_keeps_the_whole_storage_and_a_clone_does_not():
    model = three_layers()

    def forward(pick: Callable[[Tensor], Tensor]) -> Tensor:
        with torch.no_grad():
            states = torch.randn(5, 100, 8)
        return model(pick(states)).sum()

    hidden = 5 * 16 * FLOAT
    assert saved_bytes(model, lambda: forward(lambda states: states[:, 0])) == hidden + 5 * 100 * 8 * FLOAT
    assert saved_bytes(model, lambda: forward(lambda states: states[:, 0].clone())) == hidden + 5 * 8 * FLOAT


@pytest.mark.parametrize("in_dict", [False, True])
def test_checkpoint_keeps_its_input_even_inside_an_object(in_dict: bool):
    model = nn.ModuleList([nn.Linear(8, 8), three_layers()])
    x = torch.randn(5, 8)

    def forward() -> Tensor:
        state = model[0](x)
        if in_dict:
            return checkpoint(lambda d: model[1](d["hidden"]), {"hidden": state}, use_reentrant=False).sum()
        return checkpoint(model[1], state, use_reentrant=False).sum()

    assert saved_bytes(model, forward) == 5 * 8 * FLOAT


class KeepsTwice(torch.autograd.Function):
    """Saves one tensor by the book and another on the side."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.aside = x.to(torch.int8)
        ctx.save_for_backward(x * 2)
        return x * 3

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


def test_custom_functions_are_counted_whatever_way_they_keep_tensors():
    model, x = nn.Linear(8, 8), torch.randn(5, 8)
    assert saved_bytes(model, lambda: KeepsTwice.apply(model(x)).sum()) == 5 * 8 * (FLOAT + 1)


def test_counting_leaves_no_trace():
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout()).train()
    x, before = torch.randn(5, 8), [buffer.clone() for buffer in model.buffers()]
    state = torch.get_rng_state()
    assert saved_bytes(model, lambda: model(x).sum()) > 0
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), before, strict=True))
    assert all(p.grad is None for p in model.parameters())


def test_live_bytes_follow_what_comes_and_goes():
    with LiveBytes() as live:
        a = torch.zeros(100)
        view = a[10:20].add_(1)
        b = a + 1
        del b
        c = torch.zeros(50)
        assert live.current == 150 * FLOAT
    assert live.peak == 200 * FLOAT
    del a
    assert live.current == 150 * FLOAT  # the view holds the whole
    del view, c
    assert live.current == 0


# --- a step ----------------------------------------------------------------------------------------------------------


def test_step_of_one_layer():
    model, x = nn.Linear(8, 4), torch.randn(5, 8)
    memory = measure_step(model, lambda: model(x).square().sum(), torch.optim.AdamW(model.parameters(), lr=0.0))
    values = 8 * 4 + 4
    assert memory.trainable_parameters == memory.total_parameters == values
    assert memory.parameter_bytes == values * FLOAT
    assert memory.optimizer_bytes == 2 * values * FLOAT + 2 * FLOAT  # two moments, and a step count a tensor
    assert memory.saved_bytes == 5 * 4 * FLOAT
    assert memory.peak_bytes >= memory.saved_bytes + values * FLOAT
    assert memory.total_bytes == memory.parameter_bytes + memory.optimizer_bytes + memory.peak_bytes
    assert all(p.grad is None for p in model.parameters())
    assert memory.time_over_forward is None


def test_timed_step_takes_forwards_without_gradient_in_turns():
    model, x, modes = nn.Linear(8, 4), torch.randn(5, 8), []

    def forward() -> torch.Tensor:
        modes.append(torch.is_grad_enabled())
        return model(x).sum()

    memory = measure_step(model, forward, torch.optim.AdamW(model.parameters(), lr=0.0), timed=2)
    assert memory.time_over_forward > 0
    assert modes == [True] * 3 + [False, True, False, True, False]


def test_a_slow_step_is_timed_once(monkeypatch):
    monkeypatch.setattr("vlkit.memory.step.SLOW", 0.0)
    model, x, steps = nn.Linear(8, 4), torch.randn(5, 8), []

    def forward() -> torch.Tensor:
        steps.append(torch.is_grad_enabled())
        return model(x).sum()

    memory = measure_step(model, forward, torch.optim.AdamW(model.parameters(), lr=0.0), timed=3)
    assert memory.time_over_forward > 0 and steps == [True] * 3 + [False, True, False]


def test_time_ratio_compares_in_turns():
    calls: list[str] = []
    assert time_ratio(lambda: calls.append("run"), lambda: calls.append("reference"), repeats=2) > 0
    assert calls == ["run", "reference", "run", "reference", "run", "reference"]


def test_times_in_turns_are_medians(monkeypatch: pytest.MonkeyPatch):
    # Beginning and end of: reference, run, reference, run, reference, run, reference.
    clock = iter([0, 1, 1, 5, 5, 6, 6, 12, 12, 13, 13, 23, 23, 25])
    monkeypatch.setattr("vlkit.memory.step.time.perf_counter", lambda: float(next(clock)))
    assert times_in_turns(lambda: None, lambda: None, repeats=3) == Times(ratio=6.0, seconds=6.0, reference_seconds=1.0)


# --- SHERL against full fine-tuning ----------------------------------------------------------------------------------


def like_vit_b_32(layers: int = 12) -> CLIP:
    """A narrow CLIP with the depth and the numbers of tokens of ViT-B-32 (50 and 77)."""
    vision = {"width": 96, "head_width": 32, "layers": layers, "image_size": 56, "patch_size": 8}
    return tiny.tiny_clip(vision=vision, text={"width": 64, "layers": layers, "context_length": 77})


def kept(model: CLIP, options: Any) -> int:
    """Bytes that a contrastive step of both towers keeps."""
    torch.manual_seed(0)
    towers = nn.ModuleList([options.build(stage_vision(model)), options.build(stage_text(model))]).train()
    pixels, ids, groups = tiny.images(4, 56), tiny.clip_ids((40, 77, 9, 20), 77), torch.arange(4)

    def forward() -> Tensor:
        images, texts = (tower(x).pooled for tower, x in zip(towers, (pixels, ids), strict=True))
        return info_nce(gather_pairs(images, texts, groups), torch.tensor(10.0))

    return saved_bytes(towers, forward)


@pytest.mark.slow
def test_sherl_keeps_a_small_share_of_full_fine_tuning():
    full = kept(like_vit_b_32(), FullOptions())
    assert kept(like_vit_b_32(), SherlOptions(handoff="tokens", late=1, lean=False)) <= 0.33 * full
    assert kept(like_vit_b_32(), SherlOptions(handoff="tokens", late=1)) <= 0.08 * full
    assert kept(like_vit_b_32(), SherlOptions(handoff="tokens", late=1, tap_dtype="int8")) <= 0.03 * full
    assert kept(like_vit_b_32(), SherlOptions(handoff="pooled", lean=False)) <= 0.19 * full
    assert kept(like_vit_b_32(), SherlOptions(handoff="pooled", keep="all")) <= 0.08 * full
    assert kept(like_vit_b_32(), SherlOptions(handoff="pooled")) <= 0.03 * full
    assert kept(like_vit_b_32(), SherlOptions(handoff="pooled", tap_dtype="int8")) <= 0.013 * full
    assert 0.5 * full < kept(like_vit_b_32(), BitfitOptions()) < full
    assert kept(like_vit_b_32(), FullOptions(checkpointing=True)) <= 0.12 * full


def peak(options: Any, size: int = 12) -> int:
    """Peak of a training step of the vision tower, in bytes."""
    torch.manual_seed(0)  # how many scores are above zero depends on the initial weights
    model = options.build(stage_vision(like_vit_b_32())).train()
    optimizer = torch.optim.AdamW(p for p in model.parameters() if p.requires_grad)
    pixels = tiny.images(size, 56)
    return measure_step(model, lambda: model(pixels).pooled.square().sum(), optimizer).peak_bytes


def test_lean_steps_peak_below_plain_ones():
    tower, pixels = stage_vision(like_vit_b_32()), tiny.images(12, 56)
    with torch.no_grad():
        inference = peak_bytes(lambda _: tower(pixels), CPU)
    plain, lean, least = (peak(SherlOptions(**how)) for how in ({"lean": False}, {"early_chunk": 4}, INT8))
    assert lean <= 0.45 * plain and least <= 0.75 * lean and least <= inference
    tokens = {"handoff": "tokens"}
    plain, lean = (peak(SherlOptions(**tokens, **how)) for how in ({"lean": False}, {"early_chunk": 4}))
    assert lean <= 0.56 * plain


@pytest.mark.slow
def test_steps_of_vit_b_32_stay_near_the_memory_of_inference():
    bench, predicted = (ContrastiveBench("ViT-B-32", predicts, device="cpu") for predicts in (False, True))
    inference = bench.inference_peak(32)
    full = predicted.memory(predicted.model(FullOptions()), 32).saved_bytes
    limits = [
        (SherlOptions(), 1.4, 0.03),
        (SherlOptions(tap_dtype="int8", early_chunk=8), 0.8, 0.008),
        (SherlOptions(handoff="tokens"), 1.5, 0.035),
        (SherlOptions(handoff="tokens", tap_dtype="int8", early_chunk=8), 1.1, 0.02),
    ]
    for options, peak_limit, kept_limit in limits:
        memory = bench.memory(bench.model(options), 32)
        assert memory.peak_bytes <= peak_limit * inference, options
        assert memory.saved_bytes <= kept_limit * full, options


def test_a_frozen_block_takes_less_than_the_library():
    tower, pixels = freeze(stage_vision(like_vit_b_32())), tiny.images(4, 56)
    with torch.no_grad():
        library, own = (peak_bytes(lambda _, run=run: run(pixels), CPU) for run in (tower.model, tower))
    assert own <= 0.72 * library


@pytest.mark.parametrize("handoff", ["tokens", "pooled"])
def test_early_blocks_keep_nothing(handoff: str):
    # Two taps, however deep the tower between them.
    shallow, deep = (
        kept(like_vit_b_32(layers), SherlOptions(handoff=handoff, taps=(0, layers - 1), lean=False))
        for layers in (3, 9)
    )
    assert shallow == deep > 0


# --- predictions -----------------------------------------------------------------------------------------------------


TOWERS: dict[str, Callable[[], StagedEncoder]] = {
    "vit": lambda: stage_vision(tiny.tiny_clip()),
    "resnet": lambda: stage_vision(tiny.tiny_resnet_clip()),
    "convnext": lambda: stage_vision(tiny.tiny_timm_clip(name="test_convnext")),
    "clip text": lambda: stage_text(tiny.tiny_clip()),
    "bert": lambda: stage_text(tiny.tiny_bert()),
    "t5": lambda: stage_text(tiny.tiny_t5()),
}
IMAGE_SIZE = {"vit": 32, "resnet": 64, "convnext": 160}


@pytest.mark.parametrize(
    "tower, options",
    [
        ("vit", SherlOptions(handoff="pooled", keep="all")),
        ("convnext", SherlOptions(handoff="pooled", keep="all", early_chunk=2)),
        ("resnet", SherlOptions(handoff="tokens")),
        ("convnext", FullOptions()),
        ("clip text", SherlOptions(handoff="tokens")),
        ("bert", FullOptions()),
        ("bert", SherlOptions(handoff="pooled", keep="all")),
        ("bert", SherlOptions(handoff="tokens", tap_dtype="int8", early_chunk=2)),
        ("t5", SherlOptions(handoff="tokens")),
    ],
)
def test_predicted_equals_measured_in_every_family(tower: str, options: Any):
    model = options.build(TOWERS[tower]()).train()
    # Padded: a mask that hides nothing may be left out when it is computed, but not when it is predicted.
    x = tiny.images(3, IMAGE_SIZE[tower]) if tower in IMAGE_SIZE else tiny.padded_ids((5, 9, 12))

    def step(model: nn.Module) -> StepMemory:
        optimizer = torch.optim.AdamW(p for p in model.parameters() if p.requires_grad)
        return measure_step(model, lambda: model(x).pooled.square().mean(), optimizer)

    real = x
    with fake_tensors():
        x = torch.empty_like(real, device="cpu")
        predicted = step(fake_copy(model, CPU))
    x = real
    assert_close(predicted, step(model))


def assert_close(predicted: StepMemory, measured: StepMemory) -> None:
    for exact in ("trainable_parameters", "total_parameters", "parameter_bytes"):
        assert getattr(predicted, exact) == getattr(measured, exact), exact
    # A scalar that gets no gradient has no state when measured.
    assert predicted.optimizer_bytes == pytest.approx(measured.optimizer_bytes, abs=32)
    assert predicted.saved_bytes == pytest.approx(measured.saved_bytes, rel=0.05)
    assert predicted.peak_bytes == pytest.approx(measured.peak_bytes, rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("options", PREDICTABLE, ids=name_of)
def test_predicted_equals_measured_for_every_method(options: Any, tiny_benches: tuple[Any, Any]):
    real, fake = tiny_benches
    assert_close(fake.memory(fake.model(options), 4), real.memory(real.model(options), 4))
    assert fake.inference_peak(4) == pytest.approx(real.inference_peak(4), rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "pairs"),
    [(SherlOptions(), 4), (SherlOptions(), TOGETHER + 1), (SherlOptions(tap_dtype="int8", early_chunk=2), 4)],
    ids=["few", "more_than_lie_in_one_matrix", "int8 in chunks"],
)
def test_what_depends_on_the_data_is_predicted_from_above(options: Any, pairs: int, tiny_benches: tuple[Any, Any]):
    real, fake = tiny_benches
    measured, bound = (bench.memory(bench.model(options), pairs) for bench in tiny_benches)
    assert measured.saved_bytes <= bound.saved_bytes and measured.peak_bytes <= bound.peak_bytes
    # Told how much of it is kept, the prediction comes near; layers share it unevenly, and training moves it.
    model = real.model(options)
    share = kept_share(model, real.batch(pairs))
    fake.active_share = share
    told = fake.memory(fake.model(options), pairs)
    fake.active_share = 1.0
    measured = real.memory(model, pairs)
    assert 0 < share < 0.5
    assert told.saved_bytes == pytest.approx(measured.saved_bytes, rel=0.15)
    assert told.peak_bytes == pytest.approx(measured.peak_bytes, rel=0.15)


def kept_share(model: Any, batch: tuple[Tensor, Tensor]) -> float:
    """Of all values of the taps, those that a step keeps."""
    kept = total = 0
    for tower, x in zip((model.image, model.text), batch, strict=True):
        stream, taps = tower.read(x)
        parts = tower.adapter.merge(
            [tower.adapter.reduce(i, tap) for i, tap in enumerate(taps)], tower.base.pool(stream), stream
        )
        kept += sum(layer.tokens._rows._values.numel() for part in parts for layer in part.layers)
        total += sum(tap.hidden.numel() for tap in taps)
    return kept / total


@pytest.fixture(scope="module")
def tiny_benches() -> tuple[ContrastiveBench, ContrastiveBench]:
    return tuple(ContrastiveBench("tiny", predicts, text_length=12, device="cpu") for predicts in (False, True))


@pytest.mark.slow
@pytest.mark.parametrize("options", [SherlOptions(handoff="tokens"), SherlOptions(keep="all")], ids=name_of)
def test_predicted_equals_measured_on_vit_b_32(options: Any):
    real, fake = (ContrastiveBench("ViT-B-32", predicts, text_length=20, device="cpu") for predicts in (False, True))
    assert_close(fake.memory(fake.model(options), 4), real.memory(real.model(options), 4))


def test_shape_base_has_no_weights_and_the_same_shapes():
    shapes = shape_base("RN50")
    parameters = [*shapes.image.parameters(), *shapes.text.parameters()]
    assert all(p.is_meta for p in parameters)
    assert sum(p.numel() for p in parameters) == 102_007_136  # without the logit scale
    loaded, tiny_shapes = load_base("tiny"), shape_base("tiny")
    for tower in ("image", "text"):
        want = {name: t.shape for name, t in getattr(loaded, tower).state_dict().items()}
        assert {name: t.shape for name, t in getattr(tiny_shapes, tower).state_dict().items()} == want


@pytest.mark.parametrize("name", ["no-such-base", "RN50:no-such-tag"])
def test_shape_base_refuses_what_load_base_refuses(name: str):
    with pytest.raises(UserError, match="no-such"):
        shape_base(name)


def test_shape_base_takes_the_activation_of_the_weights():
    def activations(name: str) -> set[str]:
        return {type(m).__name__ for m in shape_base(name).image.modules()} & {"QuickGELU", "GELU"}

    assert activations("ViT-B-32") == {"GELU"}
    assert activations("ViT-B-32:openai") == {"QuickGELU"}


@pytest.mark.parametrize("budget, largest", [(99, 0), (100, 0), (110, 1), (130, 3), (1e9, 1 << 16)])
def test_largest_batch(budget: float, largest: int):
    assert largest_batch(lambda size: 100 + 10 * size, int(budget)) == largest


@pytest.mark.parametrize("curve", [0, 1e-4], ids=["line", "with the scores of all pairs"])
@pytest.mark.parametrize("flat", [0, 400], ids=["", "optimizer first"])
def test_largest_batch_is_found_to_a_64th_in_few_trials(curve: float, flat: int):
    trials: list[int] = []

    def bytes_of(size: int) -> float:
        return max(flat, 100 + size + curve * size**2)

    def total(size: int) -> int:
        trials.append(size)
        return int(bytes_of(size))

    found = largest_batch(total, 5003)
    assert bytes_of(found) < 5004 < bytes_of(found * (1 + 1 / 32))
    assert len(trials) <= 16 and sum(trials) <= 12 * found  # a trial takes the longer the larger it is


# --- the script ------------------------------------------------------------------------------------------------------


def table(tmp_path, *words: object) -> dict[str, Any]:
    call(SCRIPT, "--json", tmp_path / "memory.json", "--device", "cpu", *words)
    return json.loads((tmp_path / "memory.json").read_text())


@pytest.mark.slow
def test_table_of_all_methods(tmp_path, capsys):
    found = table(tmp_path, "--adapter.kind", "all", "--batch_size", 4, "--estimate")
    rows = {row["method"]: row for row in found["rows"]}
    assert list(rows) == [name_of(options) for options in METHODS]
    assert rows["full"]["saved_of_full"] == rows["full"]["peak_of_full"] == 1
    tokens = rows["sherl handoff=tokens"]
    assert rows["linear"]["peak_bytes"] < tokens["peak_bytes"] < rows["full"]["peak_bytes"]
    for row in rows.values():
        sizes = {key: value for key, value in row.items() if key.endswith("_bytes")}
        assert all(isinstance(value, int) and value > 0 for value in sizes.values()), sizes
        assert row["time_over_inference"] is None
    assert found["estimated"] and found["machine"] and found["versions"]["torch"]
    out = capsys.readouterr().out
    assert "sherl handoff=tokens" in out and "inference" in out


def test_measured_row_has_a_time(tmp_path):
    found = table(tmp_path, "--adapter.reduction", 2, "--batch_size", 2, "--repeats", 1)
    (row,) = found["rows"]
    assert row["method"].endswith("reduction=2") and row["options"]["reduction"] == 2
    assert row["time_over_inference"] > 0 and not found["estimated"]
    assert row["peak_over_inference"] == row["peak_bytes"] / row["inference_peak_bytes"]


def test_largest_batch_is_the_last_that_fits(tmp_path, capsys):
    found = table(tmp_path, "--adapter.kind", "bitfit", "--gpu_memory", "640MB", "--batch_size", 50)
    largest = found["rows"][0]["largest_batch"]
    assert 0 < largest < 50 and "do not fit: bitfit" in capsys.readouterr().out
    bench = ContrastiveBench("tiny", predicts=True, device="cpu")
    model, room = bench.model(BitfitOptions()), (640 - 600) * 2**20 / 1.05
    assert bench.memory(model, largest).total_bytes <= room < bench.memory(model, largest + 1).total_bytes


@pytest.mark.parametrize(
    "words, named",
    [
        (("--gpu_memory", "8"), "--gpu_memory 8"),
        (("--gpu_memory", "-1GB"), "--gpu_memory -1GB"),
        (("--batch_size", "0"), "--batch_size 0"),
        (("--adapter.kind", "none-such"), "none-such"),
        (("--adapter.kind", "all", "--adapter.late", "2"), "--adapter.late"),
    ],
)
def test_wrong_flags_are_named(words: tuple[str, ...], named: str):
    with pytest.raises(UserError, match=named):
        call(SCRIPT, *words)


@pytest.mark.slow
def test_wrong_base_ends_with_code_2_and_one_line():
    done = launch(SCRIPT, "--base", "no-such-base", "--estimate")
    assert done.returncode == 2
    assert done.stderr.startswith("error: base 'no-such-base'") and done.stderr.count("\n") == 1
