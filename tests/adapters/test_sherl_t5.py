"""SHERL on T5: two memories, one late block, and the base's own answer at the start."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from functools import cache

import pytest
import torch
from torch import Tensor, nn
from transformers import T5ForConditionalGeneration

from helpers import tiny
from vlkit.adapters.base import trained_state
from vlkit.adapters.sherl.t5 import SherlT5, SherlT5Decoder, SherlT5Encoder
from vlkit.encoders.stage import stage_hf, stage_t5_decoder

LENGTHS = (5, 9, 12)


@cache
def base() -> T5ForConditionalGeneration:
    return tiny.tiny_t5()


def build(init: str = "published", seed: int = 0, reduction: int = 4) -> SherlT5:
    t5 = deepcopy(base())
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        encoder = SherlT5Encoder(stage_hf(t5), reduction=reduction, init=init)
        decoder = SherlT5Decoder(stage_t5_decoder(t5), reduction=reduction, init=init)
    return SherlT5(encoder, decoder).eval()


def question() -> Tensor:
    return tiny.padded_ids(LENGTHS)


def answer() -> Tensor:
    return nn.functional.pad(tiny.padded_ids((2, 3, 4), width=4, seed=1), (1, 0))[:, :4]  # start token first


def train(model: SherlT5, steps: int = 3) -> dict[str, bool]:
    """Take optimizer steps; returns which weights ever had a non-zero gradient."""
    for part in (model.encoder, model.decoder):
        nn.init.ones_(part.adapter.aggregator.score.bias)  # no score is clipped, so every layer learns
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=0.01)
    used = dict.fromkeys(trained, False)
    model.train()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for _ in range(steps):
            logits = model(question(), answer())
            nn.functional.cross_entropy(logits.flatten(0, 1), torch.arange(logits[..., 0].numel()) % 7).backward()
            for name, p in trained.items():
                used[name] |= p.grad is not None and bool(p.grad.count_nonzero())
            optimizer.step()
            optimizer.zero_grad()
    model.eval()
    return used


def test_identity_starts_at_the_base() -> None:
    model, ids = build("identity"), question()
    with torch.no_grad():
        expected = base()(input_ids=ids, attention_mask=(ids != 0).long(), decoder_input_ids=answer()).logits
        memory = model.encoder(ids)
        logits = model(ids, answer())

    torch.testing.assert_close(memory.side, memory.frozen, rtol=0, atol=1e-6)
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("init", ["published", "identity"])
def test_training_moves_the_side_alone(init: str) -> None:
    model = build(init)
    frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    trained = {n: p.clone() for n, p in model.named_parameters() if p.requires_grad}
    used = train(model)

    assert {name.split(".")[1] for name in used} == {"adapter", "norm"}
    assert [name for name, ever in used.items() if not ever] == []
    assert all(torch.equal(p, frozen[n]) for n, p in model.named_parameters() if n in frozen)
    assert not any(torch.equal(p, trained[n]) for n, p in model.named_parameters() if n in trained)


def test_decoder_reads_both_memories() -> None:
    model, ids = build(), question()
    memory = model.encoder(ids)
    states = model.decoder(answer(), memory)
    frozen, side = torch.zeros_like(memory.frozen), torch.zeros_like(memory.side)

    assert memory.side.requires_grad and not memory.frozen.requires_grad
    assert not torch.allclose(model.decoder(answer(), type(memory)(frozen, memory.side, memory.mask)), states)
    assert not torch.allclose(model.decoder(answer(), type(memory)(memory.frozen, side, memory.mask)), states)


def test_padding_changes_nothing() -> None:
    model, ids = build("identity"), question()
    train(model)
    together = model(ids, answer())
    for row, length in enumerate(LENGTHS):
        alone = model(ids[row : row + 1, :length], answer()[row : row + 1])[0]
        torch.testing.assert_close(together[row], alone, rtol=1e-5, atol=1e-5)


def test_decoder_is_causal() -> None:
    model, ids = build("identity"), question()
    train(model)
    short = model(ids, answer()[:, :2])
    torch.testing.assert_close(model(ids, answer())[:, :2], short, rtol=1e-5, atol=1e-5)


def test_saved_and_loaded_gives_equal_outputs() -> None:
    model, other = build(), build(seed=7)
    train(model)
    state = {name: tensor.clone() for name, tensor in trained_state(model).items()}
    missing, unexpected = other.load_state_dict(state, strict=False)

    assert unexpected == [] and all(".base." in name for name in missing)
    assert torch.equal(other(question(), answer()), model(question(), answer()))


def test_early_blocks_save_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build()
    saved: list[int] = []
    count_of: dict[tuple[str, int], int] = {}

    def watch(name: str, block: Callable) -> Callable:
        def run(i: int, stream: object) -> object:
            before = len(saved)
            result = block(i, stream)
            count_of[name, i] = len(saved) - before
            return result

        return run

    for name in ("encoder", "decoder"):
        part = getattr(model, name).base
        monkeypatch.setattr(part, "block", watch(name, part.block))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(0) or t, lambda t: t):
        model(question(), answer()).sum().backward()

    late = count_of.pop(("decoder", 2))
    assert late > 0
    assert count_of == {("encoder", 0): 0, ("encoder", 1): 0, ("encoder", 2): 0, ("decoder", 0): 0, ("decoder", 1): 0}


def test_taps_must_fit() -> None:
    with pytest.raises(ValueError, match=r"must lie in 0\.\.3"):
        SherlT5Encoder(stage_hf(tiny.tiny_t5()), layers=(0, 4))
    with pytest.raises(ValueError, match=r"must lie in 0\.\.2"):
        SherlT5Decoder(stage_t5_decoder(tiny.tiny_t5()), layers=(0, 3))


PUBLISHED_SIZES = [
    (768, 12, (1, 2, 3, 5, 6, 7, 9, 10, 11), 4, 2_366_786, 2_145_026),
    (1024, 24, (*range(1, 22, 2), 22, 23), 8, 2_432_386, 2_268_162),
]


@pytest.mark.parametrize(("width", "depth", "side_layers", "reduction", "encoder", "decoder"), PUBLISHED_SIZES)
def test_published_parameter_counts(
    width: int, depth: int, side_layers: tuple[int, ...], reduction: int, encoder: int, decoder: int
) -> None:
    """T5-base with reduction 4 and T5-large with 8, including the side norm."""
    taps = (0, *(i + 1 for i in side_layers))
    with torch.device("meta"):
        t5 = T5ForConditionalGeneration(
            tiny.T5Config(d_model=width, num_layers=depth, num_heads=8, d_ff=64, vocab_size=8)
        )
        sides = (
            SherlT5Encoder(stage_hf(t5), taps, reduction, init="published"),
            SherlT5Decoder(stage_t5_decoder(t5), taps[:-1], reduction, init="published"),
        )
    counts = [sum(p.numel() for p in side.parameters() if p.requires_grad) for side in sides]
    assert counts == [encoder, decoder]


def test_published_initial_weights() -> None:
    adapter = build(reduction=1).encoder.adapter
    weights = torch.cat([m.weight.flatten() for m in adapter.modules() if isinstance(m, nn.Linear)])
    assert weights.std().item() == pytest.approx(0.01, rel=0.05)
