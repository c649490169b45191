"""Official image-text files -> prepared datasets, and the check of a prepared dataset."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from vlkit.data.check import check_dataset, write_clean
from vlkit.data.images import MediaError
from vlkit.data.manifest import Dataset, write_dataset
from vlkit.data.sources import coco, flickr30k, folder
from vlkit.data.sources.prepare import compare_counts, prepare
from vlkit.errors import UserError

DATA_PREP = Path(__file__).parents[2] / "data_prep"


def script(name: str, *words: object) -> subprocess.CompletedProcess:
    command = [sys.executable, str(DATA_PREP / name), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def write_image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 12), "red").save(path)


def save(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def karpathy_image(number: int, split: str, captions: int = 5) -> dict:
    """An image of ``dataset_coco.json``; raw captions carry the stray blanks of the official file."""
    folder = "train2014" if split == "train" else "val2014"
    sentences = [
        {"tokens": ["a", "dog", str(i)], "raw": f" A dog, {i}.\n", "imgid": number, "sentid": 10 * number + i}
        for i in range(captions)
    ]
    name = f"COCO_{folder}_{number:012}.jpg"
    fields = {"filepath": folder, "filename": name, "imgid": number, "split": split, "cocoid": number}
    return {**fields, "sentids": [s["sentid"] for s in sentences], "sentences": sentences}


@pytest.fixture
def karpathy(tmp_path):
    """A Karpathy file of five images (numbers 9, 4, 7, 2, 5) and their images."""
    splits = ("train", "restval", "val", "test", "test")
    images = [
        karpathy_image(n, split, captions=7 if n == 5 else 5) for n, split in zip((9, 4, 7, 2, 5), splits, strict=True)
    ]
    for image in images:
        write_image(tmp_path / "images" / image["filepath"] / image["filename"])
    return save(tmp_path / "dataset_coco.json", {"images": images, "dataset": "coco"})


@pytest.fixture
def captions(tmp_path):
    """``captions_{train,val}2017.json`` with captions in mixed order, and their images."""
    for split, numbers in (("train", (30, 10)), ("val", (20,))):
        images = [{"id": n, "file_name": f"{n:012}.jpg", "height": 12, "width": 16, "license": 3} for n in numbers]
        notes = [{"image_id": n, "id": 1000 - 10 * i + n, "caption": f"{n} {i}"} for i in range(5) for n in numbers]
        save(tmp_path / f"annotations/captions_{split}2017.json", {"info": {}, "images": images, "annotations": notes})
        for image in images:
            write_image(tmp_path / "images" / f"{split}2017" / image["file_name"])
    save(tmp_path / "annotations/instances_val2017.json", {"images": [], "annotations": [{"bbox": [0, 0, 1, 1]}]})
    return tmp_path / "annotations"


# --- COCO ------------------------------------------------------------------------------------------------------------


def test_karpathy_file(karpathy, tmp_path):
    result = script("coco.py", "--annotations", karpathy, "--images", tmp_path / "images", "--output", tmp_path / "out")
    assert (result.returncode, result.stderr) == (0, "")
    dataset = Dataset.open(tmp_path / "out", "retrieval")
    ids = {split: [record["id"] for record in dataset.records(split)] for split in dataset.splits}
    assert ids == {"train": ["coco/9", "coco/4"], "val": ["coco/7"], "test": ["coco/2", "coco/5"]}  # file order
    assert dataset.records("train")[1]["image"] == "val2014/COCO_val2014_000000000004.jpg"  # restval
    assert dataset.records("test")[1]["texts"] == [f"A dog, {i}." for i in range(7)]
    assert dataset.media_root == (tmp_path / "images").resolve()
    assert dataset.splits["test"]["texts"] == 12
    assert "test" in result.stdout and "12" in result.stdout
    assert script("check.py", tmp_path / "out").returncode == 0


def test_dataset_around_its_media_can_be_moved(karpathy, tmp_path):
    prepare(coco.read(karpathy), tmp_path, tmp_path / "images")
    moved = tmp_path.parent / f"{tmp_path.name}-moved"
    tmp_path.rename(moved)
    dataset = Dataset.open(moved)
    assert dataset.path(dataset.records("val")[0]).is_file()
    assert check_dataset(dataset, workers=1).problems == []


def test_captions_folder(captions, tmp_path):
    prepare(coco.read(captions), tmp_path / "out", tmp_path / "images")
    dataset = Dataset.open(tmp_path / "out")
    assert list(dataset.splits) == ["train", "val"]
    assert [record["image"] for record in dataset.records("train")] == [
        "train2017/000000000030.jpg",
        "train2017/000000000010.jpg",
    ]
    assert dataset.records("train")[1]["texts"] == [f"10 {i}" for i in (4, 3, 2, 1, 0)]  # by annotation id
    assert dataset.records("val")[0]["id"] == "coco/20"


def test_single_captions_file_with_its_own_image_folder(captions, tmp_path):
    source = coco.read(captions / "captions_val2017.json")
    prepared = prepare(source, tmp_path / "out", tmp_path / "images/val2017")
    assert [record["image"] for record in prepared.dataset.records("val")] == ["000000000020.jpg"]
    assert any("another path" in note for note in prepared.notes)


def test_flat_karpathy_lists(tmp_path):
    train = [
        {"caption": f"t{i}", "image": "val2014/COCO_val2014_000000000008.jpg", "image_id": "coco_8"} for i in (0, 1)
    ]
    test = [{"caption": ["a", "b"], "image": "val2014/COCO_val2014_000000000009.jpg"}]
    save(tmp_path / "lists/coco_karpathy_train.json", train)
    save(tmp_path / "lists/coco_karpathy_test.json", test)
    splits = coco.read(tmp_path / "lists").splits
    image = {"id": "coco/8", "image": "val2014/COCO_val2014_000000000008.jpg", "texts": ["t0", "t1"]}
    assert splits["train"] == [image]
    assert splits["test"][0]["texts"] == ["a", "b"]


def test_images_of_the_2017_release_serve_the_karpathy_file(karpathy, tmp_path):
    for number in (9, 4, 7, 2, 5):
        write_image(tmp_path / "new" / ("val2017" if number == 4 else "train2017") / f"{number:012}.jpg")
    dataset = prepare(coco.read(karpathy), tmp_path / "out", tmp_path / "new").dataset
    assert [record["image"] for record in dataset.records("train")] == [
        "train2017/000000000009.jpg",
        "val2017/000000000004.jpg",
    ]


def test_missing_images_stop_or_are_left_out(karpathy, tmp_path):
    lost = "val2014/COCO_val2014_000000000002.jpg"
    (tmp_path / "images" / lost).unlink()
    words = ("--annotations", karpathy, "--images", tmp_path / "images", "--output", tmp_path / "out")
    result = script("coco.py", *words)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert "1 of 5 images" in result.stderr and lost in result.stderr and "--partial" in result.stderr
    assert not (tmp_path / "out").exists()

    result = script("coco.py", *words, "--partial")
    assert (result.returncode, result.stderr) == (0, "")
    assert (tmp_path / "out/missing.txt").read_text() == lost + "\n"
    assert [record["id"] for record in Dataset.open(tmp_path / "out").records("test")] == ["coco/5"]

    write_image(tmp_path / "images" / lost)
    prepare(coco.read(karpathy), tmp_path / "out", tmp_path / "images")
    assert not (tmp_path / "out/missing.txt").exists()


def test_only_the_first_five_missing_names_are_shown(tmp_path):
    images = [karpathy_image(n, "train") for n in range(12)]
    path = save(tmp_path / "dataset_coco.json", {"images": images, "dataset": "coco"})
    (tmp_path / "images").mkdir()
    for partial in (False, True):
        with pytest.raises(UserError, match="12 of 12 images") as error:
            prepare(coco.read(path), tmp_path / "out", tmp_path / "images", partial=partial)
        assert str(error.value).count(".jpg") == 5


def test_split_without_any_image_is_left_out_and_noted(karpathy, tmp_path):
    for path in (tmp_path / "images/train2014").iterdir():
        path.unlink()
    (tmp_path / "images/val2014/COCO_val2014_000000000004.jpg").unlink()
    prepared = prepare(coco.read(karpathy), tmp_path / "out", tmp_path / "images", partial=True)
    assert list(prepared.dataset.splits) == ["val", "test"]
    assert 'split "train" is empty and was left out' in prepared.notes


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "line 1"),
        ([{"caption": "a"}], "name contains no split"),
        ({"images": [{"sentences": [], "split": "train"}]}, r'images\[0\]: field "filename" is missing'),
        ({"images": [{"sentences": [], "split": "dev", "filename": "a"}]}, 'field "split" is "dev"'),
        (
            {"images": [{"sentences": [{"sentid": 1}], "split": "val", "filename": "a"}]},
            r'images\[0\]\.sentences\[0\]: field "raw" is missing',
        ),
    ],
)
def test_wrong_karpathy_file_names_record_and_field(tmp_path, content, message):
    path = save(tmp_path / "dataset_coco.json", content)
    with pytest.raises(UserError, match=message) as error:
        coco.read(path)
    assert str(path) in str(error.value)


def test_wrong_caption_files_are_named(captions, tmp_path):
    with pytest.raises(UserError, match="holds instances"):
        coco.read(captions / "instances_val2017.json")
    with pytest.raises(UserError, match=r"holds no captions_\*\.json"):
        coco.read(tmp_path / "images")
    save(captions / "captions_val2014.json", {"images": [], "annotations": []})
    with pytest.raises(UserError, match=r"captions_val2014\.json too"):
        coco.read(captions)
    (captions / "captions_val2014.json").unlink()
    content = json.loads((captions / "captions_val2017.json").read_text())
    del content["annotations"][2]["image_id"]
    save(captions / "captions_val2017.json", content)
    with pytest.raises(UserError, match=r'captions_val2017.json: annotations\[2\]: field "image_id" is missing'):
        coco.read(captions)


@pytest.mark.parametrize("annotations", [[None], {"1": "a dog"}, True])
def test_captions_of_another_form_are_named(annotations, tmp_path):
    (tmp_path / "captions_train2014.json").write_text(json.dumps({"images": [], "annotations": annotations}))
    with pytest.raises(UserError, match=r"captions_train2014\.json: holds other annotations, give captions_"):
        coco.read(tmp_path)


def test_counts_are_compared_with_the_official_ones_only_for_the_official_file(karpathy):
    source = coco.read(karpathy)
    assert source.counts == {"train": (2, 10), "val": (1, 5), "test": (2, 12)}
    assert source.notes == []
    source.counts = {**coco.KARPATHY_COUNTS, "val": (4_999, 25_005)}
    (note,) = compare_counts(source, coco.KARPATHY_COUNTS)
    assert "val" in note and "4,999" in note and "25,010" in note
    source.counts = dict(coco.KARPATHY_COUNTS)
    assert compare_counts(source, coco.KARPATHY_COUNTS) == []


def test_blank_captions_are_left_out_and_counted(karpathy, tmp_path):
    content = json.loads(karpathy.read_text())
    content["images"][0]["sentences"][1]["raw"] = " \n"
    content["images"][2]["sentences"] = []
    save(karpathy, content)
    prepared = prepare(coco.read(karpathy), tmp_path / "out", tmp_path / "images")
    assert len(prepared.dataset.records("train")[0]["texts"]) == 4
    assert "1 blank texts were left out" in prepared.notes
    assert "1 records have no text and were left out: coco/7" in prepared.notes


# --- Flickr30k -------------------------------------------------------------------------------------------------------

TOKENS = (
    "1000000002.jpg#1\tTwo dogs .\n1000000002.jpg#0\tNumber # 1\tdog .\r\n"
    "1000000001.jpg#0\tA caf\u00e9 .\n1000000001.jpg#1\tPeople\u2028sit .\n"
)


@pytest.fixture
def flickr_images(tmp_path):
    for name in ("1000000001.jpg", "1000000002.jpg"):
        write_image(tmp_path / "images/flickr30k-images" / name)
    return tmp_path / "images"


def test_token_file_goes_into_one_stated_split(flickr_images, tmp_path):
    tokens = save(tmp_path / "results_20130124.token", TOKENS)
    prepared = prepare(flickr30k.read(tokens), tmp_path / "out", flickr_images / "flickr30k-images")
    assert prepared.dataset.records("train") == [
        {"id": "flickr30k/1000000002", "image": "1000000002.jpg", "texts": ["Number # 1\tdog .", "Two dogs ."]},
        {"id": "flickr30k/1000000001", "image": "1000000001.jpg", "texts": ["A caf\u00e9 .", "People\u2028sit ."]},
    ]
    assert any("states no splits" in note for note in prepared.notes)
    assert list(flickr30k.read(tokens, split="all").splits) == ["all"]


def test_token_file_with_split_lists(flickr_images, tmp_path):
    tokens = save(tmp_path / "results_20130124.token", TOKENS)
    save(tmp_path / "lists/train.txt", "1000000002\n77\n")
    save(tmp_path / "lists/test.txt", "1000000001.jpg\n")
    source = flickr30k.read(tokens, split_lists=tmp_path / "lists")
    assert {split: [r["image"] for r in records] for split, records in source.splits.items()} == {
        "train": ["1000000002.jpg"],
        "test": ["1000000001.jpg"],
    }
    assert any("77" in note for note in source.notes)
    dataset = prepare(source, tmp_path / "out", flickr_images).dataset  # the folder above the images will do
    assert dataset.records("test")[0]["image"] == "flickr30k-images/1000000001.jpg"


def test_flickr_karpathy_file(flickr_images, tmp_path):
    images = [
        {"filename": f"100000000{n}.jpg", "imgid": n, "split": split, "sentences": [{"raw": f"c{n}", "tokens": []}]}
        for n, split in ((1, "train"), (2, "test"))
    ]
    path = save(tmp_path / "dataset_flickr30k.json", {"images": images, "dataset": "flickr30k"})
    words = ("--images", flickr_images, "--output", tmp_path / "out")
    assert script("flickr30k.py", "--annotations", path, *words).returncode == 0
    assert Dataset.open(tmp_path / "out").records("test")[0]["texts"] == ["c2"]
    # The same file tells the splits of the token file.
    source = flickr30k.read(save(tmp_path / "r.token", TOKENS), split_lists=path)
    assert source.splits["train"][0]["texts"] == ["A caf\u00e9 .", "People\u2028sit ."]


def test_results_csv_with_the_line_that_lacks_a_separator(tmp_path):
    rows = "image_name| comment_number| comment\na.jpg| 0| Two | three .\na.jpg| 4   A dog runs .\n"
    splits = flickr30k.read(save(tmp_path / "results.csv", rows)).splits
    assert splits["train"] == [{"id": "flickr30k/a", "image": "a.jpg", "texts": ["Two | three .", "A dog runs ."]}]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.token", "a.jpg#0\tok\na.jpg#0 no tab\n"),
        ("a.token", "a.jpg#0\tok\na.jpg\tno number\n"),
        ("a.csv", "a| 0| x\nb\n"),
    ],
)
def test_wrong_caption_line_is_named(tmp_path, name, text):
    path = save(tmp_path / name, text)
    with pytest.raises(UserError, match=f"{name}:2: expected"):
        flickr30k.read(path)


# --- own folder ------------------------------------------------------------------------------------------------------


@pytest.fixture
def own(tmp_path):
    """A folder with a.jpg, sub/b.PNG and things that are no images."""
    write_image(tmp_path / "own/a.jpg")
    write_image(tmp_path / "own/sub/b.PNG")
    write_image(tmp_path / "own/.thumbnails/a.jpg")
    save(tmp_path / "own/readme.md", "x")
    return tmp_path / "own"


def texts_of(source) -> dict[str, list[str]]:
    return {record["image"]: record["texts"] for records in source.splits.values() for record in records}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("c.csv", 'image,caption\na.jpg,"one, two"\nsub/b.PNG,three\na.jpg,four\n'),
        ("c.csv", '\ufeffnumber;File_Name;Text\n1;a.jpg;one, two\n2;"sub/b.PNG";three\n3;./a.jpg;four\n'),
        ("c.tsv", "filepath\ttitle\na.jpg\tone, two\nsub/b.PNG\tthree\na.jpg\tfour\n"),
        (
            "c.jsonl",
            '{"file_name": "a.jpg", "text": ["one, two", "four"]}\n\n{"image": "sub/b.PNG", "caption": "three"}\n',
        ),
        ("c.json", {"a.jpg": ["one, two", "four"], "sub/b.PNG": "three"}),
        (
            "c.json",
            [{"image": "a.jpg", "captions": ["one, two", "four"]}, {"image": "sub/b.PNG", "captions": ["three"]}],
        ),
    ],
)
def test_caption_files(own, tmp_path, name, content):
    path = save(tmp_path / name, content)
    assert texts_of(folder.read(own, path)) == {"a.jpg": ["one, two", "four"], "sub/b.PNG": ["three"]}


def test_caption_file_in_the_folder_is_found(own):
    save(own / "metadata.csv", "file_name,text\na.jpg,one\n")
    source = folder.read(own)
    assert texts_of(source) == {"a.jpg": ["one"]}
    assert any("sub/b.PNG" in note for note in source.notes)


def test_text_files_beside_the_images(own, tmp_path):
    save(own / "a.txt", "one\n\n two \n")
    source = folder.read(own, val=0, test=0)
    prepared = prepare(source, tmp_path / "out", own)
    assert prepared.dataset.records("train") == [{"id": "own/a.jpg", "image": "a.jpg", "texts": ["one", "two"]}]
    assert any("sub/b.PNG" in note for note in prepared.notes)


def test_no_captions_says_how_to_give_them(own, tmp_path):
    result = script("from_folder.py", "--folder", own, "--output", tmp_path / "out")
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "--captions" in result.stderr and "dog.txt" in result.stderr


def test_paths_relative_to_the_caption_file_and_absolute_ones(own, tmp_path):
    rows = f"image,caption\nown/a.jpg,one\n{own.resolve()}/sub/b.PNG,two\n"
    assert texts_of(folder.read(own, save(tmp_path / "c.csv", rows))) == {"a.jpg": ["one"], "sub/b.PNG": ["two"]}
    gone = folder.read(own, save(tmp_path / "c.csv", f"image,caption\n{own.resolve()}/gone.jpg,one\nlost.jpg,two\n"))
    assert set(texts_of(gone)) == {"gone.jpg", "lost.jpg"}
    with pytest.raises(UserError, match=r"c.csv:2: \.\./x.jpg is not below"):
        folder.read(own, save(own / "c.csv", "image,caption\n../x.jpg,one\n"))


def test_split_column_overrides_the_shares(own, tmp_path):
    path = save(tmp_path / "c.csv", "image,caption,split\na.jpg,one,test\nsub/b.PNG,two,train\n")
    assert list(folder.read(own, path).splits) == ["train", "test"]
    path = save(tmp_path / "c.csv", "image,caption,split\na.jpg,one,test\na.jpg,two,train\n")
    with pytest.raises(UserError, match=r"c.csv:3.*split"):
        folder.read(own, path)


def test_missing_image_of_a_caption_file(own, tmp_path):
    path = save(own / "captions.csv", "image,caption\na.jpg,one\ngone.jpg,two\n")
    result = script("from_folder.py", "--folder", own, "--captions", path, "--output", tmp_path / "out")
    assert result.returncode == 2 and "gone.jpg" in result.stderr
    words = ("--partial", "--val", 0, "--test", 0)
    assert script("from_folder.py", "--folder", own, "--output", tmp_path / "out", *words).returncode == 0
    assert (tmp_path / "out/missing.txt").read_text() == "gone.jpg\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("c.csv", "picture,words\na.jpg,x\n", "c.csv:1: the header 'picture,words'"),
        ("c.csv", "image,caption\na.jpg,one, two\n", "c.csv:2: 3 columns"),
        ("c.csv", "image,caption\n,one\n", 'c.csv:2: column "image" is empty'),
        ("c.csv", "image,caption\n", "c.csv: holds no captions"),
        ("c.jsonl", '{"image": "a.jpg", "caption": "x"}\n{"image": "a.jpg"}\n', 'c.jsonl:2: field "caption"'),
        ("c.jsonl", '{"caption": "x"}\n', 'c.jsonl:1: field "image"'),
        ("c.jsonl", "{\n", "c.jsonl:1: not valid JSON"),
        ("c.json", "3", "c.json: expected a list"),
        ("none.csv", None, "none.csv: no such file"),
    ],
)
def test_wrong_caption_file_is_named(own, tmp_path, name, content, message):
    if content is not None:
        save(tmp_path / name, content)
    with pytest.raises(UserError) as error:
        folder.read(own, tmp_path / name)
    assert message in str(error.value)


def test_splits_are_drawn_by_share_and_stay_when_images_are_added():
    paths = [f"{n}.jpg" for n in range(4000)]
    splits = {path: folder.split_of(path, val=0.1, test=0.2, seed=0) for path in paths}
    shares = {split: list(splits.values()).count(split) / 4000 for split in ("train", "val", "test")}
    assert shares == pytest.approx({"train": 0.7, "val": 0.1, "test": 0.2}, abs=0.02)
    assert splits["17.jpg"] == folder.split_of("17.jpg", val=0.1, test=0.2, seed=0)
    other = {path: folder.split_of(path, val=0.1, test=0.2, seed=1) for path in paths}
    assert sum(splits[path] != other[path] for path in paths) > 1000
    assert {folder.split_of(path, val=0, test=0, seed=0) for path in paths} == {"train"}


def test_adding_a_image_moves_no_other(own):
    for n in range(40):
        write_image(own / f"{n}.jpg")
    save(own / "captions.json", {f"{n}.jpg": "x" for n in range(30)})
    before = folder.read(own, val=0.3, test=0.3).splits
    save(own / "captions.json", {f"{n}.jpg": "x" for n in reversed(range(40))})
    after = folder.read(own, val=0.3, test=0.3).splits
    assert set(before) == {"train", "val", "test"}
    for split, records in before.items():
        assert {record["id"] for record in records} <= {record["id"] for record in after[split]}


def test_wrong_shares(own):
    save(own / "a.txt", "one")
    for val, test in ((-0.1, 0), (0.5, 0.5), (1.5, 0)):
        with pytest.raises(UserError, match="shares"):
            folder.read(own, val=val, test=test)


# --- check -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def broken(karpathy, tmp_path) -> Path:
    """The Karpathy dataset with an empty, a truncated, a lost image, and a line that is no JSON."""
    prepare(coco.read(karpathy), tmp_path / "out", tmp_path / "images")
    (tmp_path / "images/train2014/COCO_train2014_000000000009.jpg").write_bytes(b"")
    (tmp_path / "images/val2014/COCO_val2014_000000000004.jpg").unlink()
    cut = tmp_path / "images/val2014/COCO_val2014_000000000005.jpg"
    cut.write_bytes(cut.read_bytes()[:-60])
    save(tmp_path / "out/val.jsonl", "{\n")
    return tmp_path / "out"


def test_check_reports_file_line_path_and_reason(broken, tmp_path):
    result = script("check.py", broken, "--json", tmp_path / "report.json")
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1 and "4 problems" in result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == f"{broken}/train.jsonl:1: train2014/COCO_train2014_000000000009.jpg: empty file"
    assert lines[1] == f"{broken}/train.jsonl:2: val2014/COCO_val2014_000000000004.jpg: missing"
    assert lines[2].startswith(f"{broken}/val.jsonl:1: not valid JSON")
    assert lines[3] == f"{broken}/test.jsonl:2: val2014/COCO_val2014_000000000005.jpg: truncated"
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["records"], report["media"], len(report["problems"])) == (5, 4, 4)
    assert report["problems"][1] == {
        "file": f"{broken}/train.jsonl",
        "line": 2,
        "media": "val2014/COCO_val2014_000000000004.jpg",
        "reason": "missing",
    }


def test_clean_copy_holds_the_good_records(broken, tmp_path):
    assert script("check.py", broken, "--write_clean", tmp_path / "clean").returncode == 0
    clean = Dataset.open(tmp_path / "clean", "retrieval")
    assert [record["id"] for record in clean.records("test")] == ["coco/2"]
    assert list(clean.splits) == ["test"]
    assert check_dataset(clean, workers=1).problems == []
    with pytest.raises(UserError, match="the dataset itself"):
        write_clean(check_dataset(clean, workers=1), tmp_path / "clean")


def test_check_probes_videos(tmp_path, monkeypatch):
    def probe(path: Path) -> None:
        if path.name == "b.mp4":
            raise MediaError(path, "no video stream")

    monkeypatch.setitem(sys.modules, "vlkit.data.video.probe", SimpleNamespace(probe=probe))
    records = [{"id": name, "video": name, "texts": ["x"]} for name in ("a.mp4", "b.mp4")]
    dataset = write_dataset(
        tmp_path, name="v", task="video_retrieval", splits={"test": records}, media_root=".", source="test"
    )
    (problem,) = check_dataset(dataset, workers=2).problems
    assert str(problem) == f"{tmp_path}/test.jsonl:2: b.mp4: no video stream"


def test_check_of_what_is_no_dataset(tmp_path):
    result = script("check.py", tmp_path)
    assert result.returncode == 2
    assert "not a prepared dataset" in result.stderr and result.stderr.count("\n") == 1


def test_check_compares_boxes_with_the_image_and_counts_lines(tmp_path):
    write_image(tmp_path / "media/a.png")  # 16 x 12
    records = [
        {"id": f"ref/{i}", "image": "a.png", "text": "it", "box": box}
        for i, box in enumerate([[0, 0, 16, 12], [2, 2, 30, 9]])
    ]
    dataset = write_dataset(
        tmp_path / "set", name="r", task="grounding", splits={"val": records}, media_root="../media", source="test"
    )
    (problem,) = check_dataset(dataset, workers=2).problems
    assert problem.line == 2 and "outside the image of 16 x 12 pixels" in problem.reason
    dataset.split_file("val").write_text(json.dumps(records[0]) + "\n")
    (problem,) = check_dataset(dataset, workers=2).problems
    assert problem.line == 0 and "holds 1 records" in problem.reason


def test_the_summary_of_a_dataset_with_control_characters_is_printable(karpathy, tmp_path):
    source, images = coco.read(tmp_path / "dataset_coco.json"), tmp_path / "images"
    shown = prepare(source, tmp_path / "a\x1b[31m", images).summary()
    assert "\x1b" not in shown and "a\\x1b[31m" in shown
