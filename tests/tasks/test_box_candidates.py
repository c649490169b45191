"""Runners-up of a grounding head with one query: other things its heat map points at."""

from __future__ import annotations

import pytest
import torch
from torchvision.ops import box_iou

from vlkit.drawn.album import demo_album
from vlkit.serving import load_models
from vlkit.tasks.grounding.candidates import LEAST, SAME, runners_up

LEFT, MIDDLE, RIGHT = (0.2, 0.5, 0.2, 0.2), (0.5, 0.5, 0.2, 0.2), (0.8, 0.5, 0.2, 0.2)


def test_one_runner_up_a_thing_hottest_first_and_none_like_the_answer():
    # Two cells a thing, the second of each a little off.
    cells = torch.tensor([LEFT, MIDDLE, RIGHT, (0.21, 0.5, 0.2, 0.2), (0.51, 0.5, 0.2, 0.2), (0.79, 0.5, 0.2, 0.2)])
    heat = torch.tensor([3.0, 1.0, 2.0, 2.9, 0.9, 1.9])
    boxes, shares = runners_up(heat, cells, torch.tensor(LEFT), 5)
    assert shares.tolist() == pytest.approx([torch.tensor(-1.0).exp().item(), torch.tensor(-2.0).exp().item()])
    # The mean of a thing's two cells, the hotter of them weighing more.
    assert boxes[:, 0].tolist() == pytest.approx([0.795, 0.505], abs=2e-3)
    assert 0.795 < boxes[0, 0] < 0.8 and 0.5 < boxes[1, 0] < 0.505
    first, _ = runners_up(heat, cells, torch.tensor(LEFT), 1)
    torch.testing.assert_close(first, boxes[:1])


def test_cold_places_and_count_zero_give_none():
    cells = torch.tensor([LEFT, MIDDLE])
    cold = torch.tensor([0.0, torch.tensor(LEAST / 2).log()])
    assert all(len(part) == 0 for part in runners_up(cold, cells, torch.tensor(LEFT), 5))
    assert all(len(part) == 0 for part in runners_up(torch.zeros(2), cells, torch.tensor(LEFT), 0))


def test_the_shipped_model_offers_other_things_after_its_answer():
    (model,) = load_models(device="cpu").by_task["grounding"].values()
    album, first_right, any_right, asked, several = demo_album(), 0, 0, 0, 0
    for entry in album.about_images[:40]:
        for phrase, truth in entry.phrases[:1]:
            found = model.ground(album.images / entry.name, phrase, candidates=5)
            best = model.ground(album.images / entry.name, phrase)
            assert found[0].box == pytest.approx(best.box, abs=1e-3) and found[0].score == pytest.approx(best.score)
            scores = [candidate.score for candidate in found]
            assert scores == sorted(scores, reverse=True) and scores[-1] >= 0.99 * LEAST * scores[0]
            boxes = torch.tensor([candidate.box for candidate in found])
            overlaps = box_iou(boxes, boxes)
            assert all(overlaps[i, j] <= SAME + 0.1 for i in range(len(found)) for j in range(i))  # clipped: + a little
            right = (box_iou(boxes, torch.tensor([truth]))[:, 0] >= 0.5).tolist()
            first_right, any_right, asked = first_right + right[0], any_right + any(right), asked + 1
            several += len(found) > 1
    assert asked > 20 and several > 0.5 * asked
    # Where the answer is wrong, the thing that is meant is mostly among the runners-up.
    assert first_right > 0.6 * asked and any_right - first_right > 0.4 * (asked - first_right)
    print(f"{asked} phrases: {first_right} right at once, {any_right} within 5 candidates")
