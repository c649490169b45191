"""VQA and grounding with ``--cache``: the same training as without it, made once, and clear words where it cannot."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from helpers.scripts import call, load_script
from vlkit.adapters import ADAPTERS
from vlkit.adapters.base import AdaptedEncoder
from vlkit.adapters.facts import kinds_with
from vlkit.cli.config import parse
from vlkit.data.manifest import Dataset, write_dataset
from vlkit.encoders.bases import Preprocess
from vlkit.engine import fit
from vlkit.errors import UserError
from vlkit.tasks.grounding import data as boxes_module
from vlkit.tasks.grounding.data import BoxedImages, BoxTransform
from vlkit.tasks.vqa import data as questions_module

VQA, GROUNDING = "tasks/vqa/train.py", "tasks/grounding/train.py"
COLORS = ("red", "blue", "green", "yellow")
QUICK = ("--epochs", 3, "--batch_size", 3, "--device", "cpu", "--log_every", 1)
QUICK += ("--fusion.width", 32, "--fusion.layers", 1, "--fusion.heads", 2, "--fusion.dropout", 0)
OWN = {VQA: ("--data.min_questions", 1, "--data.per_picture", 2), GROUNDING: ("--data.texts", 2)}
AN_EPOCH = {VQA: 2, GROUNDING: 4}  # steps
SMALL = Preprocess((32, 48), (0.5,) * 3, (0.5,) * 3)


@pytest.fixture(scope="module")
def datasets(tmp_path_factory) -> dict[str, Path]:
    """Seven oblong images of three coloured blocks to train on; each colour is asked for and looked for.

    Batches of three leave some over: seven images, of which three texts each make 14 examples of up to two boxes.
    Half of the records with boxes do not state the size.
    """
    rng, roots = np.random.default_rng(0), {}
    for script, task in ((VQA, "vqa"), (GROUNDING, "grounding")):
        root = roots[script] = tmp_path_factory.mktemp(task)
        splits: dict[str, list[dict]] = {"train": [], "val": [], "test": []}
        for split, count in (("train", 7), ("val", 2), ("test", 2)):
            for i in range(count):
                image, name = Image.new("RGB", (90, 60), "grey"), f"{split}{i}.png"
                pen = ImageDraw.Draw(image)
                for side, color in enumerate(rng.permutation(COLORS)[:3].tolist()):
                    x, y, size = 30 * side, int(rng.integers(0, 40)), int(rng.integers(10, 20))
                    pen.rectangle([x, y, x + size - 1, y + size - 1], fill=color)
                    number = 1000 * list(splits).index(split) + 10 * i + side
                    record = {"id": str(number), "image": name}
                    if task == "vqa":
                        question = f"Where is the {color} block?" if side else "What is left?"
                        answer = ("middle", "right")[side - 1] if side else color
                        record |= {"question_id": number, "question": question, "answers": [answer] * 9 + ["no"]}
                    else:
                        record |= {"text": f"the {color} block", "box": [float(v) for v in (x, y, x + size, y + size)]}
                        record |= {"width": 90, "height": 60} if i % 2 else {}
                    splits[split].append(record)
                image.save(root / name)
        write_dataset(root, name="made", task=task, splits=splits, media_root=root, source="made for a test")
    return roots


def trained(script: str, datasets: dict[str, Path], folder: Path, *words: object) -> tuple[list[float], dict]:
    """Train; losses of every step, and the metrics of the run."""
    call(script, "--data.root", datasets[script], "--output", folder, *QUICK, *OWN[script], *words)
    return losses_of(folder), json.loads((folder / "metrics.json").read_text())["after"]


def losses_of(folder: Path) -> list[float]:
    lines = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


def contents(store: Path) -> dict[str, int]:
    """Size of every file with rows or their places."""
    return {str(path): path.stat().st_size for path in store.rglob("*") if path.suffix in (".taps", ".index")}


# By default a cached step rounds other tensors for its gradient than a whole one.
EXACT = ("--adapter.tap_dtype", "fp32")
VARIANTS = {
    "default": EXACT,
    "linear": ("--adapter.kind", "linear"),
    "unipt": ("--adapter.kind", "unipt"),
    "clip text": ("--text_base", "clip", *EXACT),
    "late blocks": (*EXACT, "--adapter.late", 1, "--adapter.init", "published"),
}
CASES = [(script, name) for script in (VQA, GROUNDING) for name in VARIANTS]


@pytest.mark.slow
@pytest.mark.parametrize(("script", "variant"), CASES)
def test_run_is_the_one_without_a_cache(script, variant, datasets, tmp_path):
    """The run that fills the cache and one that finds it full; fp32 to rounding, bf16 nearly."""
    words = VARIANTS[variant]
    expected, metrics = trained(script, datasets, tmp_path / "plain", *words)
    assert len(expected) == 3 * AN_EPOCH[script]
    cache = ("--cache", tmp_path / "store", "--cache_dtype", "fp32")
    first, same = trained(script, datasets, tmp_path / "first", *words, *cache)
    assert first == pytest.approx(expected, rel=5e-5, abs=5e-5) and same == pytest.approx(metrics, abs=1e-3)
    made = contents(tmp_path / "store")
    assert trained(script, datasets, tmp_path / "second", *words, *cache)[0] == first
    assert contents(tmp_path / "store") == made
    if variant in ("default", "clip text"):
        rounded, _ = trained(script, datasets, tmp_path / "bf16", *words, "--cache", tmp_path / "store")
        assert rounded == pytest.approx(expected, rel=1e-2) and rounded != first


@pytest.mark.parametrize(
    "kind", sorted({*kinds_with("has_early_route")} & {*kinds_with("feeds_tokens")} - {"sherl", "linear", "unipt"})
)
def test_other_frozen_methods(kind, datasets, tmp_path):
    """Those that adapt only the pooled embedding are left out, because these heads read tokens."""
    words = ("--adapter.kind", kind, "--text_base", "clip")
    expected, _ = trained(VQA, datasets, tmp_path / "plain", *words)
    found, _ = trained(VQA, datasets, tmp_path / "cached", *words, "--cache", tmp_path / "s", "--cache_dtype", "fp32")
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "words"),
    [(VQA, ()), (VQA, ("--head.blind", "true")), (GROUNDING, ()), (GROUNDING, ("--data.shape", "letterbox"))],
)
def test_full_cache_opens_no_image_and_runs_no_backbone(script, words, datasets, tmp_path, monkeypatch):
    cache, words = ("--cache", tmp_path / "store", "--cache_dtype", "fp32"), (*EXACT, *words)
    expected, _ = trained(script, datasets, tmp_path / "plain", *words)
    assert trained(script, datasets, tmp_path / "first", *words, *cache)[0] == pytest.approx(expected, rel=1e-5)
    folders = {path.name.partition("-")[0] for path in (tmp_path / "store").iterdir()}
    assert folders == ({"text"} if "--head.blind" in words else {"image", "text"})
    opened, run_early = [], AdaptedEncoder.forward

    def early(self, x):
        assert not (self.training and isinstance(x, torch.Tensor)), "an early route ran in training"
        return run_early(self, x)

    for module in (questions_module, boxes_module):
        read = module.read_image
        note = lambda dataset, record, read=read: opened.append(record["image"]) or read(dataset, record)  # noqa: E731
        monkeypatch.setattr(module, "read_image", note)
    monkeypatch.setattr(AdaptedEncoder, "forward", early)
    assert trained(script, datasets, tmp_path / "second", *words, *cache)[0] == pytest.approx(expected, rel=1e-5)
    # One image is opened to learn the shape of a row.
    assert len(opened) == (0 if "--head.blind" in words else 1)


@pytest.mark.slow
@pytest.mark.parametrize("script", [VQA, GROUNDING])
def test_stopped_run_goes_on(script, datasets, tmp_path, monkeypatch):
    """Stopped in the second epoch of a run that fills its cache: the rest of the run is the same."""
    stopped = AN_EPOCH[script] + 1
    cache = ("--cache", tmp_path / "store", "--cache_dtype", "fp32")
    expected, metrics = trained(script, datasets, tmp_path / "whole", *cache)
    shutil.rmtree(tmp_path / "store")
    step = fit.take_step

    def stopping(training, *given):
        step(training, *given)
        training.asked_to_stop = training.state.step == stopped

    with monkeypatch.context() as patch, pytest.raises((KeyboardInterrupt, SystemExit)):
        patch.setattr(fit, "take_step", stopping)
        trained(script, datasets, tmp_path / "run", *cache)
    assert losses_of(tmp_path / "run") == expected[:stopped]
    assert trained(script, datasets, tmp_path / "run", "--resume", "true", *cache) == (expected, metrics)


@pytest.mark.parametrize("shape", ["squash", "letterbox"])
def test_boxes_need_no_image(shape, datasets):
    """They are the very numbers that come with the pixels, whether the record states the image's size or not."""
    dataset = Dataset.open(datasets[GROUNDING], "grounding")
    transform = BoxTransform(SMALL, shape)
    examples = BoxedImages(dataset, "train", transform, texts=2)
    for index in range(len(examples)):
        with_pixels, without = examples[index], examples.unopened(index)
        assert without.pixels == index and without.texts == with_pixels.texts
        assert all(torch.equal(*pair) for pair in zip(without.boxes, with_pixels.boxes, strict=True))
        assert torch.equal(examples.load([index])[0], with_pixels.pixels)


