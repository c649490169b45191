"""Pipeline for image-text retrieval: images and texts -> unit vectors in one space."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

from vlkit.adapters.adapter_files import AdapterFiles
from vlkit.adapters.options import adapter_options
from vlkit.data.batches_ahead import batches_ahead
from vlkit.data.images import ImageInput, as_rgb
from vlkit.encoders.bases import ClipBase, TextBase
from vlkit.encoders.load import load_base
from vlkit.encoders.tokenizer import warn_of_cut_texts
from vlkit.engine.checkpoint import check_base, load_trained
from vlkit.engine.distributed import make_fabric
from vlkit.engine.foreign import built_for
from vlkit.errors import UserError, listed
from vlkit.files import sha256_of
from vlkit.tasks.batching import Batching
from vlkit.tasks.retrieval.evaluate import Embedder
from vlkit.tasks.retrieval.model import build_model, zero_shot
from vlkit.tasks.two_tower import HeadOptions

BATCH = 64
"""Images or texts per batch."""


class RetrievalPipeline:
    """An adapted two-tower model: images and texts -> unit vectors in one space.

    Safe to call from several threads; calls that arrive while the model is busy are batched.

    Args:
        embedder: model, base and device.
        name: name used in messages.
        identity: short text that identifies the model; an index is bound to it.
        metrics: the metrics recorded in the adapter's config.
        min_score: cosine above which an image is likely to match a text, calibrated in training; None = unknown.
    """

    def __init__(
        self,
        embedder: Embedder,
        name: str,
        identity: str,
        metrics: dict[str, float],
        min_score: float | None = None,
    ) -> None:
        self.embedder, self.name, self.identity, self.metrics = embedder, name, identity, metrics
        self.min_score = min_score
        self._lock = threading.Lock()  # for batching of further media in subclasses
        # Opened here and not in the batch, so that a bad file fails only its own call.
        self._images: Batching[Any, Any] = Batching(
            lambda pixels: cast(Any, embedder.pixels(torch.stack(pixels)).cpu().numpy()), BATCH
        )
        self._texts: Batching[Any, Any] = Batching(
            lambda texts: cast(Any, embedder.texts(cast(Any, texts)).numpy()), BATCH
        )

    @property
    def dim(self) -> int:
        """Width E of the joint space."""
        return self.embedder.model.out_dim

    def embed_images(self, images: Iterable[ImageInput]) -> np.ndarray:
        """Paths or PIL images -> float32 [n, E], unit norm.

        Raises:
            vlkit.data.images.MediaError: a file is not a readable image; names it and the reason.
            UserError: one image in place of several.
        """
        images = listed(images, "images")
        found = [self.embed_pixels(pixels) for _, pixels in batches_ahead(images, self.transform, BATCH)]
        return np.concatenate(found) if found else np.empty((0, self.dim), dtype=np.float32)

    def transform(self, image: ImageInput, draft: bool = False) -> Tensor:
        """A path or PIL image -> [3, H, W], as :meth:`embed_pixels` takes it.

        Args:
            image: what to read.
            draft: decode a JPEG file that is much larger than the input at a half, a quarter or an eighth of its size
                (:attr:`vlkit.encoders.bases.Preprocess.draft_side`): faster, pixels differ slightly.

        Raises:
            vlkit.data.images.MediaError: the file is not a readable image; names it and the reason.
        """
        return self.embedder.transform(as_rgb(image, self.embedder.base.preprocess.draft_side if draft else None))

    def embed_pixels(self, images: Sequence[Tensor]) -> np.ndarray:
        """Transformed images, [3, H, W] each -> float32 [n, E], unit norm."""
        return np.stack(self._images(images))

    def embed_texts(self, texts: Iterable[str]) -> np.ndarray:
        """Texts -> float32 [n, E], unit norm.

        Raises:
            UserError: one text in place of several.
        """
        texts = listed(texts, "texts")
        if not texts:
            return np.empty((0, self.dim), dtype=np.float32)
        warn_of_cut_texts(self.embedder.base.tokenize, texts, "texts")
        return np.stack(self._texts(texts))


def open_adapter(
    config: dict[str, Any],
    tensors: dict[str, Tensor],
    folder: Path,
    fabric: Fabric,
    base: ClipBase | None = None,
    text_base: TextBase | None = None,
) -> RetrievalPipeline:
    """Attach a saved adapter to its base; see :func:`vlkit.tasks.load.load`. ``text_base`` is not used."""
    base = base or load_base(
        config["base"]["image"]["load"], context_length=config["base"]["text"].get("context_length")
    )
    check_base(config, base.identity, folder)
    with built_for(tensors, folder, base.image.model, base.text.model):
        model = build_model(base, adapter_options(config["adapters"]["image"]), HeadOptions(**config["head"]))
    load_trained(model, tensors, folder)
    fingerprint = sha256_of(AdapterFiles.find(folder).tensors)[:16] + getattr(tensors, "tag", "")
    pipeline = _pipeline(base, model, fabric, folder.name, fingerprint, config.get("metrics", {}))
    threshold = config.get("search", {}).get("min_score")
    # Calibrated for the adapter as trained, not for a part of it.
    if isinstance(threshold, int | float) and not getattr(tensors, "tag", ""):
        pipeline.min_score = float(threshold)
    return pipeline


def load_zero_shot(base_name: str, device: str = "auto", base: ClipBase | None = None) -> RetrievalPipeline:
    """The unadapted base as a pipeline; pass ``base`` if it is already loaded."""
    base = base or load_base(base_name)
    check_joint_space(base)
    return _pipeline(base, zero_shot(base), make_fabric(device), base.name, "zero-shot", {})


def check_joint_space(base: ClipBase) -> None:
    """Raise :class:`UserError` if images and texts have no joint space before an adapter is trained."""
    if base.joint_dim is not None:
        raise UserError(f"base {base.name}: a pair has no joint space before training; give an adapter folder")


def _pipeline(
    base: ClipBase, model: Any, fabric: Fabric, name: str, adapter: str, metrics: dict[str, float]
) -> RetrievalPipeline:
    fabric.setup_module(model.requires_grad_(False)).eval()
    return RetrievalPipeline(Embedder(model, base, fabric), name, model_identity(base, name, adapter), metrics)


def model_identity(base: ClipBase, name: str, adapter: str) -> str:
    """Short text that identifies a model: ``name``, the base, and a hash of the base's weights and ``adapter``."""
    prints = "".join(base.identity[tower]["fingerprint"] for tower in ("image", "text"))
    return f"{name} on {base.name} ({hashlib.sha256((prints + adapter).encode()).hexdigest()[:16]})"
