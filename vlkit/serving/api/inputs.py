"""Requests of the API and the calls of the model that answer them."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from vlkit.cli.config import about
from vlkit.cli.show import visible
from vlkit.data.images import MediaError, decode_image
from vlkit.errors import UserError
from vlkit.index import VectorIndex
from vlkit.index.disk import DiskIndex, open_index
from vlkit.serving.limits import UPLOAD_BYTES, UPLOAD_PIXELS, check_text
from vlkit.tasks.load import load
from vlkit.tasks.retrieval.pipeline import RetrievalPipeline, load_zero_shot

MOST_RESULTS = 1000


class Input(BaseModel):
    """One input that is not a bare text."""

    model_config = ConfigDict(extra="forbid")
    text: str | None = None
    image: str | None = Field(None, description="base64 of an image file, or a data URL")


class EmbeddingRequest(BaseModel):
    """The body of ``POST /v1/embeddings``, as OpenAI has it; images are inputs of the form ``{"image": …}``."""

    input: str | list[str | Input]
    model: str = ""
    encoding_format: Literal["float", "base64"] = "float"
    user: str = ""


class SearchRequest(Input):
    """The body of ``POST /search``: a text or an image."""

    k: int = Field(10, ge=1, le=MOST_RESULTS)


@dataclass(frozen=True)
class Service:
    """What is served: a model, and an index that it made, or None."""

    pipeline: RetrievalPipeline
    index: VectorIndex | DiskIndex | None = None

    def embed(self, inputs: Sequence[str | Input]) -> tuple[np.ndarray, int]:
        """Embed inputs; concurrent calls share batches.

        Returns:
            float32 [n, E], unit norm, and the number of tokens of the texts.

        Raises:
            UserError: an input is neither a text nor a readable image; names its place.
        """
        opened = [_opened(item, place) for place, item in enumerate(inputs)]
        vectors = np.empty((len(opened), self.pipeline.dim), dtype=np.float32)
        texts = {place: item for place, item in enumerate(opened) if isinstance(item, str)}
        images = {place: item for place, item in enumerate(opened) if isinstance(item, Image.Image)}
        tokens = 0
        if texts:
            vectors[list(texts)] = self.pipeline.embed_texts(list(texts.values()))
            base = self.pipeline.embedder.base
            tokens = int(base.text.real(base.tokenize(list(texts.values()))).sum())
        if images:
            vectors[list(images)] = self.pipeline.embed_images(list(images.values()))
        return vectors, tokens

    def search(self, request: SearchRequest) -> list[dict[str, Any]]:
        """The nearest items: ``id``, ``score`` (cosine) and ``metadata``, best first.

        Raises:
            UserError: there is no index, or the query is not readable.
        """
        if self.index is None:
            raise UserError("this server has no index; start it with --index IDX")
        vectors, _ = self.embed([Input(text=request.text, image=request.image)])
        hits = self.index.search(vectors, request.k)[0]
        # Names of files may hold bytes that are no UTF-8, which JSON cannot say.
        return [
            {"id": visible(hit.item.id), "score": hit.score, "metadata": _sayable(hit.item.metadata)} for hit in hits
        ]


def _sayable(metadata: Mapping[str, Any]) -> dict[str, Any]:
    return {key: visible(value) if isinstance(value, str) else value for key, value in metadata.items()}


def encoded(vector: np.ndarray, form: Literal["float", "base64"]) -> list[float] | str:
    """A vector as numbers, or as base64 of little-endian float32."""
    return vector.tolist() if form == "float" else base64.b64encode(vector.astype("<f4").tobytes()).decode()


def _opened(item: str | Input, place: int) -> str | Image.Image:
    text, image = (item, None) if isinstance(item, str) else (item.text, item.image)
    if isinstance(text, str) and text.startswith("data:image/"):
        text, image = None, text
    if (text is None) == (image is None):
        raise UserError(f'input {place}: give a text, {{"text": …}} or {{"image": …}}')
    if text is not None:
        try:
            return check_text(text, "text")
        except UserError as error:
            raise UserError(f"input {place}: {error}") from None
    return _image(str(image), place)


def _image(text: str, place: int) -> Image.Image:
    """Decode base64 or a data URL. Other URLs are not fetched: a server must not call where a client tells it to."""
    if text.startswith(("http://", "https://", "file:")):
        raise UserError(f"input {place}: URLs are not fetched; send the image itself in base64")
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        content = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise UserError(f"input {place}: is not base64") from None
    if len(content) > UPLOAD_BYTES:
        raise UserError(f"input {place}: has {len(content)} bytes, more than {UPLOAD_BYTES}")
    try:
        return decode_image(content, f"input {place}", max_pixels=UPLOAD_PIXELS)
    except MediaError as error:
        raise UserError(f"input {place}: cannot be used as an image ({error.reason})") from None


def open_service(model: Path | None, base: str | None, index: Path | None, device: str = "auto") -> Service:
    """Load what is served.

    Args:
        model: run or adapter folder; None = ``base`` alone.
        base: name of a base.
        index: index folder, made by the same model; None = no search.
        device: device to compute on.

    Raises:
        UserError: one of them cannot be opened, or they do not fit.
    """
    pipeline = load(model, device, task="retrieval") if model else load_zero_shot(str(base), device)
    if index is None:
        return Service(pipeline)
    with about("--index"):
        return Service(pipeline, open_index(index, pipeline.identity))
