"""Compressed saved activations: exact forward, gradient errors as stated, fewer bytes."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers.towers import TOWERS, prepared, train, view
from vlkit.adapters import ADAPTERS
from vlkit.adapters.facts import kinds_with
from vlkit.adapters.saved.functions import CURVES, curve, dropout, layer_norm, softmax
from vlkit.adapters.saved.mode import compressed, quick_gelu
from vlkit.adapters.saved.products import attention, linear, product
from vlkit.adapters.sherl.options import SherlOptions
from vlkit.encoders.staged import StagedEncoder, Stream
from vlkit.errors import UserError
from vlkit.memory import saved_bytes

Operation = Callable[[Tensor, int | None], Tensor]


def rows(*shape: int, scale: float = 1.0, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


GAIN, SHIFT = rows(64, seed=5), rows(64, seed=6)
KEYS, VALUES = rows(2, 3, 20, 16, seed=7), rows(2, 3, 20, 16, seed=8)
OPERATIONS: dict[str, Operation] = {
    **{name: lambda x, bits, n=name: curve(n, x, bits) for name in CURVES},
    "softmax": softmax,
    "dropout": lambda x, bits: dropout(x, 0.3, bits),
    "layer norm": lambda x, bits: layer_norm(x, GAIN, SHIFT, 1e-5, bits),
    "rms norm": lambda x, bits: layer_norm(x, GAIN, None, 1e-6, bits, center=False),
    "attention": lambda x, bits: attention(x.view(2, 3, 20, 16)[..., :16], KEYS, VALUES, bits, is_causal=True),
    "product": lambda x, bits: product(torch.mul, x, x.sin(), bits),
}


def gradients(operation: Operation, x: Tensor, bits: int | None) -> tuple[Tensor, Tensor, int]:
    """Output, gradient of a random direction, and bits seen by the hooks for saved tensors."""
    leaf, sizes = x.clone().requires_grad_(), []
    torch.manual_seed(0)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(8 * t.nbytes) or t, lambda t: t):
        output = operation(leaf, bits)
    output.backward(torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(output))
    return output.detach(), leaf.grad, sum(sizes)


def error(operation: Operation, x: Tensor, bits: int) -> float:
    """Root mean square of the gradient's error, relative to the gradient."""
    output, expected, _ = gradients(operation, x, None)
    same, got, _ = gradients(operation, x, bits)
    assert torch.equal(output, same)
    return float((got - expected).norm() / expected.norm())


@pytest.mark.parametrize("name", OPERATIONS)
def test_without_bits_an_operation_is_the_plain_one(name: str) -> None:
    plain = {
        "gelu": nn.functional.gelu,
        "silu": nn.functional.silu,
        "relu": nn.functional.relu,
        "softmax": lambda x: x.softmax(-1),
        "layer norm": lambda x: nn.functional.layer_norm(x, (64,), GAIN, SHIFT),
    }.get(name)
    x = rows(30, 64)
    output, gradient, _ = gradients(OPERATIONS[name], x, None)
    if plain is not None:
        other, same, _ = gradients(lambda x, bits: plain(x), x, None)
        assert torch.equal(output, other) and torch.equal(gradient, same)
    compressed_output = gradients(OPERATIONS[name], x, 4)[0]
    assert torch.equal(output, compressed_output)


@pytest.mark.parametrize(
    ("name", "scale", "bits", "stated"),
    [
        ("gelu", 1.0, 2, 0.155),
        ("gelu", 1.0, 4, 0.034),
        ("gelu", 1.0, 8, 0.002),
        ("gelu", 3.0, 4, 0.0397),
        ("gelu", 0.3, 4, 0.033),
        ("softmax", 1.4, 4, 0.0615),
        ("softmax", 2.0, 4, 0.0589),
        ("softmax", 3.0, 4, 0.0580),
    ],
)
def test_errors_are_those_of_the_table(name: str, scale: float, bits: int, stated: float) -> None:
    assert error(OPERATIONS[name], rows(2048, 64, scale=scale).double(), bits) == pytest.approx(stated, rel=0.05)


