"""Flickr30k captions: Karpathy's split file, ``results_20130124.token``, or its CSV variant ``results.csv``."""

from __future__ import annotations

import re
import unicodedata
from operator import itemgetter
from pathlib import Path

from vlkit.data.sources.karpathy import image_id, is_karpathy, read_karpathy
from vlkit.data.sources.prepare import Counts, Source, add_record, compare_counts
from vlkit.errors import UserError, some
from vlkit.files import read_json, read_text, text_lines

KARPATHY_COUNTS: dict[str, Counts] = {
    "flickr30k": {"train": (29_000, 145_000), "val": (1_014, 5_070), "test": (1_000, 5_000)},
}
TOKEN_COUNTS = (31_783, 158_915)
IMAGE_FOLDERS = ("flickr30k-images", "flickr30k_images", "images")
# One line of the CSV lacks its second separator: only blanks separate number and caption there.
_NUMBER_AND_CAPTION = re.compile(r"\s*(\d+)\s*(?:\|\s*|\s+)(.*)")


def read(annotations: str | Path, *, split: str = "train", split_lists: str | Path | None = None) -> Source:
    """Read Flickr30k captions for retrieval.

    Args:
        annotations: a Karpathy file (it states the splits), a token file or its CSV variant (they state none).
        split: the split of every image of a token file if there are no ``split_lists``.
        split_lists: folder with ``train.txt``, ``val.txt``, ``test.txt`` (one image per line, with or without ending),
            or a Karpathy file, from which only the splits are used. Images in no list are left out.

    Raises:
        UserError: no such file, a line that cannot be read (file and line are named), or lists that name nothing.
    """
    annotations = Path(annotations)
    if annotations.suffix == ".json":
        if split_lists is not None:
            raise UserError(f"{annotations}: states its own splits; leave --split_lists out")
        source = _read_split_file(annotations)
        official: Counts = KARPATHY_COUNTS.get(source.name, {})
    else:
        captions = _read_csv(annotations) if annotations.suffix == ".csv" else _read_token(annotations)
        source = Source("flickr30k", "retrieval", {}, {"annotations": str(annotations.resolve()), "layout": "token"})
        _assign_splits(captions, source, split, split_lists)
        official = {} if split_lists else {split: TOKEN_COUNTS}
    source.notes += compare_counts(source, official)
    source.elsewhere = lambda path: [f"{folder}/{path}" for folder in IMAGE_FOLDERS]
    return source


def _read_split_file(path: Path) -> Source:
    content = read_json(path)
    if not is_karpathy(content):
        raise UserError(f'{path}: not a Karpathy file (an object with "images", each with "sentences")')
    return read_karpathy(content, path)


def _assign_splits(captions: dict[str, list[str]], source: Source, split: str, split_lists: str | Path | None) -> None:
    """Add every image to its split according to the lists, or to ``split``."""
    if split_lists is None:
        for image, texts in captions.items():
            add_record(source, split, _record(image), texts)
        source.notes.append(
            f'the file states no splits: all images are in "{split}", including the usual test images; '
            "give --split_lists for the usual splits"
        )
        return
    by_stem = {_stem(image): image for image in captions}
    unknown = []
    for name, stems in _read_lists(Path(split_lists)).items():
        for stem in stems:
            image = by_stem.pop(stem, None)
            if image is None:
                unknown.append(stem)
            else:
                add_record(source, name, _record(image), captions[image])
    if not source.splits:
        raise UserError(f"{split_lists}: names none of the {len(captions)} images; is it the list of this dataset?")
    if unknown:
        source.notes.append(f"{len(unknown)} listed images have no captions or are in two lists: {some(unknown)}")
    if by_stem:
        source.notes.append(f"{len(by_stem)} images with captions are in no list and were left out")


def _record(image: str) -> dict:
    return {"id": f"flickr30k/{image_id(image)}", "image": image}


def _read_lists(path: Path) -> dict[str, list[str]]:
    """Split -> stems of image names, from a folder of lists or a Karpathy file."""
    if path.is_file():
        splits = _read_split_file(path).splits
        return {split: [_stem(record["image"]) for record in records] for split, records in splits.items()}
    lists = {split: path / f"{split}.txt" for split in ("train", "val", "test")}
    found = {split: file for split, file in lists.items() if file.is_file()}
    if not found:
        raise UserError(f"{path}: holds no train.txt, val.txt or test.txt; give their folder, or a Karpathy file")
    return {split: [_stem(line) for line in _lines(file) if line.strip()] for split, file in found.items()}


def _stem(line: str) -> str:
    """An image's name without folder and ending, in one Unicode form, because the two files may use different ones."""
    name = line.strip().rpartition("/")[2]
    return unicodedata.normalize("NFC", re.sub(r"\.(jpe?g|png)$", "", name, flags=re.IGNORECASE))


def _read_token(path: Path) -> dict[str, list[str]]:
    """``<file>#<number> TAB <caption>`` lines -> image -> captions by number. Captions may hold tabs and "#"."""
    found: dict[str, list[tuple[int, str]]] = {}
    for line_number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        key, tab, caption = line.partition("\t")
        image, _, number = key.rpartition("#")
        if not tab or not image.strip() or not number.strip().isdecimal():
            raise UserError(f"{path}:{line_number}: expected <image>#<number> TAB <caption>, got {line[:60]!r}")
        found.setdefault(image.strip(), []).append((int(number), caption))
    return _in_order(found, path)


def _read_csv(path: Path) -> dict[str, list[str]]:
    """``<file>| <number>| <caption>`` lines below a header -> image -> captions by number."""
    found: dict[str, list[tuple[int, str]]] = {}
    for line_number, line in enumerate(_lines(path), start=1):
        if not line.strip() or (line_number == 1 and line.startswith("image_name")):
            continue
        image, bar, rest = line.partition("|")
        match = _NUMBER_AND_CAPTION.fullmatch(rest)
        if not bar or not image.strip() or not match:
            fix = "other tables go through data_prep/from_folder.py"
            raise UserError(f"{path}:{line_number}: expected <image>| <number>| <caption>, got {line[:60]!r}; {fix}")
        found.setdefault(image.strip(), []).append((int(match[1]), match[2]))
    return _in_order(found, path)


def _in_order(found: dict[str, list[tuple[int, str]]], path: Path) -> dict[str, list[str]]:
    if not found:
        raise UserError(f"{path}: holds no captions; is the download complete?")
    return {image: [caption for _, caption in sorted(captions, key=itemgetter(0))] for image, captions in found.items()}


def _lines(path: Path) -> list[str]:
    return text_lines(read_text(path, "give the annotation file"))
