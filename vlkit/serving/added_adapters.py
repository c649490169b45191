"""Adapters that arrive while a server runs: uploaded by a visitor, or trained in the page."""

from __future__ import annotations

import os
import re
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath

import open_clip

from vlkit.cli.show import visible
from vlkit.encoders.bases import named_resize
from vlkit.encoders.stored_weights import named_format
from vlkit.engine.checkpoint import load_adapter
from vlkit.errors import UserError
from vlkit.serving.library import Library
from vlkit.serving.models import Models, Opened
from vlkit.serving.uploaded import Part, Upload, parts_of, write_parts

MOST_ADDED_ADAPTERS = 6
MOST_BYTES = 300 * 2**20
"""Largest adapter, unpacked."""
KEPT = frozenset({".json", ".safetensors"})
DOCUMENTS = frozenset({".md", ".yaml", ".png", ".jsonl", ".txt"})
"""What a run folder holds besides its adapter; it is passed over."""
PICKLES = frozenset({".bin", ".ckpt", ".joblib", ".npy", ".npz", ".pickle", ".pkl", ".pt", ".pth", ".th"})
_REPOSITORY = re.compile(r"(hf:|hf-hub:)?[\w-][\w.-]*/[\w-][\w.-]*")


class AddedAdapters:
    """Opens adapters while the server runs, indexes their library, and offers them with the others.

    Args:
        models: the loaded adapters.
        libraries: task -> the library that its adapters search.
        arrived: called after each one.
    """

    def __init__(
        self, models: Models, libraries: Mapping[str, Library], arrived: Callable[[], None] = lambda: None
    ) -> None:
        self.models, self.libraries, self.arrived = models, libraries, arrived
        self.added: list[Opened] = []
        self._one_at_a_time = threading.Lock()

    @property
    def newest(self) -> Opened | None:
        """The one that arrived last."""
        return self.added[-1] if self.added else None

    @property
    def tasks(self) -> list[str]:
        """Tasks whose adapters can be used: those with a model, and classification of any names."""
        has_classes = [] if not self.models.classifiers else ["classification"]
        return sorted({*(task for task, found in self.models.by_task.items() if found), *has_classes})

    def check_room(self) -> None:
        """Refuse one more adapter than the memory is meant for.

        Raises:
            UserError: :data:`MOST_ADDED_ADAPTERS` were added.
        """
        if len(self.added) >= MOST_ADDED_ADAPTERS:
            raise UserError(
                f"{MOST_ADDED_ADAPTERS} adapters were added already; start the demo again, with --model DIR for those "
                "to keep."
            )

    def open(self, folder: Path, progress: Callable[[int, int], None] = lambda done, total: None) -> Opened:
        """Load an adapter folder, index the library with it, and offer it.

        Args:
            folder: the adapter.
            progress: called with the numbers of library items done and to do.

        Raises:
            UserError: it is no adapter, its base or task is not here, or there are too many.
        """
        with self._one_at_a_time:
            self.check_room()
            opened = self.models.open(folder)
            library = self.libraries.get(opened.task)
            if library is not None:
                library.add(opened.name, opened.pipeline, progress)
            self.models.keep(opened)
            self.added.append(opened)
            self.arrived()
        return opened

    def upload(
        self, uploads: Sequence[Upload], progress: Callable[[int, int], None] = lambda done, total: None
    ) -> Opened:
        """Check an uploaded adapter, and :meth:`open` it; its files are deleted once it is in memory.

        Args:
            uploads: see :func:`unpack_adapter`.
            progress: called with the numbers of library items done and to do.

        Raises:
            UserError: see :func:`unpack_adapter`, :meth:`check` and :meth:`open`.
        """
        with tempfile.TemporaryDirectory(prefix="vlkit-adapter-") as folder:
            unpacked = unpack_adapter(uploads, Path(folder))
            try:
                self.check(unpacked)
                return self.open(unpacked, progress)
            except UserError as error:
                raise UserError(str(error).replace(f"{folder}{os.sep}", "")) from None  # not a visitor's path

    def check(self, folder: Path) -> None:
        """Refuse an uploaded adapter that the server has no use for, before anything is loaded for it.

        Raises:
            UserError: it is no adapter, there is no tab for its task, or its base is not here.
        """
        config, _ = load_adapter(folder)
        task = config.get("task")
        if task not in self.tasks:
            raise UserError(
                f"{visible(folder.name)}: is for task {visible(task)!r}, and no tab here runs it (there are "
                f"{', '.join(self.tasks)}); start the demo with --model DIR for it."
            )
        for tower, about in config["base"].items():
            name = about["load"]
            if not self.models.has_base(name) and not is_published(name):
                raise UserError(
                    f"{visible(folder.name)}: was trained on the {tower} base {visible(name)}, which is not here; "
                    f"loaded {'is' if len(self.models.bases) == 1 else 'are'} {', '.join(self.models.bases)}."
                )