def test_stochastic_and_fixed_forms_have_their_stated_errors() -> None:
    x = rows(2048, 64).double()
    assert error(lambda x, b: curve("gelu", x, b, stochastic=True), x, 4) == pytest.approx(0.049, rel=0.05)
    assert error(lambda x, b: curve("gelu", x, b, bounds="fixed"), x, 4) == pytest.approx(0.034, rel=0.05)
    one_sided = x * 0.5 - 1
    assert error(lambda x, b: curve("gelu", x, b), one_sided, 4) == pytest.approx(0.080, rel=0.05)
    assert error(lambda x, b: curve("gelu", x, b, bounds="fixed"), one_sided, 4) == pytest.approx(0.129, rel=0.05)
    assert (
        error(OPERATIONS["layer norm"], x.float(), 4) < 0.02
        and error(OPERATIONS["attention"], rows(2, 3, 20, 16), 4) < 0.02
    )


def test_stochastic_rounding_has_no_bias() -> None:
    x = rows(1, 64).double().requires_grad_()
    found = []
    for seed in range(400):
        torch.manual_seed(seed)
        found.append(torch.autograd.grad(curve("gelu", x, 2, stochastic=True).sum(), x)[0])
    exact = torch.autograd.grad(curve("gelu", x).sum(), x)[0]
    nearest = torch.autograd.grad(curve("gelu", x, 2).sum(), x)[0]
    assert (torch.stack(found).mean(0) - exact).abs().max() < 0.08 < (nearest - exact).abs().max()


@pytest.mark.parametrize("bounds", ["group", "fixed"])
@pytest.mark.parametrize("name", [name for name in CURVES if name != "relu"])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_element_wise_errors_stay_below_half_a_level(name: str, bits: int, bounds: Any) -> None:
    x = torch.linspace(-12, 12, 64 * 201).double()
    f = CURVES[name]
    assert f.low - 1e-5 <= f.slope(x).min() and f.slope(x).max() <= f.high + 1e-5
    leaf, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    curve(name, leaf, bits, bounds).sum().backward()
    curve(name, other).sum().backward()
    level = (f.high - f.low) / (2**bits - 1)
    assert (leaf.grad - other.grad).abs().max() <= 0.5 * level + 1e-3 * (bounds == "group") + 1e-5


def test_errors_fall_with_more_bits_and_smaller_groups() -> None:
    x = rows(512, 256).double()
    by_bits = [error(OPERATIONS["gelu"], x, bits) for bits in (2, 4, 8)]
    by_group = [error(lambda x, b, g=g: curve("gelu", x, b, group=g), x, 4) for g in (256, 64, 16)]
    assert by_bits == sorted(by_bits, reverse=True) and by_group == sorted(by_group, reverse=True)


@pytest.mark.parametrize(("name", "extra"), [("gelu", 0.5), ("softmax", 0.0), ("layer norm", 1.1), ("dropout", None)])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_bits_saved_per_value(name: str, extra: float | None, bits: int) -> None:
    x = rows(50, 64)
    saved = gradients(OPERATIONS[name], x, bits)[2] / x.numel()
    own = 32 * 2 * 64 / x.numel() if name == "layer norm" else 0  # the gain and shift
    assert saved <= (1.0 if extra is None else 1.05 * (bits + extra)) + own


def test_softmax_rows_pass_no_gradient_in_sum_and_extremes_are_exact() -> None:
    x = rows(40, 50, scale=3.0)
    x[0], x[1, 1:] = 0.0, -torch.inf  # equal, and all on one key
    _, gradient, _ = gradients(softmax, x, 4)
    assert gradient.sum(-1).abs().max() < 1e-5
    torch.testing.assert_close(gradient[:2], gradients(softmax, x, None)[1][:2], rtol=1e-5, atol=1e-6)


def test_odd_shapes_constant_groups_and_half_precision() -> None:
    for shape in ((3, 1), (2, 65), (5, 7, 33), (0, 64)):
        x = torch.full(shape, 0.7)
        _, expected, _ = gradients(OPERATIONS["gelu"], x, None)
        torch.testing.assert_close(gradients(OPERATIONS["gelu"], x, 4)[1], expected, rtol=1e-3, atol=1e-3)
    x = rows(8, 64).bfloat16()
    for name in ("gelu", "softmax", "relu"):
        _, got, _ = gradients(OPERATIONS[name], x, 8)
        assert got.dtype == torch.bfloat16 and got.isfinite().all()
    strided = rows(64, 6).t()
    assert error(OPERATIONS["gelu"], strided, 8) < 0.01


