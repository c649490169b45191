"""The cache of taps: the same numbers as without it, never a wrong row, and clear words when it cannot be had."""

from __future__ import annotations

import errno
import io
import logging
import multiprocessing
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

from helpers.scripts import load_script
from helpers.tiny import clip_ids, images, padded_ids, tiny_bert, tiny_clip, tiny_resnet_clip, tiny_t5, tiny_timm_clip
from vlkit.adapters import ADAPTERS
from vlkit.cli.config import parse
from vlkit.encoders.bases import Preprocess, clip_base
from vlkit.encoders.stage import stage_hf, stage_text, stage_vision
from vlkit.encoders.staged import Stream
from vlkit.engine.distributed import make_fabric
from vlkit.engine.loader import EpochLoader
from vlkit.errors import UserError
from vlkit.number_formats import GROUP
from vlkit.tap_cache import maker as tap_cache
from vlkit.tap_cache import store as tap_store
from vlkit.tap_cache.clips import ClipTapCache
from vlkit.tap_cache.maker import TapCache, check_room
from vlkit.tap_cache.pairs import cached_pairs
from vlkit.tap_cache.rows import RowLayout, TapBatch
from vlkit.tap_cache.store import TapStore, digest
from vlkit.tap_cache.usage import Uses, read_uses
from vlkit.tasks.contrastive import gather_pairs, info_nce
from vlkit.tasks.retrieval.model import build_model
from vlkit.tasks.two_tower import HeadOptions
from vlkit.tasks.video_retrieval import model as video_retrieval
from vlkit.tasks.video_retrieval.data import VideoCollate
from vlkit.tasks.video_retrieval.model import VideoHeadOptions

FABRIC = make_fabric("cpu", "32-true", 0)
PROCESSES = multiprocessing.get_context("fork")
LENGTHS = (5, 9, 3, 12, 7, 4, 9)


def cache_of(encoder, inputs: Tensor, folder: Path, stored: str = "fp32", **key) -> TapCache:
    """A cache whose samples are the rows of ``inputs``."""
    keys = [digest(i) for i in range(len(inputs))]
    base = encoder.base if hasattr(encoder, "base") else encoder

    def load(rows: list[int]) -> Tensor:
        return base.trim(inputs[rows]) if hasattr(base, "trim") else inputs[rows]

    return TapCache("rows", encoder, keys, load, key, folder=folder, stored=stored, fabric=FABRIC)


def through(cache: TapCache, rows: list[int]) -> TapBatch:
    return cache.complete(cache.look_up(rows))


TOWERS = {
    "vit": lambda: (stage_vision(tiny_clip()), images(7)),
    "resnet": lambda: (stage_vision(tiny_resnet_clip()), images(7, 64)),
    "timm vit": lambda: (stage_vision(tiny_timm_clip()), images(7, 160)),
    "eva": lambda: (stage_vision(tiny_timm_clip(name="test_eva" if _has_eva() else "test_vit")), images(7, 160)),
    "clip text": lambda: (stage_text(tiny_clip()), clip_ids(LENGTHS)),
    "text that sees padding": lambda: (stage_text(tiny_clip(text={"no_causal_mask": True})), clip_ids(LENGTHS)),
    "bert": lambda: (stage_hf(tiny_bert()), padded_ids(LENGTHS)),
    "t5": lambda: (stage_hf(tiny_t5()), padded_ids(LENGTHS)),
}
METHODS = {
    "pooled": ("sherl", {"handoff": "pooled", "init": "published"}, "pooled"),
    "tokens": ("sherl", {"handoff": "tokens", "init": "published"}, "tokens"),
    "few taps": ("sherl", {"handoff": "pooled", "taps": (0, 2)}, "pooled"),
    "no late block": ("sherl", {"late": 0, "init": "published"}, "tokens"),
    "linear": ("linear", {}, "tokens"),
}


def _has_eva() -> bool:
    import timm

    return bool(timm.list_models("test_eva"))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("tower", TOWERS)
