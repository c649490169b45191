"""The vector index: search, updates, other FAISS factories, refusals, and being killed at any moment."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import vlkit.files
from helpers.memory import at_most
from vlkit.data.images import MediaError
from vlkit.errors import UserError
from vlkit.index import IndexWriter, Item, VectorIndex
from vlkit.index.update import describe_items, update_index

MODEL = "tiny + sherl 1f2e"


def vectors(count: int, dim: int = 16, seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def items(names, stamp: str = "1") -> list[Item]:
    return [Item(str(name), stamp, digest=f"hash of {name} {stamp}", metadata={"text": f"№ {name}"}) for name in names]


def make(path: Path, count: int, factory: str | None = None, dim: int = 16, seed: int = 0) -> np.ndarray:
    values = vectors(count, dim, seed)
    with IndexWriter.open(path, dim, MODEL, factory) as writer:
        writer.add(items(range(count)), values)
    return values


def content(path: Path) -> dict[str, tuple[str, bytes]]:
    """What an index holds: id -> (stamp, vector)."""
    index = VectorIndex.open(path)
    return {item.id: (item.stamp, row.tobytes()) for item, row in zip(index.items, index.vectors, strict=True)}


def test_exact_search(tmp_path):
    values = make(tmp_path / "idx", 200)
    index = VectorIndex.open(tmp_path / "idx", MODEL)
    queries = vectors(9, seed=1)
    scores, rows = index.search_rows(queries, 7)
    expected = np.argsort(-queries @ values.T, axis=1)[:, :7]
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_allclose(scores, np.take_along_axis(queries @ values.T, expected, 1), rtol=1e-5)
    hit = index.search(queries, 7)[3][0]
    assert (hit.item.id, hit.item.metadata) == (str(expected[3, 0]), {"text": f"№ {expected[3, 0]}"})
    assert hit.score == pytest.approx(scores[3, 0])
    assert (len(index), index.dim, index.factory, index.model_id) == (200, 16, "Flat", MODEL)
    assert index.recall_against_exact(queries, 7) == 1


def test_more_results_than_items_and_no_items(tmp_path):
    make(tmp_path / "three", 3)
    index = VectorIndex.open(tmp_path / "three")
    assert [len(hits) for hits in index.search(vectors(2), 10)] == [3, 3]
    scores, rows = index.search_rows(vectors(2), 10)
    assert (rows[:, 3:] == -1).all() and np.isneginf(scores[:, 3:]).all()
    make(tmp_path / "none", 0, "HNSW32")
    empty = VectorIndex.open(tmp_path / "none")
    assert (empty.search(vectors(2), 5), len(empty), empty.recall_against_exact()) == ([[], []], 0, 1)


def test_update_skips_unchanged_and_drops_removed(tmp_path):
    path, values = tmp_path / "idx", make(tmp_path / "idx", 6)
    wanted = items([0, 1, 2, 3]) + items([4], stamp="2") + items([6, 7])
    with IndexWriter.open(path, 16, MODEL) as writer:
        plan = writer.diff(wanted)
        assert ([i.id for i in plan.new], [i.id for i in plan.changed]) == (["6", "7"], ["4"])
        assert (plan.unchanged, plan.removed, [i.id for i in plan.todo]) == (4, ["5"], ["6", "7", "4"])
        writer.remove(plan.removed)
        fresh = vectors(3, seed=5)
        writer.add(plan.todo, fresh)
        assert len(writer) == 7
    held = content(path)
    assert list(held) == ["0", "1", "2", "3", "6", "7", "4"]
    assert held["1"] == ("1", values[1].tobytes()) and held["4"] == ("2", fresh[2].tobytes())
    assert VectorIndex.open(path).search(fresh[2:], 1)[0][0].item.id == "4"
    with IndexWriter.open(path, 16, MODEL) as writer:
        assert writer.diff(wanted).todo == []
    assert content(path) == held


def test_nothing_is_written_when_nothing_changed(tmp_path):
    make(tmp_path, 6, "HNSW32")
    before = {file.name: file.stat().st_mtime_ns for file in tmp_path.iterdir() if file.name != ".lock"}
    with IndexWriter.open(tmp_path, 16, MODEL) as writer:
        assert writer.diff(items(range(6))).unchanged == 6
    assert {file.name: file.stat().st_mtime_ns for file in tmp_path.iterdir() if file.name != ".lock"} == before


def test_touched_files_are_unchanged_by_their_content(tmp_path):
    make(tmp_path, 3)
    moved = [Item(str(name), "touched") for name in range(3)]
    asked = []

    def digest(item: Item) -> str:
        asked.append(item.id)
        return f"hash of {item.id} 1" if item.id != "2" else "other"

    with IndexWriter.open(tmp_path, 16, MODEL) as writer:
        plan = writer.diff(moved, digest)
        assert (plan.unchanged, [item.id for item in plan.changed]) == (2, ["2"])
    with IndexWriter.open(tmp_path, 16, MODEL) as writer:
        asked.clear()
        assert writer.diff(moved, digest).unchanged == 2
        assert asked == ["2"]  # the new stamps of the others were remembered, and their hashes kept
    assert VectorIndex.open(tmp_path).items[0].digest == "hash of 0 1"


def test_adding_again_replaces_even_before_saving(tmp_path):
    values = vectors(4)
    with IndexWriter.open(tmp_path, 16, MODEL, commit_every=3) as writer:
        writer.add(items([1, 2]), values[:2])
        writer.add(items([2], stamp="2"), values[2:3])  # not saved yet
        writer.add(items([3]), values[3:])  # the third item: saved
        writer.add(items([1], stamp="3"), values[3:])
        writer.remove(["3", "unknown"])
    assert content(tmp_path) == {"2": ("2", values[2].tobytes()), "1": ("3", values[3].tobytes())}


@pytest.mark.parametrize("factory", ["HNSW32", "IVF16,Flat", "IVF8,PQ4x4", "PCA8,Flat", "SQ8"])
def test_other_factories_and_their_recall(tmp_path, factory):
    values = make(tmp_path, 1200, factory)
    index = VectorIndex.open(tmp_path)
    queries = vectors(50, seed=2)
    recall = index.recall_against_exact(queries, 10)
    assert recall > (0.1 if factory in ("IVF8,PQ4x4", "PCA8,Flat") else 0.8)
    exact = np.argsort(-queries @ values.T, axis=1)[:, :10]
    _, rows = index.search_rows(queries, 10)
    overlap = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(exact, rows, strict=True)])
    assert recall == pytest.approx(overlap, abs=0.01)
    assert index.recall_against_exact() > 0
    assert any(file.suffix == ".faiss" for file in tmp_path.iterdir())


def test_recall_is_lost_where_the_search_is_narrow(tmp_path):
    import faiss

    make(tmp_path, 1200, "IVF64,Flat")
    index = VectorIndex.open(tmp_path)
    wide = index.recall_against_exact(vectors(50, seed=2))
    faiss.extract_index_ivf(index._faiss).nprobe = 1
    assert index.recall_against_exact(vectors(50, seed=2)) < 0.6 < wide


def test_duplicates_do_not_lower_recall(tmp_path):
    with IndexWriter.open(tmp_path, 16, MODEL, "HNSW32") as writer:
        writer.add(items(range(60)), np.repeat(vectors(3), 20, axis=0))
    assert VectorIndex.open(tmp_path).recall_against_exact(vectors(3), 5) == 1


def test_another_factory_is_built_from_the_kept_vectors(tmp_path):
    values = make(tmp_path, 300)
    for factory in ("HNSW16", "IVF4,Flat", "Flat"):
        with IndexWriter.open(tmp_path, 16, MODEL, factory):
            pass
        index = VectorIndex.open(tmp_path)
        assert index.factory == factory
        assert index.search(values[7:8], 1)[0][0].item.id == "7"
    assert not list(tmp_path.glob("*.faiss"))
    with IndexWriter.open(tmp_path, 16, MODEL):
        pass
    assert VectorIndex.open(tmp_path).factory == "Flat"


def test_a_trained_index_grows_and_is_made_anew_after_removals(tmp_path, monkeypatch):
    from vlkit.index import writer as writer_module

    trained = []
    train = writer_module.trained_index
    monkeypatch.setattr(writer_module, "trained_index", lambda v, f: trained.append(len(v)) or train(v, f))
    values = vectors(700)

    def update(names, remove=()):
        with IndexWriter.open(tmp_path, 16, MODEL, "IVF4,Flat") as writer:
            writer.remove(remove)
            writer.add(items(names), values[list(names)])
        index = VectorIndex.open(tmp_path)
        assert index._faiss.ntotal == len(index)
        for name in names:
            assert index.search(values[[name]], 1)[0][0].item.id == str(name)

    update(range(200))
    update(range(200, 300))
    assert trained == [200]
    update([300], remove=["5"])
    assert trained == [200, 300]
    update(range(301, 700))  # more than twice what it was trained on
    assert trained == [200, 300, 699]


def test_too_few_vectors_to_train_lose_nothing(tmp_path, caplog):
    with pytest.raises(
        UserError, match=r"'IVF256,Flat': training needs at least 256 vectors, there are 100; .*of about 2"
    ):
        make(tmp_path, 100, "IVF256,Flat")
    with caplog.at_level(logging.WARNING):
        index = VectorIndex.open(tmp_path)
    assert "IVF256,Flat index is not finished" in caplog.text
    assert index.search(vectors(100)[8:9], 1)[0][0].item.id == "8"
    with IndexWriter.open(tmp_path, 16, MODEL, "IVF2,Flat") as writer:
        assert writer.diff(items(range(100))).unchanged == 100


@pytest.mark.parametrize(("factory", "reason"), [("Bogus", "could not parse"), ("PQ7", "multiple of the number")])
def test_wrong_factory_is_refused_before_any_work(tmp_path, factory, reason):
    with pytest.raises(UserError, match=rf"'{factory}' for vectors of width 16: .*{reason}"):
        IndexWriter.open(tmp_path / "idx", 16, MODEL, factory)
    assert not (tmp_path / "idx").exists()


def test_other_model_or_width_is_refused(tmp_path):
    make(tmp_path, 3)
    for refused in (
        lambda: VectorIndex.open(tmp_path, "ViT-B-32 + lora"),
        lambda: IndexWriter.open(tmp_path, 16, "ViT-B-32 + lora"),
    ):
        with pytest.raises(UserError, match=r"made with tiny \+ sherl 1f2e, not with ViT-B-32 \+ lora"):
            refused()
    with pytest.raises(UserError, match="width 16, not 8"):
        IndexWriter.open(tmp_path, 8, MODEL)
    with IndexWriter.open(tmp_path, 16, MODEL) as writer:  # the refusals let go of the lock
        assert len(writer) == 3


def test_no_index_or_a_damaged_one(tmp_path):
    with pytest.raises(UserError, match="no index here"):
        VectorIndex.open(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/index.json").write_text("{}")
    with pytest.raises(UserError, match="not a vlkit index"):
        VectorIndex.open(tmp_path / "other")
    make(tmp_path / "idx", 20, "HNSW32")
    for name, damage in (("*.npy", b"x"), ("*.jsonl", b"{}\n"), ("*.jsonl", b"{"), ("*.faiss", b"x")):
        folder = shutil.copytree(tmp_path / "idx", tmp_path / f"damaged{len(list(tmp_path.iterdir()))}")
        file = next(folder.glob(name))
        file.write_bytes(damage)
        with pytest.raises(UserError, match=rf"{file.name}: .* damaged"):
            VectorIndex.open(folder)
        file.unlink()
        with pytest.raises(UserError, match=rf"{file.name}: no such file.* damaged"):
            VectorIndex.open(folder)


def test_wrong_additions_are_refused_and_harm_nothing(tmp_path):
    with IndexWriter.open(tmp_path, 16, MODEL) as writer:
        writer.add(items([0]), vectors(1))
        broken = vectors(2)
        broken[1, 3] = np.nan
        with pytest.raises(UserError, match=r"1 vectors are not finite \(2\)"):
            writer.add(items([1, 2]), broken)
        with pytest.raises(ValueError, match=r"\(2, 8\), expected \(2, 16\)"):
            writer.add(items([1, 2]), vectors(2, 8))
        with pytest.raises(UserError, match="occurs twice"):
            writer.add(items([1, 1]), vectors(2))
        with pytest.raises(TypeError):
            writer.add([Item("0", metadata={"size": {1}})], vectors(1))
        with pytest.raises(UserError, match="3 occurs twice"):
            writer.diff(items([3, 3]))
    assert list(content(tmp_path)) == ["0"]
    with pytest.raises(ValueError, match="expected"):
        VectorIndex.open(tmp_path).search(vectors(1, 8), 1)
    with pytest.raises(ValueError, match=">= 1"):
        VectorIndex.open(tmp_path).search(vectors(1), 0)


def test_one_writer_at_a_time(tmp_path):
    with IndexWriter.open(tmp_path, 16, MODEL) as writer:
        writer.add(items([0]), vectors(1))
        command = (
            "import sys; from vlkit.errors import UserError; from vlkit.index import IndexWriter\n"
            "try: IndexWriter.open(sys.argv[1], 16, sys.argv[2])\n"
            "except UserError as error: print(error)"
        )
        run = subprocess.run([sys.executable, "-c", command, tmp_path, MODEL], capture_output=True, text=True)
        assert "another process is writing" in run.stdout, run.stderr


def test_threads_search_at_once(tmp_path):
    make(tmp_path, 2000, "HNSW16")
    index = VectorIndex.open(tmp_path)
    queries = vectors(64, seed=3)
    expected = index.search_rows(queries, 5)[1]
    wrong = []

    def search():
        for _ in range(5):
            if not np.array_equal(index.search_rows(queries, 5)[1], expected):
                wrong.append(threading.get_ident())

    threads = [threading.Thread(target=search) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_reader_may_open_while_a_writer_replaces_files(tmp_path):
    make(tmp_path, 5)
    finished, seen, failures = threading.Event(), set(), []

    def read():
        while not finished.is_set():
            try:
                seen.add(len(VectorIndex.open(tmp_path)))
            except Exception as error:
                failures.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    for step in range(12):
        with IndexWriter.open(tmp_path, 16, MODEL) as writer:
            writer.add(items([10 + step]), vectors(1, seed=step))
    finished.set()
    thread.join()
    assert failures == []
    assert seen <= set(range(5, 18))


def test_interrupt_keeps_what_was_added(tmp_path):
    with pytest.raises(KeyboardInterrupt), IndexWriter.open(tmp_path, 16, MODEL, "HNSW32") as writer:
        writer.add(items(range(7)), vectors(7))
        raise KeyboardInterrupt
    with IndexWriter.open(tmp_path, 16, MODEL) as writer:
        assert writer.diff(items(range(9))).unchanged == 7
    assert VectorIndex.open(tmp_path)._faiss.ntotal == 7
    fresh = vectors(1, seed=9)
    with pytest.raises(KeyboardInterrupt), IndexWriter.open(tmp_path, 16, MODEL) as writer:
        writer.remove(["0"])
        writer.add(items([50]), fresh)
        raise KeyboardInterrupt
    # As many items as the FAISS file holds vectors, but others: it must not be used.
    assert VectorIndex.open(tmp_path).search(fresh, 1)[0][0].item.id == "50"
    assert VectorIndex.open(tmp_path).search(vectors(7)[6:], 1)[0][0].item.id == "6"


class Killed(BaseException):
    pass


def update_for_crash(path: Path, factory: str) -> None:
    """Two commits, a replacement, a removal, a merge and a FAISS file."""
    with IndexWriter.open(path, 16, MODEL, factory, commit_every=2) as writer:
        writer.add(items([6, 7]), vectors(2, seed=6))
        writer.remove(["0"])
        writer.add(items([1, 8], stamp="2"), vectors(2, seed=7))


@pytest.mark.parametrize("factory", ["Flat", "HNSW16"])
def test_killed_between_any_two_writes(tmp_path, monkeypatch, factory):
    """Every file operation in turn is the last one: the index then holds the state after some commit, and works."""
    make(tmp_path / "start", 6, factory)
    states = [content(tmp_path / "start")]
    shutil.copytree(tmp_path / "start", tmp_path / "whole")
    done, last = 0, None

    def counting(operation):
        def run(*args, **kwargs):
            nonlocal done
            done += 1
            if last is not None and done >= last:
                raise Killed  # and again for whatever follows: a dead process does not clean up either
            return operation(*args, **kwargs)

        return run

    monkeypatch.setattr(vlkit.files.os, "replace", counting(os.replace))
    monkeypatch.setattr(Path, "unlink", counting(Path.unlink))
    update_for_crash(tmp_path / "whole", factory)
    total, final = done, content(tmp_path / "whole")
    assert total > 10
    seen = []
    for moment in range(1, total + 1):
        path = shutil.copytree(tmp_path / "start", tmp_path / f"kill{moment}")
        done, last = 0, moment
        with pytest.raises(Killed):
            update_for_crash(path, factory)
        last = None
        held = content(path)
        seen.append(len(held))
        states.append(held)
        for name, (_, vector) in held.items():
            found = VectorIndex.open(path).search(np.frombuffer(vector, np.float32)[None], 1)[0][0]
            assert found.item.id == name
        update_for_crash(path, factory)
        assert content(path) == final
        left = {file.name for file in path.iterdir() if not file.name.startswith(".lock")}
        pointer = json.loads((path / "index.json").read_text())
        assert len(left) == 1 + 2 * len(pointer["segments"]) + bool(pointer["faiss"])
    assert seen == sorted(seen) and set(seen) == {6, 8}  # before the first commit, after it, after the second
    assert all(held in (states[0], final) or len(held) == 8 for held in states)


WRITER = """
import sys, time
import numpy as np
from vlkit.index import IndexWriter, Item
rng = np.random.default_rng(0)
with IndexWriter.open(sys.argv[1], 16, "m", "HNSW16", commit_every=2) as writer:
    print("ready", flush=True)
    for number in range(100000):
        writer.add([Item(str(number))], np.full((1, 16), number, np.float32))
        if number % 7 == 6:
            writer.remove([str(number - 3)])
        if number % 20 == 19:
            writer.build()
