"""Boxes that move with pixels, what mirrored texts say, matching, and the losses of grounding."""

from __future__ import annotations

import random
from itertools import permutations

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torchvision.ops import box_convert, box_iou, generalized_box_iou

from vlkit.data.manifest import Dataset, write_dataset
from vlkit.encoders.bases import Preprocess
from vlkit.tasks.grounding.baseline import blind_boxes, blind_metrics
from vlkit.tasks.grounding.data import BoxCollate, BoxedImages, BoxTransform, Fit, crop_around, flip, with_boxes
from vlkit.tasks.grounding.head import BoxPrediction
from vlkit.tasks.grounding.losses import BoxLoss, cell_shares, grounding_loss, match_queries
from vlkit.tasks.grounding.mirror import mirrored
from vlkit.tasks.grounding.overlap import pairwise_giou, pairwise_iou

PLAIN = Preprocess((64, 48), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "bilinear")
BOXES = [[20.0, 10.0, 50.0, 40.0], [70.0, 50.0, 110.0, 70.0]]


def drawn(boxes: list[list[float]] = BOXES, size: tuple[int, int] = (120, 80)) -> Image.Image:
    """A black image whose boxes are white."""
    image = Image.new("RGB", size)
    pen = ImageDraw.Draw(image)
    for x1, y1, x2, y2 in boxes:
        pen.rectangle([x1, y1, x2 - 1, y2 - 1], fill="white")
    return image


def brightness(pixels: Tensor, box: Tensor) -> float:
    """Mean of the pixels in a box (x1, y1, x2, y2 in 0..1)."""
    height, width = pixels.shape[1:]
    x1, y1, x2, y2 = (box * torch.tensor([width, height] * 2)).round().int().tolist()
    return float(pixels[:, y1:y2, x1:x2].mean())


@pytest.mark.parametrize("shape", ["squash", "letterbox"])
@pytest.mark.parametrize("augment", ["none", "crop"])
def test_boxes_keep_their_content(shape: str, augment: str):
    transform = BoxTransform(PLAIN, shape, augment)
    transform.color = lambda image: image
    for seed in range(8):
        random.seed(seed)
        pixels, boxes = transform(drawn(), torch.tensor(BOXES))
        assert pixels.shape == (3, 64, 48) and pixels.dtype == boxes.dtype == torch.float32
        for box in boxes:
            assert brightness(pixels, box) > 0.85
        # Everything white is in one of the boxes.
        grey = pixels.clone()
        for box in boxes:
            x1, y1, x2, y2 = (box * torch.tensor([48, 64] * 2)).round().int().tolist()
            grey[:, max(0, y1 - 1) : y2 + 1, max(0, x1 - 1) : x2 + 1] = 0
        assert float(grey.max()) < 0.1


@pytest.mark.parametrize("shape", ["squash", "letterbox"])
@pytest.mark.parametrize("size", [(120, 80), (31, 97), (640, 427), (48, 64), (5000, 3)])
def test_the_way_back_is_exact(shape: str, size: tuple[int, int]):
    generator = torch.Generator().manual_seed(0)
    boxes = torch.rand(20, 2, 2, generator=generator).sort(1).values.reshape(20, 4) * torch.tensor([*size, *size])
    transform = BoxTransform(PLAIN, shape)
    _, inside = transform(Image.new("RGB", size), boxes)
    back = transform.fit.to_image(inside, *size)
    torch.testing.assert_close(back, boxes, rtol=1e-5, atol=1e-5 * max(size))


def test_the_whole_image_gets_in():
    whole = torch.tensor([[0.0, 0.0, 120.0, 80.0]])
    assert BoxTransform(PLAIN, "squash")(drawn(), whole)[1].tolist() == [[0, 0, 1, 1]]
    left, top, right, bottom = BoxTransform(PLAIN, "letterbox")(drawn(), whole)[1][0].tolist()
    assert (left, right) == (0, 1) and top == pytest.approx(1 - bottom) and (bottom - top) * 64 == 32
    assert Fit((64, 48), "letterbox").inner(120, 80) == (0, 16, 48, 32)


def test_images_without_boxes_pass():
    pixels, boxes = BoxTransform(PLAIN, augment="crop")(drawn(), torch.empty(0, 4))
    assert pixels.shape == (3, 64, 48) and boxes.shape == (0, 4)


def test_crops_hold_every_box_and_most_of_the_image():
    sizes = set()
    for seed in range(60):
        random.seed(seed)
        image, boxes = crop_around(drawn(), with_boxes(drawn().size, torch.tensor(BOXES)))
        assert image.width >= 90 and image.height >= 60
        corners = boxes.as_subclass(Tensor)
        sides = box_convert(corners, "xyxy", "cxcywh")[:, 2:]
        assert sides.tolist() == [[30, 30], [40, 20]]  # none was cut
        assert float(corners.min()) >= 0 and bool((corners[:, 2:] <= torch.tensor(image.size)).all())
        sizes.add(image.size)
    assert len(sizes) > 10


