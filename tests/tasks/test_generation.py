"""Writing with a T5: visual embedding, cached steps, beam search; for every method that adapts a decoder."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers import tiny
from vlkit.adapters import ADAPTERS
from vlkit.adapters.facts import kinds_with
from vlkit.adapters.stacks import Memory, Past
from vlkit.encoders.stage import stage_hf, stage_t5_decoder
from vlkit.tasks.generation import Reformulator, beam_search
from vlkit.tasks.visual_embedding import BOX, VisualEmbedding

WRITERS = kinds_with("feeds_decoder")


def stacks(kind: str, **options: Any) -> Reformulator:
    """A T5 adapted by a method, with random weights in place of those that start at zero."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        t5 = tiny.tiny_t5()
        model = Reformulator(*ADAPTERS[kind](**options).build_stacks(stage_hf(t5), stage_t5_decoder(t5)))
        for parameter in model.parameters():
            if parameter.requires_grad and not parameter.any():
                torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("cells", [0, 3])
def test_one_token_at_a_time_gives_the_same_logits(kind: str, cells: int) -> None:
    model, ids = stacks(kind), tiny.padded_ids((5, 9))
    start = torch.tensor([[0, 4, 7, 3, 9], [0, 8, 2, 2, 5]])
    with torch.no_grad():
        visual = torch.randn(2, cells, model.decoder.base.token_dim) if cells else None
        memory = model.text.read(ids, visual)
        whole, past = model.decode(memory, start), Past()
        steps = [model.decode(memory, start[:, i : i + 1], past) for i in range(start.shape[1])]
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", WRITERS)
def test_visual_tokens_and_padding(kind: str) -> None:
    """Visual tokens change what is written; padding of the text does not."""
    model, short = stacks(kind), tiny.padded_ids((5,))
    long = torch.cat([short, torch.zeros(1, 4, dtype=torch.int64)], dim=1)
    visual, start = torch.randn(1, 3, model.decoder.base.token_dim), torch.tensor([[0, 4, 7]])
    with torch.no_grad():
        plain, seen, padded = (
            model.decode(model.text.read(ids, tokens), start)
            for ids, tokens in ((short, None), (short, visual), (long, visual))
        )
    assert float((plain - seen).abs().max()) > 1e-4
    torch.testing.assert_close(padded, seen, atol=1e-5, rtol=1e-5)


class Chain:
    """A model whose next token depends on the last one alone, with known probabilities."""

    def __init__(self, table: Tensor) -> None:
        self.table = table

    def decode(self, memory: Memory, start: Tensor, past: Past | None = None) -> Tensor:
        return self.table[start].log()


def test_beam_search_finds_the_most_probable_texts_and_ranks_by_length() -> None:
    # 0 pad and start, 1 end, 2 and 3 words. Greedy takes 2 (0.6), but the best text is 3 3 end.
    table = torch.tensor([[0.0, 0.0, 0.6, 0.4], [1.0, 0, 0, 0], [0.0, 0.3, 0.35, 0.35], [0.0, 0.1, 0.0, 0.9]])
    memory = Memory(torch.zeros(2, 1, 1), torch.zeros(2, 1, 1), None)
    ids, scores = beam_search(Chain(table), memory, 0, 1, 0, beams=3, max_tokens=3)
    assert ids.shape == (2, 3, 3) and torch.equal(ids[0], ids[1])
    assert ids[0, 0].tolist() == [3, 3, 3] and float(scores[0, 0]) == pytest.approx(math.log(0.4 * 0.9 * 0.9))
    assert scores[0].tolist() == sorted(scores[0].tolist(), reverse=True)
    short, _ = beam_search(Chain(table), memory, 0, 1, 0, beams=6, max_tokens=3, length_power=0.0)
    by_mean, logs = beam_search(Chain(table), memory, 0, 1, 0, beams=6, max_tokens=3, length_power=1.0)
    means = logs[0] / (by_mean[0] != 0).sum(-1)
    assert means.tolist() == sorted(means.tolist(), reverse=True)
    assert {tuple(row) for row in short[0].tolist()} == {tuple(row) for row in by_mean[0].tolist()}


