"""Snapshots in memory: parity, slots, the choice of a step, and runs that end bit-identical after SIGKILL."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import shutil
import signal
import socket
import time
import zlib
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from helpers import dying_run
from helpers.toy_run import ToyConfig
from vlkit.cli.config import parse
from vlkit.engine import checkpoint
from vlkit.engine.distributed import make_fabric
from vlkit.engine.snapshots import Snapshots, manager
from vlkit.engine.snapshots.memory import FolderMemory, HeldMemory
from vlkit.engine.snapshots.parity import join, piece
from vlkit.engine.snapshots.slots import Slots, Snapshot
from vlkit.engine.state import RunState
from vlkit.errors import UserError

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["vlkit.engine.fit"])


# --- parts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nodes", [2, 3, 5])
@pytest.mark.parametrize("length", [0, 1, 59, 60, 61, 1000])
def test_any_one_piece_may_be_missing(nodes, length):
    content = torch.randint(256, (length,), dtype=torch.uint8).numpy().tobytes()
    pieces = {node: piece(content, node, nodes) for node in range(nodes)}
    assert join(pieces, nodes, length) == content
    for lost in range(nodes):
        assert join({node: held for node, held in pieces.items() if node != lost}, nodes, length) == content
    # n / (n - 1) of the content, rounded up to whole stripes.
    stripe = -(-length // (nodes * (nodes - 1)))
    assert {len(held) for held in pieces.values()} == {nodes * stripe}


def test_two_missing_pieces_or_a_cut_one_are_refused():
    pieces = {node: piece(b"x" * 100, node, 3) for node in range(3)}
    with pytest.raises(ValueError, match=r"pieces \[1, 2\] are missing"):
        join({0: pieces[0]}, 3, 100)
    with pytest.raises(ValueError, match=r"\[2\] do not fit"):
        join({**pieces, 2: pieces[2][:-1]}, 3, 100)


def snapshot(step: int, payload: bytes = b"state", node: int = 0) -> Snapshot:
    return Snapshot(step, node, 0, len(payload), zlib.crc32(payload), payload)


def test_slots_hold_the_last_two_and_ignore_what_was_cut_off(tmp_path):
    memory = FolderMemory(tmp_path / "memory")
    slots = Slots(memory)
    assert slots.read() == []
    for step in (5, 10, 15):
        slots.write(snapshot(step, b"s" * step))
    slots.write(snapshot(15, node=1))
    assert {(found.step, found.node) for found in slots.read()} == {(10, 0), (15, 0), (15, 1)}
    assert memory.path.stat().st_mode & 0o777 == 0o700
    newest = max(memory.path.glob("node-0-*"), key=lambda path: path.stat().st_size)
    content = bytearray(newest.read_bytes())
    content[-1] ^= 1
    newest.write_bytes(content)
    assert {(found.step, found.node) for found in slots.read()} == {(10, 0), (15, 1)}
    newest.write_bytes(bytes(100))
    slots.write(snapshot(20))  # takes the place of the slot without a snapshot
    assert {found.step for found in slots.read() if not found.node} == {10, 20}
    memory.remove()
    assert not memory.path.exists()


def test_processes_of_one_machine_end_together(tmp_path, monkeypatch):
    memory, listed = FolderMemory(tmp_path / "memory"), os.listdir
    Slots(memory).write(snapshot(5))

    def just_removed(path: Path) -> list[str]:
        shutil.rmtree(path, ignore_errors=True)
        return listed(path)

    monkeypatch.setattr(os, "listdir", just_removed)
    assert memory.names() == [] and memory.free() > 0
    memory.remove()
    assert Slots(memory).read() == []


def state_at(step: int) -> checkpoint.State:
    weights = {"w": torch.arange(6.0) + step}
    return checkpoint.State(weights, {}, {"w/exp_avg": weights["w"] * 2}, RunState(step=step), {"a": [1]})


def test_a_snapshot_is_of_the_moment_it_was_taken_and_newer_than_the_file(tmp_path):
    fabric = make_fabric("cpu")
    taken = Snapshots(fabric, tmp_path, "run", every=5)
    assert [step for step in range(1, 12) if taken.due(step)] == [5, 10]
    state = state_at(5)
    taken.take(state)
    state.trained["w"].zero_()  # the next step
    taken._pending.result()
    again = Snapshots(fabric, tmp_path, "run", every=5)
    found = again.restore(newer_than=4)
    assert found.progress.step == 5 and found.identity == {"a": [1]}
    torch.testing.assert_close(found.trained, {"w": torch.arange(6.0) + 5}, rtol=0, atol=0)
    torch.testing.assert_close(found.optimizer, {"w/exp_avg": 2 * (torch.arange(6.0) + 5)}, rtol=0, atol=0)
    assert again.restore(newer_than=5) is None
    assert Snapshots(fabric, tmp_path, "other", every=5).restore(-1) is None
    again.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_process_holds_snapshots_where_the_memory_file_system_is_too_small(tmp_path, monkeypatch, caplog):
    """The writer is killed half way through its third snapshot; the second one is restored from the holder."""
    caplog.set_level("INFO")
    token = f"test-{os.getpid()}-{tmp_path.parent.name}"
    child = SERVER.Process(target=write_until_killed, args=(token,))
    child.start()
    child.join(120)
    assert child.exitcode == -signal.SIGKILL
    other = HeldMemory(token)
    assert other.running() and other.names() == ["node-0-0", "node-0-1"]
    monkeypatch.setattr(manager, "SHARED_MEMORY", tmp_path / "none")
    again = Snapshots(make_fabric("cpu"), None, token, every=5)
    found = again.restore(newer_than=0)
    assert found.progress.step == 10
    torch.testing.assert_close(found.trained, {"w": torch.arange(6.0) + 10}, rtol=0, atol=0)
    again.take(state_at(20))
    again._pending.result()
    assert "snapshots are held by a process of their own: there is no " in caplog.text
    assert Snapshots(make_fabric("cpu"), None, token, every=5).restore(10).progress.step == 20
    again.close()
    assert not HeldMemory(token).running()


def write_until_killed(token: str) -> None:
    """A process whose /dev/shm is too small, and that is killed while it writes step 15."""
    os.statvfs = lambda path: os.statvfs_result((4096, 4096, 10, 0, 0, 0, 0, 0, 0, 255))
    taken = Snapshots(make_fabric("cpu"), None, token, every=5)
    dying_run._die_while_writing(15)
    for step in (5, 10, 15):
        taken.take(state_at(step))
        taken._pending.result()


def test_a_holder_ends_when_nobody_comes_back(monkeypatch):
    monkeypatch.setattr("vlkit.engine.snapshots.memory.KEEP_SECONDS", 0.2)
    memory = HeldMemory(f"test-{os.getpid()}-alone")
    os.close(memory.open("node-0-0"))
    watcher = HeldMemory(f"test-{os.getpid()}-alone")
    memory._connection.close()
    for _ in range(120):
        if not watcher.running():
            break
        watcher._connection.close()
        watcher._connection = None
        time.sleep(1)  # longer than it waits: each look is a visit
    else:
        pytest.fail("the holder is still there")


def test_wrong_places_are_named(tmp_path, monkeypatch):
    fabric = make_fabric("cpu")
    with pytest.raises(UserError, match="there is one node, and parity needs 2 or more"):
        Snapshots(fabric, tmp_path, "run", 5, "parity")
    with pytest.raises(UserError, match=r"--snapshot_memory .*none: no such folder"):
        Snapshots(fabric, tmp_path / "none", "run", 5)
    small = os.statvfs_result((4096, 4096, 10, 0, 0, 0, 0, 0, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda path: small)
    with pytest.raises(UserError, match=r"two snapshots need 0 MiB, too much for .*run \(0 MiB free\); .*--shm-size"):
        Snapshots(fabric, tmp_path, "run", 5).take(state_at(5))
    with pytest.raises(UserError, match="a checkpoint of mezo is a number per step"):
        parse(ToyConfig, ["--optimizer", "mezo", "--snapshot_every", "5"])


def test_a_run_that_may_restart_needs_a_folder(monkeypatch):
    from helpers.toy_run import main

    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "2")
    with pytest.raises(UserError, match="torchrun --max-restarts needs --output DIR"):
        main(parse(ToyConfig, []))


# --- whole runs ------------------------------------------------------------------------------------------------------

STEPS = 42
OPTIONS = ("--batch_size", "12", "--epochs", "14", "--snapshot_every", "5", "--evaluate_every", "14")


def start(folder: Path, memory: Path, nodes: int, attempt: int, die: dict[int, str], *more: str) -> list:
    """One process per node, with the environment that torchrun sets; without /dev/shm if ``memory`` is not there."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": str(nodes), "LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0", "TORCHELASTIC_RUN_ID": "toy"}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RESTART_COUNT": str(attempt)}
    children = []
    for rank in range(nodes):
        own = {"RANK": str(rank), "GROUP_RANK": str(rank), "DIE": die.get(rank, "")}
        own |= {} if memory.exists() else {"NO_SHARED_MEMORY": "1"}
        given = ["--snapshot_memory", str(memory)] if memory.exists() else []
        words = ["--output", str(folder), *given, *OPTIONS, *more]
        messages = str(folder.with_suffix(f".{rank}"))
        children.append(SERVER.Process(target=dying_run.launch, args=(words, messages, shared | own)))
        children[-1].start()
    return children


