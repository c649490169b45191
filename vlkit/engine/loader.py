"""Training batches whose order and randomness are pure functions of the seed and the place in the run.

Nothing here has a state to save: to resume at batch p is to ask for the batches from p on. The number of workers, the
time of a kill and what ran in between change no number.
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

# What a stream of random numbers is for; keeps the streams of one seed apart.
_ORDER, _SAMPLE, _BATCH, _BUCKET = 0, 1, 2, 3

Lengths = Sequence[int] | Callable[[int, random.Random], int]
"""Length of each example; or, where it is drawn anew in each epoch, of an example (its index, and a generator that
draws what the module ``random`` will draw first when the example is made)."""
# Batches that examples of similar length are looked for in. More save more padding, but leave less to chance: with 16
# the negatives of contrastive training were alike enough to cost accuracy, with 4 it stayed.
WINDOW = 4


class Examples(Protocol):
    """A dataset of known length. ``dataset[i]`` may draw from the global generators of random, numpy and torch."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Any: ...


def sample_rng(seed: int, epoch: int, index: int) -> np.random.Generator:
    """The generator of example ``index`` in ``epoch``: the same whatever was drawn before, in whichever process."""
    return np.random.default_rng([_SAMPLE, seed, epoch, index])


def seed_batch(seed: int, batch: int, rank: int) -> None:
    """Seed random, numpy and torch (all devices) for the model's own draws in one batch (dropout and the like)."""
    _seed_global(np.random.default_rng([_BATCH, seed, batch, rank]))
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(torch.initial_seed())


def epoch_order(count: int, seed: int, epoch: int) -> list[int]:
    """A permutation of ``range(count)``, another one in each epoch."""
    return np.random.default_rng([_ORDER, seed, epoch]).permutation(count).tolist()


def sample_draw(seed: int, epoch: int, index: int) -> random.Random:
    """A generator in the state of the module ``random`` when example ``index`` is made in ``epoch``."""
    return random.Random(_three_seeds(sample_rng(seed, epoch, index))[0])


def bucketed(order: list[int], lengths: Sequence[int], batch_size: int, generator: np.random.Generator) -> list[int]:
    """Rearrange a shuffled epoch so that each batch holds examples of similar length.

    The order is cut into windows of :data:`WINDOW` batches, each window is sorted by length and cut into batches, and
    the batches are shuffled. An example still meets others by chance, but only those of about its own length.

    Args:
        order: indices, a multiple of ``batch_size``.
        lengths: of the examples in ``order``, in that order.
        batch_size: examples a batch.
        generator: shuffles the batches.

    Returns:
        The same indices; those of batch p at ``[p * batch_size : (p + 1) * batch_size]``, short to long.
    """
    indices, sizes, window = np.asarray(order), np.asarray(lengths), WINDOW * batch_size
    parts = [slice(start, start + window) for start in range(0, len(order), window)]
    # Stable: among equal lengths the shuffled order stays.
    in_windows = [indices[part][np.argsort(sizes[part], kind="stable")] for part in parts]
    batches = np.concatenate(in_windows).reshape(-1, batch_size)
    return batches[generator.permutation(len(batches))].reshape(-1).tolist()


def _three_seeds(generator: np.random.Generator) -> list[int]:
    return [int(number) for number in generator.integers(2**32, size=3)]


def _seed_global(generator: np.random.Generator) -> None:
    # The generator of torch is addressed directly: torch.manual_seed would reach for CUDA in a forked worker.
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

    Every process walks the same global order; of each global batch it makes its own, contiguous part, so that parts
    gathered in rank order are the batch one process would have made. Examples left over at the end of an epoch are
    left out (others in each epoch), never repeated; a dataset smaller than one batch is one smaller batch.

    Args:
        dataset: the examples.
        batch_size: global batch size, all processes together.
        seed: seed of the run.
        rank, world: this process and the number of processes.
        workers: processes that make examples in the background; 0 = none. Changes no number.
        collate: list of examples -> batch; None = torch's default.
        pin_memory: page-locked batches, for CUDA.
        lengths: of the examples; given, batches hold examples of similar length (:func:`bucketed`), so that padding to
            the longest of a batch wastes little. In contrastive training the examples of a batch are each other's
            negatives, which then are as long as the positive: length tells them apart no more, so they are a little
            harder, and pairs of very different length are never compared. The order within an epoch changes, what an
            epoch holds does not.

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
    ) -> None:
        if batch_size % world:
            raise UserError(f"--batch_size {batch_size} does not split evenly between {world} processes")
        self.count = len(dataset)
        self.batch_size = min(batch_size, self.count - self.count % world)
        if self.batch_size < 1:
            raise UserError(f"{self.count} training examples are too few for {world} process(es)")
        self.seed, self.rank, self.world, self.lengths = seed, rank, world, lengths
        self._examples = _SeededExamples(dataset, seed)
        self._options = {"num_workers": workers, "collate_fn": collate, "pin_memory": pin_memory}

    def __len__(self) -> int:
        """Batches an epoch."""
        return self.count // self.batch_size

    def order(self, epoch: int) -> list[int]:
        """The examples of an epoch, batch after batch: a pure function of the seed and the epoch."""
        order = epoch_order(self.count, self.seed, epoch)[: len(self) * self.batch_size]
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
        """Yield batches ``start .. stop - 1``, counted over all epochs; what lies before ``start`` costs nothing."""
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
            # A worker wraps the message in its traceback; the user's line is what follows the exception's name.
            raise UserError(re.split(r"^vlkit\.[\w.]+Error: ", str(error).rstrip(), flags=re.M)[-1]) from None


def make_loader(
    dataset: Examples,
    config: RunConfig,
    fabric: Fabric,
    collate: Callable[[list[Any]], Any] | None = None,
    lengths: Lengths | None = None,
) -> EpochLoader:
    """The training batches of this process, with the config's batch size, seed and workers.

    With ``lengths`` each batch holds examples of similar length; see :class:`EpochLoader`.
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
    )
    left_out = loader.count - len(loader) * loader.batch_size
    note = f", {left_out} left out in each epoch (others each time)" if left_out else ""
    log.info("%d examples, %d batches of %d per epoch%s", loader.count, len(loader), loader.batch_size, note)
    return loader


def workers_for(config: RunConfig, fabric: Fabric) -> int:
    """Background processes that make batches: as the config says, or what suits the device."""
    if config.workers is not None:
        return config.workers
    return min(8, os.cpu_count() or 1) if fabric.device.type == "cuda" else 0


def _obey_parent_only(worker: int) -> None:
    """Let the main process decide when to stop: Ctrl-C and a scheduler's SIGTERM reach the workers as well.

    The parent's own SIGTERM must still end the worker, or the parent would wait for it for ever when it exits.
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