def test_beam_search_leaves_loops() -> None:
    # After 3 comes 3, most of the time; the end hardly ever.
    table = torch.tensor([[0.0, 0.0, 0.1, 0.9], [1.0, 0, 0, 0], [0.0, 0.1, 0.1, 0.8], [0.0, 0.01, 0.09, 0.9]])
    memory = Memory(torch.zeros(1, 1, 1), torch.zeros(1, 1, 1), None)
    written = [beam_search(Chain(table), memory, 0, 1, 0, 1, 5, no_repeat=n)[0][0, 0].tolist() for n in (0, 1, 2)]
    assert written == [[3, 3, 3, 3, 3], [3, 2, 1], [3, 3, 2, 3, 1]]


def test_visual_embedding_against_loops() -> None:
    """Two images of 7 x 7 cells, pooled one by one with overlapping windows; the order starts anew in the second."""
    torch.manual_seed(0)
    visual, table = VisualEmbedding(5, 8, side=6).double(), torch.randn(50, 8).double()
    grid = torch.randn(1, 2 * 49, 5).double()
    found = visual(grid, table, images=2)
    assert found.shape == (1, 72, 8)
    rms = lambda x, w: x / (x.square().mean() + 1e-6).sqrt() * w  # noqa: E731
    box = rms(visual.box(torch.zeros(BOX).double()), visual.box_norm.weight)
    for image, row, column in ((0, 0, 0), (0, 5, 2), (1, 3, 5)):
        rows = slice(math.floor(row * 7 / 6), math.ceil((row + 1) * 7 / 6))
        columns = slice(math.floor(column * 7 / 6), math.ceil((column + 1) * 7 / 6))
        cells = grid[0, image * 49 : image * 49 + 49].view(7, 7, 5)
        cell = cells[rows, columns].amax(dim=(0, 1))
        expected = rms(visual.project(cell), visual.project_norm.weight) + box
        expected = expected + visual.image.weight[image] + table[49 - (row * 6 + column)]
        torch.testing.assert_close(found[0, image * 36 + row * 6 + column], expected, atol=1e-12, rtol=0)
    assert visual(grid[:, :12], table, (3, 4)).shape == (1, 12, 8)  # smaller than the side: not pooled
    with pytest.raises(ValueError, match="do not fill"):
        visual(grid, table, images=3)


@pytest.mark.parametrize("kind", [kind for kind in WRITERS if not ADAPTERS[kind].joint_side_network])
def test_visual_tokens_join_the_memory_at_its_scale(kind: str) -> None:
    """They skip the encoder, so its final norm must reach them: larger ones drowned the text and the attention."""
    model, ids = stacks(kind), tiny.padded_ids((5,))
    visual = torch.randn(1, 3, model.decoder.base.token_dim)
    with torch.no_grad():
        memory, louder = (model.text.read(ids, scale * visual).side[:, 5:] for scale in (1, 50))
    torch.testing.assert_close(memory, louder, atol=1e-4, rtol=1e-4)


def test_a_joint_side_network_reads_a_frozen_image_tower() -> None:
    """CLIP-T5 with LST: the grid is that of a frozen tower; no ladder stands beside it."""
    from vlkit.encoders.load import load_base
    from vlkit.encoders.text_side import text_side
    from vlkit.tasks.captioning.model import CaptionOptions
    from vlkit.tasks.captioning.model import build_model as captioner
    from vlkit.tasks.fusion import FusionOptions
    from vlkit.tasks.vqa.heads import GenerateOptions
    from vlkit.tasks.vqa.model import build_model as answerer

    def trained(model: object) -> list[str]:
        return [name for name, p in model.image.named_parameters() if p.requires_grad]

    for kind, frozen in (("lst", True), ("sherl", False)):
        base = load_base("tiny")
        caption = captioner(base, text_side("tiny", base), ADAPTERS[kind](), CaptionOptions())
        base = load_base("tiny")
        answer = answerer(
            base, text_side("tiny", base), ADAPTERS[kind](), GenerateOptions(), FusionOptions(32, 1, 2), 0
        )
        assert [not trained(model) for model in (caption, answer)] == [frozen, frozen]


def test_visual_tokens_differ_by_content_at_the_start() -> None:
    torch.manual_seed(0)
    visual, table = VisualEmbedding(16, 64, side=6), torch.randn(50, 64)
    grid = torch.randn(20, 36, 16)

    def share() -> float:
        tokens = visual(grid, table).detach()
        return float(tokens.var(dim=0).mean() / tokens.square().mean())

    published = share()
    visual.start_with_content()
    assert published < 0.5 and share() > 0.85
