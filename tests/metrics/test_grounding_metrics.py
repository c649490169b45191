"""Boxes, referring expressions, and Flickr30k Entities from its official files."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchvision

from vlkit.data.sources.flickr30k_entities import match_predictions, read_phrases
from vlkit.errors import UserError
from vlkit.metrics.grounding import box_giou, box_iou, grounding_metrics, phrase_recall, precision_at_k

TARGET = [0, 0, 10, 10]


def test_overlap_of_boxes():
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 5], [5, 5, 15, 15], [20, 0, 30, 10], [3, 3, 3, 3]])
    np.testing.assert_allclose(box_iou(boxes, TARGET), [1, 0.5, 25 / 175, 0, 0], rtol=1e-6)
    np.testing.assert_allclose(box_giou(boxes, TARGET), [1, 0.5, 25 / 175 - 50 / 225, -100 / 300, 0], rtol=1e-6)
    assert box_iou(boxes[:, None], boxes[None]).shape == (5, 5)
    assert box_iou([0, 0, 0, 0], [0, 0, 0, 0]) == 0


def test_overlaps_equal_torchvision():
    corners = torch.rand(40, 2, 2, generator=torch.Generator().manual_seed(0)).sort(1).values.reshape(40, 4) * 100
    boxes = corners.numpy()
    np.testing.assert_allclose(
        box_iou(boxes[:, None], boxes[None]), torchvision.ops.box_iou(corners, corners), atol=1e-6
    )
    np.testing.assert_allclose(
        box_giou(boxes[:, None], boxes[None]), torchvision.ops.generalized_box_iou(corners, corners), atol=1e-5
    )


def test_threshold_is_inclusive():
    metrics = grounding_metrics([[0, 0, 10, 5], [0, 0, 10, 4.99], TARGET], [TARGET] * 3)
    assert metrics["acc@0.5"] == pytest.approx(200 / 3)
    assert metrics["mean_iou"] == pytest.approx(100 * (0.5 + 0.499 + 1) / 3)


def test_grounding_errors():
    with pytest.raises(UserError, match="predicted boxes: row 1 is not finite"):
        grounding_metrics([TARGET, [0, 0, np.nan, 1]], [TARGET] * 2)
    with pytest.raises(UserError, match="is the split empty"):
        grounding_metrics(np.zeros((0, 4)), np.zeros((0, 4)))
    with pytest.raises(ValueError, match="differ in number"):
        grounding_metrics([TARGET], [TARGET] * 2)


def test_precision_at_k_orders_by_score():
    far = [50, 50, 60, 60]
    boxes = [[far, TARGET], [TARGET, far], [[0, 0, 10, 5.5]] * 2, np.zeros((0, 4)), [far] * 5 + [TARGET]]
    scores = [[0.1, 0.9], [0.1, 0.9], [0.5, 0.4], [], [0.9] * 5 + [0.1]]
    metrics = precision_at_k(boxes, scores, [TARGET] * 5)
    assert metrics == {"p@1": 40.0, "p@5": 60.0, "p@10": 80.0}


def test_giou_is_stricter_for_badly_aligned_boxes():
    boxes = [[[2.3, 2.3, 11, 11]]]
    assert box_iou(boxes[0], [TARGET]) == pytest.approx(59.29 / 116.4)
    assert precision_at_k(boxes, [[1.0]], [TARGET]) == {"p@1": 100, "p@5": 100, "p@10": 100}
    assert precision_at_k(boxes, [[1.0]], [TARGET], overlap="giou") == {"p@1_giou": 0, "p@5_giou": 0, "p@10_giou": 0}


def test_equal_scores_are_won_by_the_larger_box():
    larger = [1, 0, 2, 1]
    for boxes in ([[TARGET, larger]], [[larger, TARGET]]):
        assert precision_at_k(boxes, [[0.5, 0.5]], [TARGET])["p@1"] == 0
        assert precision_at_k(boxes, [[0.5, 0.5]], [larger])["p@1"] == 100
    with pytest.raises(ValueError, match="query 0"):
        precision_at_k(boxes, [[0.5]], [TARGET])


def test_phrase_protocols():
    two = np.array([[0, 0, 10, 10], [30, 0, 40, 10]])
    either, around = [[0, 0, 10, 10]], [[0, 0, 40, 10]]
    for boxes, any_box, merged in ((either, 100, 0), (around, 0, 100), ([], 0, 0)):
        assert phrase_recall([boxes], [two], [["people"]], "any_box")["r@1"] == any_box
        assert phrase_recall([boxes], [two], [["people"]], "merged_boxes")["r@1"] == merged
    ranked = [[TARGET], [[50, 50, 60, 60]] * 11 + [TARGET]]
    metrics = phrase_recall(ranked, [[TARGET]] * 2, [["people", "other"], ["other"]], "any_box")
    assert (metrics["r@1"], metrics["r@1_people"], metrics["r@10_other"]) == (50, 100, 50)
    assert metrics["upper_bound_other"] == 100
    with pytest.raises(ValueError, match="protocol"):
        phrase_recall(ranked, [[TARGET]] * 2, [[], []], "all_boxes")


@pytest.fixture
def entities(tmp_path):
    (tmp_path / "test.txt").write_text("7\n")
    for folder in ("Sentences", "Annotations"):
        (tmp_path / folder).mkdir()
    (tmp_path / "Sentences/7.txt").write_text(
        "[/EN#11/people A man] with [/EN#12/clothing/other a red hat] .\n"
        "nobody .\n"
        "[/EN#11/people He] and [/EN#11/people he] stand [/EN#0/notvisual alone] in [/EN#14/scene the street] .\n"
    )
    box = "<bndbox><xmin>{}</xmin><ymin>0</ymin><xmax>{}</xmax><ymax>10</ymax></bndbox>"
    objects = [
        f"<name>11</name><name>12</name>{box.format(0, 10)}",
        f"<name>11</name>{box.format(20, 30)}",
        "<name>14</name><scene>1</scene><nobndbox>0</nobndbox>",
    ]
    text = "".join(f"<object>{inner}</object>" for inner in objects)
    (tmp_path / "Annotations/7.xml").write_text(f"<annotation>{text}</annotation>")
    return tmp_path


def test_entities_are_read_with_all_their_boxes(entities):
    phrases = read_phrases(entities, "test")
    assert [(p.sentence, p.entity, p.text, p.categories) for p in phrases] == [
        (0, "11", "A man", ("people",)),
        (0, "12", "a red hat", ("clothing", "other")),
        (2, "11", "He", ("people",)),
        (2, "11", "he", ("people",)),
    ]
    assert phrases[0].boxes.tolist() == [[0, 0, 10, 10], [20, 0, 30, 10]]
    assert phrases[1].boxes.tolist() == [[0, 0, 10, 10]]


def test_odd_characters_end_no_sentence(entities):
    path = entities / "Sentences/7.txt"
    path.write_text(path.read_text().replace(" .", "\u2028.", 1))
    assert [phrase.sentence for phrase in read_phrases(entities, "test")] == [0, 0, 2, 2]


def test_predictions_by_sentence(entities):
    phrases = read_phrases(entities, "test")
    predictions = [
        {"image_id": "7", "sentence_id": 2, "boxes": [[TARGET], []]},
        {"image_id": "7", "sentence_id": 0, "boxes": [[[1, 1, 2, 2]], [[3, 3, 4, 4], TARGET]]},
        {"image_id": "7", "sentence_id": 2, "boxes": []},  # a second one does not count
    ]
    ranked = match_predictions(phrases, predictions)
    assert [len(boxes) for boxes in ranked] == [1, 2, 1, 0]
    assert ranked[2].tolist() == [TARGET]
    with pytest.raises(UserError, match="image 7, sentence 2: 0 phrases, expected 2"):
        match_predictions(phrases, predictions[1:])
    with pytest.raises(UserError, match=r"1 sentences have none \(7 sentence 0\)"):
        match_predictions(phrases, predictions[:1])


def test_broken_entities_are_named(entities):
    sentences, annotation = entities / "Sentences/7.txt", entities / "Annotations/7.xml"
    annotation.write_text("<annotation><object><name>1</name><bndbox><xmin>1</xmin></bndbox></object></annotation>")
    with pytest.raises(UserError, match=r"7\.xml: an <object> lacks"):
        read_phrases(entities, "test")
    annotation.write_text("<annotation>")
    with pytest.raises(UserError, match=r"7\.xml: line 1: not valid XML"):
        read_phrases(entities, "test")
    annotation.write_text("<annotation></annotation>")
    with pytest.raises(UserError, match="no phrase of this split has a box"):
        read_phrases(entities, "test")
    sentences.write_text("fine .\n[/EN#11 man] .\n")
    with pytest.raises(UserError, match=r"7\.txt: line 2"):
        read_phrases(entities, "test")
    sentences.unlink()
    with pytest.raises(UserError, match=r"7\.txt: no such file"):
        read_phrases(entities, "test")
