"""Damaged input of every kind is refused in one line or read; never a traceback, never much memory.

The examples are the same in every run and few. To look further: ``VLKIT_FUZZ=2000 pytest -n 0 tests/fuzz``, which draws
other ones each time.
"""

from __future__ import annotations

import io
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from helpers.mutate import ODD_VALUES, damaged, examples, odd_json, survives
from helpers.scripts import ROOT
from vlkit.data.check import check_dataset
from vlkit.data.images import open_image
from vlkit.data.manifest import Dataset, write_dataset
from vlkit.data.sources import folder as own_folder
from vlkit.data.sources.prepare import prepare
from vlkit.index import IndexWriter, Item, VectorIndex
from vlkit.index.source import IndexSource
from vlkit.tasks.load import load


@pytest.fixture(scope="module")
def place():
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


# --- images ----------------------------------------------------------------------------------------------------------


def encoded(kind: str, mode: str) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (20, 30, 4), dtype=np.uint8)
    image = Image.fromarray(pixels, "RGBA").convert(mode)
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    image.save(file, kind, **({"exif": exif} if kind in ("JPEG", "PNG", "WEBP", "TIFF") else {}))
    return file.getvalue()


KINDS = "JPEG RGB,JPEG CMYK,PNG RGBA,PNG I;16,PNG P,GIF P,BMP RGB,TIFF RGB,TIFF F,PPM RGB,WEBP RGB,JPEG2000 RGB"
IMAGES = [encoded(*kind.split()) for kind in KINDS.split(",")]


@examples(150)
@given(st.sampled_from(IMAGES).flatmap(damaged))
def test_images(place: Path, content: bytes):
    file = place / "image"
    file.write_bytes(content)
    survives(lambda: np.asarray(open_image(file)))


# --- caption files ---------------------------------------------------------------------------------------------------

NAMES = ["a.png", "sub/b [x].png", "sub/c.png"]
ROWS = [{"image": name, "caption": f"caption of {name}", "split": "train"} for name in NAMES]
CAPTIONS = {
    "captions.json": json.dumps(ROWS),
    "captions.jsonl": "".join(json.dumps(row) + "\n" for row in ROWS),
    "captions.csv": "image,caption,split\n" + "".join(f'{name},"a, {name}",train\n' for name in NAMES),
    "captions.tsv": "image\tcaption\n" + "".join(f"{name}\tthe {name}\n" for name in NAMES),
    "a.txt": "one\ntwo\n",
}


@pytest.fixture(scope="module")
def captioned(place: Path) -> Path:
    folder = place / "captioned"
    for number, name in enumerate(NAMES):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20), (90 * number, 20, 20)).save(folder / name)
    return folder


def read_captions(folder: Path, name: str, content: bytes) -> None:
    file = folder / name
    file.write_bytes(content)

    def body() -> None:
        captions = None if name == "a.txt" else file
        dataset = prepare(own_folder.read(folder, captions), folder.parent / "prepared", folder, partial=True).dataset
        for split in dataset.splits:
            dataset.records(split)

    try:
        survives(body)
    finally:
        file.unlink()


@examples(80)
@given(st.data())
def test_caption_files(captioned: Path, data: st.DataObject):
    name = data.draw(st.sampled_from(sorted(CAPTIONS)))
    read_captions(captioned, name, data.draw(damaged(CAPTIONS[name].encode())))


@examples(60)
@given(odd_json(ROWS), st.booleans())
def test_caption_values(captioned: Path, rows: Any, lines: bool):
    if lines:
        content = "".join(json.dumps(row) + "\n" for row in (rows if isinstance(rows, list) else [rows]))
        read_captions(captioned, "captions.jsonl", content.encode())
    else:
        read_captions(captioned, "captions.json", json.dumps(rows).encode())


# --- manifests -------------------------------------------------------------------------------------------------------

RECORDS = {
    "retrieval": [{"id": f"a/{n}", "image": "a.png", "texts": ["one", "two"]} for n in range(2)],
    "vqa": [
        {"id": f"q/{n}", "question_id": n, "image": "a.png", "question": "what?", "answers": ["a"] * 10}
        for n in range(2)
    ],
    "grounding": [{"id": f"g/{n}", "image": "a.png", "text": "it", "box": [1.0, 2.0, 9.5, 12.0]} for n in range(2)],
    "video_retrieval": [
        {"id": f"v/{n}", "video": "v.mp4", "start": 0.0, "end": 1.5, "texts": ["one"]} for n in range(2)
    ],
}

MANIFESTS = {**RECORDS, "classification": [{"id": f"c/{n}", "image": "a.png", "label": "cat"} for n in range(2)]}
FIELDS = {"classification": {"classes": ["cat", "dog"], "templates": ["a {}"]}}


def read_dataset(root: Path) -> None:
    dataset = Dataset.open(root)
    for split in dataset.splits:
        for record in dataset.records(split):
            dataset.path(record)


def check(root: Path) -> None:
    str(check_dataset(Dataset.open(root), workers=1).as_json())


