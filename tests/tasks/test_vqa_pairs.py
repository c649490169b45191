"""Questions about pairs of images (NLVR2): both are read at full size, and the model knows which one is which."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

import vlkit
from helpers.scripts import call, refuse
from vlkit.adapters.base import Encoded
from vlkit.data.manifest import Dataset, write_dataset
from vlkit.errors import UserError
from vlkit.tasks.vqa.data import ImageQuestions, two_answers
from vlkit.tasks.vqa.together import Together

TRAIN, EVALUATE, PREDICT = (f"tasks/vqa/{name}.py" for name in ("train", "evaluate", "predict"))
COLOURS = ("red", "blue", "green", "yellow")
SMALL = ("--fusion.width", 32, "--fusion.layers", 1, "--fusion.heads", 2)
QUICK = ("--epochs", 2, "--batch_size", 4, "--device", "cpu", *SMALL)


@pytest.fixture(scope="session")
def dataset(tmp_path_factory) -> Path:
    """Pairs of plain colours, with sentences about the left one."""
    root = tmp_path_factory.mktemp("pairs")
    for colour in COLOURS:
        Image.new("RGB", (20, 20), colour).save(root / f"{colour}.png")
    records = []
    for left, right in itertools.permutations(COLOURS, 2):
        for colour in (left, right):
            name = f"dev-{len(records)}-0-0"
            record = {"id": f"nlvr2/{name}", "question_id": name, "image": f"{left}.png", "image2": f"{right}.png"}
            answers = [str(colour == left).lower()] * 10
            records.append({**record, "question": f"the left image is {colour}", "answers": answers})
    splits = {"train": records, "val": records, "test": records}
    write_dataset(
        root, name="nlvr2", task="vqa", splits=splits, media_root=root, source="made for a test", extra={"images": 2}
    )
    return root


@pytest.fixture(scope="session")
def trained(dataset: Path, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "pairs"
    call(TRAIN, "--data.root", dataset, "--output", folder, *QUICK, "--epochs", 30, "--lr", 3e-3)
    return folder


class Grid(Encoded):
    """Two tokens that are no cells and a grid of 1 x 2 cells; every number is unlike the others."""

    def __init__(self, count: int) -> None:
        self.values = torch.arange(count * 4.0).view(count, 4, 1)

    pooled = property(lambda self: self.values[:, 0])
    tokens = property(lambda self: self.values)
    joint = property(lambda self: -self.values)
    grid = property(lambda self: (1, 2))


def test_cells_of_a_pair_stand_side_by_side():
    found = Together(Grid(4), 2)
    assert found.grid == (1, 4)
    assert found.tokens.squeeze(-1).tolist() == [[0, 1, 4, 5, 2, 3, 6, 7], [8, 9, 12, 13, 10, 11, 14, 15]]
    assert torch.equal(found.joint, -found.tokens)
    assert found.pooled.tolist() == [[0, 4], [8, 12]]


def test_rows_of_both_images_continue_each_other():
    image = Grid(2)
    image.values = torch.arange(8.0).view(2, 4, 1)
    type(image).grid = property(lambda self: (2, 2))
    try:
        assert Together(image, 2).tokens.flatten().tolist() == [0, 1, 4, 5, 2, 3, 6, 7]
    finally:
        type(image).grid = property(lambda self: (1, 2))


def test_an_example_has_both_images(dataset: Path):
    examples = ImageQuestions(
        Dataset.open(dataset, "vqa"), "train", lambda image: torch.tensor(image.getpixel((0, 0))).view(3, 1, 1) / 255
    )
    assert len(examples) == 12 and examples.image_count == 24
    pixels, group = examples[0]
    assert pixels.flatten(1).tolist() == [[1, 0, 0], [0, 0, 1]] and len(group) == 2
    numbers, _ = examples.unopened(5)
    assert torch.equal(examples.load(numbers.tolist()), examples[5][0])


def test_sides_are_learnt(dataset: Path, trained: Path, tmp_path: Path):
    """Of a pair turned round the other sentence is true, so nothing else than the side can tell."""
    call(EVALUATE, "--model", trained, "--data.root", dataset, "--split", "test", "--json", tmp_path / "found.json")
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["accuracy"] > 90 and found["consistency"] > 90
    model = vlkit.load(trained)
    red, blue = dataset / "red.png", Image.open(dataset / "blue.png")
    for pair, answer in (((red, blue), "true"), ([blue, red], "false")):
        assert model.answer(pair, "the left image is red")[0][0] == answer


def test_another_number_of_images_is_refused(dataset: Path, trained: Path, tmp_path: Path):
    red = dataset / "red.png"
    with pytest.raises(UserError, match=r"got 1 image\(s\) for a question; the model reads a pair of images"):
        vlkit.load(trained).answer(red, "the left image is red")
    one = {"id": "a", "question_id": 1, "image": "red.png", "question": "Is it red?", "answers": ["yes"] * 10}
    write_dataset(tmp_path, name="one", task="vqa", splits={"test": [one]}, media_root=dataset, source="")
    message = refuse(EVALUATE, "--model", trained, "--data.root", tmp_path)
    assert "1 image(s) per question, and the model was trained with 2" in message
    assert "--image2: needs --image" in refuse(PREDICT, "--model", trained, "--image2", red)


def test_a_pair_of_files_is_answered(dataset: Path, trained: Path, capsys):
    files = ("--image", dataset / "blue.png", "--image2", dataset / "red.png")
    call(PREDICT, "--model", trained, *files, "--question", "the left image is blue")
    assert capsys.readouterr().out.split()[1] == "true"


def test_a_split_is_written_as_a_leaderboard_takes_it(dataset: Path, trained: Path, tmp_path: Path):
    words = ("--model", trained, "--data.root", dataset, "--split", "val")
    call(PREDICT, *words, "--json", tmp_path / "a.csv")  # the form that the name of the dataset says
    call(PREDICT, *words, "--json", tmp_path / "a.json", "--format", "vqa")
    answers = {row["question_id"]: row["answer"] for row in json.loads((tmp_path / "a.json").read_text())}
    lines = [line.split(",") for line in (tmp_path / "a.csv").read_text().splitlines()]
    assert lines == [[str(number), {"true": "True", "false": "False"}[answer]] for number, answer in answers.items()]


def test_the_cache_trains_the_same(dataset: Path, tmp_path: Path):
    found = []
    for words in ((), ("--cache", tmp_path / "store")):
        call(TRAIN, "--data.root", dataset, "--output", tmp_path / f"run{len(words)}", *QUICK, *words)
        found.append(json.loads((tmp_path / f"run{len(words)}" / "metrics.json").read_text())["after"])
    assert found[0] == found[1]


@pytest.mark.parametrize("kind", ["sherl", "lst"])
def test_decoders_write_about_pairs(kind, dataset: Path, tmp_path: Path):
    words = ("--head.kind", "generate", "--head.prompt", "nlvr:", "--adapter.kind", kind, "--data.root", dataset)
    call(TRAIN, *words, "--output", tmp_path / "run", *QUICK, "--epochs", 1)
    pair = (dataset / "red.png", dataset / "blue.png")
    model = vlkit.load(tmp_path / "run")
    one, turned = (model.answer(images, "the left image is red") for images in (pair, pair[::-1]))
    assert one[0][1] != turned[0][1]
    # Nothing is written: the first logits of the two answers decide, so even an untrained decoder gives no other text.
    answerer = model.answerer
    asked = answerer.text.tokenize(["the left image is red"])
    assert asked.equal(answerer.text.base.tokenize(["nlvr: the left image is red"]))
    pixels = torch.stack([answerer.transform(Image.open(path)) for path in pair])
    ids, owner = asked, torch.tensor([0])
    with torch.no_grad():
        logits = answerer.model(pixels, ids, owner, torch.tensor([[answerer.text.base.start_id]]))[0, 0]
    odds = {answer: logits[answerer.text.base.tokenizer(answer).input_ids[0]].exp() for answer in ("true", "false")}
    assert dict(one) == pytest.approx({answer: float(odds[answer] / sum(odds.values())) for answer in odds}, rel=1e-4)


def test_a_decoder_compares_two_answers_alone(dataset: Path, tmp_path: Path):
    def tokens(answers: list[str]) -> torch.Tensor:
        return torch.tensor([[len(answer)] for answer in answers])

    assert two_answers(Dataset.open(dataset), ["train", "val"], tokens) == ["false", "true"]
    for answers in (["yes", "no", "two"], ["cat", "dog"]):  # more than two; the same first token
        records = [
            {"id": answer, "question_id": answer, "image": "red.png", "question": "Is it?", "answers": [answer] * 10}
            for answer in answers
        ]
        write_dataset(
            tmp_path / answers[0], name="own", task="vqa", splits={"train": records}, media_root=dataset, source=""
        )
        assert two_answers(Dataset.open(tmp_path / answers[0]), ["train"], tokens) == []
