"""Shards of images: what a command line names, and what damaged files give."""

from __future__ import annotations

import gzip
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from helpers.shards import image_bytes, make_tars
from vlkit.data.shards import find_shards
from vlkit.errors import UserError


def test_ranges_wildcards_and_folders_name_the_same_shards(tmp_path):
    make_tars(tmp_path / "s", shards=12, each=1)
    expected = [tmp_path / "s" / f"{number:03d}.tar" for number in range(12)]
    for pattern in ("s/{000..011}.tar", "s/*.tar", "s", "s/0{00..11}.tar"):
        assert [shard.path for shard in find_shards([str(tmp_path / pattern)])] == expected
    assert [shard.name for shard in find_shards([str(tmp_path / "s" / "{009..011}.tar")])] == [
        "009.tar",
        "010.tar",
        "011.tar",
    ]


def test_files_of_one_name_in_two_folders_stay_apart(tmp_path):
    for folder in ("a", "b"):
        make_tars(tmp_path / folder, shards=1, each=1)
    names = [shard.name for shard in find_shards([str(tmp_path / "a" / "000.tar"), str(tmp_path / "b" / "000.tar")])]
    assert names == ["a--000.tar", "b--000.tar"]


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        (["s/{0..3}.tar"], "0.tar, .*no such file"),
        (["s/*.tar"], "no such file"),
        (["note.txt"], "no shard"),
        (["s", "note.txt"], "is a folder; give one folder"),
        (["s/000.tar", "s/000.tar"], "named twice"),
    ],
)
def test_wrong_inputs_are_named(inputs, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("note.txt").write_text("x")
    make_tars(Path("s"), shards=1, each=1)
    if inputs == ["s/*.tar"]:
        Path("s/000.tar").unlink()
    with pytest.raises(UserError, match=says):
        find_shards(inputs)


def test_a_folder_is_cut_into_slices(tmp_path):
    for number in range(5):
        (tmp_path / "in" / f"{number}.png").parent.mkdir(exist_ok=True)
        (tmp_path / "in" / f"{number}.png").write_bytes(image_bytes(number))
    shards = find_shards([str(tmp_path / "in")], slice_size=2)
    assert [shard.files for shard in shards] == [("0.png", "1.png"), ("2.png", "3.png"), ("4.png",)]
    (entry,) = shards[2].entries()
    assert (entry.id, entry.content, entry.error) == ("4.png", image_bytes(4), "")
    before = shards[2].stamp()
    (tmp_path / "in" / "4.png").write_bytes(image_bytes(7) + b"x")
    assert shards[2].stamp() != before


def test_captions_are_passed_over_and_images_come_in_order(tmp_path):
    (path,) = make_tars(tmp_path, shards=1, each=3)
    (shard,) = find_shards([str(path)])
    entries = list(shard.entries())
    assert [entry.id for entry in entries] == [f"000.tar/n{number:06d}.png" for number in range(3)]
    assert [entry.content for entry in entries] == [image_bytes(number) for number in range(3)]


@pytest.mark.parametrize("packed", [False, True])
def test_a_cut_tar_gives_what_lies_before_the_cut(packed, tmp_path):
    (path,) = make_tars(tmp_path, shards=1, each=20)
    whole = gzip.compress(path.read_bytes()) if packed else path.read_bytes()
    path.unlink()
    cut = tmp_path / ("x.tar.gz" if packed else "x.tar")
    cut.write_bytes(whole[: len(whole) // 2])
    *images, last = find_shards([str(cut)])[0].entries()
    assert 0 < len(images) < 20 and not any(entry.error for entry in images)
    assert last.id == cut.name and f"damaged or incomplete after {len(images)} images" in last.error


def test_a_damaged_header_is_not_taken_for_the_end(tmp_path):
    (path,) = make_tars(tmp_path, shards=1, each=6)
    content = bytearray(path.read_bytes())
    start = content.index(b"n000004.png")
    content[start : start + 200] = b"\xff" * 200
    path.write_bytes(content)
    *images, last = find_shards([str(path)])[0].entries()
    assert len(images) == 4 and "after 4 images: the end mark is missing" in last.error


def test_no_tar_at_all_is_one_error(tmp_path):
    (tmp_path / "x.tar").write_bytes(b"not a tar" * 1000)
    (entry,) = find_shards([str(tmp_path / "x.tar")])[0].entries()
    assert "damaged or incomplete after 0 images" in entry.error


@pytest.mark.parametrize("as_struct", [False, True])
def test_parquet_rows(as_struct, tmp_path):
    files = [image_bytes(0), None, image_bytes(2)]
    values = [file and {"bytes": file, "path": f"{n}.png"} for n, file in enumerate(files)] if as_struct else files
    pq.write_table(pa.table({"image": values, "caption": ["a", "b", "c"]}), tmp_path / "x.parquet")
    entries = list(find_shards([str(tmp_path / "x.parquet")])[0].entries())
    ids = ["0.png", "1", "2.png"] if as_struct else ["0", "1", "2"]
    assert [entry.id for entry in entries] == [f"x.parquet/{name}" for name in ids]
    assert [entry.content for entry in entries] == [files[0], b"", files[2]]
    assert [bool(entry.error) for entry in entries] == [False, True, False]
    with pytest.raises(UserError, match="has no column 'jpg', but image, caption"):
        list(find_shards([str(tmp_path / "x.parquet")], column="jpg")[0].entries())
    (tmp_path / "x.parquet").write_bytes(b"PAR1 no")
    (entry,) = find_shards([str(tmp_path / "x.parquet")])[0].entries()
    assert "damaged or incomplete after 0 rows" in entry.error
