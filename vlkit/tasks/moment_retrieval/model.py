"""Moment retrieval: the model, and its entry in the adapter config."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from vlkit.adapters.base import Encoded
from vlkit.adapters.facts import MethodOptions
from vlkit.adapters.options import ADAPTERS, adapter_options
from vlkit.adapters.r2.block import R2Block, ReadTokens, Refined, endpoints_of, of_queries, token_map
from vlkit.adapters.r2.options import R2Options
from vlkit.adapters.r2.temporal import TemporalLayer
from vlkit.data.video.frame_batch import Frames
from vlkit.encoders.bases import ClipBase, Preprocess
from vlkit.encoders.staged import StagedEncoder, Stream
from vlkit.errors import UserError
from vlkit.tap_cache.rows import TapBatch
from vlkit.tasks.gradient_cache import encode_twice
from vlkit.tasks.moment_retrieval.head import AtPoints, MomentHeads, MomentOptions, Predictions
from vlkit.tasks.moment_retrieval.match import QueryMatch

METHODS: dict[str, type[MethodOptions]] = {"r2": R2Options, **ADAPTERS}
"""``--adapter.kind`` of this task: R2-Tuning, or any method for one tower in its place."""
FRAMES_AT_ONCE = 64
HEADS, DROPOUT, DROP_PATH = 8, 0.1, 0.1
"""Of the block around methods for one tower."""


class MomentModel(nn.Module):
    """Two adapted towers, a block that refines clips, and heads.

    Args:
        image, text: adapted towers; for R2-Tuning they read the last layers (:class:`LastLayers`).
        block: :class:`R2Block`, or :class:`FrameBlock` for methods that adapt each tower.
        heads: see :class:`MomentHeads`.
        match: similarities in the joint space as a start; None without.
        preprocess: mean and standard deviation of the pixels.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        image: Any,
        text: Any,
        block: R2Block | FrameBlock,
        heads: MomentHeads,
        match: QueryMatch | None,
        preprocess: Preprocess,
    ) -> None:
        super().__init__()
        self.image, self.text, self.block, self.heads, self.match = image, text, block, heads, match
        for name in ("mean", "std"):
            values = torch.tensor(getattr(preprocess, name), dtype=torch.float32).view(3, 1, 1)
            self.register_buffer(name, values, persistent=False)

    def forward(self, frames: Frames, ids: Tensor | TapBatch, videos: Tensor | None = None) -> Predictions:
        """Predictions for B queries: frames of V videos or their cached taps, ids [B, L] or cached taps, and int64 [B],
        the video of each query (None: V = B, each query has its own).
        """
        own_mask, own_rows = (tensor.to(self.mean.device) for tensor in (frames.mask, frames.rows))
        mask, rows = of_queries(own_mask, videos), of_queries(own_rows, videos)
        if isinstance(self.block, R2Block):
            whole, query, query_mask = self._query_layers(ids)
            embeddings, layers = self._video_layers(frames, own_rows, own_mask)
            hint, start = self._matched(embeddings, whole, rows, mask)
            refined = self.block(layers, query, own_mask, query_mask, hint, videos)
        else:
            flat = self._frame_features(frames)
            whole, tokens, query_mask = self._query_tokens(ids)
            hint, start = self._matched(flat, whole, rows, mask)
            refined = self.block(_by_video(flat, rows, mask), tokens, mask, query_mask, hint)
        return self.heads(refined, mask, query_mask, start)

    def _matched(
        self, frames: Tensor | None, query: Tensor | None, rows: Tensor, mask: Tensor
    ) -> tuple[Tensor | None, AtPoints | None]:
        """The hint for the block and the start of the class scores, from embeddings [F, E] and [B, E]."""
        if self.match is None or frames is None or query is None:
            return None, None
        hint, standard = self.match(_by_video(frames, rows, mask), query, mask)
        return hint, partial(self.match.at_points, standard)

    # --- R2-Tuning: raw layers ---

    def _query_layers(self, ids: Tensor | TapBatch) -> tuple[Tensor | None, list[Tensor], Tensor]:
        """The base's embedding [B, E] (None without matching), k layers [B, L, D], padding 0, the mask bool [B, L]."""
        stream, taps = self.text.read(ids)
        layers = list(taps) if isinstance(ids, TapBatch) else taps
        mask = _mask_of(stream)
        return self._pooled(self.text.base, stream), [tap.hidden * mask.unsqueeze(2) for tap in layers], mask

    @torch.no_grad()
    def _pooled(self, tower: StagedEncoder, stream: Stream) -> Tensor | None:
        """[N, E], the frozen embedding of a final state; None without matching."""
        return None if self.match is None else tower.pool(stream).float()

    def _cached_embeddings(self, batch: TapBatch) -> Tensor | None:
        """:meth:`_pooled` of cached frames, of which only a part is decoded at once."""
        parts = [] if self.match is None else batch.split(FRAMES_AT_ONCE)
        found = [self._pooled(self.image.base, part.streams(self.image.base)[-1]) for part in parts]
        return torch.cat(cast("list[Tensor]", found)) if found else None

    def _video_layers(
        self, frames: Frames, rows: Tensor, mask: Tensor
    ) -> tuple[Tensor | None, list[ReadTokens | Tensor]]:
        """The base's embeddings [F, E] (None without matching), and k functions that read the tokens of a part."""
        if isinstance(frames.pixels, TapBatch):
            batch = cast(TapBatch, frames.pixels.to(mask.device))
            count = len(batch.layout.taps)

            def cached(number: int, start: int, stop: int) -> Tensor:
                places = rows[:, start:stop].flatten()
                part = batch.pick(places)
                return _grid(part.streams(self.image.base)[number], mask[:, start:stop])

            return self._cached_embeddings(batch), [partial(cached, number) for number in range(count)]
        layers = self._read_frames(frames)

        def read(number: int, start: int, stop: int) -> Tensor:
            places = rows[:, start:stop].flatten()
            stream = layers[number]
            return _grid(stream.replace(hidden=stream.hidden.index_select(0, places)), mask[:, start:stop])

        return self._pooled(self.image.base, layers[-1]), [partial(read, number) for number in range(len(layers))]

    def _read_frames(self, frames: Frames) -> list[Stream]:
        """The layers of all frames, read in chunks, without gradient."""
        parts = [self.image.read(self._pixels(part))[1] for part in frames.chunks(FRAMES_AT_ONCE)]
        return [layer[0].replace(hidden=torch.cat([own.hidden for own in layer])) for layer in zip(*parts, strict=True)]

    # --- other methods: features of frames, tokens of queries ---

    def _frame_features(self, frames: Frames) -> Tensor:
        """[F, E]. In training, more frames than one chunk are encoded twice (gradient caching over frames)."""
        parts = frames.chunks(FRAMES_AT_ONCE)
        encode: Callable[[Tensor], Tensor] = self._encode
        if len(parts) > 1 and torch.is_grad_enabled() and any(p.requires_grad for p in self.image.parameters()):
            encode = partial(encode_twice, self._encode, anchor=self.mean)
        return torch.cat([encode(part) for part in parts])

    def _encode(self, pixels: Any) -> Tensor:
        given = pixels.to(self.mean.device) if isinstance(pixels, TapBatch) else self._pixels(pixels)
        return self.image(given).pooled

    def _query_tokens(self, ids: Tensor | TapBatch) -> tuple[Tensor | None, Tensor, Tensor]:
        """The embedding [B, E] (None without matching), tokens [B, L, D] and their mask; the embedding is the one token
        for methods that adapt nothing else.
        """
        encoded: Encoded = self.text(ids)
        if self.block.reads_tokens:  # type: ignore[union-attr]
            tokens = encoded.tokens
            mask = encoded.mask
            mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device) if mask is None else mask
            return None if self.match is None else encoded.pooled, tokens * mask.unsqueeze(2), mask
        pooled = encoded.pooled.unsqueeze(1)
        return encoded.pooled, pooled, torch.ones(pooled.shape[:2], dtype=torch.bool, device=pooled.device)

    def _pixels(self, pixels: Tensor) -> Tensor:
        values = pixels.to(self.mean.device, non_blocking=True).float() / 255
        return ((values - self.mean) / self.std).to(self.mean.dtype)