def test_cached_rows_give_what_the_input_gives(tower, method, tmp_path):
    """Outputs and gradients, for every family of towers and every way to hand over; rows in another order and mixed."""
    kind, options, reads = METHODS[method]
    base, inputs = TOWERS[tower]()
    if base.spatial and method == "few taps":
        options = {"handoff": "pooled", "taps": (1, 3)}
    encoder = ADAPTERS[kind](**options).build(base, reads).eval()
    cache = cache_of(encoder, inputs, tmp_path)
    through(cache, [4, 1])
    rows = [3, 4, 0, 4, 6, 1]
    batch = through(cache, rows)
    assert batch.missing == [3, 0, 6] and len(cache.store) == 5
    again = cache_of(encoder, inputs, tmp_path).look_up(rows)
    assert again.missing == [] and torch.equal(again.data, batch.data)
    assert not any(row[units:].any() for row, units in zip(again.data, again.units.tolist(), strict=True))
    # Texts are tokenized again only where blocks behind the cache need masks that follow from their ids.
    assert (again.ids is not None) == (method == "tokens" and hasattr(base, "trim"))
    for found in (batch, cache.complete(again)):
        encoder.zero_grad()
        x = base.trim(inputs[rows]) if hasattr(base, "trim") else inputs[rows]
        expected, actual = encoder(x), encoder(found)
        view = "tokens" if reads == "tokens" else "pooled"
        real = slice(None) if expected.mask is None or view == "pooled" else expected.mask
        torch.testing.assert_close(getattr(actual, view)[real], getattr(expected, view)[real], rtol=1e-4, atol=5e-5)
        torch.testing.assert_close(actual.pooled, expected.pooled, rtol=1e-5, atol=1e-5)
        if kind == "sherl":
            actual.pooled.square().sum().backward()
            assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.adapter.parameters())
    parts = [encoder(part).pooled for part in cache.complete(again).split(4)]
    torch.testing.assert_close(torch.cat(parts), expected.pooled, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("stored", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("variable", [True, False])
def test_error_of_each_format(stored, variable):
    """fp32 exact; bf16 within 2^-8 of each value; int8 within half a step of its group; masks and lengths exact."""
    generator = torch.Generator().manual_seed(0)
    hidden = [torch.randn(3, 6, 80, generator=generator) * scale for scale in (1e-3, 1.0, 300.0)]
    mask = torch.arange(6) < torch.tensor([[6], [2], [4]])
    hidden[0][1, 0] = 0
    frame = Stream(hidden[0], mask, torch.tensor([5, 1, 3]))
    taps = [frame.replace(hidden=h) for h in hidden[:2]]
    last = frame.replace(hidden=hidden[2])
    layout = RowLayout.of(last, taps, stored, variable)
    data, units, summary = layout.encode(last, taps)
    assert data.shape == (3, 6 if variable else 1, layout.unit) and units.tolist() == (
        [6, 2, 4] if variable else [1] * 3
    )
    batch = TapBatch("rows", layout, [0, 1, 2])
    batch.data, batch.summary = data, summary
    *read, stream = batch.streams(None)
    assert torch.equal(stream.mask, mask) and torch.equal(stream.summary, frame.summary)
    finer = {"fp32": "fp32", "bf16": "fp32", "int8": "bf16"}[stored]
    for got, true, kind in ((read[0], hidden[0], stored), (read[1], hidden[1], stored), (stream, hidden[2], finer)):
        error = (got.hidden - true).abs()
        if kind == "fp32":
            assert error.max() == 0
        elif kind == "bf16":
            assert (error <= true.abs() * 2**-8).all() and error.max() > 0
        else:
            flat = true if variable else true.flatten(1)
            groups = torch.nn.functional.pad(flat, (0, -flat.shape[-1] % GROUP)).unflatten(-1, (-1, GROUP))
            bound = (groups.abs().amax(-1, keepdim=True) / 127 * 0.501).expand_as(groups).flatten(-2)
            assert (error <= bound[..., : flat.shape[-1]].reshape(true.shape) + 1e-12).all() and error.max() > 0


# --- training --------------------------------------------------------------------------------------------------------


class DrawnPairs:
    """26 images with two captions each, one drawn for each epoch."""

    def __init__(self, count: int = 26) -> None:
        self.images, self.decoded = images(count, seed=3), 0
        self.captions = [f"{i % 7} " * (1 + i % 5) + str(i) for i in range(2 * count)]
        self.captions_of = [range(2 * i, 2 * i + 2) for i in range(count)]

    def __len__(self) -> int:
        return len(self.images)

    def choose(self, index: int) -> tuple[int, int]:
        return index, random.choice(self.captions_of[index])

    def identify(self, medium: int) -> list[int]:
        return [medium]

    def load(self, media: list[int]) -> Tensor:
        self.decoded += len(media)
        return self.images[media]

    def __getitem__(self, index: int) -> tuple[Tensor, str, int]:
        medium, caption = self.choose(index)
        return self.images[medium], self.captions[caption], medium


def tokenize(texts: list[str]) -> Tensor:
    """A word or a letter is a token."""
    ids = torch.zeros(len(texts), 12, dtype=torch.int64)
    for row, text in zip(ids, texts, strict=True):
        tokens = [1 + ord(letter) % 60 for letter in text][:11]
        row[: len(tokens) + 1] = torch.tensor([*tokens, 63])
    return ids


def training(cache: Path | None, stored: str = "fp32", pairs: DrawnPairs | None = None, workers: int = 0, **options):
    """Model, loader and a function that trains batches ``start .. stop - 1`` and returns their losses."""
    torch.manual_seed(0)
    pairs = pairs or DrawnPairs()
    identity = {"library": "open_clip", "name": "tiny", "weights": "random"}
    preprocess = Preprocess((32, 32), (0.5,) * 3, (0.5,) * 3)
    base = clip_base(tiny_clip(), "tiny", tokenize, preprocess, identity)
    model = build_model(base, ADAPTERS["sherl"](**options), HeadOptions())
    if cache:
        cached = cached_pairs(cache, stored, pairs, model, base, FABRIC)
        loader = cached.loader(EpochLoader(cached, 8, 0, collate=cached.collate, workers=workers))
    else:

        def collate(examples):
            images, texts, groups = zip(*examples, strict=True)
            return torch.stack(images), base.text.trim(tokenize(list(texts))), torch.tensor(groups)

        loader = EpochLoader(pairs, 8, 0, collate=collate)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)

    def train(start: int, stop: int) -> list[float]:
        losses = []
        for pixels, ids, groups in loader.batches(start, stop):
            images, texts, scale, _ = model(pixels, ids)
            loss = info_nce(gather_pairs(images, texts, groups), scale)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        return losses

    return model, loader, train


@pytest.mark.parametrize("options", [{}, {"handoff": "tokens", "dropout": 0.0, "tap_dtype": "fp32"}])
def test_losses_are_those_without_a_cache(options, tmp_path):
    expected = training(None, **options)[2](0, 9)
    for stored, tolerance in (("fp32", 1e-5), ("bf16", 1e-3), ("int8", 2e-2)):
        for _ in range(2):  # the run that fills the cache, and one that finds it full
            assert training(tmp_path, stored, **options)[2](0, 9) == pytest.approx(expected, abs=tolerance)


def test_filled_cache_needs_no_images_and_no_backbone(tmp_path, monkeypatch):
    first, pairs = training(tmp_path, "bf16"), DrawnPairs()
    expected = first[2](0, 9)
    assert {name: len(cache.store) for name, cache in first[1].caches.items()} == {"image": 26, "text": 52}
    _, loader, train = training(tmp_path, "bf16", pairs)
    pairs.decoded = 0  # one was opened to learn its shape
    for cache in loader.caches.values():
        monkeypatch.setattr(cache, "_read", lambda x: pytest.fail("the early route ran"))
    assert train(0, 9) == expected and pairs.decoded == 0


def test_from_the_second_epoch_on_nothing_is_decoded(tmp_path):
    pairs = DrawnPairs()
    _, _, train = training(tmp_path, pairs=pairs)
    pairs.decoded = 0
    train(0, 3)
    assert pairs.decoded == len(pairs)  # those that the epoch left over as well
    train(3, 9)
    assert pairs.decoded == len(pairs)


def test_hit_rate_is_logged_and_recorded(tmp_path, caplog):
    """24 of the 26 pairs of an epoch are read; the two left over are computed at its end and were not asked for."""
    caplog.set_level(logging.INFO)
    _, loader, train = training(tmp_path)
    train(0, 3)
    folder = loader.caches["image"].store.folder
    assert read_uses(folder) == Uses(24, 24)
    assert "on disk when read: 0.0 % of 24 image rows" in caplog.text
    train(3, 6)
    assert read_uses(folder) == Uses(48, 24)
    training(tmp_path)[2](0, 6)
    assert read_uses(folder) == Uses(96, 24) and read_uses(folder).hit_rate == 0.75
    assert "100.0 % of 48 image rows" in caplog.text
    reading = loader.batches(0, 3)
    next(reading)
    reading.close()  # a run that is stopped within an epoch
    assert read_uses(folder) == Uses(104, 24)


@pytest.mark.parametrize("stored", ["fp32", "int8"])
def test_stopped_and_resumed_run_reads_the_same_bits(stored, tmp_path):
    """The rows that a resumed run finds are those the uninterrupted one made, wherever it was killed."""
    whole = [[x.data for x in batch[:2]] for batch in training(tmp_path / "whole", stored)[1].batches(0, 7)]
    for stop, start in ((2, 1), (3, 2), (4, 0)):
        folder = tmp_path / f"{stored}{stop}"
        list(training(folder, stored)[1].batches(0, stop))
        resumed = training(folder, stored)[1].batches(start, 7)
        for batch, expected in zip(resumed, whole[start:], strict=True):
            assert all(torch.equal(x.data, data) for x, data in zip(batch[:2], expected, strict=True))


def test_background_workers_change_no_number(tmp_path):
    expected = training(tmp_path / "none")[2](0, 7)
    assert training(tmp_path / "two", workers=2)[2](0, 7) == expected
    assert training(tmp_path / "two", workers=2)[2](0, 7) == expected


# --- clips -----------------------------------------------------------------------------------------------------------


class DrawnClips(DrawnPairs):
    """12 clips of 1 to 4 frames."""

    def __init__(self) -> None:
        super().__init__(12)
        generator = torch.Generator().manual_seed(5)
        sizes = [(1 + i % 4, 3, 32, 32) for i in range(12)]
        self.images = [torch.randint(0, 256, size, dtype=torch.uint8, generator=generator) for size in sizes]

    def load(self, media: list[int]) -> list[Tensor]:
        self.decoded += len(media)
        return [self.images[medium] for medium in media]


def clip_training(folder: Path | None, stored: str, pairs: DrawnClips, chunk: int, adapter) -> list[float]:
    """Losses of eight batches, three an epoch."""
    torch.manual_seed(0)
    preprocess = Preprocess((32, 32), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    base = clip_base(tiny_clip(), "tiny", tokenize, preprocess, {"library": "", "name": "", "weights": ""})
    model = video_retrieval.build_model(base, adapter, VideoHeadOptions(temporal="lstm"))
    if folder:
        sampling = {"frames": 4, "sampling": "uniform"}
        options = {"name": "clip", "sampling": sampling, "cache": ClipTapCache}
        cached = cached_pairs(folder, stored, pairs, model.towers, base, FABRIC, **options)
        pairs.decoded = 0
        loader = cached.loader(EpochLoader(cached, 4, 0, collate=cached.collate))
    else:
        loader = EpochLoader(pairs, 4, 0, collate=VideoCollate(tokenize, base.text.trim))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    losses = []
    for frames, ids, groups in loader.batches(0, 8):
        videos, texts, scale = model(frames, ids, chunk)
        loss = info_nce(gather_pairs(videos, texts, groups), scale)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("chunk", [0, 3])
@pytest.mark.parametrize("handoff", ["pooled", "tokens"])
def test_clips(handoff, chunk, tmp_path):
    """As many frames as each clip has, in lots or all at once; decoded once, and never by a second run."""
    adapter = ADAPTERS["sherl"](
        handoff=handoff, **({"dropout": 0.0, "tap_dtype": "fp32"} if handoff == "tokens" else {})
    )
    expected = clip_training(None, "", DrawnClips(), chunk, adapter)
    for stored, tolerance in (("fp32", 1e-5), ("bf16", 1e-3)):
        pairs = DrawnClips()
        first = clip_training(tmp_path, stored, pairs, chunk, adapter)
        assert first == pytest.approx(expected, abs=tolerance) and pairs.decoded == 12
        assert clip_training(tmp_path, stored, pairs, chunk, adapter) == first and pairs.decoded == 0


# --- the disk --------------------------------------------------------------------------------------------------------


def row(i: int, unit: int = 40) -> Tensor:
    """What row ``i`` holds: 1 to 4 units."""
    return torch.randint(0, 256, (1 + i % 4, unit), dtype=torch.uint8, generator=torch.Generator().manual_seed(i))


def write_rows(store: TapStore, numbers: range) -> None:
    rows = [row(i) for i in numbers]
    data = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    units = torch.tensor([len(r) for r in rows])
    store.write([digest(i) for i in numbers], data, units, torch.tensor(list(numbers)))


def check_rows(store: TapStore, count: int) -> int:
    """Every row that the store claims to have must be right; returns how many it has."""
    found = 0
    for i in range(count):
        result = store.read([digest(i)])
        if result is not None:
            assert torch.equal(result[0][0], row(i)) and result[2].item() == i
            found += 1
    return found


def fill_slowly(folder: Path, first: int, count: int) -> None:
    store = TapStore(folder, "rows", {}, 40)
    for start in range(first, first + count, 5):
        write_rows(store, range(start, start + 5))


def test_killed_while_writing(tmp_path):
    """SIGKILL at random moments: whole groups of rows are there, and every one is right."""
    moments, found = random.Random(1), 0
    for _ in range(6):
        child = PROCESSES.Process(target=fill_slowly, args=(tmp_path, 0, 2000))
        child.start()
        while child.is_alive() and not list(tmp_path.glob("*/*.taps")):
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.02))
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        store = TapStore(tmp_path, "rows", {}, 40)
        assert len(store) % 5 == 0 and check_rows(store, 2000) == len(store)
        found = max(found, len(store))
    assert found > 0
    fill_slowly(tmp_path, 0, 100)
    assert check_rows(TapStore(tmp_path, "rows", {}, 40), 100) == 100


