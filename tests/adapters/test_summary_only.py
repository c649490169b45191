"""The last block run for the pooled token alone: same embedding and gradients as with every token, less kept."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from open_clip.transformer import VisionTransformer

from helpers import tiny
from helpers.sherl_pairs import assert_same, pair, run
from vlkit.adapters.sherl.options import SherlOptions
from vlkit.encoders.stage import stage_text, stage_vision
from vlkit.encoders.staged import StagedEncoder, Stream, run_blocks
from vlkit.memory import saved_bytes

BASES: dict[str, Callable[[], StagedEncoder]] = {
    "vit": lambda: stage_vision(tiny.tiny_clip()),
    "clip_text": lambda: stage_text(tiny.tiny_clip()),
}


@pytest.mark.parametrize("name", BASES)
def test_finish_pooled_is_last_block_and_pool_with_the_same_gradient(name: str) -> None:
    base = BASES[name]().double()
    assert base.pools_one_token
    x = tiny.images(3).double() if name == "vit" else tiny.clip_ids((5, 9, 12))
    with torch.no_grad():
        before = run_blocks(base, base.embed(x), 0, base.depth - 1)
    results = []
    for finish in (base.finish_pooled, lambda stream: base.pool(base.block(base.depth - 1, stream))):
        hidden = before.hidden.clone().requires_grad_()
        out = finish(before.replace(hidden=hidden))
        results.append((out.detach(), *torch.autograd.grad(out.square().sum(), hidden)))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_towers_that_pool_several_tokens_run_the_whole_block(monkeypatch: pytest.MonkeyPatch) -> None:
    base = stage_vision(tiny.tiny_clip(vision={"pool_type": "avg"}))
    assert isinstance(base.model, VisionTransformer) and not base.pools_one_token
    ran: list[int] = []
    block = base.block

    def watched(i: int, stream: Stream) -> Stream:
        ran.append(i)
        return block(i, stream)

    monkeypatch.setattr(base, "block", watched)
    x = tiny.images(2)
    with torch.no_grad():
        stream = run_blocks(base, base.embed(x), 0, base.depth - 1)
        torch.testing.assert_close(base.finish_pooled(stream), base(x))
    assert ran.count(base.depth - 1) == 2  # once here, once in the whole tower
    for other in (stage_text(tiny.tiny_bert()), stage_vision(tiny.tiny_resnet_clip())):
        assert not other.pools_one_token


@pytest.mark.parametrize("late", [1, 2])
@pytest.mark.parametrize("tower", BASES)
def test_only_a_lean_late_route_behind_a_pooled_view_is_cut_short(tower: str, late: int) -> None:
    options = SherlOptions(handoff="tokens", late=late)
    assert options.build(BASES[tower](), "pooled").summary_only
    assert not options.build(BASES[tower](), "tokens").summary_only
    assert not SherlOptions(handoff="tokens", late=0).build(BASES[tower](), "pooled").summary_only
    assert not SherlOptions(handoff="tokens", late=late, lean=False).build(BASES[tower](), "pooled").summary_only


def test_tokens_that_were_not_made_are_an_error() -> None:
    _, model, x = pair("vit", "text")
    assert model.summary_only
    with pytest.raises(RuntimeError, match="build the encoder with reads='tokens'"):
        _ = model(x).tokens


def test_both_views_of_one_run_carry_their_gradient() -> None:
    plain, model, x = pair("clip_text", "text", reads="tokens", early_chunk=2)

    def both(encoder: torch.nn.Module) -> torch.Tensor:
        encoded = encoder(x)
        return torch.cat([encoded.pooled.flatten(), encoded.tokens.flatten()])

    assert_same(run(model, lambda: both(model)), run(plain, lambda: both(plain)), 1e-9)


def test_a_step_keeps_no_more_for_the_late_route_than_its_input() -> None:
    # Whatever the late block is, what is kept are the taps and the state that enters it.
    _, model, x = pair("vit", "text", torch.float32)
    encoded = model.read(x)[1]
    taps = sum(tap.hidden.numel() * tap.hidden.element_size() for tap in encoded)
    assert saved_bytes(model, lambda: model(x).pooled.sum()) <= taps + 4 * 2 * len(x) * model.base.out_dim