def test_a_linear_map_shares_what_its_input_keeps() -> None:
    x, norm = rows(40, 64).requires_grad_(), nn.LayerNorm(64).requires_grad_(False)
    weights = [rows(32, 64, seed=s).requires_grad_() for s in range(3)]
    seen: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: seen.append(t) or t, lambda t: t), compressed("int4"):
        y = norm(x)
        out = sum(nn.functional.linear(y, weight) for weight in weights)
    large = {t.data_ptr(): t.nbytes for t in seen if t.dtype != torch.float32}
    assert sum(large.values()) <= x.numel() * 4.5 / 8  # one packed tensor for the norm and three maps
    out.sum().backward()
    exact = torch.ones(40, 32).t() @ y.detach()
    assert (weights[0].grad - exact).norm() < 0.12 * exact.norm()


def test_what_is_remembered_of_a_tensor_ends_with_its_values() -> None:
    x, weight = rows(40, 64), rows(32, 64, seed=1).requires_grad_()
    for factor, bits in ((1.0, 4), (1.0, 8), (100.0, 8)):
        x.mul_(factor)
        weight.grad = None
        linear(x, weight, None, bits).sum().backward()
        exact = torch.ones(40, 32).t() @ x
        assert (weight.grad - exact).norm() < (0.1 if bits == 4 else 0.01) * exact.norm()


# --- whole towers -----------------------------------------------------------------------------------------------------


def built(kind: str, tower: str, saved: str, **more: Any) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ADAPTERS[kind](saved=saved, **more).build(deepcopy(prepared(tower)), "tokens").train()


def outcome(model: nn.Module, x: Tensor, reads: str) -> tuple[Tensor, Tensor]:
    torch.manual_seed(3)  # dropout
    out = view(model, x, reads)
    (out * torch.randn(out.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
    grads = [p.grad.flatten() if p.grad is not None else torch.zeros(p.numel()) for p in model.parameters()]
    return out.detach(), torch.cat(grads)


@pytest.mark.parametrize("tower", ["vit", "timm", "convnext", "resnet", "clip_text", "bert", "t5"])
@pytest.mark.parametrize("kind", ["full", "lora", "bitfit", "s2a", "dtl"])
def test_a_tower_runs_exactly_and_its_gradient_keeps_its_direction(kind: str, tower: str) -> None:
    if (kind, tower) == ("bitfit", "t5"):
        return
    x, (expected, exact) = TOWERS[tower][1](), (None, None)
    for saved, least in (("fp32", 1.0), ("int8", 0.998), ("int4", 0.99)):
        model = built(kind, tower, saved)
        out, gradient = outcome(model, x, "pooled")
        expected, exact = (out, gradient) if exact is None else (expected, exact)
        assert torch.equal(out, expected), saved
        assert torch.cosine_similarity(gradient, exact, dim=0) > least - 1e-3, saved
        assert torch.equal(gradient.ne(0), exact.ne(0)) or saved != "fp32"


@pytest.mark.parametrize("kind", ["full", "lora", "bitfit", "s2a"])
def test_a_block_of_a_vision_transformer_saves_a_quarter(kind: str) -> None:
    """The adapters' own merged weights grow with the width, not with the batch: LoRA is measured on timm's blocks."""
    bytes_of = {}
    for saved in ("fp32", "int8", "int4"):
        model = built(kind, "timm" if kind == "lora" else "vit", saved)
        x = TOWERS["timm" if kind == "lora" else "vit"][1]()
        start = model.base.embed(x)
        hidden = start.hidden.detach().requires_grad_()

        def run(model: nn.Module = model, hidden: Tensor = hidden, saved: Any = saved, start: Stream = start) -> Tensor:
            with compressed(saved):
                return model.base.block(1, start.replace(hidden=hidden * 1.0)).hidden.sum()

        bytes_of[saved] = saved_bytes(model, run)
    assert bytes_of["int4"] <= 0.25 * bytes_of["fp32"]
    assert bytes_of["int4"] < bytes_of["int8"] <= 0.4 * bytes_of["fp32"]


@pytest.mark.parametrize("tower", ["convnext", "resnet"])
def test_convolutional_towers_save_less(tower: str) -> None:
    x, sizes = TOWERS[tower][1](), {}
    for saved in ("fp32", "int4"):
        model = built("full", tower, saved)
        sizes[saved] = saved_bytes(model, lambda m=model: m(x).pooled.sum())
    assert sizes["int4"] < 0.5 * sizes["fp32"]


def test_bias_gradients_of_a_deep_transformer_keep_their_direction() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(128, 4, 256, 0.0, nn.functional.gelu, batch_first=True, norm_first=True)
    model = nn.TransformerEncoder(layer, 6, enable_nested_tensor=False)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith("bias"))
    x, found = rows(2, 32, 128), []
    for saved in ("fp32", "int4"):
        model.zero_grad()
        with compressed(saved):
            loss = (model(x) * rows(2, 32, 128, seed=2)).sum()
        loss.backward()
        found.append((loss.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]))
    (exact_loss, exact), (loss, got) = found
    assert torch.equal(exact_loss, loss)
    joined = [torch.cat([g.flatten() for g in group]) for group in (exact, got)]
    assert torch.cosine_similarity(*joined, dim=0) > 0.999