class FrameBlock(nn.Module):
    """In place of the refinement block: one temporal layer on adapted features of frames and tokens of the query.

    Args:
        video_width: channels of a frame's feature.
        query_width: channels of a token of the query.
        width: C.
        endpoints: tell the map where a clip begins and ends.
        reads_tokens: the query is read as tokens, not as one pooled embedding.
    """

    def __init__(
        self, video_width: int, query_width: int, width: int, endpoints: bool = True, reads_tokens: bool = True
    ) -> None:
        super().__init__()
        self.endpoints, self.reads_tokens = endpoints, reads_tokens
        self.video_map = token_map(video_width + 2 * endpoints, width, DROPOUT)
        self.query_map = token_map(query_width, width, DROPOUT)
        self.temporal = TemporalLayer(width, HEADS, drop_path=DROP_PATH)

    def forward(
        self, video: Tensor, query: Tensor, video_mask: Tensor, query_mask: Tensor, hint: Tensor | None = None
    ) -> Refined:
        """Frame features [B, T, E] and query tokens [B, L, D], padding 0; masks bool [B, T], [B, L]; a state for each
        clip [B, T, C] to begin with.
        """
        if self.endpoints:
            video = torch.cat([video, endpoints_of(video_mask).to(video.dtype)], dim=-1)
        clips, tokens = self.video_map(video), self.query_map(query)
        entered = clips if hint is None else clips + hint.to(clips.dtype)
        frames = self.temporal(entered, tokens, video_mask, query_mask)
        return Refined(frames, tokens, clips.unsqueeze(0), tokens.unsqueeze(0))


