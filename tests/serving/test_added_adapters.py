"""Uploads from strangers: archives that lead elsewhere, pickles, huge members, foreign bases; adapters that arrive."""

from __future__ import annotations

import json
import pickle
import shutil
import stat
import threading
import zipfile
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file, save

from vlkit.engine.checkpoint import CONFIG_FILE, MODEL_FILE
from vlkit.errors import UserError
from vlkit.serving import AddedImages, Library, Models, images_in, load_models, search_images, shipped_adapters
from vlkit.serving import added_adapters as module
from vlkit.serving.added_adapters import AddedAdapters, is_published, unpack_adapter
from vlkit.serving.uploaded import Part, Upload, parts_of, write_parts

SHIPPED = {folder.name: folder for folder in shipped_adapters()}


@pytest.fixture(scope="module")
def loaded() -> Models:
    return load_models(device="cpu")


@pytest.fixture
def models(loaded: Models) -> Models:
    """The shipped adapters, as they are at a server's start."""
    by_task = {task: dict(found) for task, found in loaded.by_task.items()}
    return Models(by_task, loaded.zero_shot, {}, list(loaded.bases), device="cpu", _bases=loaded._bases)


def zipped(path: Path, members: dict[str, bytes | str]) -> Upload:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return Upload(path, path.name)


def adapter(inside: str = "", **changes) -> dict[str, bytes | str]:
    """Members of an archive of the shipped search adapter; ``changes`` are fields of its config.

    The weights are the same in another file, so that an index of it is not one that exists.
    """
    folder = SHIPPED["retrieval"]
    config = json.loads((folder / CONFIG_FILE).read_text()) | changes
    return {
        inside + CONFIG_FILE: json.dumps(config),
        inside + MODEL_FILE: save(load_file(folder / MODEL_FILE), {"copy": "1"}),
    }


def refused(models: Models, upload: Upload) -> str:
    added = AddedAdapters(models, {})
    with pytest.raises(UserError) as caught:
        added.upload([upload])
    assert not added.added and "vlkit-adapter-" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "name", ["../out.json", "/out.json", "a/../../out.json", "..\\out.json", "C:\\out.json", "a\0b"]
)
def test_a_name_that_leads_elsewhere_is_refused(tmp_path: Path, name: str):
    inside = tmp_path / "a" / "b"
    inside.mkdir(parents=True)
    upload = Upload(tmp_path / "evil.zip", "evil.zip")
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        info = zipfile.ZipInfo("x")
        info.filename = name  # ZipInfo itself would tidy some of these
        archive.writestr(info, "{}")
    before = sorted(tmp_path.rglob("*"))
    if name == "a\0b":  # zipfile cuts it at the NUL
        with parts_of([upload], 100) as parts:
            assert [part.name for part in parts] == ["a"]
        return
    with pytest.raises(UserError, match="leads out of the upload"), parts_of([upload], 100) as parts:
        write_parts(parts, inside, 100)
    assert sorted(tmp_path.rglob("*")) == before


def test_links_pickles_and_strange_files_are_refused(tmp_path: Path, models: Models):
    link = zipfile.ZipInfo("weights.safetensors")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    assert "is a link" in refused(models, Upload(tmp_path / "link.zip", "link.zip"))
    bad = zipped(tmp_path / "pickle.zip", adapter() | {"extra/model.bin": pickle.dumps({})})
    assert "model.bin: can run code" in refused(models, bad)
    hidden = zipped(tmp_path / "hidden.zip", adapter() | {MODEL_FILE: pickle.dumps({"a": 1})})
    assert "cannot be read" in refused(models, hidden)
    script = zipped(tmp_path / "script.zip", adapter() | {"setup.py": "print(1)"})
    assert "setup.py: is no file of an adapter" in refused(models, script)
    assert "holds no adapter" in refused(models, zipped(tmp_path / "empty.zip", {"a.json": "{}"}))
    (tmp_path / "text.zip").write_text("no archive")
    assert "no readable zip archive" in refused(models, Upload(tmp_path / "text.zip", "text.zip"))