def test_flip_mirrors_pixels_boxes_and_words():
    image, boxes, texts = flip(drawn(), torch.tensor(BOXES), ["the left block", "Block at the RIGHT"])
    assert texts == ["the right block", "Block at the LEFT"]
    assert boxes.as_subclass(Tensor).tolist() == [[70, 10, 100, 40], [10, 50, 50, 70]]
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
    for box in boxes.as_subclass(Tensor):
        assert brightness(pixels, box / torch.tensor([120, 80] * 2)) == 1
    assert flip(drawn(), torch.tensor(BOXES), ["the left block", "block right behind it"]) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("second from the left", "second from the right"),
        ("Leftmost red thing", "Rightmost red thing"),
        ("LEFT MAN", "RIGHT MAN"),
        ("left of the dog on the right side", "right of the dog on the left side"),
        ("right-hand cup", "left-hand cup"),
        ("guy on far rt", "guy on far lft"),
        ("man l", "man r"),
        ("the upright bright copyright", "the upright bright copyright"),
        ("the east wing", "the west wing"),
        ("red star", "red star"),
        ("it's a dog", "it's a dog"),
        ("right behind the sofa", None),
        ("right next to him", None),
        ("food left over", None),
        ("man at 3 o'clock", None),
        ("the person is right", None),
    ],
)
def test_mirrored_texts(text: str, expected: str | None):
    assert mirrored(text) == expected
    if expected is not None:
        assert mirrored(expected) == text


@pytest.fixture()
def dataset(tmp_path) -> Dataset:
    records = []
    for image in range(3):
        drawn().save(tmp_path / f"{image}.png")
        for number in range(5 if image == 0 else 2):
            box = BOXES[number % 2]
            record = {"id": f"{image}/{number}", "image": f"{image}.png", "text": f"left {number}", "box": box}
            records.append(record if number else {**record, "boxes": BOXES, "box": [20.0, 10.0, 110.0, 70.0]})
    return write_dataset(
        tmp_path, name="x", task="grounding", splits={"train": records}, media_root=tmp_path, source=None
    )


def test_texts_of_a_image_share_it(dataset: Dataset):
    transform = BoxTransform(PLAIN)
    single = BoxedImages(dataset, "train", transform, texts=4)
    assert len(single) == 4 and single.count == 9
    assert [len(single[i].texts) for i in range(4)] == [4, 1, 2, 2]
    assert [len(boxes) for boxes in single[0].boxes] == [1, 1, 1, 1]
    several = BoxedImages(dataset, "train", transform, texts=4, several=True)
    batch = BoxCollate(lambda texts: torch.tensor([[len(text)] for text in texts]))([several[0], several[2]])
    assert batch.owner.tolist() == [0, 0, 0, 0, 1, 1] and batch.ids.shape == (6, 1)
    assert batch.valid.all(1).tolist() == [True, False, False, False, True, False] and batch.valid[:, 0].all()
    expected = torch.tensor(BOXES) / torch.tensor([120, 80] * 2)
    torch.testing.assert_close(batch.boxes[0], expected)
    torch.testing.assert_close(batch.boxes[1, 0], expected[1])


def test_flipped_examples_stay_true(dataset: Dataset):
    examples = BoxedImages(dataset, "train", BoxTransform(PLAIN), flip=True)
    seen = set()
    for seed in range(20):
        random.seed(seed)
        example = examples[1]
        side = example.texts[1].split()[0]
        seen.add(side)
        assert (float(example.boxes[1][0, 0]) > 0.5) == (side == "left")  # the second block is on the right, unflipped
        assert brightness(example.pixels, example.boxes[1][0]) > 0.85
    assert seen == {"left", "right"}


# --- losses -----------------------------------------------------------------------------------------------------------


def prediction(batch: int = 3, queries: int = 4, grid: tuple[int, int] = (2, 3), seed: int = 0) -> BoxPrediction:
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator).requires_grad_()

    cells = grid[0] * grid[1]
    heat = torch.randn(batch, queries, cells, generator=generator).requires_grad_()
    return BoxPrediction(rand(batch, queries, 4), rand(batch, queries), heat, rand(batch, cells, 4), grid)