def test_dropout_and_masks_replay_in_backward() -> None:
    """BERT and T5 in training mode draw dropout inside attention and MLP."""
    for tower in ("bert", "t5"):
        x, found = TOWERS[tower][1](), []
        for saved in ("fp32", "int8"):
            model = built("full", tower, saved)
            for module in model.modules():
                if isinstance(module, nn.Dropout):
                    module.p = 0.3
            found.append(outcome(model, x, "tokens"))
        assert torch.equal(found[0][0], found[1][0])
        assert torch.cosine_similarity(found[0][1], found[1][1], dim=0) > 0.995


def test_quick_gelu_of_the_library_is_recognised() -> None:
    from open_clip.transformer import QuickGELU

    from vlkit.adapters.saved.mode import name_operations

    model = nn.Sequential(nn.Linear(64, 64), QuickGELU())
    x = rows(20, 64)
    expected = model(x)
    plain = saved_bytes(model, lambda: model(x).sum())
    name_operations(model)
    assert torch.equal(model(x), expected) and torch.equal(quick_gelu(x), x * torch.sigmoid(1.702 * x))
    with compressed("int4"):
        assert torch.equal(model(x), expected)
        assert saved_bytes(model, lambda: model(x).sum()) < 0.3 * plain


def test_autocast_runs_compressed() -> None:
    model, x = built("full", "vit", "int8"), TOWERS["vit"][1]()
    plain = built("full", "vit", "fp32")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, expected = model(x).pooled, plain(x).pooled
    assert torch.equal(out, expected)
    out.float().square().sum().backward()
    expected.float().square().sum().backward()
    grads = [torch.cat([p.grad.flatten() for p in m.parameters() if p.grad is not None]) for m in (model, plain)]
    assert torch.cosine_similarity(*grads, dim=0) > 0.99


def test_without_gradient_nothing_is_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlkit.adapters.saved.kept.to_few_bits", lambda *a, **k: pytest.fail("packed"))
    model = built("full", "vit", "int4")
    with torch.no_grad():
        assert model(TOWERS["vit"][1]()).pooled.isfinite().all()


# --- options ----------------------------------------------------------------------------------------------------------


def test_every_method_with_gradient_in_the_base_has_the_option() -> None:
    having = {kind for kind, options in ADAPTERS.items() if "saved" in options.__dataclass_fields__}
    assert having == set(kinds_with("gradient_in_base")) >= {"full", "bitfit", "lora", "s2a", "dtl", "sherl"}
    assert all("saved" in ADAPTERS[kind].running for kind in having)