@pytest.mark.parametrize("task", MANIFESTS)
@examples(40)
@given(data=st.data())
def test_manifests(place: Path, captioned: Path, task: str, data: st.DataObject):
    root = place / f"dataset {task}"
    shutil.rmtree(root, ignore_errors=True)
    where = {"media_root": captioned, "source": None, "extra": FIELDS.get(task)}
    write_dataset(root, name="x", task=task, splits={"train": MANIFESTS[task]}, **where)
    file = root / data.draw(st.sampled_from(["dataset.json", "train.jsonl"]))
    content = file.read_bytes()
    if data.draw(st.booleans()):
        content = data.draw(damaged(content))
    else:
        lines = content.decode().splitlines() if file.suffix == ".jsonl" else [content]
        content = "".join(json.dumps(data.draw(odd_json(json.loads(line)))) + "\n" for line in lines).encode()
    file.write_bytes(content)
    survives(lambda: read_dataset(root))
    survives(lambda: check(root))


# --- adapter folders -------------------------------------------------------------------------------------------------

ADAPTERS = ROOT / "vlkit" / "assets" / "adapters"


@pytest.fixture(scope="module")
def adapters(place: Path) -> dict[str, Path]:
    return {task: Path(shutil.copytree(ADAPTERS / task, place / f"adapter {task}")) for task in RECORDS}


@pytest.mark.slow
@pytest.mark.parametrize("task", RECORDS)
@examples(12)
@given(data=st.data())
def test_adapter_configs(adapters: dict[str, Path], task: str, data: st.DataObject):
    config = json.loads((ADAPTERS / task / "vlkit_adapter.json").read_text(encoding="utf-8"))
    (adapters[task] / "vlkit_adapter.json").write_text(json.dumps(data.draw(odd_json(config))), encoding="utf-8")
    survives(lambda: load(adapters[task], "cpu"))


@pytest.mark.slow
@examples(25)
@given(data=st.data())
def test_adapter_files(place: Path, data: st.DataObject):
    folder = place / "adapter"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ADAPTERS / "retrieval", folder)
    file = folder / data.draw(st.sampled_from(["vlkit_adapter.json", "vlkit_adapter.safetensors"]))
    content = file.read_bytes()
    # The header is where a damaged file asks for much.
    head, rest = (content[:6000], content[6000:]) if file.suffix == ".safetensors" else (content, b"")
    file.write_bytes(data.draw(damaged(head)) + rest)
    survives(lambda: load(folder, "cpu"))


# --- index folders ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def indexes(place: Path) -> list[Path]:
    values = np.random.default_rng(0).standard_normal((80, 16)).astype(np.float32)
    made = []
    for factory in ("Flat", "HNSW8", "IVF2,Flat"):
        folder = place / f"index {factory}"
        with IndexWriter.open(folder, 16, "m on tiny (0123456789abcdef)", factory) as writer:
            metadata = {"video": "a.mp4", "start": 0.0, "end": 1.0, "parts": 1}
            writer.add([Item(f"{n}", "1", "d", metadata) for n in range(80)], values)
        IndexSource("images", place, None, "tiny").write(folder)
        made.append(folder)
    return made


@examples(80)
@given(data=st.data())
def test_index_folders(place: Path, indexes: list[Path], data: st.DataObject):
    folder = place / "damaged index"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(data.draw(st.sampled_from(indexes)), folder)
    file = data.draw(st.sampled_from(sorted(f for f in folder.iterdir() if f.name != ".lock")))
    content = file.read_bytes()
    kind = data.draw(st.sampled_from(["bytes", "values", "gone"]))
    if kind == "gone":
        file.unlink()
    elif kind == "values" and file.suffix == ".json":
        file.write_text(json.dumps(data.draw(odd_json(json.loads(content)))), encoding="utf-8")
    elif kind == "values" and file.suffix == ".jsonl":
        lines = [json.loads(line) for line in content.decode().splitlines()]
        lines[data.draw(st.integers(0, 79))] = data.draw(odd_json(lines[3]))
        file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    else:
        file.write_bytes(data.draw(damaged(content)))
    survives(lambda: IndexSource.read(folder, "images"))
    survives(lambda: VectorIndex.open(folder).search(np.ones((1, 16), np.float32), 3))
    survives(lambda: update(folder))


def update(folder: Path) -> None:
    with IndexWriter.open(folder, 16, "m on tiny (0123456789abcdef)") as writer:
        plan = writer.diff([Item("1", "1"), Item("new", "2")], digest=lambda item: "d")
        writer.remove(plan.removed)
        writer.add([Item("new", "2")], np.ones((1, 16), np.float32))


# --- texts -----------------------------------------------------------------------------------------------------------


@examples(60)
@given(st.one_of(st.text(), ODD_VALUES.filter(lambda value: isinstance(value, str))))
def test_queries(embedder: Any, text: str):
    vectors = embedder.embed_texts([text])
    assert vectors.shape == (1, embedder.dim) and np.isfinite(vectors).all()


@pytest.fixture(scope="module")
def embedder() -> Any:
    return load(ADAPTERS / "retrieval", "cpu")