def crash(children: list, victim: int) -> None:
    """Wait for the victim's end, then stop the others as torchrun does: SIGTERM, and later SIGKILL."""
    children[victim].join(120)
    assert children[victim].exitcode == -signal.SIGKILL
    for child in children:
        child.terminate()
    for child in children:
        child.join(30)
        child.kill()
        child.join()


def finish(children: list, folder: Path) -> str:
    """Wait for a good end; what process 0 said."""
    for child in children:
        child.join(120)
    said = folder.with_suffix(".0").read_text()
    assert [child.exitcode for child in children] == [0] * len(children), said
    return said


def result(folder: Path) -> dict[str, torch.Tensor]:
    state = load_file(folder / "checkpoint" / checkpoint.STATE_FILE)
    return {name: tensor for name, tensor in state.items() if name.startswith(("trained/", "optimizer/"))}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> dict[int, dict[str, torch.Tensor]]:
    """The final state by number of nodes."""
    found = {}
    for nodes in (2, 3):
        folder = tmp_path_factory.mktemp("whole") / f"run{nodes}"
        finish(start(folder, folder.parent, nodes, 0, {}, "--snapshot_every", "0"), folder)
        found[nodes] = result(folder)
    return found


@dataclass(frozen=True)
class Loss:
    """A process that dies.

    Attributes:
        victim: which one.
        moment: when (:func:`helpers.dying_run.launch`).
        node: whether the memory of its node is lost as well.
        step: where the run goes on.
    """

    victim: int
    moment: str
    node: bool
    step: int


