"""Training batches whose order and randomness are pure functions of the seed and the position in the run.

Nothing here has state to save: resuming at batch p means asking for the batches from p on. The number of workers, the
time of an interruption and anything run in between change no result.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import random
import re
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from lightning_fabric import Fabric
from torch.utils.data import DataLoader

from vlkit.engine.config import RunConfig
from vlkit.errors import UserError

log = logging.getLogger(__name__)

# Purposes of random streams; they make the streams of one seed independent.
_ORDER, _SAMPLE, _BATCH, _BUCKET = 0, 1, 2, 3

Lengths = Sequence[int] | Callable[[int, random.Random], int]
"""Length of each example. Or, if an example is drawn anew in each epoch, a function of its index and a generator whose
first draw equals the first draw of the module ``random`` when the example is made."""
# Batches per window that is sorted by length. A larger window saves more padding but makes batches less random: with 16
# the negatives of contrastive training became similar enough to cost accuracy, with 4 they did not.
WINDOW = 4


class Examples(Protocol):
    """A dataset of known length. ``dataset[i]`` may draw from the global generators of random, numpy and torch."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Any: ...


def sample_rng(seed: int, epoch: int, index: int) -> np.random.Generator:
    """The generator of example ``index`` in ``epoch``: independent of earlier draws and of the process."""
    return np.random.default_rng([_SAMPLE, seed, epoch, index])


def seed_batch(seed: int, batch: int, rank: int) -> None:
    """Seed random, numpy and torch (all devices) for the model's own draws in one batch (dropout and the like)."""
    _seed_global(np.random.default_rng([_BATCH, seed, batch, rank]))
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(torch.initial_seed())


def epoch_order(count: int, seed: int, epoch: int) -> list[int]:
    """A permutation of ``range(count)``, different in each epoch."""
    return np.random.default_rng([_ORDER, seed, epoch]).permutation(count).tolist()


def sample_draw(seed: int, epoch: int, index: int) -> random.Random:
    """A generator in the state that the module ``random`` has when example ``index`` is made in ``epoch``."""
    return random.Random(_three_seeds(sample_rng(seed, epoch, index))[0])


def gathered(order: list[int], groups: Sequence[int], together: int) -> list[int]:
    """Rearrange a shuffled epoch so that up to ``together`` examples of a group follow each other.

    They stand where the first of them stood.

    Args:
        order: indices.
        groups: group of each example.
        together: most examples of a group that follow each other.
    """
    runs: list[list[int]] = []
    latest: dict[int, list[int]] = {}
    for index in order:
        run = latest.get(groups[index])
        if run is None or len(run) == together:
            run = latest[groups[index]] = []
            runs.append(run)
        run.append(index)
    return [index for run in runs for index in run]


def bucketed(order: list[int], lengths: Sequence[int], batch_size: int, generator: np.random.Generator) -> list[int]:
    """Rearrange a shuffled epoch so that each batch holds examples of similar length.

    The order is split into windows of :data:`WINDOW` batches, each window is sorted by length and split into batches,
    and the batches are shuffled. Batches stay random, but only among examples of similar length.

    Args:
        order: indices, a multiple of ``batch_size``.
        lengths: length of each example in ``order``, in that order.
        batch_size: examples per batch.
        generator: shuffles the batches.

    Returns:
        The same indices; those of batch p are at ``[p * batch_size : (p + 1) * batch_size]``, short to long.
    """
    indices, sizes, window = np.asarray(order), np.asarray(lengths), WINDOW * batch_size
    parts = [slice(start, start + window) for start in range(0, len(order), window)]
    # A stable sort keeps the shuffled order among equal lengths.
    in_windows = [indices[part][np.argsort(sizes[part], kind="stable")] for part in parts]
    batches = np.concatenate(in_windows).reshape(-1, batch_size)
    return batches[generator.permutation(len(batches))].reshape(-1).tolist()


def _three_seeds(generator: np.random.Generator) -> list[int]:
    return [int(number) for number in generator.integers(2**32, size=3)]


def _seed_global(generator: np.random.Generator) -> None:
    # Seeds torch's CPU generator directly: torch.manual_seed would initialise CUDA in a forked worker.
    a, b, c = _three_seeds(generator)
    random.seed(a)
    np.random.seed(b)
    torch.default_generator.manual_seed(c)


class _SeededExamples:
    """A dataset addressed by (epoch, index), with the global generators seeded before each example is made."""

    def __init__(self, dataset: Examples, seed: int) -> None:
        self.dataset, self.seed = dataset, seed

    def __getitem__(self, key: tuple[int, int]) -> Any:
        epoch, index = key
        _seed_global(sample_rng(self.seed, epoch, index))
        return self.dataset[index]


