"""Grounding, from official files to boxes on images: model, scripts, pipeline, wrong input."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file

import vlkit
from helpers import tiny
from helpers.scripts import ROOT, call, launch, refuse
from vlkit.adapters.linear import LinearOptions
from vlkit.adapters.sherl.options import SherlOptions
from vlkit.data.manifest import write_dataset
from vlkit.data.sources import flickr30k_entities
from vlkit.encoders.stage import stage_hf, stage_text, stage_vision
from vlkit.errors import UserError
from vlkit.metrics.grounding import grounding_metrics, precision_at_k
from vlkit.tasks.fusion import Fusion, FusionOptions, cell_codes
from vlkit.tasks.grounding.evaluate import Found, metrics_of
from vlkit.tasks.grounding.head import BoxHead, Grounder, Neck, Places, agreed_boxes
from vlkit.tasks.grounding.losses import BoxLoss, grounding_loss
from vlkit.tasks.grounding.overlap import pairwise_iou

TRAIN, EVALUATE, PREDICT = (f"tasks/grounding/{name}.py" for name in ("train", "evaluate", "predict"))
PREPARE = "data_prep/flickr30k_entities.py"
SIZE = (96, 72)
COLORS = ("red", "blue", "green", "yellow")
QUICK = ("--epochs", 2, "--batch_size", 4, "--device", "cpu", "--fusion.width", 48, "--fusion.heads", 2)


def square_image(rng: np.random.Generator) -> tuple[Image.Image, dict[str, list[float]]]:
    """Two coloured blocks on grey, one on the left and one on the right, and their boxes by colour."""
    image = Image.new("RGB", SIZE, "grey")
    pen, boxes = ImageDraw.Draw(image), {}
    for side, color in enumerate(rng.permutation(COLORS)[:2]):
        width, height = (int(rng.integers(16, 36)) for _ in range(2))
        x, y = side * 48 + int(rng.integers(0, 48 - width)), int(rng.integers(0, 72 - height))
        pen.rectangle([x, y, x + width - 1, y + height - 1], fill=str(color))
        boxes[str(color)] = [float(v) for v in (x, y, x + width, y + height)]
    return image, boxes


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    """Blocks in 12 + 3 + 3 + 3 images; half of the training texts have both boxes."""
    root, rng = tmp_path_factory.mktemp("blocks"), np.random.default_rng(0)
    splits: dict[str, list[dict]] = {}
    for split, count in {"train": 12, "val": 3, "testA": 3, "testB": 3}.items():
        for i in range(count):
            image, boxes = square_image(rng)
            image.save(root / f"{split}{i}.png")
            for color, box in boxes.items():
                record = {"id": f"{split}/{i}/{color}", "image": f"{split}{i}.png", "text": f"{color} block"}
                splits.setdefault(split, []).append({**record, "box": box, "width": SIZE[0], "height": SIZE[1]})
    write_dataset(root, name="blocks", task="grounding", splits=splits, media_root=root, source="made for a test")
    return root


@pytest.fixture(scope="module")
def trained(dataset: Path, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "sherl"
    call(TRAIN, "--data.root", dataset, "--output", folder, *QUICK)
    return folder


# --- the model --------------------------------------------------------------------------------------------------------


def small_model(queries: int = 1, vision=None, text=None, options=None) -> Grounder:
    torch.manual_seed(0)
    vision, text = vision or stage_vision(tiny.tiny_clip()), text or stage_hf(tiny.tiny_t5())
    options = options or LinearOptions()
    neck = Neck(vision, 32, 1)
    fusion = Fusion(neck, text, FusionOptions(width=32, layers=2, heads=2, dropout=0.0), queries)
    towers = options.build(vision, "tokens"), options.build(text, "tokens")
    return Grounder(*towers, neck, fusion, BoxHead(text, 32, places=True))


TOWERS = {
    "vit": lambda: stage_vision(tiny.tiny_clip()),
    "oblong": lambda: stage_vision(tiny.tiny_clip(vision={"image_size": (32, 48)})),
    "resnet": lambda: stage_vision(tiny.tiny_resnet_clip()),
    "convnext": lambda: stage_vision(tiny.tiny_timm_clip(name="test_convnext")),
    "timm": lambda: stage_vision(tiny.tiny_timm_clip()),
}
SIDES = {"oblong": (32, 48), "resnet": (64, 64), "convnext": (160, 160), "timm": (160, 160)}


@pytest.mark.parametrize("name", sorted(TOWERS))
def test_any_grid_of_any_tower(name: str):
    model = small_model(2, TOWERS[name](), options=SherlOptions())
    pixels = torch.rand(2, 3, *SIDES.get(name, (32, 32)))
    found = model(pixels, tiny.padded_ids((5, 9, 3)), torch.tensor([1, 0, 1]))
    assert len(found) == 2
    rows, columns = found[-1].grid
    assert found[-1].boxes.shape == (3, 2, 4) and found[-1].heat.shape == (3, 2, rows * columns)
    assert found[-1].cells.shape == (3, rows * columns, 4) and found[-1].scores.shape == (3, 2)
    assert bool((found[-1].boxes[..., 2:] > 0).all())
    assert (rows * 3 == columns * 2) == (name == "oblong")


@pytest.mark.parametrize("tower", ["t5", "bert", "clip"])
def test_texts_are_read_by_any_tower_without_their_padding(tower: str):
    clip = tiny.tiny_clip()
    text = {"t5": lambda: stage_hf(tiny.tiny_t5()), "bert": lambda: stage_hf(tiny.tiny_bert())}.get(
        tower, lambda: stage_text(clip)
    )()
    model = small_model(vision=stage_vision(clip), text=text).eval()
    torch.nn.init.normal_(model.head.places.words.weight)  # zero at first
    ids = tiny.clip_ids((5, 9)) if tower == "clip" else tiny.padded_ids((5, 9))
    both = model(tiny.images(2), ids, torch.tensor([0, 1]))[-1]
    alone = model(tiny.images(2)[:1], ids[:1, :5], torch.tensor([0]))[-1]
    torch.testing.assert_close(both.boxes[:1], alone.boxes, atol=1e-5, rtol=1e-5)


def test_boxes_start_at_the_cells_and_everything_trains():
    model = small_model(options=SherlOptions())
    found = model(tiny.images(2), tiny.padded_ids(), torch.tensor([0, 1]))
    torch.testing.assert_close(found[-1].boxes, agreed_boxes(found[-1].heat, found[-1].cells)[0])
    target = torch.tensor([[[0.1, 0.1, 0.6, 0.5]], [[0.5, 0.4, 0.9, 0.8]]])
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    for _ in range(2):  # what comes before a zero weight has a gradient from the second step on
        optimizer.zero_grad()
        found = model(tiny.images(2), tiny.padded_ids(), torch.tensor([0, 1]))
        grounding_loss(found, target, torch.ones(2, 1, dtype=torch.bool), BoxLoss())["loss"].backward()
        optimizer.step()
    idle = {name for name, p in model.named_parameters() if p.requires_grad and not (p.grad.abs().sum() > 0)}
    # A bias that every cell gets cancels in the softmax of the heat map: its gradient is zero but for rounding.
    assert {name for name in idle if "adapter.aggregator" not in name} - {"head.thing.bias"} == set()
    assert all(p.grad is None for p in model.image.base.parameters())


def test_words_and_queries_vote_for_positions():
    """What is voted for is the first two codes, x and y in -1..1, and votes add up over words that are not padding."""
    places = Places(4, 3)
    words, mask, codes = torch.randn(1, 3, 4), torch.tensor([[True, True, False]]), cell_codes(2, 2)
    assert places.named(words, mask, codes).abs().max() == places.meant(torch.randn(1, 2, 3), codes).abs().max() == 0
    with torch.no_grad():
        places.words.bias[0], places.point.bias[1] = -1.5, 2.0
    torch.testing.assert_close(places.named(words, mask, codes), torch.tensor([[[1.5, -1.5, 1.5, -1.5]]]))
    torch.testing.assert_close(places.meant(torch.randn(1, 1, 3), codes), torch.tensor([[[-1.0, -1.0, 1.0, 1.0]]]))


def test_the_box_is_that_of_one_thing_where_two_are_likely():
    left, right = [0.2, 0.5, 0.2, 0.4], [0.8, 0.5, 0.2, 0.4]
    cells = torch.tensor([[left, left, [0.22, 0.5, 0.2, 0.4], right, right]])
    heat = torch.tensor([[[2.0, 1.9, 1.9, 1.9, 1.9], [0.0, 0.0, 0.0, 9.0, 0.0]]])
    boxes, weights = agreed_boxes(heat, cells)
    assert boxes[0, 0, 0] == pytest.approx(0.2063, abs=1e-3) and boxes[0, 1].tolist() == pytest.approx(right)
    assert weights[0, 0, 3:].sum() == 0 and weights[0].sum(-1).tolist() == pytest.approx([1, 1])


@pytest.mark.parametrize("queries", [1, 3])
def test_training_overfits_a_toy(queries: int):
    """Blocks of two brightnesses, each asked for by its own word; with three queries also both at once."""
    model = small_model(queries)
    pixels, boxes, ids, owner = torch.zeros(4, 3, 32, 32), [], [], []
    rng = np.random.default_rng(1)
    for i in range(4):
        both = []
        for word, level in ((5, 2.0), (9, -2.0)):
            x, y = (0 if word == 5 else 16) + int(rng.integers(0, 6)), int(rng.integers(0, 20))
            pixels[i, :, y : y + 12, x : x + 10] = level
            both.append([x / 32, y / 32, (x + 10) / 32, (y + 12) / 32])
        asked = [([word], [box]) for word, box in zip((5, 9), both, strict=True)]
        for words, right in asked + ([([12], both)] if queries > 1 else []):
            ids.append([*words, 1])
            boxes.append(right + [[0.0] * 4] * (2 - len(right)))
            owner.append(i)
    target, ids, owner = torch.tensor(boxes), torch.tensor(ids), torch.tensor(owner)
    valid = target.sum(-1) > 0
    target, valid = (target, valid) if queries > 1 else (target[:, :1], valid[:, :1])
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    for _ in range(120):
        optimizer.zero_grad()
        found = model(pixels, ids, owner)
        grounding_loss(found, target, valid, BoxLoss())["loss"].backward()
        optimizer.step()
    with torch.no_grad():
        last = model.eval()(pixels, ids, owner)[-1]
    half = last.boxes[..., 2:] / 2
    corners = torch.cat([last.boxes[..., :2] - half, last.boxes[..., :2] + half], -1)
    for row in range(len(ids)):
        count = int(valid[row].sum())
        best = last.scores[row].topk(count).indices
        iou = pairwise_iou(corners[row, best].unsqueeze(1), target[row, :count].unsqueeze(0))
        assert float(iou.max(0).values.min()) > 0.5, (row, iou)


# --- scripts and pipeline ---------------------------------------------------------------------------------------------


def test_run_folder_and_report(trained: Path):
    names = ("config.yaml", "log.jsonl", "curves.png", "vlkit_adapter.json", "vlkit_adapter.safetensors", "README.md")
    assert all((trained / name).stat().st_size > 0 for name in names)
    metrics = json.loads((trained / "metrics.json").read_text())
    assert (metrics["task"], metrics["split"]) == ("grounding", "test")
    keys = {"acc@0.5", "mean_iou", "acc@0.5_giou"}
    assert keys | {"constant_box_acc@0.5", "centre_box_acc@0.5"} <= set(metrics["before"])
    assert keys | {"testA_acc@0.5", "testB_acc@0.5"} <= set(metrics["after"])
    assert 0 < metrics["trainable_parameters"] < metrics["total_parameters"] and metrics["saved_activation_bytes"] > 0
    config = json.loads((trained / "vlkit_adapter.json").read_text())
    assert set(config["base"]) == {"image", "text"} and config["preprocess"]["shape"] == "squash"
    losses = [json.loads(line)["loss"] for line in (trained / "log.jsonl").read_text().splitlines() if "lr" in line]
    assert losses and all(np.isfinite(losses))


def test_saved_adapter_measures_as_it_did_in_training(trained: Path, dataset: Path, tmp_path: Path):
    call(EVALUATE, "--model", trained, "--data.root", dataset, "--json", tmp_path / "m.json")
    again, after = (json.loads(p.read_text()) for p in (tmp_path / "m.json", trained / "metrics.json"))
    assert {key: again[key] for key in after["after"]} == pytest.approx(after["after"])
    call(
        EVALUATE,
        "--model",
        trained,
        "--data.root",
        dataset,
        "--split",
        "testA",
        "--json",
        tmp_path / "a.json",
        "--coco",
        tmp_path / "coco",
    )
    found = json.loads((tmp_path / "a.json").read_text())
    truth, results = (json.loads((tmp_path / "coco" / f"{name}.json").read_text()) for name in ("truth", "results"))
    assert 0 <= found["ap75"] <= found["ap50"] <= 100 and found["ap"] <= found["ap50"]
    assert {box["image_id"] for box in results} == {image["id"] for image in truth["images"]}
    assert found["acc@0.5"] == pytest.approx(after["after"]["testA_acc@0.5"])


@pytest.mark.parametrize(
    "options",
    [
        ("--text_base", "clip", "--data.shape", "letterbox", "--head.queries", 3, "--data.flip"),
        ("--image_size", 48, "--data.augment", "crop", "--adapter.kind", "lora", "--data.texts", 1),
        ("--adapter.kind", "linear", "--fusion.update_image", "true", "--fusion.neck", 0, "--loss.auxiliary", 0),
        (
            "--adapter.kind",
            "lst",
            "--adapter.start",
            "fisher",
            "--adapter.fisher_examples",
            3,
            "--data.augment",
            "crop",
            "--data.flip",
        ),
    ],
)
def test_options_train_save_and_load(options: tuple, dataset: Path, tmp_path: Path):
    call(TRAIN, "--data.root", dataset, "--output", tmp_path / "run", *QUICK, *options)
    tensors = load_file(tmp_path / "run" / "vlkit_adapter.safetensors")
    assert not any(".base." in name and "lora_" not in name for name in tensors)
    call(EVALUATE, "--model", tmp_path / "run", "--data.root", dataset, "--json", tmp_path / "m.json")
    after = json.loads((tmp_path / "run" / "metrics.json").read_text())["after"]
    again = json.loads((tmp_path / "m.json").read_text())
    assert {key: again[key] for key in after} == pytest.approx(after)
    model = vlkit.load(tmp_path / "run", device="cpu")
    queries = 3 if "--head.queries" in options else 1
    assert ("p@5" in after) == (queries > 1)
    several = model.ground(dataset / "val0.png", "red block", candidates=5)
    assert len(several) == queries if queries > 1 else 1 <= len(several) <= 5


def test_a_folder_from_before_positions_and_narrow_adapters_is_what_it_was(dataset: Path, tmp_path: Path):
    """Such folders record neither votes for positions nor where SHERL merges, nor its width, which was half."""
    old = ("--head.places", "false", "--adapter.late", 0, "--adapter.reduction", 2)
    call(TRAIN, "--data.root", dataset, "--output", tmp_path / "run", *QUICK, *old)
    boxes = [vlkit.load(tmp_path / "run").ground(dataset / "val0.png", "red block").box]
    file = tmp_path / "run" / "vlkit_adapter.json"
    config = json.loads(file.read_text())
    assert config["adapters"]["image"]["reduction"] == 2 and config["head"].pop("places") is False
    for adapter in config["adapters"].values():
        adapter["reduction"] = adapter["late"] = None
    file.write_text(json.dumps(config))
    boxes.append(vlkit.load(tmp_path / "run").ground(dataset / "val0.png", "red block").box)
    assert boxes[0] == boxes[1]
    file.write_text(json.dumps({**config, "head": {**config["head"], "shape": 3}}))
    with pytest.raises(UserError, match=r"options of 'head' do not fit .*shape"):
        vlkit.load(tmp_path / "run")


def test_pipeline_gives_a_box_in_the_image(trained: Path, dataset: Path):
    model = vlkit.load(trained, device="cpu")
    box, score = model.ground(dataset / "val0.png", "the red block")
    x1, y1, x2, y2 = box
    assert 0 <= x1 < x2 <= SIZE[0] and 0 <= y1 < y2 <= SIZE[1] and 0 <= score <= 1
    enlarged = Image.open(dataset / "val0.png").resize((2 * SIZE[0], 2 * SIZE[1]), Image.Resampling.NEAREST)
    larger = model.ground(enlarged, "the red block").box
    np.testing.assert_allclose(larger, 2 * np.array(box), atol=6)
    many = model.ground(dataset / "val0.png", "the red block", candidates=3)
    assert isinstance(many, list) and many[0].box == pytest.approx(box) and many[0].score == pytest.approx(score)
    assert [candidate.score for candidate in many] == sorted((c.score for c in many), reverse=True)
    with pytest.raises(UserError, match="candidates=0"):
        model.ground(dataset / "val0.png", "the red block", candidates=0)
    with pytest.raises(UserError, match="blank"):
        model.ground(enlarged, "  ")


def test_threads_get_their_own_answers(trained: Path, dataset: Path):
    model = vlkit.load(trained, device="cpu")
    jobs = [(dataset / f"train{i}.png", f"{color} block") for i in range(4) for color in COLORS]
    alone = [model.ground(*job) for job in jobs]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda job: model.ground(*job), jobs))
    for one, other in zip(alone, together, strict=True):
        assert one.box == pytest.approx(other.box, abs=1e-3)


@pytest.mark.parametrize("factor", [2, 3])
def test_resized_copies_measure_as_the_annotated_images(factor: int, trained: Path, dataset: Path, tmp_path: Path):
    """Boxes scaled with the files: the same metrics, and predictions in the pixels of the files."""
    copies = tmp_path / "copies"
    shutil.copytree(dataset, copies)
    manifest = json.loads((copies / "dataset.json").read_text())
    (copies / "dataset.json").write_text(json.dumps({**manifest, "media_root": "."}))
    for file in copies.glob("*.png"):
        with Image.open(file) as image:
            image.resize((factor * SIZE[0], factor * SIZE[1]), Image.Resampling.NEAREST).save(file)
    results = []
    for root in (dataset, copies):
        words = ("--model", trained, "--data.root", root, "--split", "testB", "--json")
        call(EVALUATE, *words, tmp_path / "m.json")
        call(PREDICT, *words, tmp_path / "p.json")
        boxes = [entry["box"] for entry in json.loads((tmp_path / "p.json").read_text())]
        results.append((json.loads((tmp_path / "m.json").read_text()), np.array(boxes)))
    (plain, boxes), (scaled, larger) = results
    assert plain["mean_iou"] > 20 and scaled["mean_iou"] == pytest.approx(plain["mean_iou"], abs=3)
    np.testing.assert_allclose(larger, factor * boxes, atol=6 * factor)


def test_sizes_that_cannot_belong_to_the_file_stop_every_script(trained: Path, dataset: Path, tmp_path: Path):
    turned = tmp_path / "turned"
    shutil.copytree(dataset, turned)
    manifest = json.loads((turned / "dataset.json").read_text())
    (turned / "dataset.json").write_text(json.dumps({**manifest, "media_root": "."}))
    for file in turned.glob("*.png"):
        exif = Image.Exif()
        exif[0x0112] = 6
        with Image.open(file) as image:
            image.save(file, exif=exif)
    on = ("--data.root", turned)
    said = [
        refuse(EVALUATE, "--model", trained, *on, "--split", "testB"),
        refuse(PREDICT, "--model", trained, *on, "--split", "testB"),
        refuse(TRAIN, *on, "--output", tmp_path / "run", *QUICK),
        refuse(TRAIN, *on, "--output", tmp_path / "cached", *QUICK, "--cache", tmp_path / "store"),
    ]
    assert all(re.search(r"states 96 x 72 pixels, the file has 72 x 96: transposed", line) for line in said), said


def test_predict_draws_and_writes_what_evaluate_measures(trained: Path, dataset: Path, tmp_path: Path, capsys):
    image = dataset / "val0.png"
    words = ("--image", image, "--text", "red block", "--draw", tmp_path / "one.png", "--json", tmp_path / "one.json")
    call(PREDICT, "--model", trained, *words)
    one = json.loads((tmp_path / "one.json").read_text())
    assert len(one["box"]) == 4 and 0 <= one["score"] <= 1 and "red block: [" in capsys.readouterr().out
    drawn = np.array(Image.open(tmp_path / "one.png").convert("RGB"))
    assert drawn.shape[0] > drawn.shape[1] * 0.75 and (drawn == [0x0F, 0x76, 0x6E]).all(-1).sum() > 50
    words = ("--split", "testB", "--draw", tmp_path / "sheet.png", "--json", tmp_path / "split.json")
    call(PREDICT, "--model", trained, "--data.root", dataset, *words)
    boxes = json.loads((tmp_path / "split.json").read_text())
    assert Image.open(tmp_path / "sheet.png").size == (1080, 360)
    records = [json.loads(line) for line in (dataset / "testB.jsonl").read_text().splitlines()]
    measured = grounding_metrics([entry["box"] for entry in boxes], [record["box"] for record in records])
    call(EVALUATE, "--model", trained, "--data.root", dataset, "--split", "testB", "--json", tmp_path / "m.json")
    assert json.loads((tmp_path / "m.json").read_text())["mean_iou"] == pytest.approx(measured["mean_iou"])


def test_phrases_with_several_boxes_are_measured_by_both_protocols():
    records = [{"box": [0, 0, 30, 10], "boxes": [[0, 0, 10, 10], [20, 0, 30, 10]], "categories": ["people"]}] * 2
    single = Found(np.array([[20, 0, 30, 10], [0, 0, 30, 10]], dtype=np.float32), np.array([0.9, 0.5]))
    metrics = metrics_of(records, [single, single])
    assert metrics["any_box_r@1"] == metrics["any_box_r@1_people"] == 100 and metrics["merged_boxes_r@1"] == 0
    assert metrics["merged_boxes_r@5"] == metrics["p@5"] == 100 and metrics["acc@0.5"] == 0


def test_of_equally_sure_boxes_the_one_further_right_counts():
    records = [{"box": [20, 0, 30, 10]}]
    tied = Found(np.array([[0, 0, 10, 10], [20, 0, 30, 10]], dtype=np.float32), np.array([0.5, 0.5]))
    assert (
        metrics_of(records, [tied])["acc@0.5"] == precision_at_k([tied.boxes], [tied.scores], [[20, 0, 30, 10]])["p@1"]
    )
    assert metrics_of(records, [tied])["acc@0.5"] == 100


# --- Flickr30k Entities -----------------------------------------------------------------------------------------------

XML = """<annotation><filename>7.jpg</filename><size><width>100</width><height>80</height><depth>3</depth></size>
<object><name>11</name><bndbox><xmin>5</xmin><ymin>5</ymin><xmax>40</xmax><ymax>70</ymax></bndbox></object>
<object><name>11</name><name>13</name><bndbox><xmin>60</xmin><ymin>5</ymin><xmax>{right}</xmax><ymax>60</ymax></bndbox>
</object><object><name>14</name><scene>1</scene><nobndbox>0</nobndbox></object></annotation>"""


def release(folder: Path, right: float = 90) -> Path:
    for name in ("Sentences", "Annotations", "images"):
        (folder / name).mkdir(parents=True)
    (folder / "train.txt").write_text("7\n")
    sentence = "[/EN#11/people Two men] with [/EN#13/clothing/other a red hat] in [/EN#14/scene the street] .\n"
    (folder / "Sentences" / "7.txt").write_text(sentence)
    (folder / "Annotations" / "7.xml").write_text(XML.format(right=right))
    Image.new("RGB", (100, 80)).save(folder / "images" / "7.jpg")
    return folder


def test_entities_become_records_with_single_and_merged_boxes(tmp_path: Path, capsys):
    folder = release(tmp_path / "entities")
    call(PREPARE, "--annotations", folder, "--images", folder / "images", "--output", tmp_path / "data")
    assert "train" in capsys.readouterr().out
    first, second = [json.loads(line) for line in (tmp_path / "data" / "train.jsonl").read_text().splitlines()]
    assert first["text"] == "Two men" and first["box"] == [5, 5, 90, 70] and len(first["boxes"]) == 2
    assert second["boxes"] == [second["box"]] == [[60, 5, 90, 60]] and second["categories"] == ["clothing", "other"]
    assert (first["image"], first["width"], first["height"]) == ("7.jpg", 100, 80)
    call("data_prep/check.py", tmp_path / "data")


@pytest.mark.parametrize(("right", "problem"), [(101.5, "lies outside the image of 100 x 80"), (50, "inverted")])
def test_wrong_boxes_of_entities_are_named(right: float, problem: str, tmp_path: Path):
    (first, second) = flickr30k_entities.read(release(tmp_path / "entities", right)).wrong
    assert re.search(rf"7\.xml: entity 11: .*{problem}", first) and "entity 13" in second


# --- wrong input ------------------------------------------------------------------------------------------------------


class Touch:
    """Pickles as a call that would make a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch '{self.target}'",)


