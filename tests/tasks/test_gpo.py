"""Generalised pooling: padding, order, its special cases, and the published numbers."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, cast

import pytest
import torch
from torch import Tensor, nn

from helpers.parity_file import read_golden
from vlkit.adapters.published.names import import_published
from vlkit.errors import UserError
from vlkit.tasks.gpo import GeneralizedPooling
from vlkit.tasks.two_tower import EmbeddingHead, HeadOptions, some_of
from vlkit.tasks.video_retrieval.model import VideoHeadOptions
from vlkit.tasks.video_retrieval.temporal import mean_frames

GOLDEN = Path(__file__).parents[1] / "fixtures" / "golden" / "head_gpo.safetensors"


def head(seed: int = 0) -> GeneralizedPooling:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return GeneralizedPooling().double()


def tokens(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def mask_of(lengths: list[int], longest: int) -> Tensor:
    return torch.arange(longest) < torch.tensor(lengths).unsqueeze(1)


def test_published_numbers() -> None:
    golden = read_golden(GOLDEN)
    module = GeneralizedPooling().double()
    module.load_state_dict(import_published("gpo", golden.part("weight.")))
    features, lengths = golden.tensors["input.features"], golden.tensors["input.lengths"].long()

    torch.testing.assert_close(
        module(features, mask_of(lengths.tolist(), features.shape[1])), golden.tensors["output"], rtol=0, atol=1e-12
    )


def test_padding_has_no_say() -> None:
    module, x, lengths = head(), tokens(4, 9, 6), [9, 1, 4, 4]
    mask = mask_of(lengths, 9)
    pooled = module(x, mask)
    for row, length in enumerate(lengths):
        torch.testing.assert_close(pooled[row], module(x[row : row + 1, :length])[0], rtol=1e-12, atol=1e-12)
    dirty = x.masked_fill(~mask.unsqueeze(-1), 1e6)
    torch.testing.assert_close(module(dirty, mask), pooled, rtol=1e-12, atol=1e-12)


def test_padding_gets_no_gradient() -> None:
    module, x, mask = head(), tokens(3, 5, 4).requires_grad_(), mask_of([5, 2, 3], 5)
    module(x, mask).square().sum().backward()

    assert x.grad[~mask].count_nonzero() == 0
    assert x.grad[mask].count_nonzero() == x.grad[mask].numel()
    assert all(p.grad.count_nonzero() for p in module.parameters())


def test_order_of_tokens_has_no_say() -> None:
    module, x = head(), tokens(2, 7, 5)
    torch.testing.assert_close(module(x[:, torch.randperm(7)]), module(x), rtol=1e-12, atol=1e-12)


def test_no_mask_means_all_real() -> None:
    module, x = head(), tokens(2, 7, 5)
    assert torch.equal(module(x), module(x, torch.ones(2, 7, dtype=torch.bool)))


def test_mean_pooling_is_a_special_case() -> None:
    module, x, lengths = head(), tokens(3, 6, 5), [6, 2, 1]
    nn.init.zeros_(module.score.weight)
    pooled = module(x, mask_of(lengths, 6))
    for row, length in enumerate(lengths):
        torch.testing.assert_close(pooled[row], x[row, :length].mean(0), rtol=1e-12, atol=1e-12)


def test_max_pooling_is_a_special_case(monkeypatch: pytest.MonkeyPatch) -> None:
    """All weight on the first rank: what is left is each dimension's largest real value."""
    module, x, lengths = head(), tokens(3, 6, 5), [6, 2, 1]

    def first(states: Tensor) -> Tensor:
        return torch.cat([torch.ones_like(states[:, :1, :1]), torch.zeros_like(states[:, 1:, :1])], dim=1) * 100

    monkeypatch.setattr(module.score, "forward", first)
    pooled = module(x, mask_of(lengths, 6))
    for row, length in enumerate(lengths):
        torch.testing.assert_close(pooled[row], x[row, :length].amax(0), rtol=1e-12, atol=1e-12)


def test_negative_values_are_sorted_before_padding() -> None:
    module, x = head(), tokens(1, 4, 3) - 100
    torch.testing.assert_close(module(x, mask_of([2], 4)), module(x[:, :2]), rtol=1e-12, atol=1e-12)


