"""Which files of a folder count, and what is said about the others."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from vlkit.data.check import check_dataset
from vlkit.data.images.formats import READS_HEIF
from vlkit.data.manifest import Dataset
from vlkit.data.scan import Scan, find_media
from vlkit.data.sources import folder as own_folder
from vlkit.data.sources.prepare import prepare
from vlkit.errors import UserError


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def test_images_of_all_sub_folders_count_in_the_order_of_paths(tmp_path):
    touch(tmp_path, "b.JPG", "a/z.png", "a-b/y.webp", "a/deep/x.tiff", "c.Jpeg")
    assert find_media(tmp_path, "images").names == ["a/deep/x.tiff", "a/z.png", "a-b/y.webp", "b.JPG", "c.Jpeg"]
    assert find_media(tmp_path, "images").note() == ""


def test_every_other_ending_is_counted_by_name(tmp_path):
    touch(tmp_path, "a.jpg", "b.PSD", "c.psd", "d.avi", "e.txt", "README", "f.CR2", "x.jpg.part")
    note = find_media(tmp_path, "images", beside=(".txt",)).note()
    assert note == (
        "skipped 6 files: 1 .cr2 (not supported; convert to JPEG or PNG), "
        "2 .psd (not supported; convert to JPEG or PNG), 1 without an ending, 1 .avi, 1 .part"
    )
    assert find_media(tmp_path, "videos").names == ["d.avi"]


def test_a_folder_without_a_match_says_what_is_there(tmp_path):
    touch(tmp_path, "a.psd", "b.raw")
    with pytest.raises(UserError, match=r"--images .*: no images there .*1 \.psd \(not supported; convert"):
        find_media(tmp_path, "images", "--images")
    with pytest.raises(UserError, match=r"--videos .*none: no such folder"):
        find_media(tmp_path / "none", "videos", "--videos")


def test_hidden_files_and_thumbnail_folders_are_passed_over_and_named(tmp_path):
    hidden = ["._a.jpg", ".cache/b.jpg"]
    copies = ["@eaDir/a.jpg/SYNOPHOTO_THUMB_M.jpg", "x/Thumbnails/a.jpg", "__MACOSX/a.jpg", "#recycle/old.jpg"]
    touch(tmp_path, "a.jpg", "x/c.jpg", ".DS_Store", *hidden, *copies)
    found = find_media(tmp_path, "images")
    assert found.names == ["a.jpg", "x/c.jpg"]
    assert found.causes == {
        "hidden": ["._a.jpg", ".cache"],
        "thumbnail or system folders": ["#recycle", "@eaDir", "__MACOSX", "x/Thumbnails"],
    }
    assert "2 hidden (._a.jpg, .cache)" in found.note()
    # The given folder may have any name.
    assert find_media(tmp_path / "x" / "Thumbnails", "images").names == ["a.jpg"]
    assert find_media(tmp_path / ".cache", "images").names == ["b.jpg"]


def test_links_are_followed_once_and_loops_end(tmp_path):
    root, outside = (
        touch(tmp_path / "root", "own/a.jpg", ".store/s.jpg"),
        touch(tmp_path / "outside", "b.jpg", "c/d.jpg"),
    )
    (root / "file.jpg").symlink_to(outside / "b.jpg")
    (root / "far").symlink_to(outside)
    (root / "far2").symlink_to(outside)  # the same folder once more
    (root / "again").symlink_to(root / "own")  # found in its own place
    (root / "kept").symlink_to(root / ".store")  # has no place of its own
    (root / "up").symlink_to(tmp_path)
    (root / "gone.jpg").symlink_to(tmp_path / "none.jpg")
    (root / "self.jpg").symlink_to(root / "self.jpg")
    (outside / "back").symlink_to(root)
    found = find_media(root, "images")
    assert found.names == ["far/b.jpg", "far/c/d.jpg", "file.jpg", "kept/s.jpg", "own/a.jpg"]
    assert found.causes["broken links"] == ["gone.jpg", "self.jpg"]
    assert found.causes["links to a parent folder"] == ["up"]
    linked = tmp_path / "link"
    linked.symlink_to(root)
    assert find_media(linked, "images").names == found.names
    assert all(path.is_file() for path in found.paths)


def test_names_that_are_not_utf8_are_named(tmp_path):
    touch(tmp_path, "a.jpg", "café.jpg")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.jpg")).touch()
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/d\xe9")).mkdir()
    assert find_media(tmp_path, "images").names == ["a.jpg", "café.jpg", os.fsdecode(b"caf\xe9.jpg")]
    found = find_media(tmp_path, "images", utf8_only=True)
    assert found.names == ["a.jpg", "café.jpg"]
    assert r"2 with a name that is not UTF-8, rename them (caf\xe9.jpg, d\xe9)" in found.note()
    found.note().encode()  # goes to any output


def test_a_folder_whose_own_name_is_not_utf8_can_be_prepared(tmp_path):
    root = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    for name in ("a.png", os.fsdecode(b"b\xe9.png")):
        root.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4)).save(root / name)
        (root / f"{name[:-4]}.txt").write_text("a dog")
    prepared = prepare(own_folder.read(root, val=0, test=0), tmp_path / "data", root)
    dataset = Dataset.open(prepared.dataset.root)
    (record,) = dataset.records("train")
    assert record["id"] == r"caf\xe9/a.png" and dataset.path(record) == root / "a.png"
    assert check_dataset(dataset, workers=1).problems == []
    assert r"b\xe9.png" in prepared.summary()


def test_what_is_no_file_is_not_opened(tmp_path):
    touch(tmp_path, "a.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    found = find_media(tmp_path, "images")
    assert found.names == ["a.jpg"] and found.causes == {"that are not regular files": ["pipe.jpg"]}


def test_own_folders_follow_the_same_rule(tmp_path):
    touch(tmp_path, "a.jpg", "b.psd", "@eaDir/a.jpg", ".hidden/c.jpg")
    (tmp_path / "a.txt").write_text("a dog\n")
    source = own_folder.read(tmp_path, val=0, test=0)
    assert [record["image"] for record in source.splits["train"]] == ["a.jpg"]
    (note,) = [note for note in source.notes if note.startswith("skipped 1 file: ")]
    assert "1 .psd (not supported" in note and "@eaDir" in note and ".hidden" in note and ".txt" not in note


def test_the_note_counts_files_and_says_what_reads_heic(tmp_path):
    touch(tmp_path, "a.jpg", *(f"{n}.mov" for n in range(8)), *(f"{n}.txt" for n in range(4)), ".x.jpg")
    assert find_media(tmp_path, "images").note() == "skipped 12 files: 8 .mov, 4 .txt; 1 hidden (.x.jpg)"
    scan = Scan(tmp_path, "images", endings=Counter({".heic": 2}))
    if not READS_HEIF:
        assert scan.note() == "skipped 2 files: 2 .heic (pip install 'vlkit[heic]', or convert to JPEG or PNG)"
    assert Scan(tmp_path, "images", causes={"hidden": ["a"]}).note() == "skipped 1 hidden (a)"
