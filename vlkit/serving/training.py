"""Train an adapter while the server runs: one run at a time, in a process of its own, through the task's script."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from vlkit.cli.command import scripts_folder
from vlkit.cli.show import visible
from vlkit.engine.checkpoint import STATE_FILE
from vlkit.engine.run_folder import RunFolder
from vlkit.errors import UserError
from vlkit.files import read_json
from vlkit.serving.own_classes import CLASSES
from vlkit.serving.own_images import CAPTIONS, OwnImages, prepare_own_images
from vlkit.serving.uploaded import Upload

log = logging.getLogger(__name__)

Phase = Literal["reading", "training", "opening", "ready", "failed"]
LOG, DATA = "train.log", "data"
"""In the run folder: what the script said, and the images it trains on."""
ANNOTATIONS = {"retrieval": CAPTIONS, "classification": CLASSES}
"""The tasks that can be trained, and what a visitor states about each image for them."""
LEARNING_RATES = {"retrieval": 5e-4, "classification": 3e-3}
"""Retrieval: below the script's own, because so few images are learned by heart within a few steps. Classification: the
script's own; at a lower one, classes whose names the base does not know are not learned within a few epochs."""
MOST_POINTS = 400
"""Lines of the run's log, about."""
STOP_SECONDS, LAST_SECONDS = 60.0, 10.0
"""How long a stopped run may take to save its adapter when the server ends, and its checkpoint after that."""


@dataclass(frozen=True)
class Wish:
    """What to train: base, method (``--adapter.kind``), epochs, batch size, a name for the folder, and the task."""

    base: str
    kind: str
    epochs: int
    batch_size: int
    name: str
    task: str = "retrieval"


@dataclass
class Job:
    """A run.

    Attributes:
        wish: what was asked for.
        folder: its run folder, then an adapter folder.
        phase: where it stands.
        done, total: images checked while it is reading, library items indexed while it is opening.
        data: the prepared images, once they are read.
        stopped: whether it was asked to stop.
        error: why it failed.
        result: what :attr:`Trainer.open` returned.
        process: the script.
    """

    wish: Wish
    folder: Path
    phase: Phase = "reading"
    done: int = 0
    total: int = 0
    data: OwnImages | None = None
    stopped: bool = False
    error: str = ""
    result: Any = None
    process: subprocess.Popen[bytes] | None = None
    began: float = field(default_factory=time.monotonic)

    @property
    def running(self) -> bool:
        """Whether it is neither ready nor failed."""
        return self.phase not in ("ready", "failed")

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run; 0 while it is reading."""
        # Images left over at the end of an epoch are dropped.
        return self.wish.epochs * (self.data.training // self.batch_size) if self.data else 0

    @property
    def batch_size(self) -> int:
        """Images per step: as wished, but at most those that there are."""
        return min(self.wish.batch_size, self.data.training) if self.data else self.wish.batch_size

    def lines(self) -> list[dict[str, Any]]:
        """The lines of the run's log so far; those of an evaluation have a ``split``."""
        return RunFolder(self.folder, writes=False).read_log()

    def metrics(self) -> dict[str, Any]:
        """``metrics.json``; empty until the run has written it."""
        path = self.folder / "metrics.json"
        return read_json(path) if path.exists() else {}