@pytest.mark.parametrize("suffix", [".index", ".taps"])
def test_file_cut_off_or_changed_anywhere(suffix, tmp_path, caplog):
    fill_slowly(tmp_path / "good", 0, 20)
    places = random.Random(0)
    name = next((tmp_path / "good").glob(f"*/*{suffix}")).relative_to(tmp_path / "good")
    text = (tmp_path / "good" / name).read_bytes()
    for trial in range(40):
        shutil.rmtree(tmp_path / "bad", ignore_errors=True)
        shutil.copytree(tmp_path / "good", tmp_path / "bad")
        place = places.randrange(len(text))
        changed = text[:place] if trial % 2 else text[:place] + bytes([text[place] ^ 0x41]) + text[place + 1 :]
        (tmp_path / "bad" / name).write_bytes(changed)
        store = TapStore(tmp_path / "bad", "rows", {}, 40)
        assert check_rows(store, 20) < 20
        for i in range(20):  # what is damaged is made anew, and is then good for the next process too
            if digest(i) not in store:
                write_rows(store, range(i, i + 1))
        assert check_rows(store, 20) == check_rows(TapStore(tmp_path / "bad", "rows", {}, 40), 20) == 20
    assert "damaged" in caplog.text


def test_processes_share_a_folder(tmp_path):
    """Two write at the same time, partly the same rows, while a third reads."""
    children = [PROCESSES.Process(target=fill_slowly, args=(tmp_path, first, 600)) for first in (0, 300)]
    store = TapStore(tmp_path, "rows", {}, 40)
    for child in children:
        child.start()
    while any(child.is_alive() for child in children):
        store.refresh()
        check_rows(store, 900)
    assert all(child.exitcode == 0 for child in children)
    store.refresh()
    assert check_rows(store, 900) == len(store) == 900


