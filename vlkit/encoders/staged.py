"""Frozen bases as staged encoders: ``embed -> block(0) -> ... -> block(depth - 1) -> pool``.

A staged encoder wraps a library's own model (open_clip, transformers) and calls its submodules one block at a time, so
that an adapter can tap hidden states and pass a modified one to the last blocks. It never copies model code: a staged
run equals the library's own forward.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from vlkit.encoders.blocks.anatomy import Asked, Opaque, anatomy_of, ask, ask_in_parts, seen_by_queries
from vlkit.encoders.blocks.narrow import NarrowBlocks

Tower = TypeVar("Tower", bound="StagedEncoder")
RunsBlock = Callable[..., Any]
"""A function that runs a block, a module, on its hidden state."""


@dataclass(frozen=True)
class Stream:
    """The state that is passed from block to block.

    Attributes:
        hidden: [B, L, D] tokens, or [B, C, H, W] for convolutional towers; floating point.
        mask: [B, L] bool, True = real token; None = every token is real (images, convolutional grids).
        summary: [B] int64, position of the summary token of the sequence (class token, end of text); None if the
            tower has none and pools over its tokens.
        extras: other inputs of the tower's blocks (attention masks, position biases); private to the tower.
        side: extra state that a method carries along the late route; towers ignore it.
        pooled: the pooled embedding [B, out_dim], once a method has computed it; towers ignore it.
    """

    hidden: Tensor
    mask: Tensor | None = None
    summary: Tensor | None = None
    extras: dict[str, Any] = field(default_factory=dict)
    side: Tensor | None = None
    pooled: Any = None

    def replace(self, **changes: Any) -> Stream:
        """Return a copy with the given fields changed."""
        return replace(self, **changes)

    def to(self, dtype: torch.dtype) -> Stream:
        """The stream with ``hidden`` in ``dtype``."""
        return self if self.hidden.dtype == dtype else self.replace(hidden=self.hidden.to(dtype))


class StagedEncoder(nn.Module):
    """One tower of a frozen base.

    Subclasses set the attributes in their constructor and implement :meth:`embed`, :meth:`block`, :meth:`pool` and
    :meth:`tokens`. All of them are differentiable; the caller decides which run with gradient.

    Attributes:
        model: the library's module that owns the weights (the object a state dict of the base loads into).
        depth: number of blocks.
        widths: depth + 1 channel counts; ``widths[0]`` after :meth:`embed`, ``widths[k]`` after block k - 1.
        out_dim: width of :meth:`pool`'s output.
        token_dim: width of :meth:`tokens`' output.
        spatial: True if ``hidden`` is a grid [B, C, H, W].
        stages: default depths for taps: every depth for transformers; for convolutional towers the end of each stage
            and every depth of the last stage.
    """

    model: Any  # the library's class differs from tower to tower
    depth: int
    widths: tuple[int, ...]
    out_dim: int
    token_dim: int
    spatial: bool = False
    stages: tuple[int, ...]
    _frozen: bool = False
    _compiled: bool = False

    def embed(self, x: Any) -> Stream:
        """Turn a batch (images [B, 3, H, W] float, or token ids [B, L] int64) into the stream before block 0."""
        raise TypeError(f"{type(self).__name__} has no embed")

    def block(self, i: int, stream: Stream) -> Stream:
        """Run block ``i`` (0-based)."""
        raise TypeError(f"{type(self).__name__} has no block")

    def pool(self, stream: Stream) -> Tensor:
        """The base's own pooled and projected embedding, [B, out_dim], not normalised."""
        raise TypeError(f"{type(self).__name__} has no pool")

    def tokens(self, stream: Stream) -> Tensor:
        """Per-token features after the tower's final norm, [B, L, token_dim]; grids are flattened row by row."""
        raise TypeError(f"{type(self).__name__} has no tokens")

    @property
    def joint_dim(self) -> int | None:
        """Width of the joint space into which :meth:`project` maps single tokens; None = the tower cannot."""
        return None

    def project(self, tokens: Tensor) -> Tensor:
        """[B, L, token_dim] tokens -> [B, L, joint_dim], as the tower projects the token that it pools.

        Raises:
            NotImplementedError: :attr:`joint_dim` is None.
        """
        raise NotImplementedError

    def grid(self, stream: Stream) -> tuple[int, int] | None:
        """Rows and columns of the image patches among :meth:`tokens`.

        The patches are the last ``rows * columns`` tokens, row by row; class and register tokens come before them.
        None if the tower's tokens are not patches of an image.
        """
        return (stream.hidden.shape[-2], stream.hidden.shape[-1]) if self.spatial else None

    def forward(self, x: Any) -> Tensor:
        """Embed, run every block and pool: [B, out_dim], equal to the library's own forward."""
        return self.pool(run_blocks(self, self.embed(in_weights_format(self, x)), 0, self.depth))

    def transformer_block(self, i: int) -> nn.Module:
        """The library's module of block ``i``, for methods that use the inside of a transformer block.

        Raises:
            Opaque: the tower does not consist of transformer blocks of one width.
        """
        raise Opaque(f"{self.kind} has no transformer blocks of one width")

    def compile_blocks(self) -> None:
        """From now on, run blocks through which no gradient passes by torch.compile; one compilation serves all.

        Raises:
            Opaque: the tower does not consist of transformer blocks of one width.
        """
        self.transformer_block(0)
        self._compiled = True

    def runs(self, function: RunsBlock) -> RunsBlock:
        """``function``, which runs a block; compiled after :meth:`compile_blocks` where no gradient passes."""
        return _compiled(function) if self._compiled and not torch.is_grad_enabled() else function

    @property
    def kind(self) -> str:
        """Class name of the library's network, for messages."""
        return type(getattr(self.model, "trunk", self.model)).__name__

    @property
    def keeps_width(self) -> bool:
        """Whether some block has as many output as input channels (DTL adapts such blocks)."""
        return any(before == after for before, after in zip(self.widths, self.widths[1:], strict=False))

    def query(self, i: int, stream: Stream, queries: Tensor) -> Tensor:
        """Run block ``i`` on queries that attend to the sequence while the sequence does not see them.

        Args:
            i: 0-based block number.
            stream: the input of the block; treated as a constant.
            queries: [Q, D] or [B, Q, D]; gradient passes.

        Returns:
            [B, Q, D].

        Raises:
            Opaque: see :func:`vlkit.encoders.blocks.anatomy.anatomy_of`.
        """
        return ask(anatomy_of(self.transformer_block(i)), stream.hidden.detach(), stream.mask, queries)

    def seen_by_queries(self, i: int, stream: Stream) -> Tensor:
        """[B, L, D]: what queries of block ``i`` attend to (its normalised input); a constant without gradient.

        Raises:
            Opaque: see :func:`vlkit.encoders.blocks.anatomy.anatomy_of`.
        """
        return seen_by_queries(anatomy_of(self.transformer_block(i)), stream.hidden.detach())

    def query_in_parts(self, i: int, tokens: Tensor, mask: Tensor | None, queries: Tensor) -> Asked:
        """Like :meth:`query`, on ``tokens`` from :meth:`seen_by_queries`; also returns the terms of attention and MLP.

        Args:
            i: 0-based block number.
            tokens: [B, L, D].
            mask: [B, L] bool, True = real token; None = all.
            queries: [Q, D] or [B, Q, D]; gradient passes.
        """
        return ask_in_parts(anatomy_of(self.transformer_block(i)), tokens, mask, queries)

    @property
    def pools_one_token(self) -> bool:
        """Whether :meth:`pool` reads only the summary token, so that :meth:`finish_pooled` can compute only that."""
        return False

    def finish_pooled(self, stream: Stream) -> Tensor:
        """Last block and pool, [B, out_dim]; gradient passes.

        If only one token is pooled, the last block computes only that token: nothing reads its outputs at other
        positions.
        """
        if not self.pools_one_token or stream.summary is None:
            return self.pool(self.block(self.depth - 1, stream))
        rows = torch.arange(stream.hidden.shape[0], device=stream.hidden.device)
        token = stream.hidden[rows, stream.summary].unsqueeze(1)
        # The mask ends at the summary position, so it also hides the tokens that a causal tower must not see.
        token = ask(anatomy_of(self.transformer_block(self.depth - 1)), stream.hidden, stream.mask, token)
        return self.pool(stream.replace(hidden=token, mask=None, summary=torch.zeros_like(stream.summary)))

    def narrow(self, layers: tuple[int, ...], reduction: int) -> NarrowBlocks:
        """New blocks like blocks ``layers`` (0-based) of this tower with random weights; every width is divided by
        ``reduction``, the number of heads stays.

        Raises:
            Opaque: the tower does not consist of transformer blocks of one width.
            UserError: a width is not divisible.
        """
        return NarrowBlocks(self.transformer_block, layers, reduction)

    def train(self, mode: bool = True) -> StagedEncoder:
        """Switch to training mode, unless frozen: a frozen base stays in eval (no dropout, fixed batch norm)."""
        return super().train(mode and not self._frozen)


