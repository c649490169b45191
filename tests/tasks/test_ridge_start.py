"""The closed-form start of a pair of encoders: leave-one-out scores, angles of texts, recall with a known map."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from vlkit.tasks.retrieval.start import PENALTIES, Start, solve

IMAGES, CAPTIONS = 120, 3
OWNER = torch.arange(IMAGES).repeat_interleave(CAPTIONS)


def pairs_with_a_common_cause() -> tuple[torch.Tensor, torch.Tensor]:
    """Features of images [120, 20] and of their captions [360, 12]: linear in six hidden factors, plus noise."""
    torch.manual_seed(0)
    factors = torch.randn(IMAGES, 6)
    images = factors @ torch.randn(6, 20) + 5 + 0.1 * torch.randn(IMAGES, 20)
    texts = (factors @ torch.randn(6, 12))[OWNER] - 3 + 0.1 * torch.randn(IMAGES * CAPTIONS, 12)
    return images, texts


def embed(side: tuple[torch.Tensor, torch.Tensor], features: torch.Tensor) -> torch.Tensor:
    weight, bias = side
    return F.normalize(features.double() @ weight.T + bias, dim=1)


def recall(start: Start, images: torch.Tensor, texts: torch.Tensor) -> float:
    found = (embed(start.text, texts) @ embed(start.image, images).T).argmax(1)
    return float((found == OWNER[: len(texts)]).double().mean())


def test_images_find_their_captions_without_a_training_step():
    images, texts = pairs_with_a_common_cause()
    for width in (16, 12, 6):  # wider than the texts, as wide, and their principal directions
        assert recall(solve(images, texts, OWNER, width), images, texts) > 0.95, width
    shuffled = solve(images[torch.randperm(IMAGES)], texts, OWNER, 16)
    assert recall(shuffled, images, texts) < 0.2 and shuffled.recall < 20


def test_a_wider_space_keeps_the_angles_of_centred_texts():
    images, texts = pairs_with_a_common_cause()
    centred = F.normalize(texts.double() - texts.double().mean(0), dim=1)
    vectors = embed(solve(images, texts, OWNER, 16).text, texts)
    torch.testing.assert_close(vectors @ vectors.T, centred @ centred.T, rtol=0, atol=1e-9)


def test_the_judged_recall_is_that_of_solutions_without_the_judged_image():
    images, texts = (features.double() for features in pairs_with_a_common_cause())
    images, texts, owner = images[:30], texts[:90], OWNER[:90]
    start = solve(images, texts, owner, 12)
    targets = embed(start.text, texts).view(30, CAPTIONS, -1).mean(1)
    right = 0
    for left in range(30):
        rest = torch.arange(30) != left
        x, y = images[rest], targets[rest]
        centred = x - x.mean(0)
        gram = centred.T @ centred + start.penalty * torch.eye(20, dtype=torch.float64)
        weight = torch.linalg.solve(gram, centred.T @ (y - y.mean(0)))
        found = (images[left] - x.mean(0)) @ weight + y.mean(0)
        right += int((F.normalize(targets, dim=1) @ found).argmax() == left)
    # Without an image the means move as well, which the closed form includes.
    assert abs(start.recall - 100 * right / 30) < 1e-6
    scatter = float((images - images.mean(0)).square().sum()) / 20
    assert any(abs(start.penalty - share * scatter) < 1e-9 * scatter for share in PENALTIES)