def test_large_caches_are_several_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(tap_store, "SHARD_BYTES", 1000)
    fill_slowly(tmp_path, 0, 50)
    assert len(list(tmp_path.glob("*/*.taps"))) > 3
    assert check_rows(TapStore(tmp_path, "rows", {}, 40), 50) == 50


def test_another_key_is_another_folder(tmp_path, caplog):
    """Frames, image size, base, taps, number format: any change starts anew, and says so; nothing is deleted."""
    caplog.set_level(logging.INFO)
    base, inputs = TOWERS["vit"]()
    encoder = ADAPTERS["sherl"]().build(base)
    first = cache_of(encoder, inputs, tmp_path, frames=4)
    through(first, [0, 1])
    check_room([first])
    assert "another key" not in caplog.text
    fewer = ADAPTERS["sherl"](taps=(1, 3)).build(base)
    changes = [
        (cache_of(encoder, inputs, tmp_path, frames=8), "frames"),
        (cache_of(encoder, inputs, tmp_path, "bf16", frames=4), "dtype"),
        (cache_of(fewer, inputs, tmp_path, frames=4), "layers"),
    ]
    for other, changed in changes:
        caplog.clear()
        check_room([other])
        assert other.store.folder != first.store.folder and len(other.store) == 0
        assert f"{changed}" in caplog.text and "`vlkit cache`" in caplog.text
    assert len(cache_of(encoder, inputs, tmp_path, frames=4).store) == 2


