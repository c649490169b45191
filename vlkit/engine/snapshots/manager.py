"""Taking snapshots during training, and choosing the newest complete one afterwards."""

from __future__ import annotations

import contextlib
import getpass
import logging
import os
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from lightning_fabric import Fabric
from torch import Tensor

from vlkit.engine import checkpoint
from vlkit.engine.distributed import gather_objects, node_count
from vlkit.engine.snapshots.memory import FolderMemory, HeldMemory, Memory
from vlkit.engine.snapshots.parity import join, piece
from vlkit.engine.snapshots.slots import Slots, Snapshot
from vlkit.errors import UserError

log = logging.getLogger(__name__)

Redundancy = Literal["replica", "parity"]
SHARED_MEMORY = Path("/dev/shm")
"""The memory file system that Linux has."""


class Snapshots:
    """The snapshots of one run. Every process calls every method, in the same order.

    A snapshot copies the state (on CUDA into page-locked memory, on a stream of its own) and is serialised and written
    in a thread while training goes on. One that would begin before the last is written is left out.

    Args:
        fabric: the run's processes. One process per node writes.
        memory: a memory file system; the snapshots lie in a folder of it. None: /dev/shm; or, where that is too small
            or missing, a process of its own (:class:`vlkit.engine.snapshots.memory.HeldMemory`).
        token: names the run; runs with different tokens do not see each other's snapshots.
        every: steps between snapshots.
        redundancy: ``replica``: each node holds the whole state; ``parity``: a share and a parity.

    Raises:
        UserError: parity on a single node, or ``memory`` is no folder.
    """

    def __init__(
        self, fabric: Fabric, memory: Path | None, token: str, every: int, redundancy: Redundancy = "replica"
    ) -> None:
        self.every, self._fabric = every, fabric
        nodes = node_count() if fabric.world_size > 1 else 1
        self._node = int(os.environ.get("GROUP_RANK", 0)) if nodes > 1 else 0
        self._writes = fabric.local_rank == 0
        if redundancy == "parity" and nodes < 2:
            raise UserError("--snapshot_redundancy parity: there is one node, and parity needs 2 or more; use replica")
        folder = SHARED_MEMORY if memory is None else memory
        if not folder.is_dir() and not (memory is None and HeldMemory.possible()):
            raise UserError(f"--snapshot_memory {folder}: no such folder; give one on a memory file system (tmpfs)")
        self._nodes = nodes if redundancy == "parity" else 0
        # Where snapshots may be: the place that was chosen is known only with the size of the state.
        self._places: list[Memory] = []
        if folder.is_dir():
            self._places.append(FolderMemory(folder / f"vlkit-{getpass.getuser()}-{token}"))
        if memory is None and HeldMemory.possible():
            self._places.append(HeldMemory(token))
        self._slots: Slots | None = None
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="snapshot")
        self._pending: Future[int] | None = None
        self._last_crc = 0
        self._failed = False
        self._copy = _Copy(fabric.device)

    # --- during training ---

    def due(self, step: int) -> bool:
        """Whether a snapshot belongs after ``step``."""
        return step % self.every == 0

    def take(self, state: checkpoint.State) -> None:
        """Begin a snapshot of ``state``. It returns when the state has been copied or its copy has begun; call
        :meth:`before_update` before it changes.

        ``state.best`` is not copied: its tensors must not change.
        """
        crc = self._finished()
        # Sets of one step need all nodes: if one is not ready, none writes.
        times = [state.progress.train_seconds, float(state.progress.peak_memory_bytes)]
        numbers = torch.tensor([float(crc is None), float(crc or 0), *times], dtype=torch.float64)
        everywhere = self._everywhere(numbers)
        if everywhere[:, 0].any():
            return
        crcs = {int(number) for number in everywhere[:, 1].tolist() if number}
        if len(crcs) > 1 and not self._failed:
            self._failed = True
            log.warning("the nodes no longer hold the same state (checksums differ); check the hardware")
        if not self._writes:
            return
        # What differs between processes (times) must not: the content is the same on all nodes.
        seconds, peak = everywhere[0, 2:].tolist()
        progress = replace(state.progress, train_seconds=seconds, peak_memory_bytes=int(peak))
        if self._slots is None:
            self._slots = Slots(self._chosen(state))
        copies = [self._copy(group, getattr(state, group)) for group in ("trained", "optimizer")]
        copied = replace(state, trained=copies[0], optimizer=copies[1], progress=progress)
        copied.best = {name: tensor.cpu() for name, tensor in state.best.items()}
        self._pending = self._pool.submit(self._write, copied, self._copy.finished())

    def before_update(self) -> None:
        """Let the device wait, before it changes the state, until the copy is complete."""
        self._copy.before_update()

    def close(self) -> None:
        """Wait for the last snapshot and delete them all: the run has ended, or a checkpoint holds its state."""
        if self._pending is not None:
            with contextlib.suppress(OSError):
                self._pending.result()
        self._pool.shutdown()
        if self._writes:
            for place in self._places:
                place.remove()

    # --- at the start ---

    def restore(self, newer_than: int) -> checkpoint.State | None:
        """The newest state of which enough is left, if it is from a step after ``newer_than``; None without one."""
        own = [snapshot for place in self._places for snapshot in Slots(place).read()]
        listed = gather_objects(self._fabric, [replace(snapshot, payload=b"") for snapshot in own])
        # Where a piece is, by what it is part of: the lowest process that holds it sends it.
        holders: dict[Snapshot, dict[int, int]] = {}
        for rank, snapshots in enumerate(listed):
            for snapshot in snapshots:
                holders.setdefault(replace(snapshot, node=0), {}).setdefault(snapshot.node, rank)
        for whole in sorted(holders, key=lambda snapshot: -snapshot.step):
            if whole.step <= newer_than:
                break
            senders = holders[whole]
            if len(senders) < whole.nodes - 1:
                continue
            if not whole.nodes:  # replicas: one is enough
                senders = dict([min(senders.items())])
            mine = {
                snapshot.node: snapshot.payload
                for snapshot in own
                if replace(snapshot, node=0, payload=b"") == whole
                and senders.get(snapshot.node) == self._fabric.global_rank
            }
            pieces = {node: piece for sent in gather_objects(self._fabric, mine) for node, piece in sent.items()}
            content = join(pieces, whole.nodes, whole.length) if whole.nodes else next(iter(pieces.values()))
            if zlib.crc32(content) == whole.crc:
                log.info("restored step %d from memory (%d of %d nodes)", whole.step, len(pieces), whole.nodes or 1)
                return checkpoint.from_bytes(content)
        return None

    # --- details ---

    def _write(self, state: checkpoint.State, wait: Callable[[], None]) -> int:
        """Serialise and write; the CRC-32 of the content. Runs in the thread."""
        wait()
        content = checkpoint.to_bytes(state)
        crc = zlib.crc32(content)
        payload = piece(content, self._node, self._nodes) if self._nodes else content
        assert self._slots is not None  # chosen before the first one
        self._slots.write(Snapshot(state.progress.step, self._node, self._nodes, len(content), crc, payload))
        return crc

    def _finished(self) -> int | None:
        """The CRC-32 of the last snapshot, 0 without one; None while it is being written."""
        if self._pending is None:
            return 0
        if not self._pending.done():
            return None
        try:
            return self._pending.result()
        except OSError as error:
            place = self._slots.memory if self._slots else ""
            log.warning("%s: a snapshot could not be written (%s)", place, error.strerror or error)
            return 0

    def _everywhere(self, numbers: Tensor) -> Tensor:
        """[W, n], the numbers of every process."""
        if self._fabric.world_size == 1:
            return numbers[None]
        found: Any = self._fabric.all_gather(self._fabric.to_device(numbers))
        return found.cpu()

    def _chosen(self, state: checkpoint.State) -> Memory:
        """The first place with room for two snapshots of ``state``.

        Raises:
            UserError: there is none.
        """
        groups = (state.trained, state.trained, state.optimizer)  # twice: the best weights come later
        content = sum(tensor.nbytes for group in groups for tensor in group.values())
        held = 2 * content / (max(1, self._nodes - 1) if self._nodes else 1)
        short = []
        for place in self._places:
            free = place.free()
            # Slots of an earlier attempt are written again, and their memory counts as used.
            if place.names() or held <= free:
                if isinstance(place, HeldMemory):
                    why = f"{' and '.join(short)} is too small" if short else f"there is no {SHARED_MEMORY}"
                    log.info("snapshots are held by a process of their own: %s", why)
                return place
            short.append(f"{place} ({free / 2**20:.0f} MiB free)")
        raise UserError(
            f"--snapshot_memory: two snapshots need {held / 2**20:.0f} MiB, too much for {' and '.join(short)}; give "
            "another tmpfs, or in Docker a larger --shm-size"
        )


class _Copy:
    """Copies tensors into buffers on the CPU that are used again; from CUDA on a stream of its own, page-locked."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._buffers: dict[str, Tensor] = {}
        self._stream = torch.cuda.Stream(device) if self._cuda else None
        self._event: Any = None

    def __call__(self, group: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        copies = {}
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        with torch.cuda.stream(self._stream):  # nothing without a stream
            for name, tensor in tensors.items():
                key = f"{group}/{name}"
                if key not in self._buffers:
                    self._buffers[key] = torch.empty_like(tensor, device="cpu", pin_memory=self._cuda)
                copies[name] = self._buffers[key].copy_(tensor.detach(), non_blocking=True)
        if self._stream is not None:
            self._event = self._stream.record_event()
        return copies

    def finished(self) -> Callable[[], None]:
        """Waits, in whatever thread, until the copies are complete."""
        return self._event.synchronize if self._event is not None else lambda: None

    def before_update(self) -> None:
        """The device's next work waits for the copies."""
        if self._event is not None:
            torch.cuda.current_stream().wait_event(self._event)
            self._event = None
