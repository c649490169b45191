"""Tables with images inside: Parquet files, folders saved by Hugging Face datasets, and datasets on the hub.

The library ``datasets`` reads them (``pip install 'vlkit[data]'``). The images are written to files once, so that a
prepared dataset of them is like any other.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlkit.cli.show import one_line
from vlkit.encoders.hub import hub_access
from vlkit.errors import UserError, needs, some

PREFIX = "hf:"
KEYS = ("image", "texts", "label", "split", "id")
_NAMES = {
    "image": ("image", "img", "jpg", "png", "webp", "picture", "photo"),
    "texts": ("texts", "text", "captions", "caption", "sentences", "sentence", "alt_text", "description"),
    "label": ("label", "labels", "class", "category", "fine_label", "target"),
}
"""Names of columns, in lower case, that need no ``columns``."""
_SAVED = ("dataset_dict.json", "state.json")


def is_table(root: str | Path) -> bool:
    """Whether ``root`` names rows and not a prepared dataset: ``hf:NAME``, a Parquet file, or a folder of such files or
    saved by ``save_to_disk``.
    """
    path = Path(root)
    if str(root).startswith(PREFIX):
        return True
    if path.suffix.lower() == ".parquet":
        return path.is_file()
    if not path.is_dir() or (path / "dataset.json").exists():
        return False
    parquet = (file for pattern in ("*.parquet", "*/*.parquet") for file in path.glob(pattern))
    return any((path / name).is_file() for name in _SAVED) or next(parquet, None) is not None


@dataclass(frozen=True)
class Columns:
    """Which column holds what.

    Attributes:
        image: the image: bytes, a dict with ``bytes`` or ``path``, or a path.
        texts: captions, each column a text or a list of texts.
        label: name or number of the class.
        split: name of the split of a row; None = the table's own splits.
        id: the id of a row; None = its number.
    """

    image: str
    texts: list[str] = field(default_factory=list)
    label: str | None = None
    split: str | None = None
    id: str | None = None

    @classmethod
    def of(cls, given: str, features: Mapping[str, Any], task: str, divided: bool = False) -> Columns:
        """The columns that ``given`` names (``image=img,texts=caption``), and guesses from names and types for others.
        A column called split says the split of each row, unless the table is ``divided`` into splits itself.

        Raises:
            UserError: a column or key is unknown, or one that the task needs can be neither found nor guessed.
        """
        named: dict[str, list[str]] = {}
        for part in filter(None, (part.strip() for part in given.split(","))):
            key, equals, column = (word.strip() for word in part.partition("="))
            if key not in KEYS or not equals:
                raise UserError(f"columns {part!r}: write KEY=COLUMN, with a key of {', '.join(KEYS)}")
            if column not in features:
                raise UserError(f"columns {part!r}: no such column; there are {some(list(features), 20)}")
            named.setdefault(key, []).append(column)
        for key in ("image", "texts" if task == "retrieval" else "label"):
            if key not in named:
                named[key] = [_guess(key, features)]
        own = next((name for name in features if name.lower() == "split"), None)
        if own and not divided and "split" not in named and all(own not in columns for columns in named.values()):
            named["split"] = [own]
        if repeated := [key for key, columns in named.items() if len(columns) > 1 and key != "texts"]:
            raise UserError(f"columns: {repeated[0]} is given twice; only texts may have several columns")
        one = {key: columns[0] for key, columns in named.items() if key != "texts"}
        return cls(texts=named.get("texts", []), **one)


def _guess(key: str, features: Mapping[str, Any]) -> str:
    kind = {"image": "Image", "label": "ClassLabel"}.get(key)
    typed = [name for name, feature in features.items() if type(feature).__name__ == kind]
    called = [name for wanted in _NAMES[key] for name in features if name.lower() == wanted]
    if len(typed) == 1 or called:
        return typed[0] if len(typed) == 1 else next((name for name in called if name in typed), called[0])
    raise UserError(f"no column for {key}; name it by columns {key}=COLUMN; there are {some(list(features), 20)}")


@contextlib.contextmanager
def opened(name: str) -> Iterator[dict[str, Any]]:
    """The splits of a table: name -> ``datasets.Dataset``, with images left encoded.

    Args:
        name: a file or folder, or ``hf:`` before one, or ``hf:ORG/NAME``, ``hf:ORG/NAME@REVISION`` or
            ``hf:ORG/NAME:CONFIG`` on the hub.

    Raises:
        UserError: the library is missing, or it cannot read the table.
    """
    with needs("data", name):
        import datasets  # pyright: ignore[reportMissingImports]
    place = name.removeprefix(PREFIX)
    with tempfile.TemporaryDirectory(prefix="vlkit-rows-") as scratch:
        try:
            datasets.disable_progress_bars()
            found = _open(datasets, place, Path(place), scratch)
        except UserError:
            raise
        except Exception as error:  # the library raises errors of many types
            raise UserError(f"{name}: cannot be read as a dataset ({one_line(error)})") from error
        splits = found if isinstance(found, dict) else {str(found.split or "train"): found}
        for split, rows in splits.items():
            for column, feature in rows.features.items():
                if isinstance(feature, datasets.Image):
                    rows = rows.cast_column(column, datasets.Image(decode=False))
            splits[split] = rows
        yield splits


def _open(datasets: Any, place: str, path: Path, scratch: str) -> Any:
    if any((path / name).is_file() for name in _SAVED):
        return datasets.load_from_disk(place)
    if path.is_file():
        return datasets.load_dataset("parquet", data_files=place, cache_dir=scratch)
    if path.is_dir():
        return datasets.load_dataset(place, cache_dir=scratch)
    if place.count("/") != 1 or place.startswith((".", "/", "~")):
        raise UserError(f"{place}: no such file or folder, and not a name ORG/NAME of the hub")
    repository, _, config = place.partition(":")
    repository, _, revision = repository.partition("@")
    with hub_access():
        return datasets.load_dataset(repository, config or None, revision=revision or None)


def image_bytes(value: Any, folder: Path) -> bytes:
    """The encoded image of a cell: bytes, ``{"bytes": …, "path": …}``, or the path of a file.

    Args:
        value: the cell.
        folder: what a relative path is relative to.

    Raises:
        ValueError: it holds none; the message is one phrase.
    """
    content = value.get("bytes") if isinstance(value, dict) else value
    if isinstance(content, bytes | bytearray) and content:
        return bytes(content)
    path = value.get("path") if isinstance(value, dict) else value
    if not isinstance(path, str) or not path:
        raise ValueError("no image" if value is None else "neither bytes nor a path of an image")
    try:
        return (folder / path).read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None


def texts_of(row: Mapping[str, Any], columns: list[str]) -> list[str]:
    """All captions of a row; cells without a text are left out."""
    cells = [row[column] for column in columns]
    each = [item for cell in cells for item in (cell if isinstance(cell, list | tuple) else [cell])]
    return [item for item in each if isinstance(item, str)]


def suffix_of(content: bytes) -> str:
    """The ending that a file of this content should have.

    Raises:
        ValueError: not an image in a supported format; the message is one phrase.
    """
    from PIL import Image

    from vlkit.data.images.formats import HEADER_BYTES, readable_formats, refusal

    if reason := refusal(content[:HEADER_BYTES]):
        raise ValueError(reason)
    try:
        with Image.open(io.BytesIO(content), formats=readable_formats()) as image:
            name = str(image.format).lower()
    except Exception:  # decoders raise nearly anything on damaged input
        raise ValueError("not an image, or damaged") from None
    return {"jpeg": ".jpg", "mpo": ".jpg", "tiff": ".tif", "jpeg2000": ".jp2", "ppm": ".ppm"}.get(name, f".{name}")