def _by_video(flat: Tensor, rows: Tensor, mask: Tensor) -> Tensor:
    """Frames [F, E] at their rows [B, T] -> [B, T, E], 0 at padded clips."""
    return flat.index_select(0, rows.flatten()).view(*mask.shape, -1) * mask.unsqueeze(-1)


def _grid(stream: Stream, mask: Tensor) -> Tensor:
    """Frames [B * t, P, D] -> [B, t, P, D] with 0 in padded clips, the summary token (or the mean) first."""
    hidden = stream.hidden
    if stream.summary is None:
        hidden = torch.cat([hidden.mean(1, keepdim=True), hidden], dim=1)
    return hidden.unflatten(0, mask.shape) * mask[:, :, None, None]


def _mask_of(stream: Stream) -> Tensor:
    if stream.mask is not None:
        return stream.mask
    return torch.ones(stream.hidden.shape[:2], dtype=torch.bool, device=stream.hidden.device)


def build_model(base: ClipBase, adapter: MethodOptions, head: MomentOptions, moments: bool = True) -> MomentModel:
    """The model for a base; the same method adapts both towers.

    Args:
        base: the loaded base; its towers become part of the model.
        adapter: options of one of :data:`METHODS`.
        head: options of the heads.
        moments: False for highlight sets: one level, no boundary head, no endpoint features.

    Raises:
        UserError: an option or the base does not fit.
    """
    if isinstance(adapter, R2Options):
        image, text = adapter.build(base.image), adapter.build(base.text)
        block: R2Block | FrameBlock = adapter.build_block(base.image, base.text, head.hidden, endpoints=moments)
    else:
        if head.hidden % HEADS:
            raise UserError(f"--head.hidden {head.hidden}: must divide by {HEADS}")
        tokens = type(adapter).feeds_tokens
        image, text = adapter.build(base.image, "pooled"), adapter.build(base.text, "tokens" if tokens else "pooled")
        query_width = base.text.token_dim if tokens else base.text.out_dim
        block = FrameBlock(base.image.out_dim, query_width, head.hidden, moments, tokens)
    heads = MomentHeads(head if moments else MomentOptions(head.hidden, (1,)), boundaries=moments)
    match = QueryMatch(head.hidden) if head.match and base.image.out_dim == base.text.out_dim else None
    return MomentModel(image, text, block, heads, match, base.preprocess)


def adapter_config(
    base: ClipBase,
    adapter: MethodOptions,
    head: MomentOptions,
    moments: bool,
    reading: dict[str, Any],
    metrics: dict[str, float],
) -> dict[str, Any]:
    """Content of ``vlkit_adapter.json``: everything needed to rebuild this model on the same base.

    Args:
        reading: clips per second and post-processing: ``fps``, ``unit``, ``nms``, ``threshold``.
    """
    return {
        "task": "moment_retrieval",
        "base": {tower: {**about, "load": base.name} for tower, about in base.identity.items()},
        "adapters": {"image": asdict(cast(Any, adapter)), "text": asdict(cast(Any, adapter))},
        "head": {**asdict(head), "moments": moments},
        "preprocess": {**base.preprocess.to_dict(), **reading},
        "metrics": metrics,
    }


def method_options(values: dict[str, Any]) -> MethodOptions:
    """The options object of a saved adapter; see :func:`vlkit.adapters.options.adapter_options`."""
    return adapter_options(values, METHODS)