class ReadAhead:
    """The result of an early route that has already run; an adapted encoder accepts it in place of the input.

    Attributes:
        values: number of values in one sample's state at the hand-off.
        device: device of the values.
    """

    values: int
    device: torch.device

    def __len__(self) -> int:
        """B."""
        raise TypeError(f"{type(self).__name__} has no length")

    def to(self, device: Any) -> ReadAhead:
        """Copy to another device."""
        raise TypeError(f"{type(self).__name__} has no to")

    def split(self, size: int) -> list[ReadAhead]:
        """Parts of ``size`` samples, like :meth:`torch.Tensor.split`."""
        raise TypeError(f"{type(self).__name__} has no split")

    def streams(self, base: StagedEncoder) -> Sequence[Stream]:
        """The taps, then the stream at the hand-off, as the early route of the input would give them."""
        raise TypeError(f"{type(self).__name__} has no streams")


def freeze(encoder: Tower) -> Tower:
    """Freeze every parameter of ``encoder`` and keep it in eval mode on later ``.train()`` calls; returns it."""
    encoder.requires_grad_(False)
    encoder._frozen = True
    encoder.eval()
    return encoder


def unfreeze(encoder: Tower) -> Tower:
    """Make every parameter trainable again (full fine-tuning); returns ``encoder``."""
    encoder.requires_grad_(True)
    encoder._frozen = False
    return encoder