@pytest.mark.parametrize(
    ("box", "problem"),
    [
        ([10, 10, 200, 50], "lies outside the image"),
        ([50, 10, 10, 50], "inverted"),
        ([1, 2, 3], "four numbers"),
        (None, 'field "box" is missing'),
    ],
)
def test_wrong_boxes_stop_training_before_it_starts(box, problem: str, dataset: Path, tmp_path: Path):
    root = tmp_path / "wrong"
    root.mkdir()
    manifest = json.loads((dataset / "dataset.json").read_text())
    (root / "dataset.json").write_text(json.dumps({**manifest, "media_root": str(dataset)}))
    for split in manifest["splits"]:
        (root / f"{split}.jsonl").write_text((dataset / f"{split}.jsonl").read_text())
    lines = (root / "train.jsonl").read_text().splitlines()
    lines[4] = json.dumps({**json.loads(lines[4]), "box": box})
    (root / "train.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match=rf"train\.jsonl:5: .*{problem}"):
        call(TRAIN, "--data.root", root, "--output", tmp_path / "run", *QUICK)


@pytest.mark.slow
def test_two_processes_train_as_one(dataset: Path, tmp_path: Path):
    words = ("--data.root", dataset, *QUICK, "--adapter.dropout", 0, "--fusion.dropout", 0, "--data.texts", 3)
    call(TRAIN, "--output", tmp_path / "one", *words, "--lr", 0.0005)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "0"]
    two = [*launcher, "--standalone", str(ROOT / TRAIN), "--output", str(tmp_path / "two"), *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*two, "--lr", "0.0005"], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    one, both = (load_file(tmp_path / name / "vlkit_adapter.safetensors") for name in ("one", "two"))
    # Of all weights together: where a gradient is next to nothing, Adam's step makes rounding large.
    assert one.keys() == both.keys()
    off = sum(float((one[name] - both[name]).square().sum()) for name in one) ** 0.5
    assert off < 1e-3 * sum(float(weight.square().sum()) for weight in one.values()) ** 0.5
    one, both = (json.loads((tmp_path / name / "metrics.json").read_text())["after"] for name in ("one", "two"))
    assert both["mean_iou"] == pytest.approx(one["mean_iou"], abs=0.1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "words", "named"),
    [
        (TRAIN, ("--data.test", "testC"), 'no split "testC"'),
        (TRAIN, ("--data.train", "training"), 'no split "training"'),
        (TRAIN, ("--fusion.heads", 5), "--fusion.heads 5"),
        (TRAIN, ("--loss.l1", -1), "--loss.l1"),
        (TRAIN, ("--adapter.handoff", "pooled"), "--adapter.handoff pooled"),
        (TRAIN, ("--text_base", "no/such/folder"), "no/such/folder"),
        (EVALUATE, ("--split", "dev"), 'no split "dev"'),
        (PREDICT, ("--image", "x.jpg"), "--text"),
        (PREDICT, ("--image", "x.jpg", "--text", "a"), "x.jpg"),
        (PREDICT, ("--split", "val", "--draw", "x.gif"), "x.gif"),
    ],
)
def test_wrong_input_is_one_line(script, words, named, dataset: Path, trained: Path, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    more = ("--output", tmp_path / "run") if script == TRAIN else ("--model", trained)
    assert named in refuse(script, *words, *more, "--data.root", dataset, "--device", "cpu")


def test_a_pickle_with_code_runs_nothing(tmp_path: Path):
    target = tmp_path / "touched"
    (tmp_path / "refs(unc).p").write_bytes(pickle.dumps([Touch(target)]))
    (tmp_path / "instances.json").write_text("{}")
    words = ("--refs", tmp_path / "refs(unc).p", "--images", tmp_path, "--output", tmp_path / "data")
    done = launch("data_prep/refcoco.py", *words)
    assert done.returncode == 2 and "refs(unc).p" in done.stderr and "Traceback" not in done.stderr
    assert not target.exists() and not (tmp_path / "data").exists()


def test_other_data_is_measured_without_and_with_the_adapter(trained: Path, dataset: Path, tmp_path: Path):
    options = ("--model", trained, "--data.root", dataset, "--split", "test", "--json", tmp_path / "m.json")
    call(EVALUATE, *options, "--mix", 0)
    without = json.loads((tmp_path / "m.json").read_text())
    call(EVALUATE, *options, "--also", dataset)
    found = json.loads((tmp_path / "m.json").read_text())
    (other,) = found["also"].values()
    assert other["split"] == "test" and other["root"] == str(dataset)
    assert other["after"]["acc@0.5"] == pytest.approx(found["acc@0.5"])
    assert other["before"]["acc@0.5"] == pytest.approx(without["acc@0.5"])
    with pytest.raises(UserError, match=r"dataset\.json"):
        call(EVALUATE, *options, "--also", tmp_path)
