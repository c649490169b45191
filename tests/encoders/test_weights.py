"""Files of weights as people have them: archives of OpenAI, training checkpoints, wrapped names, and what is none."""

from __future__ import annotations

import io
import logging
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from torch import nn

from helpers import tiny
from helpers.architectures import add_small_architectures
from vlkit.encoders.bases import ClipBase
from vlkit.encoders.load import load_base
from vlkit.encoders.torchscript import is_torchscript, read_torchscript
from vlkit.encoders.weights import read_weights
from vlkit.errors import UserError
from vlkit.memory.shapes import shape_base


@pytest.fixture(autouse=True)
def small_architectures(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    add_small_architectures(tmp_path_factory.mktemp("architectures"), monkeypatch)


def model_of(arch: str) -> nn.Module:
    torch.manual_seed(1)
    model = open_clip.create_model(arch).eval()
    tiny.scatter_(model)
    return model


def traced(model: nn.Module, path: Path) -> Path:
    """Write ``model`` as OpenAI publishes its own: a traced archive that carries a size among its tensors."""
    model.register_buffer("input_resolution", torch.tensor(32))
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        module = torch.jit.trace(model, (tiny.images(), tiny.clip_ids()), check_trace=False, strict=False)
        module.save(str(path))
    return path


def assert_same(base: ClipBase, model: nn.Module) -> None:
    """The base's towers give what ``model`` gives."""
    with torch.no_grad():
        for found, expected in (
            (base.image(tiny.images()), model.encode_image(tiny.images())),
            (base.text(tiny.clip_ids()), model.encode_text(tiny.clip_ids())),
        ):
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("arch", ["small-clip", "small-clip-quickgelu"])
def test_openai_archive_brings_quick_gelu_under_either_name(tmp_path: Path, arch: str) -> None:
    model = model_of("small-clip-quickgelu")
    base = load_base(f"{arch}:{traced(model, tmp_path / 'ViT-B-32.pt')}")
    assert_same(base, model)
    plain = model_of("small-clip")
    assert not torch.allclose(plain.encode_image(tiny.images()), model.encode_image(tiny.images()), atol=1e-4)


def test_archive_is_read_as_the_library_reads_it_in_half_precision(tmp_path: Path) -> None:
    model = model_of("small-clip-quickgelu")
    path = traced(model, tmp_path / "archive.pt")
    halved = torch.jit.load(str(path)).half()
    halved.save(str(path))
    tensors, quick_gelu = read_torchscript(path)
    expected = halved.state_dict()
    assert quick_gelu and is_torchscript(path)
    assert set(tensors) == set(expected)
    for name, tensor in tensors.items():
        assert tensor.dtype == expected[name].dtype and torch.equal(tensor, expected[name]), name
    base = load_base(f"small-clip:{path}")
    assert next(base.image.parameters()).dtype == torch.float32
    assert_same(base, model.half().float())


def test_a_traced_gelu_model_stays_one(tmp_path: Path) -> None:
    model = model_of("small-clip")
    tensors, quick_gelu = read_torchscript(traced(model, tmp_path / "archive.pt"))
    assert not quick_gelu and "visual.conv1.weight" in tensors


def test_memory_of_an_archive_is_predicted_with_its_activation(tmp_path: Path) -> None:
    path = traced(model_of("small-clip-quickgelu"), tmp_path / "ViT-B-32.pt")
    names = {type(module).__name__ for module in shape_base(f"small-clip:{path}").image.modules()}
    assert "QuickGELU" in names and "GELU" not in names


WRAPPED: dict[str, Any] = {
    "state_dict": lambda state: {"epoch": 3, "state_dict": state, "loss": torch.tensor(0.1)},
    "model_state_dict": lambda state: {"epoch": 3, "model_state_dict": state, "optimizer_state_dict": {"step": 4}},
    "model": lambda state: {"model": state, "lr": 0.1},
    "nested": lambda state: {"model": {"state_dict": state}},
    "distributed": lambda state: {"state_dict": {f"module.{key}": value for key, value in state.items()}},
    "compiled and distributed": lambda state: {f"_orig_mod.module.{key}": value for key, value in state.items()},
    "bare": lambda state: state,
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_training_checkpoints(tmp_path: Path, kind: str) -> None:
    model = model_of("small-clip")
    torch.save(WRAPPED[kind](model.state_dict()), tmp_path / "checkpoint.pt")
    assert_same(load_base(f"small-clip:{tmp_path / 'checkpoint.pt'}"), model)


def test_old_files_of_torch_are_read(tmp_path: Path) -> None:
    model = model_of("small-clip")
    torch.save(model.state_dict(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert_same(load_base(f"small-clip:{tmp_path / 'old.pt'}"), model)


def test_sizes_of_openai_in_a_state_dict_say_quick_gelu(tmp_path: Path) -> None:
    model = model_of("small-clip-quickgelu")
    state = {**model.state_dict(), "input_resolution": torch.tensor(32), "vocab_size": torch.tensor(49408)}
    torch.save({"model_state_dict": state}, tmp_path / "tuned.pt")
    assert_same(load_base(f"small-clip:{tmp_path / 'tuned.pt'}"), model)


def test_a_file_that_does_not_name_its_activation_is_announced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "weights.pt"
    torch.save(model_of("small-clip").state_dict(), path)
    with caplog.at_level(logging.WARNING):
        load_base(f"small-clip:{path}")
    assert f"give small-clip-quickgelu:{path}" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        load_base(f"small-clip-quickgelu:{path}")
    assert not caplog.text


class _Command:
    """What a hostile file asks for on loading."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return exec, ("raise SystemExit('the file ran')",)


def archive_with(path: Path, pickled: bytes, **records: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/constants.pkl", pickle.dumps((), 2))
        for name, data in records.items():
            archive.writestr(f"archive/data/{name.removeprefix('_')}", data)
    return path


class _Pickler(pickle.Pickler):
    """Writes lists that begin with "storage" as references to records."""

    def persistent_id(self, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) and value[:1] == ["storage"] else None


def pickled(value: Any) -> bytes:
    buffer = io.BytesIO()
    _Pickler(buffer, 2).dump(value)
    return buffer.getvalue()


def test_hostile_and_damaged_archives_are_refused_and_nothing_runs(tmp_path: Path) -> None:
    whole = traced(model_of("small-clip"), tmp_path / "whole.pt").read_bytes()
    (tmp_path / "short.pt").write_bytes(whole[: len(whole) // 2])
    storage = ["storage", torch.FloatStorage, "0", "cpu", 1 << 40]
    files = {
        archive_with(tmp_path / "command.pt", pickle.dumps(_Command(), 2)): "holds other objects than tensors",
        archive_with(tmp_path / "long.pt", pickled(storage), _0=b"1234"): "storage 0 is not 1099511627776 values",
        archive_with(tmp_path / "list.pt", pickled([1, 2])): "missing",
        archive_with(tmp_path / "empty.pt", b""): "cannot be read as a state dict",
        tmp_path / "short.pt": "cannot be read as a state dict",
    }
    for path, message in files.items():
        with pytest.raises(UserError, match=message) as raised:
            load_base(f"small-clip:{path}")
        assert "\n" not in str(raised.value) and str(path) in str(raised.value)


@pytest.mark.parametrize("found", [[1, 2], {1: torch.zeros(2)}, torch.zeros(3)])
def test_what_is_no_state_dict_is_refused(tmp_path: Path, found: Any) -> None:
    torch.save(found, tmp_path / "other.pt")
    with pytest.raises(UserError, match="not a state dict"):
        read_weights(tmp_path / "other.pt", "small-clip")
