"""Pre-training on many styles: the pool, the objective, going on after a stop, and the base that ships."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from helpers.scripts import call, refuse
from helpers.stopped import assert_same_after_a_stop
from vlkit.drawn.styled_samples import TRAIN, StyledChunks
from vlkit.encoders.tiny import ASSETS, CLIP_FILE, TinyTokenizer, new_tiny_clip, tiny_t5_tokenizer, vocabulary
from vlkit.tasks.pretrain.denoising import Denoising
from vlkit.tasks.pretrain.objective import Objective, patch_weights
from vlkit.tasks.pretrain.pool import Collate, Pool, batches, varied
from vlkit.tasks.pretrain.styles_eval import draw_styles, style_metrics

TRAINING = "tasks/pretrain/train.py"
CPU = torch.device("cpu")
SMALL = ("--world", "styles", "--batch_size", 8, "--workers", 0, "--scenes", 3, "--device", "cpu")


@pytest.fixture(scope="module")
def tokenizer() -> TinyTokenizer:
    return TinyTokenizer(vocabulary())


def test_a_pool_gives_different_samples_of_the_newest(tokenizer: TinyTokenizer) -> None:
    pool = Pool(12, CPU, tokenizer)
    chunks = StyledChunks(1, TRAIN, 3, 6)
    for number in range(3):
        pool.add(Collate(tokenizer)([chunks[number]]))
    assert pool.drawn == 18 and pool.filled == 12
    batch, again, other = pool.batch(12, 7), pool.batch(12, 7), pool.batch(12, 8)
    codes = torch.cat([chunks[1][2], chunks[2][2]])
    assert sorted(batch.codes.tolist()) == sorted(codes.tolist())
    assert torch.equal(batch.images, again.images) and torch.equal(batch.captions, again.captions)
    assert not torch.equal(batch.images, other.images)


def test_large_pools_give_different_samples_too(tokenizer: TinyTokenizer) -> None:
    pool = Pool(60, CPU, tokenizer)
    pool.add(Collate(tokenizer)([StyledChunks(1, TRAIN, 1, 60)[0]]))
    pool._tensors[2][:, 0] = torch.arange(60)
    for seed in range(20):
        rows = pool.batch(10, seed).codes[:, 0].tolist()
        assert len(set(rows)) == 10 and min(rows) >= 0 and max(rows) < 60


def test_images_and_ids_move_together() -> None:
    ids = torch.zeros(16, 48, 48, dtype=torch.uint8)
    ids[:, 10:30, 16:34] = 1
    images = torch.zeros(16, 3, 96, 96)
    images[:, :, 20:60, 32:68] = 0.9
    moved, moved_ids = varied(images, ids, torch.Generator().manual_seed(0))
    bright = moved.mean(1)[:, ::2, ::2] > 0.5
    overlap = ((moved_ids == 1) & bright).sum((1, 2)) / ((moved_ids == 1) | bright).sum((1, 2))
    assert overlap.min() > 0.85
    starts = {int(np.nonzero((one == 1).any(0).numpy())[0][0]) for one in moved_ids}
    assert len(starts) > 2  # and they do move


def test_patch_weights_are_shares_of_patches() -> None:
    ids = torch.zeros(1, 48, 48, dtype=torch.uint8)
    ids[0, 0:6, 0:6], ids[0, 0:3, 6:12], ids[0, 42:45, 42:45] = 1, 1, 2
    weights = patch_weights(ids, 3, 64)
    assert weights[0, 0, :3].tolist() == [1.0, 0.5, 0.0] and weights[0, 1, 63].item() == 0.25
    assert weights.sum().item() == 1.75


@pytest.mark.slow
def test_the_loss_falls_on_a_few_scenes(tokenizer: TinyTokenizer) -> None:
    torch.manual_seed(0)
    model = new_tiny_clip(tokenizer)
    objective = Objective(model, tokenizer, CPU, "part", 1.0)
    pool = Pool(8, CPU, tokenizer)
    pool.add(Collate(tokenizer)([StyledChunks(1, TRAIN, 1, 8)[0]]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for step in range(14):
        loss = objective.loss(pool.batch(8, step))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-4:]) < 0.85 * losses[0]


def test_the_region_loss_is_least_where_tokens_are_their_phrases(tokenizer: TinyTokenizer) -> None:
    """Tokens whose projections are the phrases' embeddings beat those of other things."""
    model = new_tiny_clip(tokenizer)
    model.load_state_dict({k: v.float() for k, v in load_file(ASSETS / CLIP_FILE).items()})
    objective = Objective(model, tokenizer, CPU, "mean", 1.0)
    pool = Pool(16, CPU, tokenizer)
    pool.add(Collate(tokenizer)([StyledChunks(1, TRAIN, 1, 16)[0]]))
    batch = pool.batch(16, 0)
    with torch.no_grad():
        tokens = objective.images(batch.images)[1]
        right = objective.region_loss(tokens, batch).item()
        wrong = objective.region_loss(tokens.roll(1, 0), batch).item()
    assert right < 1 < wrong