def test_headers_of_image_files_are_read_once(datasets, monkeypatch):
    examples = BoxedImages(Dataset.open(datasets[GROUNDING], "grounding"), "train", BoxTransform(SMALL), texts=2)
    first, read = [examples.unopened(index).boxes for index in range(len(examples))], []
    monkeypatch.setattr(boxes_module, "record_image_size", lambda *_: read.append(1))
    again = [examples.unopened(index).boxes for index in range(len(examples))]
    assert not read
    assert all(torch.equal(*pair) for own in zip(first, again, strict=True) for pair in zip(*own, strict=True))


@pytest.mark.parametrize("script", [VQA, GROUNDING])
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_methods_without_an_early_route_are_refused(script, kind, datasets, tmp_path):
    with pytest.raises(UserError, match=r"--cache: this --adapter\.kind trains inside the base"):
        trained(script, datasets, tmp_path / "run", "--adapter.kind", kind, "--cache", tmp_path / "store")


@pytest.mark.parametrize(
    ("script", "words", "says"),
    [
        (VQA, ("--data.augment", "crop"), r"--data\.augment crop"),
        (VQA, ("--head.kind", "generate"), r"--cache: with --head\.kind generate"),
        (GROUNDING, ("--data.augment", "color"), r"--data\.augment color"),
        (GROUNDING, ("--data.flip", "true"), r"--data\.flip true"),
    ],
)
def test_what_cannot_be_cached(script, words, says):
    config = load_script(script).Config
    parse(config, list(words))  # good without the cache
    with pytest.raises(UserError, match=says):
        parse(config, ["--cache", *words])


def test_comparison_caches_what_can_be_cached():
    flags_for = load_script("tasks/compare.py").flags_for
    given = ["epochs=2", "cache=true", "cache_dtype=fp32"]
    assert flags_for(ADAPTERS["sherl"], given) == ["--epochs=2", "--cache=true", "--cache_dtype=fp32"]
    assert all(flags_for(ADAPTERS[kind], given) == ["--epochs=2"] for kind in ("bitfit", "lora", "full"))
