"""Embed every sample of a tap cache, for evaluations and closed-form starts; missing rows are computed and stored."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from vlkit.cli.show import Console, track
from vlkit.tap_cache.maker import TapCache


@torch.no_grad()
def embed_rows(
    cache: TapCache, embed: Callable[[Any], Tensor], rows: Sequence[int], label: str, batch_size: int = 64
) -> Tensor:
    """Embed rows of a cache in batches, without gradient.

    Args:
        cache: the cache of one tower.
        embed: a batch of rows, as input of the adapted encoder -> [B, E].
        rows: row numbers; others are not computed.
        label: what the progress bar says.
        batch_size: rows per batch.

    Returns:
        [n, E] float32 on the CPU.
    """
    batches = [list(rows[i : i + batch_size]) for i in range(0, len(rows), batch_size)]
    hidden = not cache.fabric.is_global_zero or not sys.stderr.isatty()
    found = []
    for batch in track(batches, label, console=Console(stderr=True), transient=True, disable=hidden):
        complete = cache.fabric.to_device(cache.complete(cache.look_up(batch)))
        with cache.fabric.autocast():
            found.append(embed(complete).float().cpu())
    cache.record_uses()
    return torch.cat(found)
