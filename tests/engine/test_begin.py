"""``--init``: a run begins with the parts of another adapter that its model has too."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from torch import nn

from vlkit.adapters.base import trained_state
from vlkit.adapters.sherl.options import SherlOptions
from vlkit.encoders.load import load_base
from vlkit.engine.begin import begin_with
from vlkit.engine.checkpoint import save_adapter
from vlkit.errors import UserError
from vlkit.tasks.retrieval.model import build_model
from vlkit.tasks.two_tower import HeadOptions
from vlkit.tasks.video_retrieval.model import VideoHeadOptions
from vlkit.tasks.video_retrieval.model import build_model as build_video_model


@pytest.fixture
def adapter(tmp_path: Path) -> tuple[Path, nn.Module]:
    """A retrieval adapter with weights that no new model has."""
    base = load_base("tiny")
    model = build_model(base, SherlOptions(), HeadOptions())
    with torch.no_grad():
        for number, tensor in enumerate(trained_state(model).values()):
            tensor.fill_(number / 7)
    about = {tower: {"load": "tiny", **identity} for tower, identity in base.identity.items()}
    config = {"task": "retrieval", "base": about, "adapters": {"image": {"kind": "sherl"}}, "preprocess": {}}
    save_adapter(tmp_path, model, config)
    return tmp_path, model


def test_another_task_begins_with_the_adapters_of_the_towers(adapter, caplog) -> None:
    folder, source = adapter
    base = load_base("tiny")
    model = build_video_model(base, SherlOptions(), VideoHeadOptions(temporal="lstm"))
    new = {name: tensor.clone() for name, tensor in trained_state(model).items()}
    with caplog.at_level(logging.INFO):
        begin_with(model, folder, base.identity)
    wanted, found = trained_state(source), trained_state(model)
    for name, tensor in found.items():
        own = wanted.get(name.removeprefix("towers."))
        assert torch.equal(tensor, new[name] if own is None else own), name
    assert sum(name.startswith("towers.image.adapter.") for name in found) > 20
    assert any(name.removeprefix("towers.") not in wanted for name in found)
    assert "begins with its image.adapter" in caplog.text and "; new: temporal" in caplog.text


def test_a_part_of_other_shapes_is_left_out_as_a_whole(adapter) -> None:
    folder, source = adapter
    base = load_base("tiny")
    model = build_model(base, SherlOptions(reduction=2), HeadOptions())
    new = {name: tensor.clone() for name, tensor in trained_state(model).items()}
    begin_with(model, folder, base.identity)
    for name, tensor in trained_state(model).items():
        taken = ".adapter." not in name
        assert torch.equal(tensor, trained_state(source)[name] if taken else new[name]), name


def test_an_adapter_of_another_base_or_method_is_refused(adapter) -> None:
    folder, _ = adapter
    base = load_base("tiny")
    model = build_model(base, SherlOptions(), HeadOptions())
    other = {tower: {**identity, "fingerprint": "other"} for tower, identity in base.identity.items()}
    with pytest.raises(UserError, match=r"trained on .* base .* with fingerprint"):
        begin_with(model, folder, other)
    fit = r"none of its weights fit; this model trains 0, the adapter has .*image\.adapter"
    with pytest.raises(UserError, match=fit):
        begin_with(nn.Sequential(nn.Linear(2, 2)), folder, base.identity)
    with pytest.raises(UserError, match=r"no vlkit_adapter\.json there"):
        begin_with(model, folder / "none", base.identity)
