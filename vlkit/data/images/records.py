"""Load the images of a prepared dataset's records, singly or in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from vlkit.cli.show import visible
from vlkit.data.images.opening import MediaError, image_size, open_image
from vlkit.data.manifest import Dataset
from vlkit.data.records import Record
from vlkit.errors import UserError


def read_image(dataset: Dataset, record: Record) -> Image.Image:
    """The record's image as upright 8-bit RGB.

    Raises:
        UserError: the image cannot be read; the message names the file, the reason and the script that finds all such
            files.
    """
    try:
        return open_image(dataset.path(record))
    except MediaError as error:
        raise _bad_file(error, dataset, record) from None


def record_image_size(dataset: Dataset, record: Record) -> tuple[int, int]:
    """Width and height in pixels of the image from :func:`read_image`; decodes no pixels if the header suffices.

    Raises:
        UserError: the file cannot be read; as for :func:`read_image`.
    """
    try:
        return image_size(dataset.path(record))
    except MediaError as error:
        raise _bad_file(error, dataset, record) from None


def image_batches(
    sources: list[Any], open_one: Callable[[Any], Tensor], size: int, threads: int = 4
) -> Iterator[Tensor]:
    """Load images with a few threads, one batch ahead; yields [b, 3, H, W] in the order of ``sources``."""
    with ThreadPoolExecutor(threads) as pool:
        ahead = None
        for start in range(0, len(sources), size):
            batch = [pool.submit(open_one, source) for source in sources[start : start + size]]
            if ahead:
                yield torch.stack([future.result() for future in ahead])
            ahead = batch
        if ahead:
            yield torch.stack([future.result() for future in ahead])


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


def _bad_file(error: MediaError, dataset: Dataset, record: Record) -> UserError:
    return UserError(
        f"{error} (record {record['id']!r} of {dataset.root}); run data_prep/check.py {dataset.root} to list every "
        "bad file, and --write_clean there to leave them out"
    )