class EpochLoader:
    """Shuffled batches of ``dataset``, split evenly between processes.

    Every process follows the same global order and makes its own contiguous part of each global batch, so the parts in
    rank order form the batch that a single process would make. Examples left over at the end of an epoch are dropped
    (different ones in each epoch), never repeated; a dataset smaller than one batch becomes one smaller batch.

    Args:
        dataset: the examples.
        batch_size: global batch size, all processes together.
        seed: seed of the run.
        rank, world: this process and the number of processes.
        workers: background processes that make examples; 0 = none. Does not change results.
        collate: list of examples -> batch; None = torch's default.
        pin_memory: put batches into page-locked memory, for CUDA.
        groups: the group of each example, such as its video. If given, up to ``together`` examples of a group follow
            each other, so that a batch reads what they share once.
        together: see ``groups``.
        lengths: length of each example. If given, each batch holds examples of similar length (:func:`bucketed`), which
            reduces padding. In contrastive training the negatives are then about as long as the positive, which makes
            them slightly harder, and pairs of very different length are never compared. Only the order within an epoch
            changes, not its content.

    Raises:
        UserError: fewer examples than processes, or a batch size that does not divide by their number.
    """

    def __init__(
        self,
        dataset: Examples,
        batch_size: int,
        seed: int,
        *,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
        collate: Callable[[list[Any]], Any] | None = None,
        pin_memory: bool = False,
        lengths: Lengths | None = None,
        groups: Sequence[int] | None = None,
        together: int = 1,
    ) -> None:
        if batch_size % world:
            raise UserError(f"--batch_size {batch_size} does not split evenly between {world} processes")
        self.count = len(dataset)
        self.batch_size = min(batch_size, self.count - self.count % world)
        if self.batch_size < 1:
            raise UserError(f"{self.count} training examples are too few for {world} process(es)")
        self.seed, self.rank, self.world, self.lengths = seed, rank, world, lengths
        self.groups, self.together = groups, together
        self._examples = _SeededExamples(dataset, seed)
        self._options = {"num_workers": workers, "collate_fn": collate, "pin_memory": pin_memory}

    def __len__(self) -> int:
        """Batches per epoch."""
        return self.count // self.batch_size

    def order(self, epoch: int) -> list[int]:
        """The examples of an epoch in batch order: a pure function of the seed and the epoch."""
        order = epoch_order(self.count, self.seed, epoch)[: len(self) * self.batch_size]
        if self.groups is not None:
            order = gathered(order, self.groups, self.together)
        if self.lengths is None:
            return order
        if callable(self.lengths):
            lengths = [self.lengths(index, sample_draw(self.seed, epoch, index)) for index in order]
        else:
            lengths = [self.lengths[index] for index in order]
        return bucketed(order, lengths, self.batch_size, np.random.default_rng([_BUCKET, self.seed, epoch]))

    def keys(self, start: int, stop: int) -> Iterator[list[tuple[int, int]]]:
        """The (epoch, index) pairs of this process's part of batches ``start .. stop - 1``, counted over all epochs."""
        part = self.batch_size // self.world
        order: list[int] = []
        for batch in range(start, stop):
            epoch, place = divmod(batch, len(self))
            if not order or place == 0:
                order = self.order(epoch)
            first = place * self.batch_size + self.rank * part
            yield [(epoch, index) for index in order[first : first + part]]

    def batches(self, start: int, stop: int) -> Iterator[Any]:
        """Yield batches ``start .. stop - 1``, counted over all epochs; batches before ``start`` cost nothing."""
        # Workers see one long list of batches, so they keep running across the ends of epochs.
        loader = DataLoader(
            self._examples,  # type: ignore[arg-type]
            batch_sampler=self.keys(start, stop),  # type: ignore[arg-type]
            worker_init_fn=_obey_parent_only,
            **self._options,
        )
        try:
            yield from loader
        except UserError as error:
            # A worker wraps the message in its traceback; the user's line follows the exception's name.
            raise UserError(re.split(r"^vlkit\.[\w.]+Error: ", str(error).rstrip(), flags=re.M)[-1]) from None


def make_loader(
    dataset: Examples,
    config: RunConfig,
    fabric: Fabric,
    collate: Callable[[list[Any]], Any] | None = None,
    lengths: Lengths | None = None,
    groups: Sequence[int] | None = None,
    together: int = 1,
) -> EpochLoader:
    """The training batches of this process, with the config's batch size, seed and workers.

    With ``lengths`` each batch holds examples of similar length, with ``groups`` up to ``together`` examples of a group
    follow each other; see :class:`EpochLoader`.
    """
    loader = EpochLoader(
        dataset,
        config.batch_size,
        config.seed,
        rank=fabric.global_rank,
        world=fabric.world_size,
        workers=workers_for(config, fabric),
        collate=collate,
        pin_memory=fabric.device.type == "cuda",
        lengths=lengths,
        groups=groups,
        together=together,
    )
    left_out = loader.count - len(loader) * loader.batch_size
    note = f", {left_out} left out in each epoch (different ones each time)" if left_out else ""
    log.info("%d examples, %d batches of %d per epoch%s", loader.count, len(loader), loader.batch_size, note)
    return loader


def workers_for(config: RunConfig, fabric: Fabric) -> int:
    """Number of worker processes: from the config, or a default that suits the device."""
    if config.workers is not None:
        return config.workers
    return min(8, os.cpu_count() or 1) if fabric.device.type == "cuda" else 0


def _obey_parent_only(worker: int) -> None:
    """Let the main process decide when to stop: Ctrl-C and a scheduler's SIGTERM reach the workers as well.

    The parent's own SIGTERM must still end the worker, or the parent would wait for the worker forever at exit.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None and hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_leave_when_parent_says, args=(parent.pid,), daemon=True).start()


def _leave_when_parent_says(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
