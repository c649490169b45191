"""The tap cache: the early route of a frozen tower runs once per sample, and its output is stored on disk and reused.

The early route has no trainable weights and no randomness, so its output for a sample never changes. From the second
epoch on, and in every later run with the same base, preprocessing and taps, training only computes the adapter, the
late blocks and the head. Values are always read from disk, even in the epoch that writes them, so a run gives the same
numbers whether its rows were cached before, partly cached, or not cached.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from lightning_fabric import Fabric
from torch import Tensor

from vlkit.adapters.base import AdaptedEncoder
from vlkit.byte_sizes import size_text
from vlkit.engine.distributed import my_share
from vlkit.engine.loader import EpochLoader
from vlkit.errors import UserError
from vlkit.number_formats import NumberFormat
from vlkit.tap_cache.rows import RowLayout, TapBatch, late_extras
from vlkit.tap_cache.store import TapStore
from vlkit.tap_cache.usage import Uses, add_uses, tap_folder

log = logging.getLogger(__name__)

FORMAT = 1
CHUNK = 32  # samples whose taps are in memory at once while rows are computed
SAMPLES = 512  # texts sampled to estimate the mean length
REPORT_SECONDS = 20.0
RESERVE = 64 << 20  # bytes left free on disk


class TapCache:
    """The output of one tower's early route for every sample of a training set.

    Args:
        name: name of the tower, e.g. ``image``; part of the folder's name.
        encoder: its adapted encoder, on its device.
        keys: a digest of each sample (:func:`vlkit.tap_cache.store.digest`); equal digests mean equal samples.
        load: row numbers -> the tower's input for them, [n, ...].
        key: other JSON values that the rows depend on: fingerprint of the base, preprocessing, frame sampling.
        folder: parent folder of all caches; None: ``taps`` in vlkit's cache folder.
        stored: number format on disk.
        fabric: device and precision.

    Raises:
        UserError: the method has no early route, or the folder is not writable.
    """

    chunk = CHUNK  # rows computed at once

    def __init__(
        self,
        name: str,
        encoder: AdaptedEncoder,
        keys: Sequence[bytes],
        load: Callable[[list[int]], Any],
        key: Mapping[str, Any],
        *,
        folder: Path | None,
        stored: NumberFormat,
        fabric: Fabric,
    ) -> None:
        if not isinstance(encoder, AdaptedEncoder):
            raise UserError(
                "--cache: this --adapter.kind trains inside the base, so its values change and cannot be cached; "
                "leave --cache out or choose a kind with a frozen early route (sherl, linear)"
            )
        self.name, self.encoder, self.keys, self.load, self.fabric = name, encoder, keys, load, fabric
        self.key = key
        self._is_text = hasattr(encoder.base, "trim")
        # Blocks behind the cached state need the masks and position biases of the tower.
        adapter = encoder.adapter
        self._needs_extras = adapter.handoff == "tokens" and (adapter.late > 0 or adapter.side_blocks)
        probe = self._input(self._first(load([0])))
        stream, taps = self._read(probe)
        variable = bool(getattr(encoder.base, "trimmable", False)) and stream.mask is not None
        even = getattr(adapter, "even", False)
        self.layout = RowLayout.of(stream, taps, stored, variable, even)
        self.extras = _shared_extras(encoder, probe[:1]) if self._needs_extras and not self._is_text else None
        about = {
            **key,
            "layers": list(adapter.layers),
            "stop": encoder.stop,
            "dtype": stored,
            "precision": str(fabric.strategy.precision.precision),
            "layout": self.layout.to_dict(),
            "format": FORMAT,
        }
        self.store = TapStore(Path(folder or tap_folder()), name, about, self.layout.unit)
        self.uses = self._recorded = Uses()

    @staticmethod
    def _first(inputs: Any) -> Any:
        """As much of an input as shows the layout of its row."""
        return inputs

    def __getstate__(self) -> dict[str, Any]:
        # Worker processes only look up rows and load inputs; the tower stays in the training process.
        return {**self.__dict__, "encoder": None, "fabric": None, "extras": None}

    # --- in the loader ---

    def look_up(self, rows: list[int], also: Sequence[int] = ()) -> TapBatch:
        """Read a batch of rows from disk; if some are missing, the batch carries the inputs to compute them.

        Args:
            rows: row numbers, [B].
            also: rows to compute as well if one of ``rows`` is missing.
        """
        batch = TapBatch(self.name, self.layout, rows)
        if self._is_text and self._needs_extras:
            batch.ids = self.load(rows)
        if not self._fetch(batch):
            self.store.refresh()
            batch.missing = self._missing(rows)
            if batch.missing:
                batch.inputs = self.load(batch.missing)
                batch.also = self._missing([*batch.missing, *also])[len(batch.missing) :]
            else:
                self._fetch(batch)
        return batch

    def _fetch(self, batch: TapBatch) -> bool:
        """Fill in the rows if all of them are cached."""
        found = self.store.read([self.keys[row] for row in batch.rows])
        if found is not None:
            batch.data, batch.units, summary = found
            batch.summary = summary if self.layout.summarised else None
        return found is not None

    def _missing(self, rows: Sequence[int]) -> list[int]:
        """The rows among ``rows`` that are not on disk, each sample once."""
        found: dict[bytes, int] = {}
        for row in rows:
            if self.keys[row] not in self.store:
                found.setdefault(self.keys[row], row)
        return list(found.values())

    # --- in the training process ---

    def complete(self, batch: TapBatch) -> TapBatch:
        """Compute and store the missing rows of a batch; the result is a valid input of the adapted encoder."""
        computed = 0
        if batch.data is None:
            # Workers build batches ahead, so some rows may be cached by now. These are not computed again, so the
            # numbers do not depend on the speed of the workers.
            self.store.refresh()
            places = [i for i, row in enumerate(batch.missing) if self.keys[row] not in self.store]
            computed = len(places)
            if places:
                self._make([batch.missing[i] for i in places], self._pick(batch.inputs, places))
            self.make(batch.also)
            while not self._fetch(batch):
                self.make(self._missing(batch.rows))
        batch.inputs, batch.extras = None, self.extras
        self.uses += Uses(len(batch.rows), computed)
        return batch

    def record_uses(self) -> None:
        """Add what was read since the last call to the folder's record."""
        new, self._recorded = self.uses - self._recorded, self.uses
        if new.read:
            add_uses(self.store.folder, new)

    def make(self, rows: Sequence[int]) -> None:
        """Compute and store the rows among ``rows`` that are not on disk."""
        missing, said, done = self._missing(rows), time.monotonic(), 0
        for start in range(0, len(missing), self.chunk):
            chunk = missing[start : start + self.chunk]
            self._make(chunk, self.load(chunk))
            done += len(chunk)
            if time.monotonic() - said > REPORT_SECONDS:
                log.info("tap cache: %s %d of %d", self.name, done, len(missing))
                said = time.monotonic()

    def _make(self, rows: list[int], inputs: Any) -> None:
        for start in range(0, len(rows), self.chunk):
            part = slice(start, start + self.chunk)
            self.store.write([self.keys[row] for row in rows[part]], *self._encode(inputs[part]))

    def _encode(self, inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs -> rows, in the form of :meth:`vlkit.tap_cache.rows.RowLayout.encode`."""
        return self.layout.encode(*self._read(self._input(inputs)))

    @staticmethod
    def _pick(inputs: Any, places: list[int]) -> Any:
        return inputs[places]

    def _read(self, x: Tensor) -> Any:
        with torch.no_grad(), self.fabric.autocast():
            return self.encoder.read(x)

    def _input(self, x: Any) -> Tensor:
        """Move inputs to the device, cast them to the tower's precision, and trim the padding of the batch."""
        x = self.fabric.to_device(cast(Any, self.encoder.base).trim(x) if self._is_text else x)
        return x.to(next(self.encoder.base.parameters()).dtype) if x.is_floating_point() else x

    # --- size ---

    def bytes_needed(self) -> tuple[int, int]:
        """Bytes of all rows and of the missing rows; for texts, estimated from the mean length of a sample."""
        count, missing = len(set(self.keys)), len(self._missing(range(len(self.keys))))
        row = self._units_a_row() * self.layout.unit
        return round(count * row), round(missing * row)

    def _units_a_row(self) -> float:
        if not self.layout.variable:
            return 1.0
        some_rows = list(range(0, len(self.keys), max(1, len(self.keys) // SAMPLES)))
        return float(cast(Any, self.encoder.base).real(self.load(some_rows)).sum(1).float().mean())


def _shared_extras(encoder: AdaptedEncoder, probe: Tensor) -> dict[str, Any]:
    """Inputs of the blocks besides the hidden state, for towers where they are the same for every sample."""
    one, two = (late_extras(encoder.base, x) for x in (probe, torch.cat([probe, probe])))
    if _shapes(one) != _shapes(two):
        raise UserError(
            f"--cache: the blocks of {type(encoder.base).__name__} need inputs that cannot be cached; "
            "use --adapter.handoff pooled"
        )
    return one


def _shapes(value: Any) -> Any:
    if isinstance(value, Tensor):
        return tuple(value.shape)
    if isinstance(value, Mapping):
        return {name: _shapes(item) for name, item in value.items()}
    return [_shapes(item) for item in value] if isinstance(value, list | tuple) else value


def check_room(caches: Sequence[TapCache]) -> None:
    """Log the size of the caches, and raise an error if the disk lacks space.

    Raises:
        UserError: the disk lacks space; the message names the folder, the needed and the free bytes.
    """
    needs, store = [cache.bytes_needed() for cache in caches], caches[0].store
    for cache in caches:
        cache.store.report_others()
    missing, free = sum(need[1] for need in needs), store.free_bytes()
    parts = ", ".join(
        f"{len(cache.keys):,} {cache.name} rows {size_text(need[0])} ({size_text(need[1])} missing)"
        for cache, need in zip(caches, needs, strict=True)
    )
    log.info("tap cache in %s: %s; %s free", store.root, parts, size_text(free))
    if missing and missing + RESERVE > free:
        raise UserError(
            f"--cache {store.root}: needs {size_text(missing)} more and the disk has {size_text(free)} free; remove "
            "old keys (`vlkit cache`), give another folder, save bytes (--cache_dtype int8, fewer --adapter.taps) or "
            "train without the cache (--cache false)"
        )


class CachedLoader:
    """An :class:`~vlkit.engine.loader.EpochLoader` whose batches hold complete :class:`~vlkit.tap_cache.rows.TapBatch`.

    With the last batch of an epoch, the rows that no batch used (examples left over at the end of the epoch) are
    computed too, so that from the second epoch on nothing is decoded and no early route runs.

    Args:
        loader: yields batches, each a tuple (named or not) with items from :meth:`TapCache.look_up`.
        caches: the caches of these items.
        fabric: the run's Fabric; processes share the work at the end of an epoch.
    """

    def __init__(self, loader: EpochLoader, caches: Sequence[TapCache], fabric: Fabric) -> None:
        self.loader, self.fabric = loader, fabric
        self.caches = {cache.name: cache for cache in caches}
        self.count, self.batch_size = loader.count, loader.batch_size

    def __len__(self) -> int:
        """Batches per epoch."""
        return len(self.loader)

    def batches(self, start: int, stop: int) -> Iterator[tuple[Any, ...]]:
        """Batches ``start .. stop - 1``, counted over all epochs; see :class:`vlkit.engine.loader.EpochLoader`."""
        try:
            for place, batch in enumerate(self.loader.batches(start, stop), start):
                done = [self.caches[x.cache].complete(x) if isinstance(x, TapBatch) else x for x in batch]
                if (place + 1) % len(self) == 0:
                    self._make_the_rest()
                yield batch._make(done) if hasattr(batch, "_make") else tuple(done)
        finally:
            for cache in self.caches.values():
                cache.record_uses()
            if stop - start > 1:  # a single batch is a measurement
                self._report()

    def _report(self) -> None:
        """Log how many of the rows that this process read were on disk."""
        rates = [(cache.name, cache.uses) for cache in self.caches.values() if cache.uses.read]
        shown = ", ".join(f"{100 * (uses.hit_rate or 0):.1f} % of {uses.read:,} {name} rows" for name, uses in rates)
        if shown:
            log.info("tap cache: on disk when read: %s", shown)

    def _make_the_rest(self) -> None:
        self.fabric.barrier()  # all processes have stored their rows and see the same rows missing
        for cache in self.caches.values():
            cache.record_uses()
            cache.store.refresh()
            missing = cache._missing(range(len(cache.keys)))
            self.fabric.barrier()
            cache.make([missing[i] for i in my_share(self.fabric, len(missing))])
            self.fabric.barrier()