SCENARIOS = {
    "between backward and optimizer step": [Loss(1, "17 backward", False, 15)],
    "shard half written": [Loss(2, "20 writing", False, 20)],
    "between shard and parity": [Loss(0, "25 parity", False, 25)],
    "node lost": [Loss(1, "22 backward", True, 20)],
    "two nodes lost, one after the other": [Loss(1, "12 backward", True, 10), Loss(2, "33 backward", True, 30)],
    "node lost while writing": [Loss(0, "30 writing", True, 30)],
    # The others are told to stop in an evaluation: they must not take the checkpoint of process 0 as written.
    "node lost in an evaluation": [Loss(0, f"{STEPS} evaluation", True, 40)],
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "redundancy"),
    [*((name, "parity") for name in SCENARIOS), ("shard half written", "replica"), ("node lost", "replica")],
)
def test_killed_runs_of_three_nodes_end_with_the_same_bits(name, redundancy, tmp_path, uninterrupted):
    losses = SCENARIOS[name]
    folder, memory, more = tmp_path / "run", tmp_path / "memory", ("--snapshot_redundancy", redundancy)
    memory.mkdir()
    for attempt, loss in enumerate(losses):
        waiting = loss.moment.replace("evaluation", "waiting") if "evaluation" in loss.moment else ""
        moments = {rank: loss.moment if rank == loss.victim else waiting for rank in range(3)}
        crash(start(folder, memory, 3, attempt, moments, *more), loss.victim)
        assert checkpoint.load(folder / "checkpoint").progress.step == 0  # no file would do
        if attempt:  # it had gone on from the memory of the others
            assert f"restored step {losses[attempt - 1].step} from memory" in folder.with_suffix(".0").read_text()
        slots = list(itertools.chain.from_iterable(run.iterdir() for run in memory.iterdir()))
        assert len(slots) == 2 * 3
        for slot in slots:
            if loss.node and slot.name.startswith(f"node-{loss.victim}-"):
                slot.unlink()
    said = finish(start(folder, memory, 3, len(losses), {}, *more), folder)
    step = losses[-1].step
    assert f"restored step {step} from memory" in said and f"continuing at step {step} of {STEPS}" in said
    assert_same_bits(result(folder), uninterrupted[3])
    assert not any(memory.iterdir()), "the memory was not freed"


@pytest.mark.slow
def test_a_run_whose_snapshots_a_process_holds_ends_with_the_same_bits(tmp_path, uninterrupted):
    """There is no tmpfs: a process of its own holds replicas."""
    folder, memory = tmp_path / "run", tmp_path / "none"
    crash(start(folder, memory, 2, 0, {0: "20 writing"}), 0)
    holder = HeldMemory((folder / "checkpoint" / "run").read_text())
    assert len(holder.names()) == 2 * 2
    assert "restored step 20 from memory" in finish(start(folder, memory, 2, 1, {}), folder)
    assert_same_bits(result(folder), uninterrupted[2])
    assert not HeldMemory((folder / "checkpoint" / "run").read_text()).running(), "the memory was not freed"


def assert_same_bits(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert actual.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(actual[name], expected[name])] == []