def is_published(name: str) -> bool:
    """Whether a base's name is one that everybody knows: a stranger's adapter must not name files of this machine."""
    bare, _ = named_resize(named_format(name)[0])
    if bare in ("tiny", "photos"):
        return True
    arch, _, tag = bare.partition(":")
    if tag and tag in open_clip.list_pretrained_tags_by_model(arch.replace("/", "-")):
        return True
    return _REPOSITORY.fullmatch(bare) is not None and not Path(bare.partition(":")[2] or bare).exists()


def unpack_adapter(uploads: Sequence[Upload], folder: Path) -> Path:
    """Write an uploaded adapter below ``folder``: its config and its weights, nothing else.

    Args:
        uploads: a zip archive of an adapter or run folder, or the adapter's two files.
        folder: created if it does not exist.

    Returns:
        The adapter's folder, named after the archive.

    Raises:
        UserError: it holds a pickle or another file that no adapter has, is too large, or is no adapter.
    """
    if not uploads:
        raise UserError("There is no file yet; upload a zip of an adapter folder, or its two files.")
    with parts_of(uploads, MOST_BYTES) as parts:
        for part in parts:
            if part.suffix in PICKLES:
                raise UserError(
                    f"{visible(part.name)}: can run code when it is read, and is never accepted; an adapter is a "
                    ".json and a .safetensors file."
                )
        found = _adapter_parts(parts)
        target = folder / _folder_name(uploads, found)
        write_parts([Part(PurePosixPath(p.name).name, p.size, p.open) for p in found], target, MOST_BYTES)
    return target


def _adapter_parts(parts: Sequence[Part]) -> list[Part]:
    """The files of the adapter: those beside each other in the topmost folder that has a config and weights."""
    folders: dict[PurePosixPath, list[Part]] = {}
    for part in parts:
        folders.setdefault(PurePosixPath(part.name).parent, []).append(part)
    whole = [folder for folder, inside in folders.items() if {part.suffix for part in inside} >= KEPT]
    if not whole:
        raise UserError("The upload holds no adapter: it needs a config (.json) and weights (.safetensors) together.")
    inside = folders[min(whole, key=lambda folder: len(folder.parts))]
    strange = [part.name for part in inside if part.suffix not in KEPT | DOCUMENTS]
    if strange:
        raise UserError(f"{visible(strange[0])}: is no file of an adapter; only .json and .safetensors are accepted.")
    return [part for part in inside if part.suffix in KEPT]


def _folder_name(uploads: Sequence[Upload], found: Sequence[Part]) -> str:
    archive = next((upload.name for upload in uploads if upload.name.lower().endswith(".zip")), "")
    inner = PurePosixPath(found[0].name).parent.name
    return safe_name(PurePosixPath(archive).stem or inner) or "uploaded"


def safe_name(text: str) -> str:
    """``text`` as a folder's name: letters, digits, ``-`` and ``_``, at most 40."""
    return re.sub(r"[^\w-]+", "-", text).strip("-_")[:40]
