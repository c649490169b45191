"""Load the images of a prepared dataset's records, singly or in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from vlkit.cli.show import visible
from vlkit.data.batches_ahead import THREADS, batches_ahead
from vlkit.data.images.opening import MediaError, decode_image, image_size, open_image
from vlkit.data.manifest import Dataset
from vlkit.data.records import Record
from vlkit.data.tar_region import FIELD, read_region
from vlkit.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor


def read_image(dataset: Dataset, record: Record) -> Image.Image:
    """The record's image as upright 8-bit RGB.

    Raises:
        UserError: the image cannot be read; the message names the file, the reason and the script that finds all such
            files.
    """
    try:
        return open_record(dataset, record)
    except MediaError as error:
        raise _bad_file(error, dataset, record) from None


def open_record(dataset: Dataset, record: Record) -> Image.Image:
    """As :func:`read_image`, with the reason alone if the image cannot be read.

    Raises:
        MediaError: as :func:`vlkit.data.images.open_image`.
    """
    if FIELD not in record:
        return open_image(dataset.path(record), min_side=dataset.min_side)
    return decode_image(_content(dataset, record), str(dataset.path(record)), min_side=dataset.min_side)


def identify_record(dataset: Dataset, record: Record) -> list[Any]:
    """As :func:`identify_file`, for the record's image; also its place in a tar, and the scale it is decoded at.

    Raises:
        UserError: there is no such file.
    """
    region = record.get(FIELD)
    decoded = [] if dataset.min_side is None else [{"min_side": dataset.min_side}]
    if region is None:
        return [*identify_file(dataset.path(record)), *decoded]
    return [*identify_file(dataset.path(region["file"])), region["offset"], region["bytes"], *decoded]


def record_image_size(dataset: Dataset, record: Record) -> tuple[int, int]:
    """Width and height in pixels of the image from :func:`read_image`; decodes no pixels if the header suffices.

    Raises:
        UserError: the file cannot be read; as for :func:`read_image`.
    """
    try:
        if FIELD in record:
            return open_record(dataset, record).size
        return image_size(dataset.path(record))
    except MediaError as error:
        raise _bad_file(error, dataset, record) from None


def image_batches(
    sources: list[Any], open_one: Callable[[Any], Tensor], size: int, threads: int = THREADS
) -> Iterator[Tensor]:
    """Load images with a few threads, one batch ahead; yields [b, 3, H, W] in the order of ``sources``."""
    import torch  # here, because scripts that only open or write images and videos do not need its seconds

    for _, images in batches_ahead(sources, open_one, size, threads):
        yield torch.stack(images)


def identify_file(path: Path) -> list[Any]:
    """Path, size and modification time of a file, as JSON values; they show whether it has changed.

    Raises:
        UserError: there is no such file.
    """
    try:
        state = path.stat()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); data_prep/check.py lists every bad file") from None
    return [visible(path.absolute()), state.st_size, state.st_mtime_ns]


def _content(dataset: Dataset, record: Record) -> bytes:
    """The bytes of a record's image inside a tar."""
    region = record[FIELD]
    name, tar = dataset.path(record), dataset.path(region["file"])
    try:
        content = read_region(tar, region["offset"], region["bytes"])
        size = tar.stat().st_size
    except OSError as error:
        raise MediaError(name, f"{region['file']} cannot be read ({error.strerror or error})") from None
    known = dataset.extra.get("tars", {}).get(region["file"], size)
    if size != known or len(content) < region["bytes"]:
        raise MediaError(
            name, f"{region['file']} has changed: {size} bytes, {known} when it was read; prepare it again"
        )
    return content


def _bad_file(error: MediaError, dataset: Dataset, record: Record) -> UserError:
    return UserError(
        f"{error} (record {record['id']!r} of {dataset.root}); run data_prep/check.py {dataset.root} to list every "
        "bad file, and --write_clean there to leave them out"
    )