def test_size_is_told_and_a_full_disk_refused(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    base, inputs = TOWERS["clip text"]()
    cache = cache_of(ADAPTERS["sherl"]().build(base), inputs, tmp_path)
    total, missing = cache.bytes_needed()
    assert total == missing == sum(LENGTHS) * cache.layout.unit
    check_room([cache])
    assert "7 rows rows 0.0 MiB" in caplog.text and "free" in caplog.text
    monkeypatch.setattr(tap_store.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 10**6))
    with pytest.raises(UserError, match=r"--cache .*needs 0.0 MiB more and the disk has 1.0 MiB free"):
        check_room([cache])
    monkeypatch.undo()
    through(cache, list(range(7)))
    assert cache.bytes_needed() == (total, 0)
    written = sum(file.stat().st_size for file in cache.store.folder.glob("*.taps"))
    assert written == total
    monkeypatch.setattr(tap_store.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 0))
    check_room([cache])  # a cache that is full already needs no room


def test_disk_that_fills_up_while_training(tmp_path, monkeypatch):
    fill_slowly(tmp_path, 0, 10)
    store = TapStore(tmp_path, "rows", {}, 40)

    class Full(io.FileIO):
        """A file that takes one row more."""

        rows = 0

        def write(self, data):
            self.rows += 1
            if self.rows > 1:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(data)

    with monkeypatch.context() as patch, pytest.raises(UserError, match="No space left on device"):
        patch.setattr(tap_store, "open", Full, raising=False)
        write_rows(store, range(10, 15))
    assert check_rows(store, 20) == check_rows(TapStore(tmp_path, "rows", {}, 40), 20) == 10
    write_rows(store, range(10, 15))
    assert check_rows(TapStore(tmp_path, "rows", {}, 40), 20) == 15