"""


def test_killed_process(tmp_path):
    """SIGKILL at odd times: a run of finished commits is there each time, and the next run goes on."""
    rng = np.random.default_rng(0)
    for round_number in range(3):
        path = tmp_path / f"idx{round_number}"
        process = subprocess.Popen([sys.executable, "-c", WRITER, path], stdout=subprocess.PIPE)
        assert process.stdout.readline() == b"ready\n"
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.3 + 0.5 * rng.random())
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        index = VectorIndex.open(path)
        assert len(index) > 0
        numbers = [int(item.id) for item in index.items]
        assert (index.vectors[:, 0] == numbers).all()
        gone = set(range(max(numbers) + 1)) - set(numbers)
        assert all(number % 7 == 3 for number in gone)
        with IndexWriter.open(path, 16, "m") as writer:
            assert writer.diff([Item(str(number)) for number in numbers]).unchanged == len(numbers)


def test_faiss_and_torch_share_a_process():
    """Both bring an OpenMP runtime of their own; FAISS first, as the rest of the suite has torch first."""
    command = (
        "import faiss, torch, numpy as np\n"
        "torch.set_num_threads(2); faiss.omp_set_num_threads(2)\n"
        "x = np.random.default_rng(0).standard_normal((200, 32)).astype('float32')\n"
        "index = faiss.index_factory(32, 'IVF2,Flat'); index.train(x); index.add(x)\n"
        "layer = torch.nn.Linear(32, 32); layer(torch.from_numpy(x)).square().sum().backward()\n"
        "assert (index.search(x[:20], 1)[1][:, 0] == range(20)).all()\n"
        "print(torch.isfinite(layer.weight.grad).all().item())"
    )
    run = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True)
    assert run.stdout == "True\n", run.stderr


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("mine on tiny (409aba649b0a42b7)", "best [1] on tiny (409aba649b0a42b7)", True),
        (" on tiny (409aba649b0a42b7)", "a on b on tiny (409aba649b0a42b7)", True),
        ("m on ViT-B-32:/a b/x.pt (409aba649b0a42b7)", "m on ViT-B-32:openai (409aba649b0a42b7)", True),
        ("m on ViT-B-32:openai (409aba649b0a42b7)", "m on ViT-B-32-quickgelu:openai (409aba649b0a42b7)", False),
        ("mine on tiny (409aba649b0a42b7)", "mine on tiny (509aba649b0a42b7)", False),
        ("my own model", "my own model 2", False),
    ],
)
def test_models_are_told_apart_by_architecture_and_fingerprint(one, other, same, tmp_path):
    with IndexWriter.open(tmp_path, 16, one) as writer:
        writer.add(items([1]), vectors(1))
    if same:
        assert len(VectorIndex.open(tmp_path, other)) == 1
    else:
        with pytest.raises(UserError, match="their vectors are not comparable"):
            VectorIndex.open(tmp_path, other)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", None),
        ("dim", "16"),
        ("dim", 0),
        ("dim", 10**12),
        ("factory", 3),
        ("count", True),
        ("serial", -1),
        ("segments", {}),
        ("segments", [{"name": "../../x", "rows": 1}]),
        ("segments", [{"name": "000001"}]),
        ("faiss", {"name": "000002"}),
        ("faiss", ...),
    ],
)
def test_a_pointer_that_makes_no_sense_is_named(field, value, tmp_path):
    make(tmp_path, 3)
    pointer = json.loads((tmp_path / "index.json").read_text(encoding="utf-8"))
    changed = {k: v for k, v in (pointer | {field: value}).items() if v is not ...}
    (tmp_path / "index.json").write_text(json.dumps(changed), encoding="utf-8")
    for opened in (lambda: VectorIndex.open(tmp_path), lambda: IndexWriter.open(tmp_path, 16, MODEL)):
        with pytest.raises(UserError, match=f"field '{field}' is invalid"):
            opened()


def test_a_damaged_faiss_file_takes_no_memory(tmp_path):
    make(tmp_path, 1200, "IVF16,Flat")
    (file,) = tmp_path.glob("*.faiss")
    content = bytearray(file.read_bytes())
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError, match="the index is damaged"):
        VectorIndex.open(tmp_path)
    # An index of an earlier version has no hash of it.
    pointer = json.loads((tmp_path / "index.json").read_text(encoding="utf-8"))
    del pointer["faiss"]["sha256"]
    (tmp_path / "index.json").write_text(json.dumps(pointer), encoding="utf-8")
    for place in range(0, len(content), 61):
        file.write_bytes(content[:place] + b"\xff\xff\xff\xff\x1f\0\0\0" + content[place + 8 :])
        with contextlib.suppress(UserError), at_most(64):
            VectorIndex.open(tmp_path)
        if place > 4000:
            break


def test_a_folder_whose_name_is_not_utf8(tmp_path):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    values = make(path, 200, "HNSW32")
    assert VectorIndex.open(path).search(values[:1], 1)[0][0].item.id == "0"


def test_captions_are_added_to_what_is_saved(tmp_path):
    """In any order of changes, vectors stay with their items, and no caption is made twice."""
    values = make(tmp_path, 7)
    asked: list[list[str]] = []

    def describe(names):
        asked.append(list(names))
        return [f"item {name}" for name in names]

    def read(item: Item) -> str:
        if item.id == "3":
            raise MediaError("3", "damaged")
        return item.id

    options = {"read": read, "describe": describe, "batch_size": 2, "save_every": 3}
    with IndexWriter.open(tmp_path, 16, MODEL) as writer:
        assert describe_items(writer, "a", **options) == 6
    assert asked == [["0", "1"], ["2"], ["4", "5"], ["6"]]
    with IndexWriter.open(tmp_path, 16, MODEL) as writer:
        fresh = vectors(1, seed=9)
        writer.add([Item("new", "1")], fresh)
        asked.clear()
        done = []
        assert describe_items(writer, "a", **options, progress=lambda *numbers: done.append(numbers)) == 1
        assert asked == [["new"]] and done == [(0, 2), (2, 2)]
    with IndexWriter.open(tmp_path, 16, MODEL) as writer:
        assert writer.diff([*items(range(7)), Item("new", "1")]).todo == []
    found = VectorIndex.open(tmp_path)
    assert {item.id: item.metadata.get("caption") for item in found.items} == {
        **{str(n): f"item {n}" for n in range(7) if n != 3},
        "3": None,
        "new": "item new",
    }
    rows = {item.id: found.vectors[row] for row, item in enumerate(found.items)}
    np.testing.assert_array_equal([rows[str(n)] for n in range(7)], values)
    np.testing.assert_array_equal(rows["new"], fresh[0])
    with IndexWriter.open(tmp_path, 16, MODEL) as writer:
        assert describe_items(writer, "another", **options) == 7


def test_captions_made_before_an_error_are_kept(tmp_path):
    make(tmp_path, 6)

    def describe(names):
        if "4" in names:
            raise KeyboardInterrupt
        return names

    with pytest.raises(KeyboardInterrupt), IndexWriter.open(tmp_path, 16, MODEL) as writer:
        describe_items(writer, "a", read=lambda item: item.id, describe=describe, batch_size=2)
    captions = {item.id: item.metadata.get("caption") for item in VectorIndex.open(tmp_path).items}
    assert captions == {"0": "0", "1": "1", "2": "2", "3": "3", "4": None, "5": None}


def test_the_next_batch_is_read_while_one_is_embedded(tmp_path):
    """And no further one, so that memory is bounded."""
    opened: list[str] = []
    ahead: list[int] = []

    def read(item: Item) -> int:
        opened.append(item.id)
        if item.id == "3":
            raise MediaError("3", "damaged")
        return int(item.id)

    def embed(numbers) -> np.ndarray:
        first = numbers[0] // 2 * 2
        until = time.monotonic() + 60
        while len(opened) < min(first + 4, 7) and time.monotonic() < until:
            time.sleep(0.01)
        ahead.append(len(opened) - first)
        return np.eye(16)[numbers]

    with IndexWriter.open(tmp_path, 16, MODEL) as writer:
        found = update_index(
            writer, items(range(7)), read=read, embed=embed, digest=lambda item: f"hash {item.id}", batch_size=2
        )
    assert ahead == [4, 4, 3, 1] and found.new == 6 and [str(error) for error in found.bad] == ["3: damaged"]
    index = VectorIndex.open(tmp_path)
    assert [(item.id, item.digest) for item in index.items] == [(str(n), f"hash {n}") for n in range(7) if n != 3]
