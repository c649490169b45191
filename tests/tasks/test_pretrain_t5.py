"""Pre-training of T5 on the mixture: batches, captions of grids, the clock, and going on after a stop."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from helpers.scripts import call, refuse
from helpers.stopped import assert_same_after_a_stop
from vlkit.drawn.agreement import Marked
from vlkit.drawn.captions import caption
from vlkit.drawn.samples import TRAIN, scene_and_rng
from vlkit.encoders.tiny import new_tiny_t5, tiny_t5_tokenizer
from vlkit.tasks.pretrain.agreement import Marker, collate_marked
from vlkit.tasks.pretrain.denoising import Denoising
from vlkit.tasks.pretrain.grids import CONTENT, SIDE, Grids, GridWriter, collate_grids
from vlkit.tasks.pretrain.initial import matching_heads
from vlkit.tasks.pretrain.mixture import Losses, Measure, Mixture, Shares, token_losses
from vlkit.tasks.visual_embedding import VisualEmbedding

TRAINING = "tasks/pretrain/train.py"
CPU = torch.device("cpu")
SIZES = ("--batch_size", 8, "--workers", 0, "--scenes", 4, "--device", "cpu")
SMALL = ("--model", "t5", "--supervised", 0.25, "--agreement", 0.25, "--grids", 0.25, *SIZES)
TOKENIZER = tiny_t5_tokenizer()
MIXED = Shares(supervised=0.25, agreement=0.25, grids=0.25, prefixes=0.5)


def grids(late: int, count: int = 3) -> Grids:
    return collate_grids([scene_and_rng(1, TRAIN, i) for i in range(count)], TOKENIZER, late)


def test_a_batch_depends_on_its_number_alone() -> None:
    whole, rest = Mixture(TOKENIZER, MIXED, 1, TRAIN, 8, 4), Mixture(TOKENIZER, MIXED, 1, TRAIN, 8, 4, first=2)
    assert len(whole) == 4 and len(rest) == 2
    one, other = whole[3], rest[1]
    assert one.texts is not None and other.texts is not None and one.grids is not None and other.grids is not None
    assert all(torch.equal(a, b) for a, b in zip(one.texts, other.texts, strict=True))
    assert torch.equal(one.grids.targets, other.grids.targets) and one.grids.seed == other.grids.seed
    assert one.marked is not None and other.marked is not None and len(one.marked.ids) == 2
    assert torch.equal(one.marked.ids, other.marked.ids) and torch.equal(one.marked.labels, other.marked.labels)
    assert len(one.texts[0]) == 4 and len(one.grids.targets) == 2


def test_shares_that_round_up_together_fill_a_batch() -> None:
    batch = Mixture(TOKENIZER, Shares(supervised=1 / 3, agreement=1 / 3, grids=1 / 3), 1, TRAIN, 32, 1)[0]
    assert batch.texts is not None and batch.marked is not None and batch.grids is not None
    assert [len(batch.texts[0]), len(batch.marked.ids), len(batch.grids.targets)] == [11, 10, 11]


def test_without_tasks_the_samples_are_those_of_denoising() -> None:
    scenes = [scene_and_rng(1, TRAIN, 8 + i) for i in range(8)]
    expected = Denoising(TOKENIZER, 0.5)([(caption(scene, rng), caption(scene, rng)) for scene, rng in scenes])
    found = Mixture(TOKENIZER, Shares(prefixes=0.5), 1, TRAIN, 8, 4)[1]
    assert found.grids is None and found.texts is not None
    assert all(torch.equal(a, b) for a, b in zip(found.texts, expected, strict=True))


def test_cells_name_what_they_show() -> None:
    scene, _ = scene_and_rng(1, TRAIN, 0)
    batch = grids(0, 1)
    assert batch.shares.shape == (1, SIDE * SIDE, len(scene.things) + 1)
    for number, thing in enumerate(scene.things):
        cell = int(thing.y * SIDE) * SIDE + int(thing.x * SIDE)
        assert batch.shares[0, cell, number] == 1
        words = TOKENIZER.decode(batch.words[0, number], skip_special_tokens=True)
        assert thing.kind in words and thing.colour in words
    assert batch.shares[0, :, -1].max() == 1  # somewhere nothing stands


def test_cells_look_like_a_captioner_s_visual_tokens() -> None:
    """With the words' sum as content, the visual embedding gives the same rows but for its small shared terms."""
    torch.manual_seed(0)
    model = new_tiny_t5(TOKENIZER)
    batch = grids(0)
    batch = batch._replace(noise=torch.zeros(3))
    writer, width = GridWriter(model), model.config.d_model
    content = batch.shares @ (model.shared(batch.words) * (batch.words != 0).unsqueeze(-1)).sum(2)
    visual = VisualEmbedding(width, width, SIDE)
    visual.start_with_content()
    with torch.no_grad():
        visual.project.weight.copy_(torch.eye(width))
        visual.project.bias.zero_()
        visual.box_norm.weight.zero_()
        visual.image.weight.zero_()
        expected = model.encoder.final_layer_norm(visual(content, model.shared.weight))
        assert visual.project_norm.weight[0] == CONTENT
        torch.testing.assert_close(writer.memory(batch), expected)