def targets(batch: int = 3, count: int = 3, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.rand(batch, count, 2, 2, generator=generator).sort(2).values.flatten(2)
    boxes[..., 2:] += 0.01
    valid = torch.ones(batch, count, dtype=torch.bool)
    valid[1, 1:] = False
    boxes[1, 1:] = 0
    return boxes, valid


def test_matching_equals_brute_force():
    for seed in range(6):
        found, weights = prediction(seed=seed), BoxLoss()
        target, valid = targets(seed=seed + 50)
        query, matched = match_queries(found, target, valid, weights)
        assert matched.bool().tolist() == valid.tolist()
        for row in range(3):
            count = int(valid[row].sum())
            corners = box_convert(found.boxes[row], "cxcywh", "xyxy")
            wanted = target[row, :count]
            cost = 5 * torch.cdist(found.boxes[row].detach(), box_convert(wanted, "xyxy", "cxcywh"), p=1)
            cost = (cost - 2 * generalized_box_iou(corners, wanted) - found.scores[row].sigmoid()[:, None]).detach()
            best = min(
                permutations(range(4), count), key=lambda order: sum(float(cost[q, g]) for g, q in enumerate(order))
            )
            assert tuple(query[row, :count].tolist()) == best


def test_more_boxes_than_queries_and_one_query():
    found = prediction(queries=2)
    target, valid = targets()
    query, matched = match_queries(found, target, valid, BoxLoss())
    assert matched.sum(1).tolist() == [2, 1, 2]
    assert sorted(query[0][matched[0].bool()].tolist()) == [0, 1]
    query, matched = match_queries(prediction(queries=1), target, valid, BoxLoss())
    assert query.sum() == 0 and matched.tolist() == [[1, 0, 0]] * 3


def test_losses_are_those_of_the_pairs():
    found = prediction(batch=2, queries=1)
    target, valid = targets(batch=2, count=1)
    valid[1] = True
    target[1] = torch.tensor([0.1, 0.2, 0.5, 0.9])
    losses = grounding_loss([found], target, valid, BoxLoss())
    corners = box_convert(found.boxes[:, 0], "cxcywh", "xyxy")
    giou = (1 - generalized_box_iou(corners, target[:, 0]).diagonal()).mean()
    l1 = (found.boxes[:, 0] - box_convert(target[:, 0], "xyxy", "cxcywh")).abs().sum(1).mean()
    torch.testing.assert_close(losses["giou"], giou.detach())
    torch.testing.assert_close(losses["l1"], l1.detach())
    parts = {name: losses[name] for name in ("heat", "cells", "score")}
    expected = 5 * l1 + 2 * giou + sum(parts.values())
    torch.testing.assert_close(losses["loss"], expected)
    both = grounding_loss([found, found], target, valid, BoxLoss(auxiliary=0.5))
    torch.testing.assert_close(both["loss"], 1.5 * expected - 0.5 * parts["cells"])  # cells have no layers


def test_padding_has_no_say_and_gradients_are_finite():
    target, valid = targets()
    found = prediction()
    loss = grounding_loss([found], target, valid, BoxLoss())["loss"]
    loss.backward()
    for tensor in (found.boxes, found.scores, found.heat, found.cells):
        assert tensor.grad is not None and bool(tensor.grad.isfinite().all())
    other = target.masked_fill(~valid.unsqueeze(-1), 0.7)
    torch.testing.assert_close(grounding_loss([prediction()], other, valid, BoxLoss())["loss"], loss)


def test_shares_of_cells():
    boxes = torch.tensor([[0.0, 0.0, 0.5, 1.0], [0.25, 0.25, 0.75, 0.5], [0.3, 0.1, 0.31, 0.11], [1.2, 0.0, 1.4, 0.5]])
    shares = cell_shares(boxes, (2, 4))
    expected = [[0.25, 0.25, 0, 0] * 2, [0, 0.5, 0.5, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0, 0, 0], [0.0] * 8]
    torch.testing.assert_close(shares, torch.tensor(expected))


def test_iou_of_pairs_equals_torchvision():
    left = torch.rand(30, 2, 2, generator=torch.Generator().manual_seed(0)).sort(1).values.reshape(30, 4)
    right = left.flip(0)
    torch.testing.assert_close(pairwise_iou(left, right), box_iou(left, right).diagonal())
    torch.testing.assert_close(pairwise_giou(left, right), generalized_box_iou(left, right).diagonal())
    torch.testing.assert_close(
        pairwise_giou(left[:, None], right[None]), generalized_box_iou(left, right), atol=1e-5, rtol=1e-5
    )


def test_blind_boxes_are_the_best_of_the_training_split(dataset: Dataset):
    common = [10.0, 10.0, 50.0, 50.0]
    records = [{"image": "0.png", "box": common if i % 3 else [60.0, 20.0, 119.0, 79.0]} for i in range(90)]
    blind = blind_boxes(dataset, records)
    sides = np.array([120, 80, 120, 80])
    np.testing.assert_allclose(blind["constant"] * sides, common, rtol=1e-5)
    metrics = blind_metrics(blind, dataset, records)
    assert metrics["acc@0.5"] == metrics["constant_box_acc@0.5"] == pytest.approx(200 / 3)
    assert metrics["centre_box_acc@0.5"] < 50 and 0 < metrics["mean_iou"] < 100


def test_parts_of_a_batch_have_the_mean_gradient_of_the_whole():
    target, valid = targets()
    whole = prediction()
    grounding_loss([whole], target, valid, BoxLoss())["loss"].backward()
    parts, count = prediction(), valid.sum() / 2
    for rows in (slice(0, 1), slice(1, 3)):
        part = BoxPrediction(*(tensor[rows] for tensor in parts[:4]), parts.grid)
        (grounding_loss([part], target[rows], valid[rows], BoxLoss(), count)["loss"] / 2).backward()
    for one, other in zip(whole[:4], parts[:4], strict=True):
        torch.testing.assert_close(one.grad, other.grad)
