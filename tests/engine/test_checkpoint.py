"""Files of trained weights: bit for bit back, whole at any moment, and refused with a reason when they do not fit."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from vlkit.adapters.base import trained_state
from vlkit.engine import checkpoint
from vlkit.engine.checkpoint import State
from vlkit.engine.state import RunState
from vlkit.errors import UserError


class Small(nn.Module):
    """A frozen layer and trained ones."""

    def __init__(self, width: int = 4, extra: bool = False) -> None:
        super().__init__()
        self.base = nn.Linear(3, width).requires_grad_(False)
        self.norm = nn.BatchNorm1d(width)
        self.out = nn.Linear(width, 1)
        self.gate = nn.Parameter(torch.tensor(0.3))
        if extra:
            self.more = nn.Linear(1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3] -> [B, 1]."""
        return self.out(self.norm(self.base(x)) * self.gate)


def state_of_all_dtypes() -> State:
    return State(
        trained={"a": torch.randn(3, 2), "deep/er.b": torch.randn(5).bfloat16(), "count": torch.tensor(7)},
        best={"a": torch.tensor([math.nan, math.inf, -0.0])},
        optimizer={"a/exp_avg": torch.randn(3, 2, dtype=torch.float64), "a/step": torch.tensor(3.0)},
        progress=RunState(step=3, best_score=0.1 + 0.2, best_metrics={"nan": math.nan}),
        identity={"none": None, "nested": {"list": [1, 2]}},
    )


def test_state_comes_back_bit_for_bit(tmp_path):
    state = state_of_all_dtypes()
    checkpoint.save(tmp_path / "checkpoint", state)
    again = checkpoint.load(tmp_path / "checkpoint")
    for group in ("trained", "best", "optimizer"):
        before, after = getattr(state, group), getattr(again, group)
        assert before.keys() == after.keys()
        for name, tensor in before.items():
            assert after[name].dtype == tensor.dtype and after[name].shape == tensor.shape
            assert after[name].flatten().view(torch.uint8).tolist() == tensor.flatten().view(torch.uint8).tolist()
    assert math.isnan(again.progress.best_metrics.pop("nan")) and state.progress.best_metrics.popitem()[0] == "nan"
    assert (again.progress, again.identity) == (state.progress, state.identity)


def test_no_state_yet(tmp_path):
    assert checkpoint.load(tmp_path) is None


def test_views_are_saved_as_they_look(tmp_path):
    whole = torch.arange(12.0).reshape(3, 4)
    checkpoint.save(tmp_path, State(trained={"t": whole.t(), "row": torch.arange(8.0)[2:4]}))
    trained = checkpoint.load(tmp_path).trained
    assert torch.equal(trained["t"], whole.t()) and trained["row"].tolist() == [2, 3]


def test_old_state_stays_until_the_new_one_is_complete(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, State(progress=RunState(step=1)))

    def die_halfway(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
        Path(path).write_bytes(b"half a checkpoint")
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save_file", die_halfway)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(tmp_path, State(progress=RunState(step=2)))
    assert checkpoint.load(tmp_path).progress.step == 1


def test_leftovers_of_a_killed_process_are_removed(tmp_path):
    checkpoint.save(tmp_path, State(progress=RunState(step=1)))
    (tmp_path / f".{checkpoint.STATE_FILE}.x8s.part").write_bytes(b"half")
    checkpoint.remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint.STATE_FILE]


@pytest.mark.parametrize("damage", [b"", b"not safetensors at all", None])
def test_damaged_state_is_named(tmp_path, damage):
    path = tmp_path / checkpoint.STATE_FILE
    checkpoint.save(tmp_path, state_of_all_dtypes())
    path.write_bytes(path.read_bytes()[:-4] if damage is None else damage)
    with pytest.raises(UserError, match=r"state.safetensors: not a checkpoint of vlkit"):
        checkpoint.load(tmp_path)


def test_optimizer_goes_on_as_if_nothing_happened(tmp_path):
    torch.manual_seed(0)
    model = Small()
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    batches = torch.randn(6, 8, 3)

    def new_optimizer() -> torch.optim.Optimizer:
        groups = [{"params": [p for p in parameters.values() if p.ndim == n]} for n in (2, 1, 0)]
        return torch.optim.AdamW(groups, lr=0.1, amsgrad=True)

    def train(optimizer: torch.optim.Optimizer, rows: Tensor) -> None:
        for x in rows:
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()

    optimizer = new_optimizer()
    train(optimizer, batches[:3])
    tensors = checkpoint.optimizer_tensors(optimizer, parameters)
    checkpoint.save(tmp_path, State(trained=trained_state(model), optimizer=tensors))
    train(optimizer, batches[3:])
    expected = checkpoint.copy_trained(model)

    state = checkpoint.load(tmp_path)
    checkpoint.load_trained(model, state.trained)
    optimizer = new_optimizer()
    checkpoint.restore_optimizer(optimizer, parameters, state.optimizer)
    train(optimizer, batches[3:])
    actual = checkpoint.copy_trained(model)
    assert all(torch.equal(actual[name], expected[name]) for name in expected)
    assert not torch.equal(actual["out.weight"], state.trained["out.weight"])


# --- adapters --------------------------------------------------------------------------------------------------------