@pytest.mark.parametrize("late", [0, 3])
def test_only_late_blocks_read_the_grid(late: int) -> None:
    torch.manual_seed(0)
    model = new_tiny_t5(TOKENIZER)
    lengths: list[int] = []

    def see(module: object, inputs: object, options: dict[str, torch.Tensor], output: object) -> None:
        lengths.append(options["key_value_states"].shape[1])

    for block in model.decoder.block:
        block.layer[1].register_forward_hook(see, with_kwargs=True)
    batch = grids(late)
    logits = GridWriter(model).logits(batch)
    assert [length > SIDE * SIDE for length in lengths] == [number >= late for number in range(4)]
    assert logits.shape == (*batch.targets.shape, model.config.vocab_size)
    if late == 0:  # that is the library's own forward with this memory
        mask = batch.prompts != 0
        read = model.encoder(input_ids=batch.prompts, attention_mask=mask.long()).last_hidden_state
        memory = torch.cat([read, GridWriter(model).memory(batch)], 1)
        wide = F.pad(mask, (0, SIDE * SIDE), value=True)
        expected = model(encoder_outputs=(memory,), attention_mask=wide, labels=batch.targets)
        torch.testing.assert_close(logits, expected.logits, rtol=1e-4, atol=1e-5)
        loss = token_losses(logits, batch.targets).sum() / (batch.targets >= 0).sum()
        torch.testing.assert_close(loss, expected.loss)


def test_labels_stand_at_the_last_token_of_their_words() -> None:
    samples = [Marked("gal first: a red car second: a car", [(16, 1)], [(20, 1), (34, 1)], 1)]
    found = collate_marked(samples, TOKENIZER)
    for labels, words in ((found.labels[0], [" red"]), (found.things[0], [" car", " car"])):
        at = labels >= 0
        assert TOKENIZER.batch_decode(found.ids[0][at].unsqueeze(1)) == words and labels[at].tolist() == [1] * len(
            words
        )
    assert found.verdicts.tolist() == [1]


def test_losses_of_marks_weigh_labels_and_skip_padding() -> None:
    marker = Marker(new_tiny_t5(TOKENIZER), TOKENIZER)
    samples = [
        Marked("gal a: a small red car b: a car", [(14, 1), (18, 3)], [(22, 4), (31, 4)], 4),
        Marked("gal a: a car b: a", [], [(12, 1)], 1),
    ]
    together = collate_marked(samples, TOKENIZER)
    alone = torch.cat([marker.losses(collate_marked([sample], TOKENIZER)) for sample in samples])
    torch.testing.assert_close(marker.losses(together), alone, rtol=1e-4, atol=1e-5)
    labels, verdicts = (logits[0].log_softmax(-1) for logits in marker.logits(together.ids))
    small, red = (together.labels[0] >= 0).nonzero()[:, 0]
    car, other = (together.things[0] >= 0).nonzero()[:, 0]
    end = (together.ids[0] != 0).sum() - 1
    marks = -(1.0 * labels[small, 1] + 2.0 * labels[red, 3]) / 3
    expected = (marks - (verdicts[car, 4] + verdicts[other, 4]) / 2 - verdicts[end, 4]) / 3
    torch.testing.assert_close(alone[0], expected, rtol=1e-4, atol=1e-5)


