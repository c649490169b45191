"""Image-text retrieval: build the two-tower model and measure it. Shared by training, evaluation and serving."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from PIL import Image
from rich.console import Console
from rich.progress import track
from torch import Tensor

from vlkit.adapters import ADAPTERS
from vlkit.adapters.linear import LinearOptions
from vlkit.data.manifest import Dataset
from vlkit.data.transforms import image_transform
from vlkit.encoders.bases import ClipBase
from vlkit.engine.distributed import gather_shares, my_share
from vlkit.errors import UserError
from vlkit.metrics.retrieval import RECALL_AT, fold_metrics, image_text_metrics
from vlkit.tasks.retrieval.data import image_batches, read_image
from vlkit.tasks.two_tower import EmbeddingHead, HeadOptions, TwoTower

CAPTIONS = 5  # captions an image that the COCO and Flickr30K protocols use


def build_model(base: ClipBase, adapter: Any, head: HeadOptions) -> TwoTower:
    """Put the same adaptation method on both towers and a head on each.

    Args:
        base: the loaded base; its towers become part of the model and are frozen or unfrozen by the method.
        adapter: options of one of :data:`vlkit.adapters.ADAPTERS`.
        head: how outputs become embeddings.
    """
    reads = "pooled" if head.pool == "base" else "tokens"
    return TwoTower(
        adapter.build(base.image, reads),
        adapter.build(base.text, reads),
        EmbeddingHead(base.image, head, base.joint_dim),
        EmbeddingHead(base.text, head, base.joint_dim),
        base.logit_scale,
        # Without a bias of the base's own: -10 gives every pair of a large batch the odds of a random one (SigLIP).
        -10.0 if base.logit_bias is None else base.logit_bias,
    )


def zero_shot(base: ClipBase) -> TwoTower:
    """The base as it is, behind the same interface: its own pooling, nothing trained (a pair: at chance)."""
    return (
        build_model(base, LinearOptions(), HeadOptions(projection=base.joint_dim is not None))
        .requires_grad_(False)
        .eval()
    )


def adapter_config(base: ClipBase, adapter: Any, head: HeadOptions, metrics: dict[str, float]) -> dict[str, Any]:
    """What ``adapter_config.json`` says: everything needed to build this model again on the same base."""
    return {
        "task": "retrieval",
        "base": {tower: {**identity, "load": base.name} for tower, identity in base.identity.items()},
        "adapters": {"image": asdict(adapter), "text": asdict(adapter)},
        "head": asdict(head),
        "preprocess": base.preprocess.to_dict(),
        "metrics": metrics,
    }


def adapter_options(values: dict[str, Any]) -> Any:
    """The options object of a saved adapter (inverse of ``asdict``).

    Raises:
        UserError: a kind or an option that this vlkit does not know.
    """
    kind = values.get("kind")
    if kind not in ADAPTERS:
        raise UserError(f"adapter_config.json: kind {kind!r} is none of {', '.join(ADAPTERS)}; update vlkit")
    known = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    try:
        return ADAPTERS[kind](**known)
    except TypeError as error:
        raise UserError(f"adapter_config.json: options of {kind!r} do not fit ({error}); update vlkit") from None


class Embedder:
    """Embeds pictures and texts with a two-tower model in batches, without gradient.

    Args:
        model: on its device; called in eval mode, left in the mode it had.
        base: the base it stands on (preprocessing, tokenizer).
        fabric: device and precision.
        batch_size: pictures or texts at once.
    """

    def __init__(self, model: TwoTower, base: ClipBase, fabric: Fabric, batch_size: int = 64) -> None:
        self.model, self.base, self.fabric, self.batch_size = model, base, fabric, batch_size
        self.transform = image_transform(base.preprocess)

    def images(self, sources: Sequence[Any], open_one: Callable[[Any], Image.Image], label: str = "pictures") -> Tensor:
        """``open_one`` turns each source into an RGB picture -> [n, E] float32 on the CPU, unit norm."""
        pixels = image_batches(sources, lambda source: self.transform(open_one(source)), self.batch_size)
        return self._run(self.model.embed_images, pixels, len(sources), label)

    def texts(self, texts: Sequence[str], label: str = "texts") -> Tensor:
        """Texts -> [n, E] float32 on the CPU, unit norm."""
        if not texts:
            return self._run(self.model.embed_texts, [], 0, label)
        ids = self.base.tokenize(list(texts))
        # Batches of similar length can be cut shorter.
        order = self.base.text.real(ids).sum(1).argsort()
        batches = (self.base.text.trim(ids[rows]) for rows in order.split(self.batch_size))
        return self._run(self.model.embed_texts, batches, len(texts), label)[order.argsort()]

    @torch.no_grad()
    def _run(
        self, embed: Callable[[Any], Tensor], batches: Iterable[Any], count: int, label: str, size: int | None = None
    ) -> Tensor:
        training = self.model.training
        self.model.eval()
        steps = -(-count // (size or self.batch_size))
        hidden = not self.fabric.is_global_zero or not sys.stderr.isatty()
        found = [torch.empty(0, self.model.out_dim)]
        for batch in track(batches, label, total=steps, console=Console(stderr=True), transient=True, disable=hidden):
            with self.fabric.autocast():
                found.append(embed(self.fabric.to_device(batch)).float().cpu())
        self.model.train(training)
        return torch.cat(found)


def embed_split(embedder: Embedder, dataset: Dataset, split: str) -> tuple[Tensor, Tensor, np.ndarray]:
    """Embed every picture of a split and its first five captions; processes share the work.

    Returns:
        Pictures [N, E], captions [M, E] (float32, CPU, unit norm) and the picture of each caption, int64 [M].
    """
    records, fabric = dataset.records(split), embedder.fabric
    if not records:
        raise UserError(f"{dataset.split_file(split)}: split {split!r} is empty; choose another split")
    texts = [text for record in records for text in record["texts"][:CAPTIONS]]
    owner = np.repeat(np.arange(len(records)), [len(record["texts"][:CAPTIONS]) for record in records])
    mine = [records[i] for i in my_share(fabric, len(records))]
    images = embedder.images(mine, lambda record: read_image(dataset, record), f"{split} pictures")
    captions = embedder.texts([texts[i] for i in my_share(fabric, len(texts))], f"{split} captions")
    return gather_shares(fabric, images, len(records)), gather_shares(fabric, captions, len(texts)), owner


def evaluate_split(embedder: Embedder, dataset: Dataset, split: str) -> dict[str, float]:
    """Recalls of a split; see :func:`vlkit.metrics.retrieval.metrics_of_ranks` for the keys."""
    return retrieval_metrics(*embed_split(embedder, dataset, split))


def retrieval_metrics(images: Tensor, texts: Tensor, owner: np.ndarray, folds: int = 1) -> dict[str, float]:
    """Recalls of embeddings.

    Args:
        images: [N, E].
        texts: [M, E].
        owner: int [M], the picture of each text.
        folds: also report ``fold_*``, the mean over that many consecutive folds (5 on COCO's 5,000 test images is the
            "COCO 1K" protocol); 1 = no folds.

    Raises:
        UserError: the pictures do not divide into ``folds``.
    """
    metrics = image_text_metrics(images, texts, owner)
    if folds > 1:
        try:
            means = fold_metrics(images, texts, owner, folds)
        except ValueError as error:
            raise UserError(f"--folds {folds}: {error}; give a divisor of the number of pictures") from None
        metrics |= {f"fold_{key}": value for key, value in means.items()}
    return metrics


def index_recalls(images: np.ndarray, texts: np.ndarray, owner: np.ndarray, factory: str) -> dict[str, float]:
    """Recalls when candidates are found through a FAISS index instead of by comparing all.

    Args:
        images: [N, E] float32.
        texts: [M, E] float32.
        owner: int [M], the picture of each text.
        factory: FAISS factory string.

    Returns:
        ``index_i2t_r1`` … ``index_t2i_r10`` in percent.
    """
    from vlkit.index.approximate import trained_index  # FAISS takes a while, and few need it

    deepest = max(RECALL_AT)
    metrics: dict[str, float] = {}
    sides = (
        ("i2t", images, texts, owner, np.arange(len(images))),
        ("t2i", texts, images, np.arange(len(images)), owner),
    )
    for direction, queries, candidates, candidate_owner, query_owner in sides:
        index = trained_index(candidates, factory)
        rows = index.search(np.ascontiguousarray(queries), min(deepest, len(candidates)))[1]
        hit = (candidate_owner[rows] == query_owner[:, None]) & (rows >= 0)
        for k in RECALL_AT:
            metrics[f"index_{direction}_r{k}"] = 100 * float(hit[:, :k].any(1).mean())
    return metrics
