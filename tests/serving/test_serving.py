"""Serving without a web server: batching, shared bases, libraries, limits, clips, memory advice."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
from PIL import Image

from vlkit.adapters.tuning import LoraOptions
from vlkit.data.images import MediaError, as_rgb
from vlkit.data.video.probe import probe
from vlkit.drawn.videos import draw_videos
from vlkit.encoders.load import load_base
from vlkit.engine.checkpoint import save_adapter
from vlkit.errors import UserError
from vlkit.memory import tensor_budget
from vlkit.serving import (
    AddedImages,
    Library,
    check_count,
    check_text,
    images_in,
    load_models,
    open_upload,
    rank_texts,
    search_images,
    shipped_adapters,
)
from vlkit.serving import library as library_module
from vlkit.serving import memory as memory_module
from vlkit.serving.clips import FoundClip, cut_clip, still_of
from vlkit.serving.limits import TEXT_CHARACTERS
from vlkit.serving.memory import METHODS, memory_needs
from vlkit.tasks.batching import Batching
from vlkit.tasks.retrieval.model import adapter_config, build_model
from vlkit.tasks.two_tower import HeadOptions

MIB = 2**20
COLOURS = {"red": (220, 20, 20), "green": (20, 220, 20), "blue": (20, 20, 220)}


class ColourPipeline:
    """Embeds an image as its mean colour; counts what it embeds."""

    dim, identity = 3, "mean colour"

    def __init__(self, identity: str = "mean colour", wait: float = 0.0) -> None:
        self.identity, self.wait, self.embedded = identity, wait, 0

    def embed_images(self, images) -> np.ndarray:
        return self.embed_pixels([self.transform(image) for image in images])

    def transform(self, image, draft=False) -> np.ndarray:
        return np.asarray(as_rgb(image), dtype=np.float32)

    def embed_pixels(self, images) -> np.ndarray:
        time.sleep(self.wait)
        self.embedded += len(images)
        means = np.array([image.mean((0, 1)) for image in images])
        return means / np.linalg.norm(means, axis=1, keepdims=True)

    def embed_texts(self, texts) -> np.ndarray:
        return np.array([COLOURS[text] for text in texts], dtype=np.float32) / 255


@pytest.fixture
def folder(tmp_path: Path, monkeypatch) -> Path:
    """Three coloured images, one in a sub-folder, and a file that is none."""
    monkeypatch.setenv("VLKIT_CACHE", str(tmp_path / "cache"))
    images = tmp_path / "images"
    (images / "sub").mkdir(parents=True)
    for name, colour in COLOURS.items():
        Image.new("RGB", (20, 20), colour).save(images / ("sub" if name == "blue" else "") / f"{name}.png")
    (images / "note.jpg").write_text("not an image")
    return images


@pytest.fixture(scope="module")
def models():
    return load_models(device="cpu")


# --- batching --------------------------------------------------------------------------------------------------------


def test_calls_that_wait_run_together_and_each_gets_its_own():
    sizes, started, release = [], threading.Event(), threading.Event()

    def double(items: list[int]) -> list[int]:
        sizes.append(len(items))
        started.set()
        release.wait(5)
        return [2 * item for item in items]

    batching = Batching(double, limit=8)
    with ThreadPoolExecutor(6) as pool:
        first = pool.submit(batching, [1])
        assert started.wait(5)
        rest = [pool.submit(batching, [n, n + 100]) for n in range(5)]
        while len(batching._waiting) < 5:
            time.sleep(0.001)
        release.set()
        assert first.result() == [2]
        assert sorted(f.result() for f in rest) == [[2 * n, 2 * n + 200] for n in range(5)]
    assert sizes == [1, 8, 2]


def test_a_failing_call_fails_alone():
    started, release = threading.Event(), threading.Event()

    def inverse(items: list[float]) -> list[float]:
        started.set()
        release.wait(5)
        return [1 / item for item in items]

    batching = Batching(inverse)
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(batching, [1])
        assert started.wait(5)
        bad, good = pool.submit(batching, [0]), pool.submit(batching, [4])
        while len(batching._waiting) < 2:
            time.sleep(0.001)
        release.set()
        assert first.result() == [1] and good.result() == [0.25]
        with pytest.raises(ZeroDivisionError):
            bad.result()


def test_texts_embedded_at_once_equal_those_embedded_alone(models):
    pipeline = models.adapters["SHERL"]
    texts = ["a red house", "two small birds left of a large blue hat near the top", "a dog", "a key over a key"] * 5
    alone = np.concatenate([pipeline.embed_texts([text]) for text in texts])
    with ThreadPoolExecutor(len(texts)) as pool:
        together = np.concatenate(list(pool.map(lambda text: pipeline.embed_texts([text]), texts)))
    np.testing.assert_allclose(together, alone, atol=1e-5)


# --- models ----------------------------------------------------------------------------------------------------------


def test_adapters_share_a_base_unless_their_method_changes_it(tmp_path: Path):
    shipped = next(folder for folder in shipped_adapters() if folder.name == "retrieval")
    copy = tmp_path / "mine"
    copy.mkdir()
    for file in shipped.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    base = load_base("tiny")
    options = LoraOptions()
    save_adapter(
        tmp_path / "lora", build_model(base, options, HeadOptions()), adapter_config(base, options, HeadOptions(), {})
    )
    found = load_models([copy, shipped, tmp_path / "lora"], "cpu")
    assert list(found.adapters) == ["SHERL (mine)", "SHERL", "LORA (lora)"]
    mine, own, lora = (pipeline.embedder.base for pipeline in found.adapters.values())
    assert mine is own and lora is not own
    assert list(found.zero_shot) == ["zero-shot tiny"]
    assert found.zero_shot["zero-shot tiny"].embedder.base is own
    texts = {name: pipeline.embed_texts(["a red fish"]) for name, pipeline in found.retrieval.items()}
    np.testing.assert_allclose(texts["SHERL (mine)"], texts["SHERL"], atol=1e-6)
    assert np.abs(texts["SHERL"] - texts["zero-shot tiny"]).max() > 0.01


def test_a_folder_without_adapter_is_named(tmp_path: Path):
    with pytest.raises(UserError, match=r"vlkit_adapter\.json"):
        load_models([tmp_path])


# --- libraries -------------------------------------------------------------------------------------------------------


def test_library_finds_is_kept_and_notices_changes(folder: Path):
    pipeline = ColourPipeline()
    library = Library(images_in(folder), {"colour": pipeline})
    with pytest.raises(UserError, match="still being indexed"):
        library.search("colour", pipeline.embed_texts(["red"]), 1)
    assert library and len(library) == 0
    library.update()
    assert library.finished and len(library) == 3 and library.progress() == (4, 4)
    assert len(library.left_out) == 1 and "note.jpg: not an image" in library.left_out[0]
    found = search_images(library, "colour", pipeline.embed_texts(["blue", "red"]), 2)
    assert [row[0].name for row in found] == ["sub/blue.png", "red.png"]
    assert found[0][0].thumbnail().size == (20, 20)

    again = ColourPipeline()
    (folder / "red.png").unlink()
    Image.new("RGB", (30, 20), (200, 200, 200)).save(folder / "grey.png")
    library = Library(images_in(folder), {"colour": again})
    library.update()
    assert again.embedded == 1 and len(library) == 3
    names = [hit.name for hit in search_images(library, "colour", again.embed_texts(["red"]), 9)[0]]
    assert "red.png" not in names and "grey.png" in names


def test_library_is_searched_while_it_is_indexed_and_stops_in_between(folder: Path, monkeypatch):
    monkeypatch.setattr(library_module, "BATCH", 1)
    monkeypatch.setattr(library_module, "SHOW_EVERY", 1)
    (folder / "note.jpg").unlink()
    for n in range(30):
        Image.new("RGB", (20, 20), (n, 200, n)).save(folder / f"z{n}.png")
    slow = ColourPipeline(wait=0.05)
    library = Library(images_in(folder), {"colour": slow})
    library.start()
    deadline = time.monotonic() + 20
    while not len(library) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert search_images(library, "colour", slow.embed_texts(["green"]), 1)[0]
    assert not library.finished
    library.stop()
    assert 0 < slow.embedded < 33 and library.error is None
    rest = ColourPipeline()
    library = Library(images_in(folder), {"colour": rest})
    library.update()
    assert rest.embedded == 33 - slow.embedded and len(library) == 33


def test_what_goes_wrong_in_the_background_is_told_to_who_searches(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("VLKIT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "empty").mkdir()
    library = Library(images_in(tmp_path / "empty"), {"colour": ColourPipeline()})
    library.start()
    library._thread.join()
    with pytest.raises(UserError, match="no images there"):
        library.search("colour", np.ones((1, 3), dtype=np.float32), 1)


def test_added_images_are_found_by_those_who_added_them_alone(folder: Path):
    pipeline = ColourPipeline()
    library = Library(images_in(folder), {"colour": pipeline})
    library.update()
    added = AddedImages().plus("crimson", Image.new("RGB", (900, 600), (230, 0, 0)), {"colour": pipeline})
    added = added.plus("navy", Image.new("RGB", (8, 8), (0, 0, 128)), {"colour": pipeline})
    query = np.array([[1, 0, 0]], dtype=np.float32)
    assert [hit.name for hit in search_images(library, "colour", query, 2, added)[0]] == ["crimson", "red.png"]
    assert search_images(library, "colour", query, 2, added)[0][0].thumbnail().size == (512, 341)
    assert [hit.name for hit in search_images(library, "colour", query, 1)[0]] == ["red.png"]


def test_an_empty_folder_takes_models_and_a_visitors_images(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("VLKIT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "empty").mkdir()
    pipeline = ColourPipeline()
    library = Library(images_in(tmp_path / "empty"), {"colour": pipeline})
    library.start()
    library._thread.join()
    library.add("trained", pipeline)
    added = AddedImages().plus("crimson", Image.new("RGB", (9, 9), (230, 0, 0)), library.models)
    query = np.array([[1, 0, 0]], dtype=np.float32)
    for model in ("colour", "trained"):
        assert [hit.name for hit in search_images(library, model, query, 2, added)[0]] == ["crimson"]
    with pytest.raises(UserError, match="no images there"):
        search_images(library, "colour", query, 2)


def test_texts_are_ranked_for_a_image():
    ranked = rank_texts(ColourPipeline(), Image.new("RGB", (9, 9), (10, 250, 10)), ["blue", "green", "red"])
    assert ranked[0][0] == "green" and ranked[0][1] > ranked[1][1]


# --- limits ----------------------------------------------------------------------------------------------------------


def test_texts_and_counts_have_limits():
    assert check_text("  a cat ", "query") == "a cat"
    for text, reason in (("", "empty"), (None, "empty"), ("  ", "empty"), ("x" * (TEXT_CHARACTERS + 1), "shorten it")):
        with pytest.raises(UserError, match=reason):
            check_text(text, "query")
    assert check_count(3.0, "number", 5) == 3
    for count in (0, 6, None, "3", float("nan"), float("inf")):
        with pytest.raises(UserError, match="from 1 to 5"):
            check_count(count, "number", 5)


def test_uploads_are_judged_by_their_content(tmp_path: Path):
    Image.new("RGB", (64, 48), "red").save(tmp_path / "fine.png")
    (tmp_path / "fine.txt").write_bytes((tmp_path / "fine.png").read_bytes())
    assert open_upload(tmp_path / "fine.txt").size == (64, 48)
    (tmp_path / "text.jpg").write_text("hello")
    (tmp_path / "cut.png").write_bytes((tmp_path / "fine.png").read_bytes()[:60])
    Image.new("1", (10_000, 10_000)).save(tmp_path / "huge.png")
    (tmp_path / "heavy.png").write_bytes(bytes(21 * 2**20))
    reasons = {"text.jpg": "not an image", "cut.png": "truncated", "huge.png": "too large", "heavy.png": "21 MiB"}
    for name, reason in reasons.items():
        with pytest.raises(UserError, match=f"^{name}: .*{reason}"):
            open_upload(tmp_path / name)
    with pytest.raises(UserError, match="no image yet"):
        open_upload(None)


# --- clips and memory ------------------------------------------------------------------------------------------------


def test_a_moment_is_cut_out_to_play(tmp_path: Path):
    video = draw_videos(0, {"train": 0, "test": 1}, tmp_path, 64)[0]
    path = tmp_path / video.file_name
    clip = FoundClip(0.5, path.name, path, 1.0, 2.5)
    cut_clip(clip, tmp_path / "cut.mp4")
    info = probe(tmp_path / "cut.mp4")
    assert info.codec in ("h264", "mpeg4") and (info.width, info.height) == (64, 64)
    assert info.frames / info.fps == pytest.approx(1.5, abs=2 / info.fps)
    with av.open(str(path)) as film, av.open(str(tmp_path / "cut.mp4")) as part:
        wanted = next(f for f in film.decode(video=0) if f.time >= 1.0 - 1e-3).to_ndarray(format="rgb24")
        first = next(part.decode(video=0)).to_ndarray(format="rgb24")
    assert np.abs(wanted.astype(int) - first).mean() < 6  # lossy, but the same image
    assert still_of(clip).size == (64, 64)
    (tmp_path / "bad.mp4").write_bytes(path.read_bytes()[:200])
    with pytest.raises(MediaError):
        cut_clip(FoundClip(0.5, "bad.mp4", tmp_path / "bad.mp4", 0.0, 1.0), tmp_path / "bad_cut.mp4")
    assert not (tmp_path / "bad_cut.mp4").exists()


def test_memory_needs_say_what_fits(monkeypatch):
    per_pair = {"SHERL": 10, "LoRA": 100, "full": 90}

    def predicted(base: str, method: str, batch_size: int) -> SimpleNamespace:
        kept = per_pair[method] * MIB * batch_size
        return SimpleNamespace(saved_bytes=kept, parameter_bytes=MIB, optimizer_bytes=MIB, total_bytes=100 * MIB + kept)

    monkeypatch.setattr(memory_module, "_predicted", predicted)
    needs = {need.method: need for need in memory_needs("tiny", 64, 4 << 30)}
    assert list(needs) == list(METHODS) == list(per_pair)
    budget = tensor_budget(4 << 30)
    for method, need in needs.items():
        assert need.largest_batch == pytest.approx((budget - 100 * MIB) / (per_pair[method] * MIB), abs=1)
        assert need.fits == (need.largest_batch >= 64)
    assert (needs["SHERL"].fits, needs["LoRA"].fits) == (True, False)
    assert all(need.fits is None for need in memory_needs("tiny", 64))


@pytest.mark.slow
def test_the_shipped_table_equals_predictions_made_now(tmp_path: Path, monkeypatch):
    """The line through two batch sizes of the table, against predictions at others."""
    monkeypatch.setenv("VLKIT_CACHE", str(tmp_path))
    memory_module._predicted.cache_clear()
    bench = memory_module._bench("ViT-B-32")
    for batch_size in (24, 56):
        for need in memory_needs("ViT-B-32", batch_size):
            step = bench.memory(bench.model(METHODS[need.method]()), batch_size)
            assert need.kept == pytest.approx(step.saved_bytes, rel=0.02), (need.method, batch_size)
            assert need.total == pytest.approx(step.total_bytes, rel=0.02), (need.method, batch_size)
    # A stored base is predicted at one size and takes the slope of the base in fp32.
    sherl, bench = next(memory_needs("ViT-B-32", 32, base_weights="nf4")), memory_module._bench("ViT-B-32@nf4")
    step = bench.memory(bench.model(METHODS["SHERL"]()), 32)
    assert (sherl.method, sherl.total) == ("SHERL", pytest.approx(step.total_bytes, rel=0.02))


def test_predictions_are_kept_for_the_next_start(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("VLKIT_CACHE", str(tmp_path))
    memory_module._predicted.cache_clear()
    first = memory_module._predicted("tiny", "full", 2)
    (file,) = (tmp_path / "memory").iterdir()
    memory_module._predicted.cache_clear()

    def busy(base: str) -> None:
        raise AssertionError("predicted again")

    monkeypatch.setattr(memory_module, "_bench", busy)
    assert memory_module._predicted("tiny", "full", 2) == first
    file.write_text("{}")
    memory_module._predicted.cache_clear()
    with pytest.raises(AssertionError, match="predicted again"):
        memory_module._predicted("tiny", "full", 2)
    memory_module._predicted.cache_clear()