@functools.cache
def _compiled(function: RunsBlock) -> RunsBlock:
    return torch.compile(function)


def call_block(block: nn.Module, hidden: Tensor, arguments: Mapping[str, Any]) -> Any:
    """``block(hidden, **arguments)``, as a function that can be compiled once for all blocks."""
    return block(hidden, **arguments)


def run_blocks(encoder: StagedEncoder, stream: Stream, start: int, stop: int) -> Stream:
    """Run blocks ``start .. stop - 1``; gradient passes if the caller enables it (the late route)."""
    for i in range(start, stop):
        stream = encoder.block(i, stream)
    return stream


def run_early(encoder: StagedEncoder, x: Any, layers: tuple[int, ...], stop: int) -> Iterator[tuple[int, Stream]]:
    """The early route: run blocks ``0 .. stop - 1`` without gradient and yield each tapped state right after its block.

    Args:
        encoder: the frozen base.
        x: an input of :meth:`StagedEncoder.embed`.
        layers: depths to tap; 0 = embeddings, k = output of block k - 1; each at most ``stop``.
        stop: number of blocks to run.

    Yields:
        ``(k, stream)`` at each depth in ``layers``, shallow to deep, and always at ``stop`` (the last item). The
        generator keeps nothing else alive: a state that the consumer drops is freed before the next block runs.
    """
    wanted = check_layers(layers, stop)
    # no_grad is entered per call, never across a yield: the consumer's code must run in its own gradient mode.
    with torch.no_grad():
        stream = encoder.embed(in_weights_format(encoder, x))
    for k in range(stop + 1):
        if k in wanted or k == stop:
            yield k, stream
        if k < stop:
            with torch.no_grad():
                stream = encoder.block(k, stream)


def in_weights_format(encoder: nn.Module, x: Any) -> Any:
    """Cast images to the dtype of the encoder's weights (``--precision bf16-true``); return ids unchanged."""
    if isinstance(x, Tensor) and x.is_floating_point():
        return x.to(next(encoder.parameters()).dtype)
    return x


def check_layers(layers: tuple[int, ...], stop: int) -> frozenset[int]:
    """Return ``layers`` as a set.

    Raises:
        ValueError: a depth is negative, repeated, out of order or beyond ``stop``.
    """
    if any(not 0 <= k <= stop for k in layers):
        raise ValueError(f"taps {list(layers)} must lie in 0..{stop} (0 = embeddings, k = output of block k - 1)")
    if list(layers) != sorted(set(layers)):
        raise ValueError(f"taps {list(layers)} must be in ascending order without repeats")
    return frozenset(layers)
