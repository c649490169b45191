"""The toy run as one of several nodes, of which one dies by SIGKILL at a chosen moment."""

from __future__ import annotations

import os
import signal

from helpers import toy_run


def launch(arguments: list[str], messages: str, environment: dict[str, str]) -> None:
    """As :func:`helpers.toy_run.launch`; ``DIE`` is ``STEP backward`` (before the optimizer's step) or ``STEP writing``
    (half way through the snapshot of that step). ``NO_SHARED_MEMORY``: as if there was no /dev/shm.
    """
    if "NO_SHARED_MEMORY" in environment:
        from vlkit.engine.snapshots import manager

        manager.SHARED_MEMORY = manager.SHARED_MEMORY / "none"
    step, _, moment = environment.get("DIE", "").partition(" ")
    if moment == "backward":
        _die_before_update(int(step))
    elif moment == "writing":
        _die_while_writing(int(step))
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


def _die_while_writing(step: int) -> None:
    from vlkit.engine.snapshots.slots import Slots

    whole, write_at = Slots.write, os.pwrite

    def write(self: Slots, snapshot) -> None:
        def half(file: int, content: bytes, place: int) -> int:
            if place:  # the payload, not the header
                write_at(file, bytes(content)[: len(content) // 2], place)
                _die()
            return write_at(file, content, place)

        if snapshot.step == step:
            os.pwrite = half
        whole(self, snapshot)

    Slots.write = write