def test_the_late_route_of_sherl_saves_less() -> None:
    x, sizes = TOWERS["vit"][1](), {}
    for saved in ("fp32", "int4"):
        options = SherlOptions(handoff="tokens", lean=False, saved=saved, dropout=0.0)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = options.build(deepcopy(prepared("vit"))).train()
        train(model, x, "pooled", steps=1)
        sizes[saved] = saved_bytes(model, lambda m=model: m(x).pooled.sum())
    assert sizes["int4"] < 0.9 * sizes["fp32"]


def test_checkpointing_and_compression_exclude_each_other() -> None:
    for kind in ("full", "lora", "bitfit"):
        with pytest.raises(
            UserError, match=r"--adapter.saved int4: --adapter.checkpointing .* leave one of the two out"
        ):
            ADAPTERS[kind](checkpointing=True, saved="int4")


def test_saved_belongs_to_tokens_in_sherl() -> None:
    with pytest.raises(UserError, match=r"--adapter.saved: belongs to --adapter.handoff tokens"):
        SherlOptions(handoff="pooled", saved="int8")


@pytest.mark.parametrize("words", [["--saved", "int4"], ["--adapter.saved", "int4"], ["--saved=int4"]])
def test_the_flag_has_a_short_name(words: list[str]) -> None:
    from dataclasses import dataclass, field

    from vlkit.cli.config import kinds, parse

    @dataclass
    class Config:
        """A script."""

        adapter: Any = kinds(ADAPTERS, "sherl")
        """Method."""
        other: int = field(default=1)
        """A number."""

    assert parse(Config, ["--adapter.kind", "full", *words]).adapter.saved == "int4"
    with pytest.raises(UserError, match=r"saved: not an option of adapter kind vqt, but of sherl, dtl"):
        parse(Config, ["--adapter.kind", "vqt", *words])
    with pytest.raises(UserError, match="int3"):
        parse(Config, ["--adapter.kind", "full", "--saved", "int3"])


def test_frozen_weights_of_a_base_stay_bit_for_bit(tmp_path: Any) -> None:
    encoder: StagedEncoder = deepcopy(prepared("t5"))
    names = set(encoder.state_dict())
    model = ADAPTERS["full"](saved="int4").build(encoder)
    assert {name.removeprefix("base.") for name in model.state_dict()} == names


def test_backward_frees_what_was_kept() -> None:
    """An opener that held its tensors would keep all of them alive until the end of backward."""
    x, norm = rows(40, 64).requires_grad_(), nn.LayerNorm(64)
    weight = rows(32, 64, seed=1).requires_grad_()
    alive: list[weakref.ref] = []

    def pack(t: Tensor) -> Tensor:
        if t.dtype == torch.uint8:
            alive.append(weakref.ref(t.untyped_storage()))
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), compressed("int4"):
        out = nn.functional.gelu(nn.functional.linear(norm(x), weight)).softmax(-1).sum()
    assert alive and all(ref() is not None for ref in alive)
    out.backward()
    gc.collect()
    assert out.grad_fn is not None and all(ref() is None for ref in alive)


@pytest.mark.slow
def test_training_reaches_the_same_accuracy() -> None:
    """Eight templates in noise; mean over three seeds, close to the uncompressed run."""
    templates = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(9))

    def batch(count: int, seed: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        labels = torch.randint(0, 8, (count,), generator=generator)
        return 0.5 * templates[labels] + torch.randn(count, 3, 32, 32, generator=generator), labels

    def accuracy(saved: str, seed: int) -> float:
        torch.manual_seed(seed)
        model = ADAPTERS["full"](saved=saved).build(deepcopy(prepared("vit"))).train()
        head = nn.Linear(16, 8)
        trained = [p for p in (*model.parameters(), *head.parameters()) if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=3e-3)
        for step in range(25):
            images, labels = batch(24, 1000 * seed + step)
            nn.functional.cross_entropy(head(model(images).pooled), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
        images, labels = batch(400, 7)
        with torch.no_grad():
            return float((head(model.eval()(images).pooled).argmax(1) == labels).float().mean())

    plain, compressed_runs = ([accuracy(saved, seed) for seed in range(3)] for saved in ("fp32", "int4"))
    assert sum(plain) / 3 > 0.6
    assert abs(sum(plain) - sum(compressed_runs)) / 3 < 0.02, (plain, compressed_runs)