class Trainer:
    """Runs ``tasks/TASK/train.py`` for visitors, one after the other.

    A crash of the script, or of the server, takes nothing else along; a stopped run keeps what it has trained.

    Args:
        folder: where run folders go.
        open: called in the job's thread with a finished run folder and a progress function; its result is the job's.
        check: raises UserError if no further run can be opened; called before a run starts.
        device: auto, cpu or cuda.
    """

    def __init__(
        self,
        folder: Path,
        open: Callable[[Path, Callable[[int, int], None]], Any],
        check: Callable[[], None] = lambda: None,
        device: str = "auto",
    ) -> None:
        self.folder, self.open, self.check, self.device = folder, open, check, device
        self.job: Job | None = None
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def start(self, uploads: Sequence[Upload], wish: Wish) -> Job:
        """Start a run in the background.

        Raises:
            UserError: nothing was uploaded, another run is not finished, or the name is taken.
        """
        if not uploads:
            what = ANNOTATIONS[wish.task].what
            raise UserError(f"There are no images yet; upload a zip archive, or images and their {what}.")
        with self._lock:
            if self.job is not None and self.job.running:
                raise UserError("Someone else is training on this server; start yours when that run is finished.")
            self.check()
            folder = self.folder / wish.name
            try:
                folder.mkdir(parents=True)
            except FileExistsError:
                raise UserError(f"{visible(wish.name)}: a run of this name exists; choose another name.") from None
            except OSError as error:
                raise UserError(f"{self.folder}: cannot write ({error.strerror}); start with --train_dir DIR") from None
            self.job = job = Job(wish, folder)
            self._thread = threading.Thread(target=self._run, args=(job, list(uploads)), name="train", daemon=True)
            self._thread.start()
        return job

    def stop(self) -> None:
        """End the run after its current step; what was trained until then becomes the adapter."""
        job = self.job
        if job is None or job.stopped or job.phase not in ("reading", "training"):
            return
        job.stopped = True
        self._signal(job)

    def close(self) -> None:
        """Stop the run, and wait until its adapter, or at least its checkpoint, is saved."""
        self.stop()
        job, thread = self.job, self._thread
        if job is None or thread is None or not thread.is_alive():
            return
        if job.process is not None:
            log.info("waiting for the run in %s to save its adapter", job.folder)
            for patience, number in ((STOP_SECONDS, signal.SIGTERM), (LAST_SECONDS, signal.SIGKILL)):
                try:
                    job.process.wait(patience)
                    break
                except subprocess.TimeoutExpired:
                    job.process.send_signal(number)

    def _run(self, job: Job, uploads: list[Upload]) -> None:
        try:
            kind = ANNOTATIONS[job.wish.task]
            job.data = prepare_own_images(uploads, job.folder / DATA, kind, lambda *counts: _count(job, *counts))
            self._train(job, job.data)
            job.phase = "opening"
            _count(job, 0, 0)
            job.result = self.open(job.folder, lambda *counts: _count(job, *counts))
            job.phase = "ready"
        except UserError as error:
            if job.phase == "reading":  # nothing was trained, and the name is free again
                shutil.rmtree(job.folder, ignore_errors=True)
            job.error, job.phase = visible(error), "failed"
        except Exception:
            log.exception("training in %s", job.folder)
            job.error, job.phase = "The run failed; the log of the server says why.", "failed"

    def _train(self, job: Job, data: OwnImages) -> None:
        if job.stopped:
            raise UserError("It was stopped before its first step; there is nothing to keep.")
        job.phase = "training"
        with open(job.folder / LOG, "wb") as said:
            # A session of its own: Ctrl-C in the server's terminal must not reach it.
            job.process = subprocess.Popen(
                command(job, data, self.device), stdout=said, stderr=subprocess.STDOUT, start_new_session=True
            )
            _behind_searches(job.process.pid)
            if job.stopped:
                self._signal(job)
            code = job.process.wait()
        if code:
            raise UserError(_reason(job, code))

    def _signal(self, job: Job) -> None:
        # After the last step the script is saving, where a signal could only do harm.
        if job.process is None or any(line.get("epoch", 0) >= job.wish.epochs for line in job.lines()):
            return
        with contextlib.suppress(ProcessLookupError):
            job.process.terminate()


def command(job: Job, data: OwnImages, device: str) -> list[str]:
    """The command line of a run."""
    wish = job.wish
    flags = {
        "output": job.folder,
        "data.root": data.root,
        "data.validation": data.validation,
        "base": wish.base,
        "adapter.kind": wish.kind,
        "epochs": wish.epochs,
        "batch_size": job.batch_size,
        "lr": LEARNING_RATES[wish.task],
        "evaluate_every": max(1, wish.epochs // 8),
        "log_every": max(1, job.steps // MOST_POINTS),
        "on_stop": "finish",
        "device": device,
    }
    script = scripts_folder() / "tasks" / wish.task / "train.py"
    return [sys.executable, str(script), *(word for k, v in flags.items() for word in (f"--{k}", str(v)))]


def _reason(job: Job, code: int) -> str:
    """Why a run ended with an exit code other than 0, in one sentence."""
    lines = (job.folder / LOG).read_text(encoding="utf-8", errors="replace").splitlines()
    named = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    if code == 2 and named:
        return named[-1]
    if job.stopped:
        return "It was stopped before its first step; there is nothing to keep."
    saved = (job.folder / "checkpoint" / STATE_FILE).exists()
    kept = f"; its last checkpoint is in {job.folder}" if saved else ""
    if code == -signal.SIGKILL:
        return f"The run was killed, probably because the memory was full; try a smaller batch{kept}."
    return f"The run ended with code {code}; {job.folder / LOG} says why{kept}."


def _count(job: Job, done: int, total: int) -> None:
    job.done, job.total = done, total


def _behind_searches(pid: int) -> None:
    """Let the server's own threads go first."""
    if hasattr(os, "setpriority"):
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, pid, 10)
