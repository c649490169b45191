"""Read the tensors of a TorchScript archive (such as OpenAI's ``ViT-B-32.pt``) without running or compiling its code.

An archive is a zip with a pickle of the module tree (modules are instances of ``__torch__`` classes, tensors refer to a
storage by name), one record per storage, and the code. A restricted unpickler reads the pickle: it only knows these
types, so a file cannot execute code.
"""

from __future__ import annotations

import math
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

QUICK_GELU_FACTOR = 1.702
_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_DEEPEST = 64  # maximum nesting of modules


def is_torchscript(path: str | Path) -> bool:
    """Whether a file is a TorchScript archive (which :func:`torch.load` cannot read with ``weights_only``)."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.count("/") == 1 and name.endswith("/constants.pkl") for name in archive.namelist())


def read_torchscript(path: str | Path) -> tuple[dict[str, Tensor], bool]:
    """Read the tensors of the archived module and its submodules.

    Returns:
        Dotted name -> tensor (parameters, buffers and other tensor attributes), and whether the archived model uses
        QuickGELU.

    Raises:
        pickle.UnpicklingError, ValueError, KeyError, zipfile.BadZipFile: the file is damaged or holds something else.
    """
    with zipfile.ZipFile(path) as archive:
        root = archive.namelist()[0].split("/", 1)[0]
        if f"{root}/byteorder" in archive.namelist() and archive.read(f"{root}/byteorder") != b"little":
            raise ValueError("its numbers are in big-endian order")
        with archive.open(f"{root}/data.pkl") as file:
            reader = _ModuleUnpickler(file, archive, root)
            module = reader.load()
        quick_gelu = "QuickGELU" in reader.classes or QUICK_GELU_FACTOR in _constants(archive, root)
    return dict(_tensors(module, "", 0)), quick_gelu


class _Module:
    """Placeholder for any scripted module: attributes without behaviour."""


class _ModuleUnpickler(pickle.Unpickler):
    """Unpickles modules as :class:`_Module`, and tensors from the records of the archive."""

    def __init__(self, file: Any, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(file)
        self.archive, self.root = archive, root
        self.classes: set[str] = set()

    def find_class(self, module: str, name: str) -> Any:
        if module == "__torch__" or module.startswith("__torch__."):
            self.classes.add(name)
            return _Module
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        known = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): _rebuilt,
            ("torch.jit._pickle", "restore_type_tag"): _untagged,
            **{("torch.jit._pickle", f"build_{kind}list"): list for kind in ("int", "double", "bool", "tensor")},
        }
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"asks for {module}.{name}")
        return known[module, name]

    def persistent_load(self, pid: Any) -> Tensor:
        """The storage that ``("storage", dtype, record, device, count)`` names, as a flat tensor."""
        _, dtype, record, _, count = pid
        info = self.archive.getinfo(f"{self.root}/data/{record}")
        # Only uncompressed records, as torch writes them: a small file then cannot expand to a large tensor.
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != count * dtype.itemsize:
            raise ValueError(f"storage {record} is not {count} values of {dtype}")
        return (
            torch.frombuffer(bytearray(self.archive.read(info)), dtype=dtype) if count else torch.empty(0, dtype=dtype)
        )


def _rebuilt(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    return torch.as_strided(storage, size, stride, offset)


def _untagged(value: Any, _: str) -> Any:
    return value


def _tensors(value: Any, name: str, depth: int) -> Iterator[tuple[str, Tensor]]:
    if depth > _DEEPEST:
        raise ValueError("its modules contain themselves")
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, _Module):
        for key, part in vars(value).items():
            yield from _tensors(part, f"{name}.{key}" if name else key, depth + 1)


def _constants(archive: zipfile.ZipFile, root: str) -> Iterator[float]:
    """Scalar double constants of the code: a traced model stores its factors this way."""
    for info in archive.infolist():
        if info.filename.startswith(f"{root}/constants/") and info.file_size == struct.calcsize("d"):
            (value,) = struct.unpack("<d", archive.read(info))
            if math.isfinite(value):
                yield value