@pytest.mark.slow
def test_a_run_that_was_stopped_ends_as_an_unbroken_one(tmp_path: Path) -> None:
    words = (*SMALL, "--steps", 4, "--reuse", 2, "--pool", 12, "--evaluate_every", 2)
    assert_same_after_a_stop(words, tmp_path, 2)
    metrics = json.loads((tmp_path / "whole/metrics.json").read_text())
    assert (
        metrics["drawn"] == 16 and metrics["samples"] == 32 and set(metrics["styles"]) >= {"plain", "hatched", "demo"}
    )


def test_a_step_does_not_depend_on_where_a_run_began(tokenizer: TinyTokenizer) -> None:
    def last(first: int) -> torch.Tensor:
        *_, batch = batches(Pool(12, CPU, tokenizer), 3, 8, 2, 0, first, 6)
        return batch.images

    assert torch.equal(last(0), last(5))


@pytest.mark.slow
def test_a_run_by_the_clock_ends_with_its_schedule_done(tmp_path: Path) -> None:
    call(TRAINING, *SMALL, "--minutes", 0.03, "--pool", 400, "--evaluate_every", 60, "--output", tmp_path)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["steps"] >= 1 and metrics["drawn"] >= 32 and "patch_probe" in metrics


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("--world", "styles", "--model", "t5"), "--model clip"),
        (("--minutes", 1), "--model t5"),
        (("--world", "styles", "--batch_size", 8, "--reuse", 3), "divisor"),
        (("--model", "t5", "--device", "cpu", "--start", ASSETS / CLIP_FILE), "another model"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(words: tuple[object, ...], part: str, tmp_path: Path) -> None:
    assert part in refuse(TRAINING, *words, "--output", tmp_path / "none")


def test_the_base_of_many_styles_knows_them(tokenizer: TinyTokenizer) -> None:
    model = new_tiny_clip(tokenizer)
    model.load_state_dict({k: v.float() for k, v in load_file(ASSETS / CLIP_FILE).items()})
    objective = Objective(model.eval(), tokenizer, CPU, "none", 0.0)
    metrics = style_metrics(objective, draw_styles(77, tokenizer, 0, ("hand-drawn", "mixed", "hatched"), 60))
    assert metrics["lowest_r1_seen"] >= 95 and metrics["lowest_r1_held_out"] >= 95
    assert metrics["patch_probe"] >= 70


def test_a_caption_is_written_from_the_longer_one_of_its_scene() -> None:
    tokenizer, pair = tiny_t5_tokenizer(), ("a cat", "we see a red cat on the left")
    source, mask, target = Denoising(tokenizer, prefixes=0.0, rewrites=1.0)([pair])
    assert tokenizer.batch_decode(source, skip_special_tokens=True)[0].strip() == pair[1]
    assert tokenizer.batch_decode(target, skip_special_tokens=True)[0].strip() == pair[0]
    assert mask.all() and source[0, -1] == target[0, -1] == tokenizer.eos_token_id
    joined = tokenizer(" ".join(pair), add_special_tokens=False).input_ids
    source, _, target = Denoising(tokenizer, prefixes=1.0)([pair])  # the other objectives read both, joined
    assert [*source[0, :-1].tolist(), *target[0, :-1].tolist()] == joined