CONFIG = {
    "task": "toy",
    "base": {"image": {"load": "tiny", "name": "tiny", "fingerprint": "f00"}},
    "adapters": {"image": {"kind": "sherl"}},
}


def test_adapter_folder(tmp_path):
    model = Small()
    checkpoint.save_adapter(tmp_path, model, CONFIG)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["vlkit_adapter.json", "vlkit_adapter.safetensors"]
    read, tensors = checkpoint.load_adapter(tmp_path)
    assert read == {"format": "vlkit-adapter", "format_version": 2, **CONFIG}
    assert set(tensors) == set(trained_state(model)) and not any("base" in name for name in tensors)
    other = Small()
    other.load_state_dict({**other.state_dict(), "base.weight": model.base.weight, "base.bias": model.base.bias})
    checkpoint.load_trained(other, tensors)
    x = torch.randn(5, 3)
    assert torch.equal(other.eval()(x), model.eval()(x))


def test_a_folder_of_format_1_is_read_and_a_newer_one_beside_it_wins(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    for folder in (old, new):
        checkpoint.save_adapter(folder, Small(), {**CONFIG, "made": folder.name})
    config = json.loads((old / "vlkit_adapter.json").read_text())
    (old / "vlkit_adapter.json").unlink()
    (old / "adapter_config.json").write_text(json.dumps({**config, "format_version": 1}))
    tensors = checkpoint.load_file(old / "vlkit_adapter.safetensors")
    (old / "vlkit_adapter.safetensors").rename(old / "adapter_model.safetensors")
    read, found = checkpoint.load_adapter(old)
    assert read["made"] == "old" and all(torch.equal(found[name], tensors[name]) for name in tensors)
    for file in new.iterdir():
        (old / file.name).write_bytes(file.read_bytes())
    assert checkpoint.load_adapter(old)[0]["made"] == "new"
    (old / "vlkit_adapter.json").unlink()
    (old / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"adapter_model\.safetensors is missing"):
        checkpoint.load_adapter(old)
    (old / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(UserError, match=r"adapter_config\.json: field 'format' is not 'vlkit-adapter'"):
        checkpoint.load_adapter(old)


def test_adapter_of_a_model_wrapped_by_fabric(tmp_path):
    from lightning_fabric import Fabric

    fabric = Fabric(accelerator="cpu", devices=1)
    model = Small()
    checkpoint.save_adapter(tmp_path, fabric.setup_module(model), CONFIG)
    assert set(checkpoint.load_adapter(tmp_path)[1]) == set(trained_state(model))


def test_adapter_that_does_not_fit_lists_the_keys():
    tensors = checkpoint.copy_trained(Small(extra=True))
    with pytest.raises(UserError, match=r"unexpected more.bias, more.weight"):
        checkpoint.load_trained(Small(), tensors)
    del tensors["gate"]
    with pytest.raises(UserError, match=r"missing gate; unexpected more.bias"):
        checkpoint.load_trained(Small(), tensors)
    with pytest.raises(UserError, match=r"norm.weight \[4\] for \[6\]"):
        checkpoint.load_trained(Small(width=6), checkpoint.copy_trained(Small()))


def test_refused_adapter_leaves_the_model_alone():
    model, tensors = Small(), checkpoint.copy_trained(Small())
    before = checkpoint.copy_trained(model)
    tensors["out.weight"] = torch.zeros(2, 2)
    with pytest.raises(UserError):
        checkpoint.load_trained(model, tensors)
    assert all(torch.equal(tensor, before[name]) for name, tensor in trained_state(model).items())


def test_another_base_is_refused():
    config = {"base": {"image": {"name": "ViT-B-32", "fingerprint": "abc"}}}
    checkpoint.check_base(config, {"image": {"name": "copy", "fingerprint": "abc"}})
    with pytest.raises(UserError, match=r"runs/x: trained on image base ViT-B-32 with fingerprint abc.*RN50 with 123"):
        checkpoint.check_base(config, {"image": {"name": "RN50", "fingerprint": "123"}}, "runs/x")
    with pytest.raises(UserError, match=r"towers image; the loaded base has image, text"):
        checkpoint.check_base(config, {"image": {}, "text": {}})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"format": "peft"}, "field 'format' is not 'vlkit-adapter'"),
        ({"format_version": 3}, "format_version 3 is not 1 to 2"),
        ({"format_version": True}, "format_version True is not"),
    ],
)
def test_config_of_another_format_is_refused(tmp_path, change, reason):
    checkpoint.save_adapter(tmp_path, Small(), {})
    path = tmp_path / "vlkit_adapter.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError, match=reason):
        checkpoint.load_adapter(tmp_path)


def test_incomplete_adapter_folders(tmp_path):
    with pytest.raises(UserError, match=r"no vlkit_adapter.json there"):
        checkpoint.load_adapter(tmp_path)
    checkpoint.save_adapter(tmp_path, Small(), CONFIG)
    weights = tmp_path / "vlkit_adapter.safetensors"
    weights.write_bytes(weights.read_bytes()[:40])
    with pytest.raises(UserError, match=r"vlkit_adapter.safetensors: cannot be read"):
        checkpoint.load_adapter(tmp_path)
    weights.unlink()
    with pytest.raises(UserError, match=r"vlkit_adapter.safetensors is missing"):
        checkpoint.load_adapter(tmp_path)