def test_weights_sum_to_one_over_real_positions() -> None:
    weights = head().weights(torch.tensor([3, 5, 3]), 5, torch.float64)

    torch.testing.assert_close(weights.sum(1), torch.ones(3, dtype=torch.float64))
    assert weights[0, 3:].count_nonzero() == 0
    assert torch.equal(weights[0], weights[2]) and not torch.equal(weights[0, :3], weights[1, :3])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mixed_precision(dtype: torch.dtype) -> None:
    module, x, mask = head().float(), tokens(2, 6, 4).float(), mask_of([6, 3], 6)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        pooled = module(x.to(dtype), mask)
    torch.testing.assert_close(pooled.float(), module(x, mask), rtol=0.05, atol=0.05)


def test_mean_frames_normalises_before_and_after() -> None:
    frames = tokens(3, 4, 5)
    frames[1, 2:] = 1e6  # padding
    mask = mask_of([4, 2, 1], 4)
    video = mean_frames(frames, mask)
    for row, length in enumerate([4, 2, 1]):
        units = frames[row, :length] / frames[row, :length].norm(dim=-1, keepdim=True)
        mean = units.mean(0)
        torch.testing.assert_close(video[row], mean / mean.norm(), rtol=1e-12, atol=1e-12)


def test_a_video_without_frames_is_zero() -> None:
    frames = tokens(1, 3, 4).requires_grad_()
    video = mean_frames(frames, torch.zeros(1, 3, dtype=torch.bool))
    video.sum().backward()

    assert torch.equal(video, torch.zeros(1, 4, dtype=torch.float64))
    assert frames.grad.isfinite().all()


def test_any_tokens_may_be_left_out() -> None:
    module, x = head(), tokens(2, 6, 5)
    mask = torch.tensor([[0, 1, 0, 1, 1, 0], [1, 0, 0, 0, 0, 1]], dtype=torch.bool)
    for row, kept in enumerate(mask):
        torch.testing.assert_close(module(x, mask)[row], module(x[row : row + 1, kept])[0], rtol=1e-12, atol=1e-12)


def test_dropped_tokens_are_a_share_of_the_real_ones() -> None:
    mask = mask_of([50, 20, 1], 50)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        kept = torch.stack([some_of(tokens(3, 50, 1), mask, 0.2) for _ in range(200)])
    assert not (kept & ~mask).any() and kept.any(2).all()
    shares = kept.double().mean(0)
    assert shares[:2][mask[:2]].mean() == pytest.approx(0.8, abs=0.01) and kept[:, 2, 0].all()
    assert not torch.equal(kept[0], kept[1]) and not torch.equal(kept[0, 0], kept[1, 0])
    assert some_of(tokens(2, 3, 1), None, 0.999).any(1).all()


@pytest.mark.parametrize("pool", ["gpo", "mean"])
def test_tokens_are_dropped_in_training_alone(pool: Literal["gpo", "mean"]) -> None:
    class Tower:
        out_dim = token_dim = 8

    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = EmbeddingHead(cast(Any, Tower()), HeadOptions(pool=pool, dim=4, drop_tokens=0.4))
        seen = cast(Any, SimpleNamespace(tokens=torch.randn(2, 9, 8), mask=None))
        assert not torch.equal(module(seen), module(seen))
        whole = module.eval()(seen)
        assert torch.equal(whole, module(seen))
        plain = EmbeddingHead(cast(Any, Tower()), HeadOptions(pool=pool, dim=4))
    plain.load_state_dict(module.state_dict())
    assert torch.equal(plain(seen), whole)


def test_only_pooled_tokens_can_be_dropped() -> None:
    with pytest.raises(UserError, match=r"--head\.drop_tokens: the base's own pooling reads every token"):
        HeadOptions(drop_tokens=0.2)
    with pytest.raises(UserError, match=r"--head\.drop_tokens 1\.0: must be at least 0 and less than 1"):
        HeadOptions(pool="gpo", drop_tokens=1.0)
    with pytest.raises(UserError, match=r"--head\.dim -1"):
        VideoHeadOptions(dim=-1)
