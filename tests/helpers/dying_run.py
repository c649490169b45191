"""The toy run as one of several nodes, of which one dies by SIGKILL at a chosen moment."""

from __future__ import annotations

import contextlib
import os
import signal
import time

from helpers import toy_run


def launch(arguments: list[str], messages: str, environment: dict[str, str]) -> None:
    """As :func:`helpers.toy_run.launch`; ``DIE`` is a step and the moment in it:

    - ``backward``: before the optimizer's step,
    - ``writing``: half way through the shard of the snapshot of that step (or through a replica),
    - ``parity``: between the shard and the parity,
    - ``evaluation``: in the evaluation after it; ``waiting``: do not die, but stay in that evaluation.

    ``NO_SHARED_MEMORY``: as if there was no /dev/shm.
    """
    _write_every_snapshot()
    if "NO_SHARED_MEMORY" in environment:
        from vlkit.engine.snapshots import manager

        manager.SHARED_MEMORY = manager.SHARED_MEMORY / "none"
    step, _, moment = environment.get("DIE", "").partition(" ")
    if moment == "backward":
        _die_before_update(int(step))
    elif moment in ("writing", "parity"):
        _die_while_writing(int(step), moment == "parity")
    elif moment:
        _stay_in_evaluation(int(step), moment == "evaluation")
    toy_run.launch(arguments, messages, environment)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _die_before_update(step: int) -> None:
    from vlkit.engine.training import Training

    whole = Training.before_update

    def before_update(self: Training) -> None:
        if self.state.step + 1 == step:
            _die()
        whole(self)

    Training.before_update = before_update


def _die_while_writing(step: int, has_shard: bool = False) -> None:
    """``has_shard``: the whole shard of a piece is written, and nothing of the parity."""
    from vlkit.engine.snapshots.slots import Slots

    whole, write_at = Slots.write, os.pwrite

    def write(self: Slots, snapshot) -> None:
        def part(file: int, content: bytes, place: int) -> int:
            if place:  # the payload, not the header
                # A piece is the n - 1 stripes of its shard, and one of parity.
                shard = len(content) * max(1, snapshot.nodes - 1) // max(1, snapshot.nodes)
                write_at(file, bytes(content)[: shard if has_shard else shard // 2], place)
                _die()
            return write_at(file, content, place)

        if snapshot.step == step:
            os.pwrite = part
        whole(self, snapshot)

    Slots.write = write


def _stay_in_evaluation(step: int, dies: bool) -> None:
    from vlkit.engine.training import Training

    whole = Training.evaluation

    @contextlib.contextmanager
    def evaluation(self: Training, stop):
        with whole(self, stop):
            if self.state.step == step:
                _die() if dies else time.sleep(120)
            yield

    Training.evaluation = evaluation


def _write_every_snapshot() -> None:
    """Steps of a toy are shorter than a write: wait for it instead of leaving the next snapshot out."""
    from vlkit.engine.snapshots import Snapshots

    take = Snapshots.take

    def take_all(self: Snapshots, state) -> None:
        if self._pending is not None:
            self._pending.result()
        take(self, state)

    Snapshots.take = take_all