def test_marks_are_read_through_sentinels() -> None:
    model = new_tiny_t5(TOKENIZER)
    marker = Marker(model, TOKENIZER)
    ids = TOKENIZER(["gal a: a car b: a"], return_tensors="pt").input_ids
    states = model.encoder(input_ids=ids).last_hidden_state * model.config.d_model**-0.5
    table = model.shared.weight[TOKENIZER.convert_tokens_to_ids([f"<extra_id_{i}>" for i in range(9)])]
    labels, verdicts = marker.logits(ids)
    torch.testing.assert_close(torch.cat([labels, verdicts], -1), states @ table.T, rtol=1e-4, atol=1e-5)
    best = int(verdicts[0, -1].argmax())
    texts = collate_marked([Marked("gal a: a car b: a", [], [(12, 0)], number) for number in range(5)], TOKENIZER)
    assert marker.right(texts)[1].tolist() == [number == best for number in range(5)]


def test_matching_heads_attend_to_the_equal_token() -> None:
    torch.manual_seed(0)
    model = new_tiny_t5(TOKENIZER)
    matching_heads(model)
    model.set_attn_implementation("eager")
    ids = torch.tensor([[11, 12, 13, 14, 15, 16, 13, 17, 18]])
    attention = model.encoder(input_ids=ids, output_attentions=True).attentions[0][0]  # [heads, L, L]
    half = len(attention) // 2
    assert (attention[:half, 2, 6] > 0.5).all() and (attention[:half, 6, 2] > 0.5).all()
    assert (attention[half, range(1, 9), range(8)] > 0.3).all()
    assert (attention[half + 1, range(8), range(1, 9)] > 0.3).all()


def test_what_stands_beside_equal_tokens_is_subtracted() -> None:
    """Of "red car, blue cat" and "blue car, red cat" more is left at the things than of the same said twice."""
    torch.manual_seed(0)
    model = new_tiny_t5(TOKENIZER)
    matching_heads(model)
    first, second = model.encoder.block[0].layer[0].SelfAttention, model.encoder.block[1].layer[0]
    space = first.o.weight[:, 3 * 32 : 4 * 32] / 2  # of the tokens before
    torch.testing.assert_close(space.T @ space, torch.eye(32), rtol=1e-4, atol=1e-5)
    left = []

    def see(module: object, inputs: object, output: tuple[torch.Tensor, ...]) -> None:
        left.append((output[0] @ space).norm(dim=-1))

    second.register_forward_hook(see)
    texts = (
        "a red car and a blue cat . a red car and a blue cat",
        "a red car and a blue cat . a blue car and a red cat",
    )
    for text in texts:
        model.encoder(input_ids=TOKENIZER([text], return_tensors="pt").input_ids)
    ids = TOKENIZER([texts[0]], return_tensors="pt").input_ids[0]
    things = torch.isin(ids, torch.tensor(TOKENIZER.convert_tokens_to_ids(["Ġcar", "Ġcat"])))
    assert things.sum() == 4
    equal, exchanged = (found[0][things].mean() for found in left)
    assert exchanged > 1.3 * equal


def test_the_loss_falls_on_one_batch() -> None:
    torch.manual_seed(0)
    model = new_tiny_t5(TOKENIZER)
    losses, batch = Losses(model, TOKENIZER, CPU), Mixture(TOKENIZER, MIXED, 1, TRAIN, 8, 1)[0]
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    found = []
    for _ in range(12):
        loss = losses(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    assert found[-1] < 0.6 * found[0]
    metrics = Measure(losses, TOKENIZER, 1, 2)()
    assert {"denoising_perplexity", "grid_late_perplexity", "follows_accuracy", "agreement_accuracy"} <= metrics.keys()


def test_a_run_that_was_stopped_ends_as_an_unbroken_one(tmp_path: Path) -> None:
    words = (*SMALL, "--steps", 4, "--evaluate_every", 2)
    assert_same_after_a_stop(words, tmp_path, 2)


def test_a_run_by_the_clock_ends(tmp_path: Path) -> None:
    call(TRAINING, *SMALL, "--minutes", 0.02, "--evaluate_every", 60, "--output", tmp_path)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["steps"] >= 1 and "same_accuracy" in metrics


def test_shares_beyond_one_are_refused(tmp_path: Path) -> None:
    assert "at most 1" in refuse(TRAINING, *SMALL, "--grids", 0.75, "--output", tmp_path)