# --- words -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["lora", "bitfit", "full"])
def test_methods_without_an_early_route_are_refused(kind, tmp_path):
    encoder = ADAPTERS[kind]().build(stage_vision(tiny_clip()))
    with pytest.raises(UserError, match=r"--cache: this --adapter\.kind"):
        cache_of(encoder, images(), tmp_path)


def test_flags_of_video():
    config = load_script("tasks/video_retrieval/train.py").Config
    assert parse(config, ["--cache"]).cache is True
    with pytest.raises(UserError, match="--sampling segment"):
        parse(config, ["--cache", "--sampling", "segment"])


def test_flags():
    config = load_script("tasks/retrieval/train.py").Config
    assert parse(config, []).cache is False
    assert parse(config, ["--cache"]).cache is True and parse(config, ["--cache", "--seed", "1"]).cache is True
    assert parse(config, ["--cache", "false"]).cache is False
    assert parse(config, ["--cache", "some/folder"]).cache == Path("some/folder")
    with pytest.raises(UserError, match=r"--data\.augment flip"):
        parse(config, ["--cache", "--data.augment", "flip"])
    with pytest.raises(UserError, match="cache_dtype"):
        parse(config, ["--cache_dtype", "int4"])


def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(UserError, match=r"--cache .*file"):
        TapStore(tmp_path / "file", "rows", {}, 8)


def test_long_work_says_how_far_it_is(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(tap_cache, "REPORT_SECONDS", -1.0)
    base, inputs = TOWERS["vit"]()
    cache_of(ADAPTERS["linear"]().build(base), inputs, tmp_path).make(range(7))
    assert "7 of 7" in caplog.text
