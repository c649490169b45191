"""Texts longer than a base reads: how many are cut, and that it is said once."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import vlkit
from vlkit.data.manifest import Dataset, write_dataset
from vlkit.encoders.load import load_base, load_text_base
from vlkit.encoders.text_side import text_side
from vlkit.encoders.tiny import tiny_t5_tokenizer
from vlkit.encoders.tokenizer import ClipTokenizer, Shorter, _warn_once, cut_texts, warn_of_cut_texts
from vlkit.tasks.grounding.evaluate import find_split
from vlkit.tasks.retrieval.evaluate import embed_split
from vlkit.tasks.vqa.evaluate import predict_records

ADAPTERS = Path(vlkit.__file__).parent / "assets" / "adapters"
LONG = "a red dog on a hill " * 20


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    """What was said before does not count."""
    _warn_once.cache_clear()
    yield
    _warn_once.cache_clear()


@pytest.fixture(params=["clip", "hf", "clips", "tiny", "side of clip", "side of t5"])
def tokenizer(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    if request.param in ("hf", "clips"):
        hf = tiny_t5_tokenizer()
        hf.add_special_tokens({"bos_token": "<s>", "cls_token": "<cls>"})
        hf.save_pretrained(tmp_path)
        mode = "clips" if request.param == "clips" else None
        return ClipTokenizer("x", {"context_length": 20, "tokenizer_mode": mode}, tmp_path)
    if request.param == "clip":
        return ClipTokenizer("ViT-B-32", {"context_length": 77})
    base = load_base("tiny")
    sides = {"side of clip": lambda: text_side("clip", base), "side of t5": lambda: text_side("tiny", base)}
    return sides[request.param]() if request.param in sides else base.tokenize


def test_a_text_is_cut_from_one_token_more_than_fits(tokenizer: Any) -> None:
    read = getattr(tokenizer, "tokenize", tokenizer)
    texts = [" ".join(["dog"] * count) for count in range(1, 100)]
    lengths = tokenizer.lengths(texts)
    assert lengths == sorted(lengths) and lengths[0] < tokenizer.limit < lengths[-1]
    fits = sum(length <= tokenizer.limit for length in lengths)
    assert lengths[fits - 1] == tokenizer.limit  # a dog is one token
    full, cut, longer = (read([text])[0].tolist() for text in (texts[fits - 1], texts[fits], texts[-1]))
    assert len(full) == tokenizer.limit and cut == full == longer  # the end that they lose makes them the same
    assert read([texts[fits - 2]])[0].tolist() != full
    assert cut_texts(tokenizer, texts) == (len(texts) - fits, len(texts), tokenizer.limit, 0)
    assert cut_texts(tokenizer, ["dog", ""]).count == cut_texts(tokenizer, []).count == 0
    assert cut_texts(tokenizer, ["\U0001f415" * 300, "\ud800"]).count == 1


def test_of_very_many_texts_a_sample_is_counted(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = load_base("tiny").tokenize
    asked = []
    lengths = tokenizer.lengths
    monkeypatch.setattr(type(tokenizer), "lengths", lambda self, texts: asked.append(len(texts)) or lengths(texts))
    monkeypatch.setattr("vlkit.encoders.tokenizer.MOST_COUNTED", 100)
    long_but_whole = "extraordinarily " * 5  # more bytes than the limit, fewer tokens
    texts = [LONG, long_but_whole, "dog", long_but_whole] * 300
    assert cut_texts(tokenizer, texts[:100]) == (25, 100, 48, 0)
    found = cut_texts(tokenizer, texts)
    assert (found.total, found.limit, found.sampled) == (1200, 48, 100) and found.count == pytest.approx(300, abs=60)
    assert asked == [75, 100]
    warn_of_cut_texts(tokenizer, texts, "captions")
    assert f"about {found.count} of 1,200 captions (estimated from 100) are cut at 48 tokens" in caplog.text


def test_it_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = load_base("tiny").tokenize
    for texts in ([LONG, "dog", LONG], [LONG, "dog", LONG], ["dog"], [LONG]):
        warn_of_cut_texts(tokenizer, texts, "captions")
    warn_of_cut_texts(lambda texts: None, [LONG], "captions")  # knows no lengths
    assert [record.message.partition(":")[0] for record in caplog.records] == [
        "2 of 3 captions are cut at 48 tokens",
        "1 of 1 captions is cut at 48 tokens",
    ]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    Image.new("RGB", (64, 48), "red").save(tmp_path / "a.png")
    return tmp_path / "a.png"


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    lines = [record.message.partition(":")[0] for record in caplog.records if "cut at" in record.message]
    caplog.clear()
    return lines


def prepared(root: Path, task: str, records: list[dict]) -> Dataset:
    records = [{"id": str(i), "image": "a.png", **record} for i, record in enumerate(records)]
    return write_dataset(root / task, name="n", task=task, splits={"test": records}, media_root=root, source=None)


def test_retrieval_says_it(image: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = vlkit.load(ADAPTERS / "retrieval", device="cpu")
    dataset = prepared(image.parent, "retrieval", [{"texts": ["dog", LONG]}, {"texts": ["cat"]}])
    caplog.set_level(logging.WARNING)
    embed_split(model.embedder, dataset, "test")
    embed_split(model.embedder, dataset, "test")
    assert said(caplog) == ["1 of 3 test captions is cut at 48 tokens"]
    model.embed_texts(["dog"])
    model.embed_texts([LONG])
    assert said(caplog) == ["1 of 1 texts is cut at 48 tokens"]


def test_vqa_says_it(image: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = vlkit.load(ADAPTERS / "vqa", device="cpu")
    questions = [{"question": text, "question_id": i} for i, text in enumerate(("What is it?", LONG))]
    dataset = prepared(image.parent, "vqa", questions)
    caplog.set_level(logging.WARNING)
    predict_records(model.answerer, dataset, dataset.records("test"), "test questions")
    assert said(caplog) == ["1 of 2 test questions is cut at 48 tokens"]
    model.answer(image, LONG)
    assert said(caplog) == ["1 of 1 questions is cut at 48 tokens"]


def test_grounding_says_it(image: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = vlkit.load(ADAPTERS / "grounding", device="cpu")
    dataset = prepared(image.parent, "grounding", [{"text": text, "box": [0, 0, 9, 9]} for text in ("dog", LONG)])
    caplog.set_level(logging.WARNING)
    find_split(model.locator, dataset, "test")
    assert said(caplog) == ["1 of 2 test texts is cut at 48 tokens"]
    model.ground(image, LONG)
    assert said(caplog) == ["1 of 1 texts is cut at 48 tokens"]


def test_a_text_base_counts_whole_texts() -> None:
    base = load_text_base("tiny")
    assert base.lengths(["dog", "dog dog"]) == [2, 3]
    assert cut_texts(Shorter(base.lengths, 2), ["dog", "dog dog", "dog"]) == (1, 3, 2, 0)
