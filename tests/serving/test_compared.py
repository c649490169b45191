"""Two models on one input: what answers without training, and the predicted memory of an adapter's training step."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from helpers.shipped import trained_parameters
from vlkit.adapters.options import adapter_options
from vlkit.data.images import open_image
from vlkit.drawn.album import demo_album
from vlkit.errors import UserError
from vlkit.serving import Models, load_models
from vlkit.serving.compared import Compared
from vlkit.serving.costs import predicted_step, predicted_step_of
from vlkit.tasks.grounding import model as grounding
from vlkit.tasks.grounding.step_bench import GroundingBench
from vlkit.tasks.grounding.zero_shot import box_around
from vlkit.tasks.vqa import model as vqa
from vlkit.tasks.vqa.step_bench import VqaBench

pytestmark = pytest.mark.slow
BATCH = 3


@pytest.fixture(scope="module")
def models() -> Models:
    return load_models(device="cpu")


@pytest.fixture(scope="module")
def compared(models: Models) -> Compared:
    return Compared(models)


def test_each_task_has_its_adapters_and_what_needs_no_training(compared: Compared):
    assert list(compared["retrieval"]) == list(compared["grounding"]) == ["SHERL", "zero-shot tiny"]
    assert list(compared["vqa"]) == ["SHERL", "zero-shot tiny", "SHERL, image hidden"]
    assert compared.default("vqa") == compared.default("grounding") == ("SHERL", "zero-shot tiny")
    assert compared["vqa"]["zero-shot tiny"] is compared["vqa"]["zero-shot tiny"]  # made once
    assert compared.known("vqa", "zero-shot tiny") == {"base": "tiny", "method": None, "trained_parameters": 0}
    hidden = compared.known("vqa", "SHERL, image hidden")
    assert hidden == compared.known("vqa", "SHERL") and hidden["trained_parameters"] == trained_parameters("vqa")


def test_answers_without_training(compared: Compared):
    base, hidden = compared["vqa"]["zero-shot tiny"], compared["vqa"]["SHERL, image hidden"]
    first, other = (open_image(demo_album().images / entry.name) for entry in demo_album().about_images[:2])
    question = "what color is the car?"
    all_of_them = base.answer(first, question, k=10**6)
    assert sum(share for _, share in all_of_them) == pytest.approx(1) and len(dict(all_of_them)) == len(all_of_them)
    assert base.answer(first, question, k=2) == all_of_them[:2] != base.answer(other, question, k=2)
    # Only its size is seen of the image.
    assert hidden.answer(first, question) == hidden.answer(other.resize(first.size), question)
    assert hidden.answer(first, question) != compared["vqa"]["SHERL"].answer(first, question)
    with pytest.raises(UserError, match="the question is blank"):
        base.answer(first, " ")


def test_boxes_without_training(compared: Compared):
    similar = torch.zeros(4, 5)
    similar[1, 1] = similar[1, 2] = 0.8
    similar[2, 2] = 1.0
    similar[0, 4] = 0.9  # as similar, but apart
    assert box_around(similar).tolist() == pytest.approx([1 / 5, 1 / 4, 3 / 5, 3 / 4])
    base = compared["grounding"]["zero-shot tiny"]
    entries = [entry for entry in demo_album().about_images if entry.phrases][:8]
    for entry in entries:
        image = open_image(demo_album().images / entry.name)
        (x1, y1, x2, y2), score = base.ground(image, entry.phrases[0][0])
        assert 0 <= x1 < x2 <= image.width and 0 <= y1 < y2 <= image.height and -1 <= score <= 1
    with pytest.raises(UserError, match="the text is blank"):
        base.ground(image, "")


def test_a_predicted_step_is_that_of_the_adapters_own_model(models: Models):
    """Towers, fusion, head and loss: the bytes are those that the real step saves."""
    real = {"predicts": False, "device": "cpu", "precision": "32-true"}
    for task in ("vqa", "grounding"):
        config = models.configs[task]["SHERL"]
        predicted = predicted_step_of(config, BATCH)
        if task == "vqa":
            head, fusion, answers, _ = vqa.head_options(config["head"])
            bench = VqaBench("tiny", head=head, fusion=fusion, answers=len(answers), **real)
        else:
            head, fusion = grounding.head_options(config["head"])
            bench = GroundingBench("tiny", fusion=fusion, head=head, **real)
        measured = bench.memory(bench.model(adapter_options(config["adapters"]["image"])), BATCH)
        assert predicted.trainable_parameters == models.trained[task]["SHERL"] == measured.trainable_parameters
        np.testing.assert_allclose(predicted.saved_bytes, measured.saved_bytes, rtol=0.01)
        assert predicted.total_bytes == pytest.approx(measured.total_bytes, rel=0.05)


def test_a_step_of_search_and_of_classes(models: Models):
    config = models.configs["retrieval"]["SHERL"]
    options = adapter_options(config["adapters"]["image"])
    search, classes = predicted_step("tiny", options, BATCH), predicted_step("tiny", options, BATCH, "classification")
    assert predicted_step_of(config, BATCH) == search
    assert 0 < classes.saved_bytes < search.saved_bytes  # one tower
