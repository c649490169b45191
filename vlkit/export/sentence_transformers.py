"""Adapters as folders of sentence-transformers, so that its evaluators and the vector stores that use it work.

    OUTPUT/modules.json, config_sentence_transformers.json   name :class:`Adapter` as the only module
    OUTPUT/adapter/                                          the adapter folder

``SentenceTransformer(OUTPUT, trust_remote_code=True)`` loads it wherever vlkit is installed; the library asks for
``trust_remote_code`` because the module's class is not its own. No code lies in the folder.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vlkit.adapters.adapter_files import CONFIG_FILE, MODEL_FILE, AdapterFiles
from vlkit.data.images import as_rgb
from vlkit.errors import UserError, needs
from vlkit.export.source import Source, new_folder
from vlkit.files import write_json
from vlkit.tasks.load import load as open_adapter

try:
    from sentence_transformers.base.modules import InputModule  # pyright: ignore[reportMissingImports]
except ImportError:
    if not TYPE_CHECKING:
        InputModule = torch.nn.Module

FOLDER = "adapter"
LARGEST_DIFFERENCE = 1e-5


class Adapter(InputModule):
    """An adapter of vlkit as a module of sentence-transformers: texts and images -> ``sentence_embedding``.

    Args:
        folder: the adapter folder.
    """

    save_in_root = True

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        self.folder = Path(folder)
        pipeline = open_adapter(self.folder, "cpu", task="retrieval")
        self.model, self._base = pipeline.embedder.model, pipeline.embedder.base
        self._transform = pipeline.embedder.transform
        self.max_seq_length = int(getattr(self._base.tokenize, "limit", 0)) or None

    @property
    def modalities(self) -> list[Any]:
        """``text`` and ``image``."""
        return ["text", "image"]

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **unused: Any) -> dict[str, Any]:
        """Texts, or images (PIL or paths as the library opens them), in any mixture -> what :meth:`forward` reads.

        Args:
            inputs: the texts and images.
            prompt: put before each text.
            unused: options of other modules.
        """
        texts = [number for number, one in enumerate(inputs) if isinstance(one, str)]
        images = [number for number, one in enumerate(inputs) if not isinstance(one, str)]
        found: dict[str, Any] = {"text_places": texts, "image_places": images}
        if texts:
            ids = self._base.tokenize([(prompt or "") + inputs[number] for number in texts])
            found["ids"] = self._base.text.trim(ids)
        if images:
            found["pixels"] = torch.stack([self._transform(as_rgb(inputs[number])) for number in images])
        return found

    def forward(self, features: dict[str, Any], **unused: Any) -> dict[str, Any]:
        """Add ``sentence_embedding`` [n, E] float32, unit norm, in the order of the inputs."""
        parts: list[Tensor] = []
        if "ids" in features:
            parts.append(self.model.embed_texts(features["ids"]))
        if "pixels" in features:
            parts.append(self.model.embed_images(features["pixels"]))
        places = torch.tensor(features["text_places"] + features["image_places"])
        features["sentence_embedding"] = torch.cat(parts)[places.argsort().to(parts[0].device)]
        return features

    def get_embedding_dimension(self) -> int:
        """E."""
        return self.model.out_dim

    get_sentence_embedding_dimension = get_embedding_dimension  # its name before version 6

    @property
    def tokenizer(self) -> Any:
        """The base's tokenizer."""
        return self._base.tokenize

    def save(self, output_path: str, *unused: Any, **more: Any) -> None:
        """Copy the adapter folder. Its weights do not train here: they require no gradient."""
        copy_adapter(self.folder, Path(output_path) / FOLDER)

    @classmethod
    def load(cls, model_name_or_path: str, subfolder: str = "", **options: Any) -> Adapter:
        """Load from a folder or the hub, as the library calls it."""
        place = cls.load_dir_path(
            model_name_or_path,
            subfolder=str(Path(subfolder) / FOLDER),
            **{key: options.get(key) for key in ("token", "cache_folder", "revision")},
            local_files_only=bool(options.get("local_files_only")),
        )
        if place is None or not Path(place).is_dir():
            raise UserError(f"{model_name_or_path}: has no folder {FOLDER}; export the adapter again")
        return cls(place)


def export_sentence_transformers(source: Source, output: Path) -> float:
    """Write an adapter as a folder of sentence-transformers, load it with the library, and compare.

    Args:
        source: the adapter.
        output: new folder.

    Returns:
        The largest difference of a value of an embedding.

    Raises:
        UserError: sentence-transformers is missing or too old, or its embeddings differ.
    """
    with needs("export", "--to sentence-transformers"):
        from sentence_transformers import SentenceTransformer, __version__  # pyright: ignore[reportMissingImports]
        from sentence_transformers.base import modules as _  # noqa: F401  # pyright: ignore[reportMissingImports]
    with new_folder(output) as folder:
        copy_adapter(source.folder, folder / FOLDER)
        kind = f"{Adapter.__module__}.{Adapter.__name__}"
        write_json(folder / "modules.json", [{"idx": 0, "name": "0", "path": "", "type": kind}])
        about = {"__version__": {"sentence_transformers": __version__}, "similarity_fn_name": "cosine"}
        write_json(folder / "config_sentence_transformers.json", {**about, "model_type": "SentenceTransformer"})
        model = SentenceTransformer(str(folder), trust_remote_code=True, device="cpu", local_files_only=True)
        texts = ["a photo of a dog", "a"]
        found = float(abs(model.encode(texts) - source.pipeline.embed_texts(texts)).max())
        if not found <= LARGEST_DIFFERENCE:
            raise UserError(f"{output}: its embeddings differ from the adapter's by {found:.1e}; nothing was written")
    return found


def copy_adapter(folder: Path, output: Path) -> None:
    """Copy the files of an adapter, without checkpoints and logs."""
    output.mkdir(parents=True, exist_ok=True)
    files = AdapterFiles.find(folder)
    shutil.copyfile(files.config, output / CONFIG_FILE)
    shutil.copyfile(files.tensors, output / MODEL_FILE)