def test_a_huge_member_is_refused_before_it_is_unpacked_and_a_false_size_while_it_is(tmp_path: Path, models: Models):
    bomb = zipped(tmp_path / "bomb.zip", {"a.json": "{}", "a.safetensors": bytes(module.MOST_BYTES + 1)})
    assert bomb.path.stat().st_size < 2**20 and "more than 300 MiB" in refused(models, bomb)
    lying = Part("a.json", 1, lambda: bomb.path.open("rb"))
    with pytest.raises(UserError, match="has more than"):
        write_parts([lying], tmp_path / "out", 1000)
    assert (tmp_path / "out" / "a.json").stat().st_size <= 1000


def test_foreign_tasks_and_bases_are_refused_by_name(tmp_path: Path, models: Models):
    assert "task 'captioning', and no tab" in refused(models, zipped(tmp_path / "task.zip", adapter(task="captioning")))
    base = json.loads((SHIPPED["retrieval"] / CONFIG_FILE).read_text())["base"]
    for load in (f"ViT-B-32:{tmp_path}/weights.pt", "local-dir:/etc", "ViT-bigG-14"):
        other = {tower: {**about, "load": load} for tower, about in base.items()}
        assert "which is not here; loaded" in refused(models, zipped(tmp_path / "base.zip", adapter(base=other)))
    changed = {tower: {**about, "fingerprint": "0" * 32} for tower, about in base.items()}
    assert "with fingerprint 0000" in refused(models, zipped(tmp_path / "print.zip", adapter(base=changed)))


def test_published_bases_are_those_without_a_path(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert is_published("ViT-B-32:openai") and is_published("hf:openai/clip") and is_published("tiny@int8")
    assert not any(map(is_published, ("ViT-B-32", "hf:org/name", "hf:../a", "hf:/etc", "local-dir:org/name", "a/b/c")))


def test_an_uploaded_adapter_is_indexed_and_offered_beside_the_others(tmp_path: Path, models: Models, monkeypatch):
    """A zipped run folder, with what else lies in it."""
    monkeypatch.setenv("VLKIT_CACHE", str(tmp_path / "cache"))
    for colour in ("red", "green", "blue"):
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.new("RGB", (32, 32), colour).save(tmp_path / "images" / f"{colour}.png")
    library = Library(images_in(tmp_path / "images"), models.retrieval)
    library.update()
    said = threading.Event()
    added = AddedAdapters(models, {"retrieval": library}, arrived=said.set)
    mine = AddedImages().plus("first", Image.new("RGB", (32, 32)), models.retrieval)
    run = adapter(inside="run 1/") | {"run 1/README.md": "card", "run 1/checkpoint/state.safetensors": "x"}
    counts = []
    opened = added.upload([zipped(tmp_path / "my run.zip", run)], lambda *count: counts.append(count))
    assert opened.name == "SHERL (my-run)" and opened.task == "retrieval" and said.is_set() and counts[-1] == (3, 3)
    query = models.retrieval[opened.name].embed_texts(["a red square"])
    mine = mine.plus("second", Image.new("RGB", (32, 32), "white"), models.retrieval)
    found, same = (search_images(library, name, query, 5, mine)[0] for name in (opened.name, "SHERL"))
    assert [(hit.name, round(hit.score, 4)) for hit in found] == [(hit.name, round(hit.score, 4)) for hit in same]
    assert len(found) == 5 and library.finished
    files = [Upload(SHIPPED["vqa"] / name, name) for name in (CONFIG_FILE, MODEL_FILE)]
    assert added.upload(files).name in models.by_task["vqa"]
    monkeypatch.setattr(module, "MOST_ADDED_ADAPTERS", 2)
    with pytest.raises(UserError, match="2 adapters were added already"):
        added.upload(files)


def test_only_the_two_files_are_unpacked(tmp_path: Path):
    run = adapter(inside="x/") | {"x/config.yaml": "a", "x/curves.png": "b", "__MACOSX/x/.z.json": "c"}
    folder = unpack_adapter([zipped(tmp_path / "a b.zip", run)], tmp_path / "out")
    assert folder.name == "a-b" and {path.name for path in folder.rglob("*")} == {CONFIG_FILE, MODEL_FILE}
    shutil.rmtree(folder)
