"""Training batches whose order and randomness are pure functions of the seed and the place in the run.

Nothing here has a state to save: to resume at batch p is to ask for the batches from p on. The number of workers, the
time of a kill and what ran in between change no number.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader

from vlkit.errors import UserError

# What a stream of random numbers is for; keeps the streams of one seed apart.
_ORDER, _SAMPLE, _BATCH = 0, 1, 2


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


def _seed_global(generator: np.random.Generator) -> None:
    # The generator of torch is addressed directly: torch.manual_seed would reach for CUDA in a forked worker.
    a, b, c = (int(number) for number in generator.integers(2**32, size=3))
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
    ) -> None:
        if batch_size % world:
            raise UserError(f"--batch_size {batch_size} does not split evenly between {world} processes")
        self.count = len(dataset)
        self.batch_size = min(batch_size, self.count - self.count % world)
        if self.batch_size < 1:
            raise UserError(f"{self.count} training examples are too few for {world} process(es)")
        self.seed, self.rank, self.world = seed, rank, world
        self._examples = _SeededExamples(dataset, seed)
        self._options = {"num_workers": workers, "collate_fn": collate, "pin_memory": pin_memory}

    def __len__(self) -> int:
        """Batches an epoch."""
        return self.count // self.batch_size

    def keys(self, start: int, stop: int) -> Iterator[list[tuple[int, int]]]:
        """The (epoch, index) pairs of this process's part of batches ``start .. stop - 1``, counted over all epochs."""
        part = self.batch_size // self.world
        order: list[int] = []
        for batch in range(start, stop):
            epoch, place = divmod(batch, len(self))
            if not order or place == 0:
                order = epoch_order(self.count, self.seed, epoch)
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
            raise UserError(str(error).rstrip().rpartition("UserError: ")[2]) from None


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
