"""Indexing and searching by the scripts: names as users have them, models that moved, folders that became empty."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from helpers.films import film
from helpers.scripts import ROOT, call, refuse
from vlkit.data.images import open_image
from vlkit.index import VectorIndex, media
from vlkit.tasks.retrieval.pipeline import load_zero_shot

SCRIPTS = {"images": "tasks/retrieval", "videos": "tasks/video_retrieval"}
SHIPPED = {"images": "retrieval", "videos": "video_retrieval"}
SUFFIX = {"images": ".png", "videos": ".mp4"}
MEDIA = pytest.mark.parametrize("media", SCRIPTS)
RUDE_NAMES = ["photo [edited]", "[b]/x", "[/b]", ":cat:", "#a", "a  b", "'q"]


def put(folder: Path, media: str, name: str, number: int = 0) -> Path:
    """A small image or video of that name."""
    path = folder / f"{name}{SUFFIX[media]}"
    path.parent.mkdir(parents=True, exist_ok=True)
    if media == "images":
        Image.new("RGB", (24, 24), (40 * number % 256, 90, 200)).save(path)
    else:
        made = film(folder.parent / "made.mp4", frames=4, width=64, height=48)
        shutil.copy(made, path)
    return path


def adapter(media: str, folder: Path) -> Path:
    """A copy of the shipped adapter."""
    return Path(shutil.copytree(ROOT / "vlkit" / "assets" / "adapters" / SHIPPED[media], folder))


def index(media: str, folder: Path, to: Path, *words: object) -> None:
    call(f"{SCRIPTS[media]}/index.py", f"--{media}", folder, "--index", to, *(words or ("--base", "tiny")))


def search(media: str, *words: object) -> None:
    call(f"{SCRIPTS[media]}/search.py", *words)


def test_large_jpegs_are_decoded_at_a_part_of_their_size(tmp_path, monkeypatch):
    folder, seen = tmp_path / "images", []
    folder.mkdir()
    Image.radial_gradient("L").resize((1280, 960)).convert("RGB").save(folder / "a.jpg")
    as_is = JpegImageFile.draft
    monkeypatch.setattr(JpegImageFile, "draft", lambda self, mode, size: seen.append(size) or as_is(self, mode, size))
    vectors = []
    for draft in ("true", "false"):
        index("images", folder, tmp_path / draft, "--base", "tiny", "--draft", draft)
        vectors.append(VectorIndex.open(tmp_path / draft).vectors[0])
    assert seen == [(192, 192)]  # twice the base's input
    assert 0.999 < vectors[0] @ vectors[1] < 1.0001


@MEDIA
def test_names_and_queries_are_shown_and_written_as_they_are(media, tmp_path, capsys):
    folder, to, hits = tmp_path / "media [x]", tmp_path / "idx", tmp_path / "#hits.json"
    paths = [put(folder, media, name, number) for number, name in enumerate(RUDE_NAMES)]
    (folder / f"bad [copy]{SUFFIX[media]}").write_bytes(b"no medium at all")
    index(media, folder, to)
    assert f"left out: {folder / 'bad [copy]'}{SUFFIX[media]}: " in capsys.readouterr().err
    for query in ("a sign that says [/b] :cat:", "#sunset", "null", "~", "*x", "caf\udce9"):
        search(media, "--index", to, f"--text={query}", "--json", hits, "--k", 9)
        said = capsys.readouterr().out
        assert said.startswith(f"{query.replace(chr(0xDCE9), chr(92) + 'xe9')} (7 ")
        assert all(f"{path} " in said for path in paths)
        found = json.loads(hits.read_text(encoding="utf-8"))
        assert found["query"] == {"text": query}
        assert {hit[media[:-1]] for hit in found["results"]} == set(map(str, paths))
    search(media, "--index", to, "--image", put(tmp_path, "images", "query [x]"))
    assert f"query [x].png (7 {'images' if media == 'images' else 'windows'})\n" in capsys.readouterr().out
    if media == "images":
        assert "bad [copy].png: not an image" in refuse(
            "tasks/retrieval/search.py", "--index", to, "--image", folder / "bad [copy].png"
        )


@MEDIA
def test_names_that_are_not_utf8(media, tmp_path, capsys):
    folder, to, hits = Path(os.fsdecode(os.fsencode(tmp_path / "media") + b"\xe9")), tmp_path / "idx", tmp_path / "hits"
    path = put(folder, media, os.fsdecode(b"caf\xe9"))
    index(media, folder, to)
    index(media, folder, to)
    assert "1 unchanged" in capsys.readouterr().out
    search(media, "--index", to, f"--{media[:-1]}", path, "--json", hits)
    assert "caf\\xe9" in capsys.readouterr().out
    (hit,) = json.loads(hits.read_text(encoding="utf-8"))["results"]
    assert Path(hit[media[:-1]]) == path and path.exists()


@MEDIA
def test_the_last_file_is_deleted_and_an_empty_index_is_searched(media, tmp_path, capsys):
    folder, to, hits = tmp_path / "media", tmp_path / "idx", tmp_path / "hits.json"
    path = put(folder, media, "only")
    index(media, folder, to)
    path.unlink()
    index(media, folder, to)
    assert "1 removed" in capsys.readouterr().out and len(VectorIndex.open(to)) == 0
    search(media, "--index", to, "--text", "x", "--json", hits)
    assert capsys.readouterr().out.startswith("x (0 ") and json.loads(hits.read_text())["results"] == []
    put(folder, media, "again")
    index(media, folder, to)
    assert "1 new" in capsys.readouterr().out and len(VectorIndex.open(to)) == 1
    shutil.rmtree(folder)
    assert "no such folder" in refuse(
        f"{SCRIPTS[media]}/index.py", f"--{media}", folder, "--index", to, "--base", "tiny"
    )
    assert len(VectorIndex.open(to)) == 1
    folder.mkdir()
    words = (f"--{media}", folder, "--index", tmp_path / "new", "--base", "tiny")
    assert f"no {media}" in refuse(f"{SCRIPTS[media]}/index.py", *words).replace("images", "images")


@MEDIA
def test_an_index_of_which_no_file_can_be_read(media, tmp_path, capsys):
    folder, to = tmp_path / "media", tmp_path / "idx"
    folder.mkdir()
    (folder / f"bad{SUFFIX[media]}").write_bytes(b"no medium at all")
    index(media, folder, to)
    search(media, "--index", to, "--text", "x")
    assert "x (0 " in capsys.readouterr().out


def test_files_that_may_not_be_read_are_left_out(tmp_path, capsys, monkeypatch):
    folder, to = tmp_path / "images", tmp_path / "idx"
    for number, name in enumerate("abc"):
        put(folder, "images", name, number)
    index("images", folder, to)

    def refused(path: Path) -> None:
        if path.stem in "ab":
            raise PermissionError(13, "Permission denied")

    digest, stamp = media.sha256_of, media.stamp_of
    monkeypatch.setattr(media, "sha256_of", lambda path: refused(path) or digest(path))
    monkeypatch.setattr(media, "stamp_of", lambda path: (path.stem == "b" and refused(path)) or stamp(path))
    os.utime(folder / "a.png", ns=(1, 1))  # its content has to be compared
    index("images", folder, to)
    out = capsys.readouterr()
    assert "1 images (0 new, 0 changed, 1 unchanged, 0 removed, 2 unreadable)" in out.out
    assert all(f"{name}.png: cannot be read (Permission denied)" in out.err for name in "ab")


def test_an_image_index_does_not_hide_behind_one_on_disk(tmp_path):
    put(tmp_path / "images", "images", "a")
    words = ("--images", tmp_path / "images", "--index", tmp_path / "idx", "--base", "tiny")
    (tmp_path / "idx").mkdir()
    (tmp_path / "idx" / "disk.json").write_text("{}")
    assert "holds an index on disk (of embeddings); use another folder" in refuse("tasks/retrieval/index.py", *words)


@MEDIA
def test_a_renamed_adapter_is_the_same_model(media, tmp_path, capsys, monkeypatch):
    folder, to = tmp_path / "media", tmp_path / "idx"
    put(folder, media, "a")
    mine = adapter(media, tmp_path / "runs" / "mine")
    index(media, folder, to, "--model", mine)
    monkeypatch.chdir(mine)
    index(media, folder, to, "--model", ".")
    assert "1 unchanged" in capsys.readouterr().out
    search(media, "--index", to, "--text", "x", "--model", ".")
    monkeypatch.chdir(tmp_path)
    best = mine.rename(mine.parent / "best [new]")
    assert "give --model DIR" in refuse(f"{SCRIPTS[media]}/search.py", "--index", to, "--text", "x")
    search(media, "--index", to, "--text", "x", "--model", best)
    index(media, folder, to, "--model", best)
    assert "1 unchanged" in capsys.readouterr().out
    refused = refuse(f"{SCRIPTS[media]}/index.py", f"--{media}", folder, "--index", to, "--base", "tiny")
    assert "index made with mine on tiny" in refused and "not with tiny" in refused


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("[]", "does not say what was indexed"),
        ('{"images": 3, "model": null, "base": "tiny"}', "does not say what was indexed"),
        ('{"images": "x", "model": null, "base": null}', "names no model"),
        ('{"videos": "x", "model": null, "base": "tiny"}', "an index of videos; search it with tasks/video_retrieval"),
        ("{", "not valid JSON"),
    ],
)
def test_a_damaged_source_is_named(text, part, tmp_path):
    (tmp_path / "source.json").write_text(text, encoding="utf-8")
    assert part in refuse("tasks/retrieval/search.py", "--index", tmp_path, "--text", "x")


@MEDIA
def test_what_is_passed_over_in_a_folder_is_said(media, tmp_path, capsys):
    folder, to = tmp_path / "media", tmp_path / "idx"
    for name in ("IMG_1.PSD", "notes.txt", ".hidden/x" + SUFFIX[media], "@eaDir/y" + SUFFIX[media]):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"\0")
    refused = refuse(f"{SCRIPTS[media]}/index.py", f"--{media}", folder, "--index", to, "--base", "tiny")
    psd = "1 .psd (not supported; convert to JPEG or PNG)" if media == "images" else "1 .psd, 1 .txt"
    assert f"no {media} there" in refused and psd in refused
    put(folder, media, "a")
    index(media, folder, to)
    said = capsys.readouterr().out
    assert "note: skipped 2 files: " in said and psd in said
    assert "1 .txt" in said and "1 hidden (.hidden)" in said and "@eaDir" in said
    assert [item.id.split("#")[0] for item in VectorIndex.open(to).items] == [f"a{SUFFIX[media]}"]


def test_sums_thresholds_and_duplicates(tmp_path, capsys):
    folder, to, hits = tmp_path / "media", tmp_path / "idx", tmp_path / "hits.json"
    paths = [put(folder, "images", name, number) for number, name in enumerate("abc")]
    shutil.copy(paths[0], folder / "z copy.png")
    index("images", folder, to)
    script = "tasks/retrieval/search.py"

    def found(*words: object) -> dict:
        search("images", "--index", to, "--k", 9, "--json", hits, *words)
        return json.loads(hits.read_text(encoding="utf-8"))

    pipeline = load_zero_shot("tiny", "cpu")
    query = pipeline.embed_texts(["red", "blue"]).T @ [1, -0.5] + pipeline.embed_images([paths[0]])[0]
    got = found("--text", "red - 0.5*blue", "--image", paths[0])
    assert got["query"] == {"text": "red - 0.5*blue", "image": str(paths[0])}
    assert [term["weight"] for term in got["terms"]] == [1, -0.5, 1]
    expected = pipeline.embed_images(paths) @ (query / np.linalg.norm(query))
    scores = {hit["image"]: hit["score"] for hit in got["results"]}
    np.testing.assert_allclose([scores[str(path)] for path in paths], expected, atol=1e-5)

    every = found("--text", "red")["results"]
    middle = (every[1]["score"] + every[2]["score"]) / 2
    some = found("--text", "red", "--min_score", middle)
    assert some["results"] == every[:2] and some["min_score"] == middle
    assert "other images have a score below" in capsys.readouterr().out
    assert "no" in refuse(script, "--index", to, "--text", "red", "--min_score", "auto").replace("neither", "no")
    (to / "source.json").write_text(
        json.dumps({**json.loads((to / "source.json").read_text()), "min_score": middle}), encoding="utf-8"
    )
    assert found("--text", "red", "--min_score", "auto") == some
    index("images", folder, to)  # keeps the threshold
    assert found("--text", "red", "--min_score", "auto") == some
    assert "--min_score auto" in refuse(script, "--index", to, "--image", paths[0], "--min_score", "auto")
    assert "--text: 'a - - b'" in refuse(script, "--index", to, "--text", "a - - b")

    call("tasks/retrieval/index.py", "--index", to, "--duplicates", 1, "--json", hits)
    said = json.loads(hits.read_text(encoding="utf-8"))
    assert said["threshold"] == 1
    assert [[hit["image"] for hit in group] for group in said["groups"]] == [
        [str(paths[0]), str(folder / "z copy.png")]
    ]
    assert said["groups"][0][1]["identical"] is True
    assert "1 groups with 1 near-duplicates of 4 images" in capsys.readouterr().out
    call("tasks/retrieval/index.py", "--index", to, "--duplicates")
    assert "(cosine >= 0.98)" in capsys.readouterr().out
    words = ("tasks/retrieval/index.py", "--index", to)
    assert "--images FOLDER" in refuse(*words) and "at most 1" in refuse(*words, "--duplicates", 98)


def test_turned_and_thin_images_are_indexed_as_they_are_seen(tmp_path, capsys):
    """Every way of turning gives the vectors of the upright image, whether a file or an opened image is embedded."""
    upright, phone = tmp_path / "upright", tmp_path / "phone"
    image = Image.new("RGB", (60, 40), "navy")
    image.paste("yellow", (0, 0, 20, 12))
    image.paste("red", (40, 10, 60, 40))
    back = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # orientation -> Image.Transpose that undoes it
    for folder in (upright, phone):
        folder.mkdir()
    for orientation, turn in back.items():
        image.save(upright / f"{orientation}.png")
        exif = Image.Exif()
        exif[0x0112] = orientation
        stored = image if turn is None else image.transpose(Image.Transpose(turn))
        stored.save(phone / f"{orientation}.png", exif=exif)
    for folder in (upright, phone):
        Image.new("RGB", (30_000, 1), "red").save(folder / "thin.png")
        index("images", folder, tmp_path / f"{folder.name}_idx")
    one, other = (VectorIndex.open(tmp_path / f"{name}_idx") for name in ("upright", "phone"))
    assert len(one) == len(other) == 9
    np.testing.assert_allclose((one.vectors * other.vectors).sum(1), 1, atol=1e-5)
    pipeline = load_zero_shot("tiny", "cpu")
    for file in sorted(phone.glob("*.png")):
        opened = pipeline.embed_images([open_image(file), Image.open(file)])
        np.testing.assert_allclose(opened @ pipeline.embed_images([file])[0], 1, atol=1e-5)
